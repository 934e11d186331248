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
static inline void panel_tile(const T* a, int64_t ps, const T* b, int64_t k, T* c, int64_t ldc, bool add) {
  constexpr int64_t kWidth = kVectors * kLanes * 4 / sizeof(T);
  for (int64_t l = 0; l < kPanel; l += kWidth) micro_tile<kVectors>(a, 1, ps, b + l, kPanel, k, c + l, ldc, add);
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
          panel_tile(a, kPanel, b, steps, s + i * kTileStride + j, kTileStride, k > 0);
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

// L [rows, depth] in panels of kRows of its rows: [rows/kRows][depth][kRows], read front to back by every product.
template <class T>
class Left {
 public:
  Left(int64_t rows, int64_t depth)
      : rows_(rows), depth_(depth), store_(panels() * depth * kRows * int64_t{sizeof(T)}) {}

  static int64_t padded(int64_t rows) { return round_up(rows, kRows); }
  int64_t panels() const { return padded(rows_) / kRows; }

  // Takes panel p of a symmetric matrix [rows, rows]: its rows are its columns.
  template <class From>
  void take(int64_t p, const From* gram) const {
    T* to = panel(p);
    for (int64_t k = 0; k < depth_; ++k)
      for (int64_t r = 0; r < kRows; ++r)
        to[k * kRows + r] = p * kRows + r < rows_ ? static_cast<T>(gram[k * rows_ + p * kRows + r]) : 0;
  }

  // Takes a group of columns, from `first` on.
  void take_group(int64_t first, const T* strips) const {
    for (int64_t s = 0; s < kStrips; ++s) {
      const int64_t begin = first + s * kPanel, width = std::min(kPanel, depth_ - begin);
      for (int64_t p = 0; p < panels(); ++p) {
        const int64_t count = std::min<int64_t>(kRows, rows_ - p * kRows);
        const T* from = strips + (s * rows_ + p * kRows) * kPanel;
        T* to = panel(p) + begin * kRows;
        for (int64_t c = 0; c < width; ++c)
          for (int64_t r = 0; r < kRows; ++r) to[c * kRows + r] = r < count ? from[r * kPanel + c] : 0;
      }
    }
  }

  // out [padded(rows), kPanel] = L right, right [depth, kPanel]: a strip
  void multiply(const T* right, T* out) const {
    for (int64_t k = 0; k < depth_; k += kSteps<T>) {
      const int64_t steps = std::min(kSteps<T>, depth_ - k);
      for (int64_t p = 0; p < panels(); ++p) {
        const T* a = panel(p) + k * kRows;
        if (p + 1 < panels()) {
          const char* next = reinterpret_cast<const char*>(a + depth_ * kRows);
          for (int64_t l = 0; l < steps * kRows * int64_t{sizeof(T)}; l += 64) __builtin_prefetch(next + l, 0, 2);
        }
        panel_tile(a, kRows, right + k * kPanel, steps, out + p * kRows * kPanel, kPanel, k > 0);
      }
    }
  }

 private:
  T* panel(int64_t p) const { return store_.template as<T>() + p * depth_ * kRows; }

  const int64_t rows_, depth_;
  Scratch store_;
};

// right [size, kPanel] = columns [first, first + kPanel) of c [size, size], or its rows.
template <class T, class From>
static void take_columns(const From* c, int64_t size, int64_t first, bool rows, T* right) {
  const int64_t width = std::max<int64_t>(0, std::min(kPanel, size - first));
  for (int64_t d = 0; d < size; ++d)
    for (int64_t l = 0; l < kPanel; ++l)
      right[d * kPanel + l] =
          l < width ? static_cast<T>(rows ? c[(first + l) * size + d] : c[d * size + first + l]) : 0;
}

}  // namespace pyssl::PYSSL_ISA
