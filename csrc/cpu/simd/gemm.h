// The float32 matrix products of the similarity family, over row blocks of operands U [rows, dim]. An object is one
// operand; a product takes two, which may be the same.
//
// U is held twice, because each product reads it in another order; both are read front to back:
//   u   [dim/kPanel][rows][kPanel]  panels of kPanel columns, the right operand of W u; only if it is multiplied
//   ut  [rows/kPanel][dim][kPanel]  panels of kPanel rows, transposed: both operands of u vᵀ
// A tile of S or W is [kBlock, kTileStride] floats, 600 KB: it stays in a second-level cache of 1 to 2 MB while the
// panels stream past. Strides of tiles and of the gradient are odd numbers of 64-byte lines, so that a column spreads
// over all cache sets. Measured on one core with AVX-512, GFLOP/s over the three products, in one sitting: fused
// multiply-adds alone 210; a panel in the first-level cache 183; edge 192, with the prefetches below, 156 (dim 128) and
// 132 (dim 512); edge 384, 152 and 145. What is lost is the third-level cache: 30 GB/s where the second gives 180.
#pragma once

#include "../parallel.h"
#include "vec.h"

namespace pyssl::PYSSL_ISA {

constexpr int64_t kBlock = 384;                // most rows of a tile: a multiple of every kPanel (8, 24, 48) and of 32
constexpr int64_t kTileStride = kBlock + 16;   // 25 lines
constexpr int64_t kPanel = kVectors * kLanes;  // columns of a micro-tile
constexpr int64_t kRowPadding = 96;            // row counts are rounded up to it: a multiple of every kPanel and of 32
static_assert(kBlock % kRowPadding == 0 && kRowPadding % kPanel == 0 && kPanel % kRows == 0);

static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct Block {
  int64_t begin, size;
  int64_t end() const { return begin + size; }
};

// C[kRows, NV vectors] (+)= A B over k terms, where A(i, p) = a[i·rs + p·ps] and B's row p stands at b + p·ldb; of floats
// or doubles. With more parts than one, the next k terms of A begin `part` further, those of B follow the last ones.
// Every loop over acc is unrolled: one rolled loop would put all accumulators on the stack.
template <int NV, class T>
__attribute__((always_inline)) static inline void micro_tile(const T* a, int64_t rs, int64_t ps, const T* b,
                                                             int64_t ldb, int64_t k, T* c, int64_t ldc, bool add,
                                                             int64_t parts = 1, int64_t part = 0) {
  using V = decltype(load(b));
  constexpr int kWidth = sizeof(V) / sizeof(T);
  V acc[kRows][NV] = {};
  for (; parts > 0; --parts, a += part, b += k * ldb) {
#pragma GCC unroll 4
    for (int64_t p = 0; p < k; ++p) {
      V row[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) row[v] = load(b + p * ldb + v * kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const V x = set(a[i * rs + p * ps]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[i][v] += x * row[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* out = c + i * ldc + v * kWidth;
      store(out, add ? load(out) + acc[i][v] : acc[i][v]);
    }
}

// Brings `bytes` from p nearer, in one of `parts` equal calls: p advances. The third-level cache is slow (30 GB/s seen)
// and a panel is read only once per tile, so the next one is fetched while this one is multiplied.
static inline void prefetch_part(const char*& p, int64_t bytes, int64_t parts) {
  const int64_t part = round_up(bytes / parts + 1, 64);
  for (int64_t l = 0; l < part; l += 64) __builtin_prefetch(p + l, 0, 2);
  p += part;
}

class Float32Products {
 public:
  Float32Products(int64_t rows, int64_t dim, bool multiplied)
      : dim_(dim),
        stride_(stride(dim)),
        padded_(round_up(rows, kRowPadding)),
        multiplied_(multiplied),
        u_(multiplied ? padded_ * round_up(dim, kLanes) * 4 : 0),
        ut_(padded_ * dim * 4) {}

  static constexpr int64_t kEdge = kBlock;    // most rows of a block
  static constexpr int64_t kTileScratch = 0;  // bytes beside a tile
  struct Thread {};                           // what a thread that multiplies sets up
  // Of the rows that pack() takes and of the gradient that add() adds to.
  static int64_t stride(int64_t dim) { return (round_up(dim, 16) / 16 | 1) * 16; }

  // Takes rows [begin, begin + count) of U; rows up to the next multiple of kRowPadding are set to zero.
  // rows: [count, stride(dim)], columns beyond dim are zero. begin is a multiple of kRowPadding.
  void pack(int64_t begin, int64_t count, const float* rows) {
    const int64_t padded = round_up(count, kRowPadding);
    if (multiplied_) {
      for (int64_t d = 0; d < dim_; d += kPanel) {
        const int64_t width = panel_width(d);
        float* u = panel(d) + begin * width;
        for (int64_t r = 0; r < count; ++r) __builtin_memcpy(u + r * width, rows + r * stride_ + d, width * 4);
        __builtin_memset(u + count * width, 0, (padded - count) * width * 4);
      }
    }
    for (int64_t r = 0; r < padded; ++r) {
      float* column = ut_.as<float>() + (begin + r) / kPanel * kPanel * dim_ + (begin + r) % kPanel;
      for (int64_t d = 0; d < dim_; ++d) column[d * kPanel] = r < count ? rows[r * stride_ + d] : 0.f;
    }
  }

  // s [I, J] = U_I V_Jᵀ; s is a tile. Rows and columns up to kPanel's multiple are written too.
  void scores(Block I, const Float32Products& v, Block J, float* s) const {
    const float *ut = ut_.as<float>(), *vt = v.ut_.as<float>();
    for (int64_t d = 0; d < dim_; d += kDepth) {
      const int64_t depth = dim_ - d < kDepth ? dim_ - d : kDepth;
      for (int64_t j = 0; j < J.size; j += kPanel) {
        const float* b = vt + (J.begin + j) * dim_ + d * kPanel;
        const char* next = reinterpret_cast<const char*>(b + (j + kPanel < J.size ? kPanel * dim_ : 0));
        for (int64_t i = 0; i < I.size; i += kRows) {
          const float* a = ut + (I.begin + i) / kPanel * kPanel * dim_ + d * kPanel + (I.begin + i) % kPanel;
          prefetch_part(next, kPanel * depth * 4, I.size / kRows + 1);
          micro_tile<kVectors>(a, 1, kPanel, b, kPanel, depth, s + i * kTileStride + j, kTileStride, d > 0);
        }
      }
    }
  }

  void pack_weights(const float*, Block, Block, void*) const {}

  // The same products with `count` rows that are read where they stand, at a stride: what is read once is not worth
  // packing. count is a multiple of kRows.

  // s [count, I] = rows U_Iᵀ
  void scores_of(const float* rows, int64_t stride, int64_t count, Block I, float* s) const {
    for (int64_t d = 0; d < dim_; d += kDepth) {
      const int64_t depth = dim_ - d < kDepth ? dim_ - d : kDepth;
      for (int64_t i = 0; i < I.size; i += kPanel) {
        const float* b = ut_.as<float>() + (I.begin + i) * dim_ + d * kPanel;
        for (int64_t j = 0; j < count; j += kRows) {
          const float* a = rows + j * stride + d;
          if (i == 0)
            for (int r = 0; r < kRows; ++r)
              for (int64_t l = 0; l < depth; l += 16) __builtin_prefetch(a + (2 * kRows + r) * stride + l, 0, 2);
          micro_tile<kVectors>(a, stride, 1, b, kPanel, depth, s + j * kTileStride + i, kTileStride, d > 0);
        }
      }
    }
  }

  // out [I] += Wᵀ rows, W [count, I] a tile; rows hold multiples of kLanes numbers, out whole micro-tiles.
  static void add_rows(const float* w, int64_t size, const float* rows, int64_t stride, int64_t count, int64_t dim,
                       float* out, int64_t out_stride) {
    for (int64_t k = 0; k < count; k += kTerms) {
      const int64_t terms = count - k < kTerms ? count - k : kTerms;
      for (int64_t d = 0; d < dim; d += kPanel) {
        const float* b = rows + k * stride + d;
        const int64_t left = dim - d;
        for (int64_t i = 0; i < size; i += kRows) {
          const float* a = w + k * kTileStride + i;
          float* c = out + i * out_stride + d;
          if (left > 2 * kLanes)
            micro_tile<kVectors>(a, 1, kTileStride, b, stride, terms, c, out_stride, true);
          else if (left > kLanes)
            micro_tile<2>(a, 1, kTileStride, b, stride, terms, c, out_stride, true);
          else
            micro_tile<1>(a, 1, kTileStride, b, stride, terms, c, out_stride, true);
        }
      }
    }
  }

  // du [I] += W U_J; du is where the rows of I stand
  void add(const float* w, Block I, Block J, float* du, void*) const { product<kTileStride, 1>(w, I.size, J, du); }

  // du [J] += Wᵀ U_I
  void add_transposed(const float* w, Block I, Block J, float* du, void*) const {
    product<1, kTileStride>(w, J.size, I, du);
  }

 private:
  static constexpr int64_t kDepth = 128;  // a panel of 48 × 128 floats is 24 KB: half of the first-level cache
  static constexpr int64_t kTerms = 96;   // a panel of 96 × 48 floats is 18 KB

  // Columns [d, d + panel_width(d)) of U, row by row.
  int64_t panel_width(int64_t d) const { return dim_ - d >= kPanel ? kPanel : round_up(dim_ - d, kLanes); }
  float* panel(int64_t d) const { return u_.as<float>() + d * padded_; }

  template <int64_t RS, int64_t PS>
  void product(const float* a, int64_t rows, Block K, float* c) const {
    for (int64_t k = 0; k < K.size; k += kTerms) {
      const int64_t terms = K.size - k < kTerms ? K.size - k : kTerms;
      for (int64_t d = 0; d < dim_; d += kPanel) {
        const int64_t width = panel_width(d);
        const float* b = panel(d) + (K.begin + k) * width;
        const int64_t after = d + kPanel < dim_ ? d + kPanel : 0;
        const float* following = panel(after) + (K.begin + k + (after ? 0 : kTerms)) * panel_width(after);
        const char* next = reinterpret_cast<const char*>(following);
        for (int64_t i = 0; i < rows; i += kRows) {
          const float* ai = a + i * RS + k * PS;
          float* ci = c + i * stride_ + d;
          prefetch_part(next, width * terms * 4, rows / kRows + 1);
          for (int r = 0; r < kRows; ++r)
            for (int64_t l = 0; l < width; l += 16) __builtin_prefetch(ci + r * stride_ + l, 1, 3);
          if (width == kPanel)
            micro_tile<kVectors>(ai, RS, PS, b, kPanel, terms, ci, stride_, true);
          else if (width == 2 * kLanes)
            micro_tile<2>(ai, RS, PS, b, width, terms, ci, stride_, true);
          else
            micro_tile<1>(ai, RS, PS, b, width, terms, ci, stride_, true);
        }
      }
    }
  }

  const int64_t dim_, stride_, padded_;
  const bool multiplied_;
  Scratch u_, ut_;
};

}  // namespace pyssl::PYSSL_ISA
