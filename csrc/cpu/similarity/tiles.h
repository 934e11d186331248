// Tile programs: what a tile of S gives in the forward pass, and what weight each of its entries gets in backward.
//
// They read s, the scores of a tile, and think in t = c·s, where c = scale·power·log₂e: logarithms to the base 2. What
// is no pair at all is −∞ in t: `exclude`. The plain case, one term along the rows and one along the columns with the
// same power, takes one exponential per entry for both; `kept_sums` and `kept_weights` do the rest, term by term.
#pragma once

#include <cmath>

#include "../families.h"
#include "../simd/gemm.h"
#include "../simd/vec.h"

namespace pyssl::PYSSL_ISA {

constexpr float kLowest = -1e30f;  // finite: a sum over nothing is 0, not NaN
// What t is per s: never 0, which times the ∞ of an excluded pair is no number; under 1e-30 every t is 0 as well.
static inline float slope(double x) { return static_cast<float>(x) == 0 ? 1e-30f : static_cast<float>(x); }

// As long as exp(−2·bound) is far from subnormal, a bound of |t| serves as every row's stabiliser.
constexpr double kBoundLimit = 40;
constexpr float kSharpest = 1e4f;  // beyond it half an ulp of t shows in 2^t: see scaled()

// ---- which pairs ------------------------------------------------------------------------------------------------------

// Calls f(i, j), relative to the tile, wherever rows I.begin + i and J.begin + j are congruent modulo `samples`; 0: never.
template <class F>
static inline void for_same_sample(Block I, Block J, int64_t samples, const F& f) {
  if (samples == 0) return;
  const int64_t lowest = J.begin - I.end() + 1, highest = J.end() - 1 - I.begin;  // of the row differences
  const int64_t multiple = (highest >= 0 ? highest / samples : -((samples - 1 - highest) / samples)) * samples;
  if (multiple < lowest) return;
  for (int64_t i = 0; i < I.size; ++i) {
    int64_t j = (I.begin + i - J.begin) % samples;
    if (j < 0) j += samples;
    for (; j < J.size; j += samples) f(i, j);
  }
}

// Takes what is no pair out of a tile: rows of one sample, the diagonal among them, and the columns beyond the last one.
static inline void exclude(float* s, Block I, Block J, int64_t samples, float nothing) {
  for_same_sample(I, J, samples, [&](int64_t i, int64_t j) { s[i * kTileStride + j] = nothing; });
  const int64_t padded = round_up(J.size, kLanes);
  if (padded != J.size)
    for (int64_t i = 0; i < I.size; ++i)
      for (int64_t j = J.size; j < padded; ++j) s[i * kTileStride + j] = nothing;
}

// kLanes ids from p, of which `size` are there.
static inline vi load_ids(const int32_t* p, int64_t size) {
  vi x = {};
  if (size >= kLanes)
    __builtin_memcpy(&x, p, sizeof x);
  else
    for (int64_t l = 0; l < size; ++l) x[l] = p[l];
  return x;
}
static inline vf load_some(const float* p, int64_t size) {
  vf x = {};
  if (size >= kLanes)
    __builtin_memcpy(&x, p, sizeof x);
  else
    for (int64_t l = 0; l < size; ++l) x[l] = p[l];
  return x;
}

// Whether a tile can hold a pair of equal ids: blocks of sorted ids, such as row numbers, hardly ever do.
static inline bool ids_overlap(const int32_t* row_ids, Block I, const int32_t* column_ids, Block J) {
  const auto range = [](const int32_t* ids, Block block, int32_t& low, int32_t& high) {
    low = high = ids[block.begin];
    for (int64_t r = block.begin; r < block.end(); ++r) {
      low = ids[r] < low ? ids[r] : low;
      high = ids[r] > high ? ids[r] : high;
    }
  };
  int32_t low_i, high_i, low_j, high_j;
  range(row_ids, I, low_i, high_i);
  range(column_ids, J, low_j, high_j);
  return low_i <= high_j && low_j <= high_i;
}

// Takes the pairs of equal ids out of a tile.
static inline void exclude_ids(float* s, Block I, Block J, const int32_t* row_ids, const int32_t* column_ids,
                               float nothing) {
  if (!ids_overlap(row_ids, I, column_ids, J)) return;
  const vf out = set(nothing);
  for (int64_t j = 0; j < J.size; j += kLanes) {
    const vi ids = load_ids(column_ids + J.begin + j, J.size - j);
    for (int64_t i = 0; i < I.size; ++i) {
      float* at = s + i * kTileStride + j;
      const vi same = ids == row_ids[I.begin + i];
      store(at, same ? out : load(at));
    }
  }
}

// The pairs that a term takes, as a mask per vector. A NaN is kept.
struct Keep {
  const int32_t *row_ids, *column_ids;  // null: no pair is of the same id
  bool same;
  const float* limit;  // in units of power 1; null: none
  bool of_columns;     // the limit's
  float unit;          // of the limit, per s

