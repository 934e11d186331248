// Both sides of C = AᵀB: the rows' matrix AAᵀ [N, N] or the columns' [D, D], in tiles, and what a group of columns
// becomes when it is multiplied from the left.
#pragma once

#include "../similarity/blocks.h"
#include "columns.h"

namespace pyssl::PYSSL_ISA {

// K-steps of a product: a panel of 48 × 128 floats, or 48 × 64 doubles, is 24 KB, half of a first-level cache.
template <class T>
constexpr int64_t kSteps = 512 / sizeof(T);

// c [kRows, kPanel] (+)= A B; doubles take two micro-tiles.
template <class T>
static inline void panel_tile(const T* a, int64_t rs, int64_t ps, const T* b, int64_t k, T* c, int64_t ldc, bool add,
                              int64_t parts = 1, int64_t part = 0) {
  constexpr int64_t kWidth = kVectors * kLanes * 4 / sizeof(T);
  for (int64_t l = 0; l < kPanel; l += kWidth)
    micro_tile<kVectors>(a, rs, ps, b + l, kPanel, k, c + l, ldc, add, parts, part);
}

// ---- the matrix of one side -----------------------------------------------------------------------------------------

// U [count, depth] in panels of kPanel of its rows, transposed: [count/kPanel][depth][kPanel]. U is A on the rows' side,
// Aᵀ on the columns' side, where a strip is a panel.
template <class T>
class Side {
 public:
  Side(bool by_rows, int64_t rows, int64_t dim)
      : by_rows_(by_rows),
        rows_(rows),
        depth_(by_rows ? groups(dim) * kGroup : rows),
        panels_(by_rows ? round_up(rows, kPanel) / kPanel : groups(dim) * kStrips),
        store_(panels_ * depth_ * kPanel * int64_t{sizeof(T)}) {}

  // Where the strips of a group stand on the columns' side.
  T* strips(int64_t group) const { return panel(group * kStrips); }

  // Takes a group of columns on the rows' side.
  void take(int64_t group, const T* strips) const {
    for (int64_t p = 0; p < panels_; ++p) {
      const int64_t count = std::min(kPanel, rows_ - p * kPanel);
      for (int64_t s = 0; s < kStrips; ++s) {
        const T* from = strips + (s * rows_ + p * kPanel) * kPanel;
        T* to = panel(p) + (group * kGroup + s * kPanel) * kPanel;
        for (int64_t c = 0; c < kPanel; ++c) {
          for (int64_t r = 0; r < count; ++r) to[c * kPanel + r] = from[r * kPanel + c];
          for (int64_t r = count; r < kPanel; ++r) to[c * kPanel + r] = 0;
        }
      }
    }
  }

  // Column d on the rows' side becomes 0. Its values: into out [panels·kPanel].
  void take_out(int64_t d, double* out) {
    for (int64_t p = 0; p < panels_; ++p, out += kPanel) {
      T* values = panel(p) + d * kPanel;
      std::copy(values, values + std::min(kPanel, rows_ - p * kPanel), out);
      std::fill(values, values + kPanel, T{0});
    }
  }

  // Column d · other [panels·kPanel].
  double product(int64_t d, const double* other) const {
    vd sum[kWides] = {};
    for (int64_t p = 0; p < panels_; ++p)
      for (int w = 0; w < kWides; ++w)
        sum[w] += widen(panel(p) + d * kPanel + w * kWide) * load(other + p * kPanel + w * kWide);
    double total = 0;
    for (const vd& s : sum)
      for (int l = 0; l < kWide; ++l) total += s[l];
    return total;
  }

