// A group of columns of a view: read once, then worked on in the second-level cache.
//
// A group is kGroup columns in strips of kPanel, a micro-tile's width: [kStrips][rows][kPanel]. A strip is what the
// products read from either side, and its columns' sums stay in registers. Columns beyond the last are 0, and so are their results.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../parallel.h"
#include "../simd/gemm.h"
#include "../simd/rows.h"

namespace pyssl::PYSSL_ISA {

constexpr int64_t kGroup = kRowPadding;
constexpr int64_t kStrips = kGroup / kPanel;

constexpr int kWides = kPanel / kWide;  // vectors of doubles in a strip's row

static inline int64_t groups(int64_t dim) { return (dim + kGroup - 1) / kGroup; }

struct Shape {
  explicit Shape(const Views& views)
      : rows(views.view[0].rows),
        dim(views.view[0].dim),
        views(views.count()),
        by_rows(rows < dim),
        size(by_rows ? rows : dim) {}
  const int64_t rows, dim;
  const int views;
  const bool by_rows;  // the side that is built
  const int64_t size;  // of its matrix
};

// View v at a position.
static inline Matrix at(const Views& views, int v, int64_t position) {
  Matrix x = views.view[v];
  x.data = static_cast<char*>(x.data) + position * views.position_stride[v] * size_of(x.dtype);
  return x;
}

// Of what will be written: all positions of a view.
static inline void prefer_huge_pages(const Views& views, int v) {
  const Matrix& x = views.view[v];
  if (x.data) prefer_huge_pages(x.data, x.rows * x.stride * size_of(x.dtype));
}

// Columns [first, first + kGroup) of x as floats.
static inline void load_group(const Matrix& x, int64_t first, float* group) {
  const int64_t width = std::min(kGroup, x.dim - first);
  Matrix part = x;
  part.data = static_cast<char*>(x.data) + first * size_of(x.dtype);
  float row[kGroup] = {};
  for (int64_t n = 0; n < x.rows; ++n) {
    const float* from = row;
    if (x.dtype == Dtype::float32 && width == kGroup)
      from = static_cast<const float*>(part.data) + n * x.stride;
    else
      load_row(part, n, width, row);
    for (int64_t s = 0; s < kStrips; ++s)
      __builtin_memcpy(group + (s * x.rows + n) * kPanel, from + s * kPanel, kPanel * 4);
  }
}

// Where columns [first, first + kPanel) of x are written: into x itself where they are whole and floats, else by way of
// room [rows, kPanel].
struct StripOut {
  StripOut(const Matrix& x, int64_t first, float* room) : part_(x), width_(std::min(kPanel, x.dim - first)) {
    part_.data = static_cast<char*>(x.data) + first * size_of(x.dtype);
    const bool direct = x.dtype == Dtype::float32 && width_ == kPanel;
    data = direct ? static_cast<float*>(part_.data) : room;
    stride = direct ? x.stride : kPanel;
  }
  // After all has been written.
  void finish() const {
    if (data == part_.data) return;
    for (int64_t n = 0; n < part_.rows; ++n) store_row(part_, n, width_, data + n * kPanel);
  }

  float* data;  // row n at data + n·stride
  int64_t stride;