  vi operator()(vf s, Block I, Block J, int64_t i, int64_t j) const {
    vi keep = vi{} == (row_ids || !same ? 0 : 1);
    if (row_ids) {
      const vi equal = load_ids(column_ids + J.begin + j, J.size - j) == row_ids[I.begin + i];
      keep = same ? equal : ~equal;
    }
    if (limit) {
      const vf most = of_columns ? load_some(limit + J.begin + j, J.size - j) : set(limit[I.begin + i]);
      keep &= ~(s * unit > most);
    }
    return keep;
  }
};

// ---- forward: sums of 2^(t − maximum) ---------------------------------------------------------------------------------

// Sums over a tile under one bound: row[i] and column[j] of 2^(c·s − bound). kRowsAlone: there is no column[].
template <int R, bool kRowsAlone>
static inline void bounded_rows(const float* s, int64_t width, float c, float bound, float* row, float* column) {
  vf sum[R] = {};
  for (int64_t j = 0; j < width; j += kLanes) {
    vf down = kRowsAlone ? vf{} : load(column + j);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vf e = exp2(load(s + r * kTileStride + j) * c - bound);
      sum[r] += e;
      down += e;
    }
    if (!kRowsAlone) store(column + j, down);
  }
  for (int r = 0; r < R; ++r) row[r] = hsum(sum[r]);
}

template <bool kRowsAlone>
static inline void bounded_sums(const float* s, Block I, Block J, float c, float bound, float* row, float* column) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t j = 0; j < width; ++j) column[j] = 0;
  int64_t i = 0;
  for (; i + 4 <= I.size; i += 4) bounded_rows<4, kRowsAlone>(s + i * kTileStride, width, c, bound, row + i, column);
  for (; i < I.size; ++i) bounded_rows<1, kRowsAlone>(s + i * kTileStride, width, c, bound, row + i, column);
}

// The same with each row's and each column's own maximum of c·s over the tile.
template <bool kRowsAlone>
static inline void running_sums(const float* s, Block I, Block J, float c, float* row_max, float* row,
                                float* column_max, float* column) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t j = 0; j < width; ++j) column_max[j] = kLowest, column[j] = 0;
  for (int64_t i = 0; i < I.size; ++i) {
    vf largest = set(kLowest);
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = scaled(load(s + i * kTileStride + j), c);
      largest = max(largest, t);
      if (!kRowsAlone) store(column_max + j, max(load(column_max + j), t));
    }
    row_max[i] = hmax(largest);
  }
  // Where the maxima lie within 80 octaves of each other, the largest serves them all, with one exponential per entry.
  if (!kRowsAlone) {
    float lowest = row_max[0], highest = row_max[0];
    bool all = true;
    const auto look = [&](const float* x, int64_t size) {
      for (int64_t r = 0; r < size; ++r) {
        all &= x[r] > kLowest;  // neither empty nor NaN
        lowest = x[r] < lowest ? x[r] : lowest;
        highest = x[r] > highest ? x[r] : highest;
      }
    };
    look(row_max, I.size);
    look(column_max, J.size);
    if (all && highest - lowest <= 80 && std::fabs(highest) < kSharpest) {
      bounded_sums<false>(s, I, J, c, highest, row, column);
      for (int64_t i = 0; i < I.size; ++i) row_max[i] = highest;
      for (int64_t j = 0; j < J.size; ++j) column_max[j] = highest;
      return;
    }
  }
  for (int64_t i = 0; i < I.size; ++i) {
    vf sum = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = scaled(load(s + i * kTileStride + j), c);
      sum += exp2(t - row_max[i]);
      if (!kRowsAlone) store(column + j, load(column + j) + exp2(t - load(column_max + j)));
    }
    row[i] = hsum(sum);
  }
}