  // s [I, J] = U_I V_Jᵀ, a tile; of one on the diagonal the lower triangle is enough.
  void scores(Block I, const Side& v, Block J, bool lower, T* s) const {
    for (int64_t k = 0; k < depth_; k += kSteps<T>) {
      const int64_t steps = std::min(kSteps<T>, depth_ - k);
      for (int64_t j = 0; j < J.size; j += kPanel) {
        const T* b = v.panel((J.begin + j) / kPanel) + k * kPanel;
        const char* next = reinterpret_cast<const char*>(b + (j + kPanel < J.size ? kPanel * depth_ : 0));
        for (int64_t i = 0; i < I.size; i += kRows) {
          prefetch_part(next, kPanel * steps * int64_t{sizeof(T)}, I.size / kRows + 1);
          if (lower && i + kRows <= j) continue;
          const T* a = panel((I.begin + i) / kPanel) + k * kPanel + (I.begin + i) % kPanel;
          panel_tile(a, 1, kPanel, b, steps, s + i * kTileStride + j, kTileStride, k > 0);
        }
      }
    }
  }

 private:
  T* panel(int64_t p) const { return store_.template as<T>() + p * depth_ * kPanel; }

  const bool by_rows_;
  const int64_t rows_, depth_, panels_;
  Scratch store_;
};

// The heaviest columns H, taken out of AAᵀ. With R the others,
//   off = off(R) + 2·Σ_{h,r} C_hr² + Σ_{h≠h'} C_hh'²,   A·C_off = RRᵀA − R·square + Σ_h h·(hᵀA, 0 at h itself):
// the squares of H, which the others are lost beside, are nowhere.
class Heavy {
 public:
  Heavy() = default;
  Heavy(Side<double>& side, const double* square, int64_t rows, int64_t dim)
      : columns_(heaviest(square, dim)), stride_(round_up(rows, kPanel)), values_(columns_.size() * stride_) {
    for (int64_t h = 0; h < count(); ++h) {
      side.take_out(columns_[h], &values_[h * stride_]);
      for (int64_t later = h + 1; later < count(); ++later) {
        const double c = side.product(columns_[later], column(h));
        own_ += 2 * c * c;
      }
    }
  }

  bool has(int64_t d) const { return std::find(columns_.begin(), columns_.end(), d) != columns_.end(); }

  // Σ_{h≠h'} C_hh'².
  double own() const { return own_; }

  // 2·Σ_h C_hd² of column d of the others; of one of H 0, as the side has it.
  double with(const Side<double>& side, int64_t d) const {
    double total = 0;
    for (int64_t h = 0; h < count(); ++h) {
      const double c = side.product(d, column(h));
      total += 2 * c * c;
    }
    return total;
  }

  // out [rows, kPanel] += Σ_h h·(hᵀ strip, 0 at h itself). first: the strip's column.
  template <class T>
  void add_to(T* out, const T* strip, int64_t first, int64_t rows) const {
    for (int64_t h = 0; h < count(); ++h) {
      const double* value = column(h);
      double products[kPanel];
      sum_strip(rows, products, [&](int64_t n, int w) { return value[n] * widen(strip + n * kPanel + w * kWide); });
      const int64_t own = columns_[h] - first;
      if (0 <= own && own < kPanel) products[own] = 0;
      for (int64_t n = 0; n < rows; ++n)
        for (int w = 0; w < kWides; ++w) {
          T* to = out + n * kPanel + w * kWide;
          narrow(to, widen(to) + value[n] * load(products + w * kWide));
        }
    }
  }

 private:
  int64_t count() const { return static_cast<int64_t>(columns_.size()); }
  const double* column(int64_t h) const { return values_.data() + h * stride_; }