 private:
  Matrix part_;
  int64_t width_;
};

// out [kPanel] = Σ_n f(n, w), f giving the terms of vector w of row n.
template <class F>
static inline void sum_strip(int64_t rows, double* out, const F& f) {
  vd sum[kWides] = {};
  for (int64_t n = 0; n < rows; ++n) {
#pragma GCC unroll 16
    for (int w = 0; w < kWides; ++w) sum[w] += f(n, w);
  }
  for (int w = 0; w < kWides; ++w) store(out + w * kWide, sum[w]);
}

// mean, square [kGroup] of a group: Σ x / rows and Σ (x − mean)², in double.
static inline void moments(const float* group, int64_t rows, double* mean, double* square) {
  for (int64_t s = 0; s < kStrips; ++s, mean += kPanel, square += kPanel, group += rows * kPanel) {
    sum_strip(rows, mean, [&](int64_t n, int w) { return widen(group + n * kPanel + w * kWide); });
    for (int64_t l = 0; l < kPanel; ++l) mean[l] /= static_cast<double>(rows);
    sum_strip(rows, square, [&](int64_t n, int w) {
      const vd a = widen(group + n * kPanel + w * kWide) - load(mean + w * kWide);
      return a * a;
    });
  }
}

// out = (group − mean)·weight, rounded once. weight: [kGroup], or null for 1.
template <class T>
static inline void centre(const float* group, int64_t rows, const double* mean, const double* weight, T* out) {
  for (int64_t s = 0; s < kStrips; ++s)
    for (int64_t n = 0; n < rows; ++n) {
#pragma GCC unroll 16
      for (int w = 0; w < kWides; ++w) {
        const int64_t column = s * kPanel + w * kWide, i = (s * rows + n) * kPanel + w * kWide;
        const vd a = widen(group + i) - load(mean + column);
        narrow(out + i, weight ? a * load(weight + column) : a);
      }
    }
}

// out [kGroup] = Σ a·b of every column.
template <class T>
static inline void products_of_columns(const T* a, const T* b, int64_t rows, double* out) {
  for (int64_t s = 0; s < kStrips; ++s)
    sum_strip(rows, out + s * kPanel, [&](int64_t n, int w) {
      const int64_t i = (s * rows + n) * kPanel + w * kWide;
      return widen(a + i) * widen(b + i);
    });
}

// weight [kGroup] of columns with these squares: 1/√(variance + eps), 0 for a column without both.
static inline void normalizing(const double* square, int64_t rows, double eps, double* weight) {
  for (int64_t l = 0; l < kGroup; ++l) {
    const double variance = square[l] / static_cast<double>(rows) + eps;
    weight[l] = variance == 0 ? 0 : 1 / std::sqrt(variance);
  }
}

// ---- when floats do not do -------------------------------------------------------------------------------------------

// On the rows' side the off-diagonal part is the difference of T = ‖AAᵀ‖² and Δ = Σ square², and its gradient that of
// AAᵀA and A·square. Where columns are about alike, T ≥ tr²/(N − 1) keeps them apart; one heavy column does not: scaled
// ×30 among 8,192, N = 256, the float gradient is 5e-6 wrong, ×1e3 value and gradient 1e-3. Then all is done in double,
// and without the columns that are too much for it. A gradient is about tr/N times its column, and that of a heavy column
// may cancel whole: what is left is its square^1.5 roundings beside tr/N·√(tr/D), the others' gradient. 1e-7 (at worst
// 3.5e-7) of that ratio was measured as error.
constexpr double kLeastShare = 0.1;  // of T that must be left
constexpr double kHeaviest = 6;      // of that ratio; 1 at most where all columns are alike

// Whether columns with these squares need double from the start.
static inline bool uneven(const double* square, int64_t dim, int64_t rows) {
  double most = 0, sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    most = std::max(most, square[d]);
    sum += square[d];
  }
  return most * std::sqrt(most) * static_cast<double>(rows) >
         kHeaviest * sum * std::sqrt(sum / static_cast<double>(dim));
}

// Whether their cubes leave the range of floats.
static inline bool out_of_range(const double* square, int64_t dim) {
  const double most = *std::max_element(square, square + dim);
  return most > 1e20 || (most < 1e-20 && most > 0);
}

// Double loses 1e-16·T, and T is about square² of the heaviest column. Of what is left, 2·Σ_j C_hj², that was 2e-5 with
// one column ×1e6 among 50, 0.4 with ×1e8 among 2,048, and all where the others are constant. So in double the few columns
// that outweigh all others together are not in AAᵀ: see Heavy. More than kMostHeavy correlate among themselves, as
// random ones do, and much is left; nine or more that do not are lost, as they are in eager's float32.
constexpr int64_t kMostHeavy = 8;

// The most columns, the heaviest first, each of which outweighs all but these; none where a square is no number.
static inline std::vector<int64_t> heaviest(const double* square, int64_t dim) {
  if (!std::isfinite(std::accumulate(square, square + dim, 0.0))) return {};
  std::vector<int64_t> order(dim);
  std::iota(order.begin(), order.end(), 0);
  int64_t count = std::min(kMostHeavy, dim);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](int64_t a, int64_t b) { return square[a] > square[b]; });
  double rest = 0;
  for (int64_t d = count; d < dim; ++d) rest += square[order[d]];
  while (count > 0 && square[order[count - 1]] <= rest) rest += square[order[--count]];
  return {order.begin(), order.begin() + count};
}

}  // namespace pyssl::PYSSL_ISA