// One term along one direction, over the pairs that it keeps. kBounded: relative to `bound`, and there is no maximum[].
template <bool kColumns, bool kBounded>
static inline void kept_sums(const float* s, Block I, Block J, float c, float bound, const Keep& keep, float* maximum,
                             float* sum) {
  const int64_t width = round_up(J.size, kLanes);
  const auto at = [&](int64_t i, int64_t j) {
    const vf x = load(s + i * kTileStride + j);
    return keep(x, I, J, i, j) ? scaled(x, c) : set(-INFINITY);
  };
  if (kColumns)
    for (int64_t j = 0; j < width; ++j) sum[j] = 0;
  if (!kBounded) {
    if (kColumns)
      for (int64_t j = 0; j < width; ++j) maximum[j] = kLowest;
    for (int64_t i = 0; i < I.size; ++i) {
      vf largest = set(kLowest);
      for (int64_t j = 0; j < width; j += kLanes) {
        if (kColumns)
          store(maximum + j, max(load(maximum + j), at(i, j)));
        else
          largest = max(largest, at(i, j));
      }
      if (!kColumns) maximum[i] = hmax(largest);
    }
  }
  for (int64_t i = 0; i < I.size; ++i) {
    vf total = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      if (kColumns)
        store(sum + j, load(sum + j) + exp2(at(i, j) - (kBounded ? set(bound) : load(maximum + j))));
      else
        total += exp2(at(i, j) - (kBounded ? bound : maximum[i]));
    }
    if (!kColumns) sum[i] = hsum(total);
  }
}

// sum·2^maximum += tile_sum·2^tile_max
static inline void merge(double& sum, float& maximum, float tile_sum, float tile_max) {
  const float larger = tile_max > maximum ? tile_max : maximum;
  sum = sum * std::exp2(double(maximum) - larger) + tile_sum * std::exp2(double(tile_max) - larger);
  maximum = larger;
}

// Of the pairs that are kept and not excluded: the largest unit·s, their sum and their number, along one direction.
template <bool kColumns>
static inline void kept_statistics(const float* s, Block I, Block J, float unit, float nothing, const Keep& keep,
                                   float* largest, float* sum, float* count) {
  const int64_t width = round_up(J.size, kLanes), lines = kColumns ? width : I.size;
  for (int64_t r = 0; r < lines; ++r) largest[r] = -INFINITY, sum[r] = count[r] = 0;
  for (int64_t i = 0; i < I.size; ++i) {
    vf most = set(-INFINITY), total = {}, number = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      if (kColumns) most = load(largest + j), total = load(sum + j), number = load(count + j);
      const vf score = load(s + i * kTileStride + j), x = score * unit;
      const vi kept = keep(score, I, J, i, j) & ~(score == set(nothing));
      most = max(most, kept ? x : set(-INFINITY));
      total += kept ? x : vf{};
      number += kept ? set(1.f) : vf{};
      if (kColumns) store(largest + j, most), store(sum + j, total), store(count + j, number);
    }
    if (!kColumns) largest[i] = hmax(most), sum[i] = hsum(total), count[i] = hsum(number);
  }
}

// Adds what kept_statistics found to [3, length] statistics.
static inline void add_statistics(double* statistics, int64_t length, Block block, const float* largest,
                                  const float* sum, const float* count) {
  for (int64_t r = 0; r < block.size; ++r) {
    double* at = statistics + block.begin + r;
    at[length] += sum[r];
    // A maximum loses a NaN, a sum shows it.
    at[0] = at[length] != at[length] ? at[length] : largest[r] > at[0] ? largest[r] : at[0];
    at[2 * length] += count[r];
  }
}