  std::vector<int64_t> columns_;
  int64_t stride_ = 0;
  std::vector<double> values_;  // [count, stride], zeros beyond the last row
  double own_ = 0;
};

// Tiles of a matrix that is symmetric, the lower ones, or not: numbered, so that they can be claimed.
class Tiles {
 public:
  Tiles(int64_t size, bool symmetric) : blocks(size, kBlock), symmetric(symmetric) {}
  int64_t count() const { return symmetric ? blocks.count * (blocks.count + 1) / 2 : blocks.count * blocks.count; }
  struct Tile {
    Block I, J;
    bool lower;  // on the diagonal of a symmetric matrix
  };
  Tile operator[](int64_t number) const {
    if (!symmetric) return {blocks[number / blocks.count], blocks[number % blocks.count], false};
    int64_t i = static_cast<int64_t>((std::sqrt(8. * static_cast<double>(number) + 1) - 1) / 2);
    while (i * (i + 1) / 2 > number) --i;
    while ((i + 1) * (i + 2) / 2 <= number) ++i;
    const int64_t j = number - i * (i + 1) / 2;
    return {blocks[i], blocks[j], i == j};
  }

  const Blocks blocks;
  const bool symmetric;
};

template <class T>
static inline int64_t tile_bytes(const Tiles& tiles) {
  return tiles.blocks.edge * kTileStride * int64_t{sizeof(T)};
}

// Σ f(s_ij, t_ij) of a tile, over both triangles where the matrix is symmetric.
template <class T, class F>
static double sum_tile(const Tiles::Tile& tile, bool symmetric, const T* s, const T* t, const F& f) {
  double total = 0;
  for (int64_t i = 0; i < tile.I.size; ++i) {
    const int64_t offset = i * kTileStride, end = tile.lower ? i : tile.J.size;
    double lanes[8] = {};
    int64_t j = 0;
    for (; j + 8 <= end; j += 8)
      for (int l = 0; l < 8; ++l) lanes[l] += f(double(s[offset + j + l]), double(t[offset + j + l]));
    for (; j < end; ++j) lanes[0] += f(double(s[offset + j]), double(t[offset + j]));
    const double sum =
        ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    total += symmetric ? 2 * sum : sum;
    if (tile.lower) total += f(double(s[offset + i]), double(t[offset + i]));
  }
  return total;
}

// On the columns' side the diagonal is left out.
template <class T>
static void clear_diagonal(const Tiles::Tile& tile, T* s) {
  if (tile.I.begin != tile.J.begin) return;
  for (int64_t i = 0; i < tile.I.size; ++i) s[i * kTileStride + i] = 0;
}

// Writes a tile into the whole matrix [size, size], twice if that is symmetric.
template <class T, class Out>
static void store_tile(const Tiles::Tile& tile, bool symmetric, int64_t size, const T* s, Out* out) {
  for (int64_t i = 0; i < tile.I.size; ++i) {
    Out* row = out + (tile.I.begin + i) * size + tile.J.begin;
    const int64_t end = tile.lower ? i + 1 : tile.J.size;
    for (int64_t j = 0; j < end; ++j) row[j] = static_cast<Out>(s[i * kTileStride + j]);
  }
  if (!symmetric) return;
  for (int64_t j = 0; j < tile.J.size; ++j) {
    Out* row = out + (tile.J.begin + j) * size + tile.I.begin;
    for (int64_t i = tile.lower ? j + 1 : 0; i < tile.I.size; ++i) row[i] = static_cast<Out>(s[i * kTileStride + j]);
  }
}

// ---- products with a group of columns ---------------------------------------------------------------------------------

// Rows up to which a strip is computed.
static inline int64_t padded(int64_t rows) { return round_up(rows, kRows); }

// The rows' matrix [rows, rows] in panels of kRows of its rows, [rows/kRows][rows][kRows], read front to back by every
// product.
template <class T>
class RowsLeft {
 public:
  explicit RowsLeft(int64_t rows) : rows_(rows), store_(padded(rows) * rows * int64_t{sizeof(T)}) {}

  int64_t panels() const { return padded(rows_) / kRows; }

  // Takes panel p; the matrix is symmetric, its rows are its columns.
  template <class From>
  void take(int64_t p, const From* gram) const {
    T* to = panel(p);
    for (int64_t k = 0; k < rows_; ++k)
      for (int64_t r = 0; r < kRows; ++r)
        to[k * kRows + r] = p * kRows + r < rows_ ? static_cast<T>(gram[k * rows_ + p * kRows + r]) : 0;
  }

