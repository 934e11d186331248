// Gaussian blur, separable, its borders reflected, row by row: along each row as it comes, then down a ring of such rows.
#pragma once

#include <cmath>

#include "rows.h"

namespace pyssl::PYSSL_ISA {

namespace {

inline int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// out ← Σ half[|d|]·at(d) of vectors at k; so many that their sums stay in registers.
template <int vectors, class At>
inline void convolve_block(float* out, int64_t k, const float* half, int64_t radius, const At& at) {
  vf sum[vectors];
#pragma GCC unroll 8
  for (int u = 0; u < vectors; ++u) sum[u] = half[0] * load(at(0) + k + u * kLanes);
  for (int64_t d = 1; d <= radius; ++d) {
    const float *before = at(-d) + k, *after = at(d) + k;
#pragma GCC unroll 8
    for (int u = 0; u < vectors; ++u) sum[u] += half[d] * (load(before + u * kLanes) + load(after + u * kLanes));
  }
#pragma GCC unroll 8
  for (int u = 0; u < vectors; ++u) store(out + k + u * kLanes, sum[u]);
}

// Over `count` floats, whole vectors.
template <class At>
inline void convolve(float* out, int64_t count, const float* half, int64_t radius, const At& at) {
  int64_t k = 0;
  for (; k + 7 * kLanes <= count; k += 7 * kLanes) convolve_block<7>(out, k, half, radius, at);
  for (; k + kLanes <= count; k += kLanes) convolve_block<1>(out, k, half, radius, at);
}

struct Blur {
  float *half, *middle, *ring;  // [most + 1], [a channel of a row and 2·most], [2·most + 1, row]
  const float** rows;           // [2·most + 1]
  int64_t radius, height, begun;

  // A Gaussian's values at 0 to radius, of which all 2·radius + 1 sum to 1. Those that together are less than 2⁻²⁵ are left
  // out, as float32 would: of 23 taps at σ = 1 eleven remain.
  void begin(double sigma, int64_t taps, int64_t result_height) {
    height = result_height;
    radius = taps / 2;
    const auto value = [&](int64_t d) { return std::exp(-0.5 * (d / sigma) * (d / sigma)); };
    double total = 1;
    for (int64_t d = 1; d <= radius; ++d) total += 2 * value(d);
    for (int64_t d = 0; d <= radius; ++d) half[d] = static_cast<float>(value(d) / total);
    double rest = 0;
    while (radius > 0 && (rest += 2 * value(radius) / total) < 0x1p-25) --radius;
  }

  float* at(int64_t i, int64_t size) const { return ring + i % (2 * radius + 1) * size; }

  // Row i, in order; each(j, row) as soon as row j can be made, in `row`.
  template <class Each>
  void push(int64_t i, const Row& row, const Each& each) {
    float* out = at(i, row.size());
    for (int64_t c = 0; c < row.channels; ++c) {
      float* x = middle + radius;
      __builtin_memcpy(x, row.channel(c), row.length * sizeof(float));
      for (int64_t d = 1; d <= radius; ++d) {
        x[-d] = x[reflected(-d, row.width)];
        x[row.width - 1 + d] = x[reflected(row.width - 1 + d, row.width)];
      }
      convolve(out + c * row.length, row.length, half, radius, [x](int64_t d) { return x + d; });
    }
    if (i >= radius) make(i - radius, row, each);
    if (i == height - 1)
      for (int64_t j = std::max<int64_t>(0, height - radius); j < height; ++j) make(j, row, each);
  }

  template <class Each>
  void make(int64_t j, const Row& row, const Each& each) const {
    const float** middle_row = rows + radius;
    for (int64_t d = -radius; d <= radius; ++d) middle_row[d] = at(reflected(j + d, height), row.size());
    convolve(row.data, row.size(), half, radius, [middle_row](int64_t d) { return middle_row[d]; });
    each(j, row);
  }
};

}  // namespace

}  // namespace pyssl::PYSSL_ISA
