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

// Two rows at once: what lies d below the first lies d − 1 below the second, so that each row of the ring is read once for
// both. first, second ← Σ half[|d|]·rows[d], Σ half[|d|]·rows[d + 1].
template <int vectors>
inline void convolve_pair(float* first, float* second, int64_t k, const float* half, int64_t radius,
                          const float* const* rows) {
  vf sum[2][vectors], above[vectors], below[vectors];
#pragma GCC unroll 8
  for (int u = 0; u < vectors; ++u) {
    above[u] = load(rows[0] + k + u * kLanes), below[u] = load(rows[1] + k + u * kLanes);
    sum[0][u] = half[0] * above[u], sum[1][u] = half[0] * below[u];
  }
  for (int64_t d = 1; d <= radius; ++d) {
    const float *up = rows[-d] + k, *down = rows[d + 1] + k, w = half[d];
#pragma GCC unroll 8
    for (int u = 0; u < vectors; ++u) {
      const vf before = load(up + u * kLanes), after = load(down + u * kLanes);
      sum[0][u] += w * (before + below[u]);
      sum[1][u] += w * (above[u] + after);
      above[u] = before, below[u] = after;
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < vectors; ++u) store(first + k + u * kLanes, sum[0][u]), store(second + k + u * kLanes, sum[1][u]);
}

struct Blur {
  float *half, *middle, *ring, *second;  // [most + 1], [a channel of a row and 2·most], [2·most + 2, row], [row]
  const float** rows;                    // [2·most + 2]
  int64_t radius, height, done;

  // A Gaussian's values at 0 to radius, of which all 2·radius + 1 sum to 1. Those that together are less than 2⁻²⁵ are left
  // out, as float32 would: of 23 taps at σ = 1 eleven remain.
  void begin(double sigma, int64_t taps, int64_t result_height) {
    height = result_height;
    done = 0;
    radius = taps / 2;
    const auto value = [&](int64_t d) { return std::exp(-0.5 * (d / sigma) * (d / sigma)); };
    double total = 1;
    for (int64_t d = 1; d <= radius; ++d) total += 2 * value(d);
    for (int64_t d = 0; d <= radius; ++d) half[d] = static_cast<float>(value(d) / total);
    double rest = 0;
    while (radius > 0 && (rest += 2 * value(radius) / total) < 0x1p-25) --radius;
  }

  // Row i, in order; each(j, row) for every row j, in order, as soon as it can be made, in `row` or `second`.
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
    const int64_t ready = i == height - 1 ? height : i + 1 - radius;
    for (; done + 2 <= ready; done += 2) make_two(row, each);
    if (done < ready && ready == height) make_one(row, each);
  }

 private:
  float* at(int64_t i, int64_t size) const { return ring + i % (2 * radius + 2) * size; }

  const float** around(int64_t count, int64_t size) const {
    for (int64_t d = -radius; d < radius + count; ++d) rows[radius + d] = at(reflected(done + d, height), size);
    return rows + radius;
  }

  template <class Each>
  void make_two(const Row& row, const Each& each) const {
    constexpr int kTogether = kLanes == 16 ? 4 : 2;  // vectors whose sums and neighbours stay in 32 or 16 registers
    const float** from = around(2, row.size());
    int64_t k = 0;
    for (; k + kTogether * kLanes <= row.size(); k += kTogether * kLanes)
      convolve_pair<kTogether>(row.data, second, k, half, radius, from);
    for (; k < row.size(); k += kLanes) convolve_pair<1>(row.data, second, k, half, radius, from);
    each(done, row);
    each(done + 1, Row{second, row.channels, row.width, row.length});
  }

  template <class Each>
  void make_one(const Row& row, const Each& each) const {
    const float** from = around(1, row.size());
    convolve(row.data, row.size(), half, radius, [from](int64_t d) { return from[d]; });
    each(done, row);
  }
};

}  // namespace

}  // namespace pyssl::PYSSL_ISA