  // out [padded(rows), kPanel] = L strip
  void multiply(const T* strip, T* out) const {
    for (int64_t k = 0; k < rows_; k += kSteps<T>) {
      const int64_t steps = std::min(kSteps<T>, rows_ - k);
      for (int64_t p = 0; p < panels(); ++p) {
        const T* a = panel(p) + k * kRows;
        if (p + 1 < panels()) {
          const char* next = reinterpret_cast<const char*>(a + rows_ * kRows);
          for (int64_t l = 0; l < steps * kRows * int64_t{sizeof(T)}; l += 64) __builtin_prefetch(next + l, 0, 2);
        }
        panel_tile(a, 1, kRows, strip + k * kPanel, steps, out + p * kRows * kPanel, kPanel, k > 0);
      }
    }
  }

 private:
  T* panel(int64_t p) const { return store_.template as<T>() + p * rows_ * kRows; }

  const int64_t rows_;
  Scratch store_;
};

// A [rows, dim] as all its groups of columns, for products with the columns' matrix.
template <class T>
class ColumnsLeft {
 public:
  ColumnsLeft(int64_t rows, int64_t dim)
      : rows_(rows), dim_(dim), store_((groups(dim) * kGroup * rows + kRows * kPanel) * int64_t{sizeof(T)}) {}

  T* strips(int64_t group) const { return store_.template as<T>() + group * kGroup * rows_; }

  // out [padded(rows), kPanel] = A right, right [dim, kPanel]. Rows beyond the last are of the next strip, and not used.
  void multiply(const T* right, T* out) const {
    const int64_t strip = rows_ * kPanel;
    for (int64_t k = 0; k < dim_; k += kTogether * kPanel) {
      const int64_t steps = std::min(kTogether * kPanel, dim_ - k), whole = steps / kPanel, left = steps % kPanel;
      const T *a = store_.template as<T>() + k * rows_, *b = right + k * kPanel;
      for (int64_t n = 0; n < rows_; n += kRows, a += kRows * kPanel) {
        T* c = out + n * kPanel;
        for (int64_t s = 0; s < whole; ++s)
          for (int64_t l = 0; l < kRows * kPanel; l += 64 / int64_t{sizeof(T)})
            __builtin_prefetch(a + s * strip + kRows * kPanel + l, 0, 2);
        if (whole) panel_tile(a, kPanel, 1, b, kPanel, c, kPanel, k > 0, whole, strip);
        if (left)
          panel_tile(a + whole * strip, kPanel, 1, b + whole * kPanel * kPanel, left, c, kPanel, k > 0 || whole);
      }
    }
  }

 private:
  // Strips that a micro-tile goes through.
  static constexpr int64_t kTogether = kSteps<T> / kPanel;

  const int64_t rows_, dim_;
  Scratch store_;
};

// right [size, kPanel] = columns [first, first + kPanel) of c [size, size], or its rows.
template <class T, class From>
static void take_columns(const From* c, int64_t size, int64_t first, bool rows, T* right) {
  constexpr int64_t kTogether = 16;
  const int64_t width = std::min(kPanel, size - first);
  if (width < kPanel) std::fill(right, right + size * kPanel, T{0});
  if (!rows) {
    for (int64_t d = 0; d < size; ++d)
      std::copy(c + d * size + first, c + d * size + first + width, right + d * kPanel);
    return;
  }
  for (int64_t begin = 0; begin < size; begin += kTogether) {
    const int64_t end = std::min(begin + kTogether, size);
    for (int64_t l = 0; l < width; ++l)
      for (int64_t d = begin; d < end; ++d) right[d * kPanel + l] = static_cast<T>(c[(first + l) * size + d]);
  }
}

}  // namespace pyssl::PYSSL_ISA
