// What the steps of a chain hand to each other: one row of an image.
#pragma once

#include "../simd/lanes.h"

namespace pyssl::PYSSL_ISA {

// All channels of a row, each `length` floats: its `width` pixels, and zeros or leftovers up to whole vectors.
struct Row {
  float* data;
  int64_t channels, width, length;

  float* channel(int64_t c) const { return data + c * length; }
  int64_t size() const { return channels * length; }
  int64_t coloured() const { return channels >= 3 ? 3 : 1; }  // a fourth is moved and blurred alone
};

constexpr int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

}  // namespace pyssl::PYSSL_ISA