// ---- backward: W = Σ over the terms of factor·2^(t − reference) ---------------------------------------------------------

// One term along one direction: for every row, or every column, what its exponentials are relative to, and their factor.
struct Weight {
  bool columns;
  float c;
  Keep keep;
  const float *reference, *factor;
};

// One term along each direction with the same c, one reference for all.
static inline void bounded_weights(float* s, Block I, Block J, float c, float bound, const float* factor_i,
                                   const float* factor_j) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t i = 0; i < I.size; ++i) {
    float* w = s + i * kTileStride;
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; j += kLanes)
      store(w + j, exp2(load(w + j) * c - bound) * (factor_i[i] + load(factor_j + j)));
  }
}

// The same with references of their own, at which no t is larger: lines [2, kBlock] are room.
static inline void running_weights(float* s, Block I, Block J, float c, const float* reference_i, const float* factor_i,
                                   const float* reference_j, const float* factor_j, float* lines) {
  float lowest = INFINITY, highest = -INFINITY;
  const auto look = [&](const float* reference, const float* factor, int64_t size) {
    for (int64_t r = 0; r < size; ++r) {
      if (factor[r] == 0) continue;
      lowest = reference[r] < lowest ? reference[r] : lowest;
      highest = reference[r] > highest ? reference[r] : highest;
    }
  };
  look(reference_i, factor_i, I.size);
  look(reference_j, factor_j, J.size);
  if (highest < lowest) lowest = highest = 0;  // no factor but 0
  // As in running_sums: what is lost lies 46 octaves below the largest weight of its row.
  if (highest - lowest <= 80 && std::fabs(highest) < kSharpest) {
    float *adjusted_i = lines, *adjusted_j = lines + kBlock;
    for (int64_t i = 0; i < I.size; ++i)
      adjusted_i[i] = factor_i[i] == 0 ? 0 : factor_i[i] * std::exp2(highest - reference_i[i]);
    for (int64_t j = 0; j < round_up(J.size, kLanes); ++j)
      adjusted_j[j] = j >= J.size || factor_j[j] == 0 ? 0 : factor_j[j] * std::exp2(highest - reference_j[j]);
    return bounded_weights(s, I, J, c, highest, adjusted_i, adjusted_j);
  }
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t i = 0; i < I.size; ++i) {
    float* w = s + i * kTileStride;
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = scaled(load(w + j), c);
      store(w + j, exp2(t - reference_i[i]) * factor_i[i] + exp2(t - load(reference_j + j)) * load(factor_j + j));
    }
  }
}

// Terms with the same c, over the pairs that each keeps, with one reference for all: one exponential serves them.
static inline void bounded_kept_weights(float* s, Block I, Block J, float c, float bound, const Weight* weights,
                                        int count) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t i = 0; i < I.size; ++i) {
    float* w = s + i * kTileStride;
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf x = load(w + j);
      vf factors = {};
      for (int n = 0; n < count; ++n) {
        const Weight& weight = weights[n];
        const vf factor = weight.columns ? load(weight.factor + J.begin + j) : set(weight.factor[I.begin + i]);
        factors += weight.keep(x, I, J, i, j) ? factor : vf{};
      }
      store(w + j, exp2(scaled(x, c) - bound) * factors);
    }
  }
}

// Any terms, over the pairs that each keeps.
static inline void kept_weights(float* s, Block I, Block J, const Weight* weights, int count) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t i = 0; i < I.size; ++i) {
    float* w = s + i * kTileStride;
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf x = load(w + j);
      vf sum = {};
      for (int n = 0; n < count; ++n) {
        const Weight& weight = weights[n];
        const vi kept = weight.keep(x, I, J, i, j);
        const vf reference = weight.columns ? load(weight.reference + J.begin + j) : set(weight.reference[I.begin + i]);
        const vf factor = weight.columns ? load(weight.factor + J.begin + j) : set(weight.factor[I.begin + i]);
        sum += kept ? exp2(scaled(x, weight.c) - reference) * factor : vf{};
      }
      store(w + j, sum);
    }
  }
}

}  // namespace pyssl::PYSSL_ISA
