// An affine map of a whole image, bilinear, zeros outside.
#pragma once

#include <cmath>

#include "rows.h"

namespace pyssl::PYSSL_ISA {

namespace {

// The planes have a border of zeros, as wide as a clamped place and its neighbour reach: one before, two after.
struct Mover {
  float* planes;           // [channels, height + 3, stride]
  int64_t height, stride;  // stride: a row's width + 3 or more
  int32_t* offset;         // of a row, [stride] each
  float *across, *below;

  static int64_t stride_for(int64_t width) { return rounded_up(width + 3, kLanes); }

  float* plane(int64_t c) const { return planes + c * (height + 3) * stride; }

  void begin(int64_t channels) const {
    for (int64_t c = 0; c < channels; ++c) {
      std::fill_n(plane(c), stride, 0.f);
      std::fill_n(plane(c) + (height + 1) * stride, 2 * stride, 0.f);
    }
  }

  void put(int64_t i, const Row& row) const {
    for (int64_t c = 0; c < row.channels; ++c) {
      float* to = plane(c) + (i + 1) * stride;
      to[0] = 0;
      __builtin_memcpy(to + 1, row.channel(c), row.width * sizeof(float));
      std::fill(to + 1 + row.width, to + stride, 0.f);
    }
  }

  // Row i of the moved image.
  void get(int64_t i, const Sample& s, const Row& row) const {
    const double right = 0.5 * (row.width - 1), bottom = 0.5 * (height - 1), y = i - bottom;
    const double most_x = static_cast<double>(row.width), most_y = static_cast<double>(height);
    const double x_0 = s.matrix[1] * y + s.matrix[2] + right - s.matrix[0] * right;
    const double y_0 = s.matrix[4] * y + s.matrix[5] + bottom - s.matrix[3] * right;
    for (int64_t j = 0; j < row.width; ++j) {
      const double at_x = std::min(std::max(s.matrix[0] * j + x_0, -1.0), most_x);
      const double at_y = std::min(std::max(s.matrix[3] * j + y_0, -1.0), most_y);
      const double left = std::floor(at_x), top = std::floor(at_y);
      offset[j] = static_cast<int32_t>(top + 1) * static_cast<int32_t>(stride) + static_cast<int32_t>(left + 1);
      across[j] = static_cast<float>(at_x - left);
      below[j] = static_cast<float>(at_y - top);
    }
    for (int64_t c = 0; c < row.channels; ++c) {
      const float* from = plane(c);
      float* __restrict to = row.channel(c);
      for (int64_t j = 0; j < row.width; ++j) {
        const float *upper = from + offset[j], *lower = upper + stride;
        const float first = upper[0] * (1 - across[j]) + upper[1] * across[j];
        const float second = lower[0] * (1 - across[j]) + lower[1] * across[j];
        to[j] = first * (1 - below[j]) + second * below[j];
      }
    }
  }
};

}  // namespace

}  // namespace pyssl::PYSSL_ISA
