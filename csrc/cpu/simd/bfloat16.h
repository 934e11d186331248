// The matrix products of the similarity family on bfloat16 operands, accumulated in float32: the interface of
// Float32Products (gemm.h). Kept: Parts = 1, operands rounded to bfloat16 (8 bits of mantissa); Parts = 2, operands
// split into high + low (16 bits), and high·high + high·low + low·high summed.
//
// AMX: a tile register holds 16 rows of 64 bytes. TDPBF16PS adds A (16 × 32 bfloat16, row-major) times B (32 × 16,
// two rows interleaved: row k/2 holds pairs (k, k+1) of 16 columns) to C (16 × 16 float32): 16,384 operations in 16
// cycles. Registers: 0-3 a 2 × 2 block of C, 4-5 A, 6-7 B; so four products for four tile loads of 8 cycles each.
#pragma once

#include "gemm.h"

#ifndef __AMX_BF16__

namespace pyssl::PYSSL_ISA {
template <int Parts>
using Bfloat16Products = Float32Products;  // more exact than asked for
}  // namespace pyssl::PYSSL_ISA

#else

#include <immintrin.h>

namespace pyssl::PYSSL_ISA {

// 16 × 16 transposition of 32-bit elements, in place.
static inline void transpose16(__m512i* x) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 32 floats as bfloat16, rounded to nearest even.
static inline __m512i to_bfloat16(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
// 16 pairs (first[l], second[l]) from the halves of x = to_bfloat16(first, second).
static inline __m512i interleave(__m512i x) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, x);
}
// The floats that the first / last 16 elements of x stand for.
static inline __m512 low_half(__m512i x) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16);
}
static inline __m512 high_half(__m512i x) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16);
}

template <int Parts>
class Bfloat16Products {
 public:
  Bfloat16Products(int64_t rows, int64_t dim, bool multiplied)
      : depth_(round_up(dim, 32)),
        stride_(stride(dim)),
        part_(round_up(rows, kRowPadding) * depth_),
        multiplied_(multiplied),
        a_(Parts * part_ * 2),
        bt_(Parts * part_ * 2),
        b_(multiplied ? Parts * part_ * 2 : 0) {}

  static constexpr int64_t kEdge = kBlock / 2;  // W and Wᵀ take their room in the second-level cache too
  static int64_t stride(int64_t dim) { return (round_up(dim, 32) / 16 | 1) * 16; }
  static constexpr int64_t kWeightStride = kEdge + 32;  // 7 lines
  static constexpr int64_t kWeights = kEdge * kWeightStride;
  static constexpr int64_t kTileScratch = 2 * Parts * kWeights * 2;

  // A thread that multiplies: configures its tile registers, and leaves them as it found them.
  struct Thread {
    Thread() {
      _tile_storeconfig(before);
      alignas(64) uint8_t config[64] = {1};  // palette 1; then 16-bit row lengths from byte 16, row counts from 48
      for (int t = 0; t < 8; ++t) config[16 + 2 * t] = 64, config[48 + t] = 16;
      _tile_loadconfig(config);
    }
    ~Thread() {
      if (before[0])
        _tile_loadconfig(before);
      else
        _tile_release();
    }
    alignas(64) uint8_t before[64];
  };

  void pack(int64_t begin, int64_t count, const float* rows) {
    const int64_t padded = round_up(count, kRowPadding);
    for (int64_t r = 0; r < padded; ++r)
      for (int64_t d = 0; d < depth_; d += 32) {
        __m512 x0 = _mm512_setzero_ps(), x1 = x0;
        if (r < count) x0 = _mm512_loadu_ps(rows + r * stride_ + d), x1 = _mm512_loadu_ps(rows + r * stride_ + d + 16);
        for (int part = 0; part < Parts; ++part) {
          const __m512i x = to_bfloat16(x0, x1);
          _mm512_storeu_si512(a(part, begin + r) + d, x);
          x0 = _mm512_sub_ps(x0, low_half(x));
          x1 = _mm512_sub_ps(x1, high_half(x));
        }
      }
    for (int part = 0; part < Parts; ++part) {
      for (int64_t r = begin; r < begin + padded; r += 16)
        for (int64_t d = 0; d < depth_; d += 32) {
          __m512i x[16];
          for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(a(part, r + i) + d);
          transpose16(x);
          for (int i = 0; i < 16; ++i) _mm512_storeu_si512(bt(part, r, d) + i * 32, x[i]);
        }
      if (!multiplied_) continue;
      for (int64_t r = begin; r < begin + padded; r += 2)
        for (int64_t d = 0; d < depth_; d += 16) {
          const __m256i x0 = _mm256_loadu_si256((const __m256i*)(a(part, r) + d));
          const __m256i x1 = _mm256_loadu_si256((const __m256i*)(a(part, r + 1) + d));
          const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(x0), x1, 1);
          _mm512_storeu_si512(b(part, r / 32 * 32, d) + r % 32 * 16, interleave(x));
        }
    }
  }

  void scores(Block I, const Bfloat16Products& v, Block J, float* s) const {
    for (int64_t i = 0; i < I.size; i += 32)
      for (int64_t j = 0; j < J.size; j += 32) {
        float* c = s + i * kTileStride + j;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for_parts([&](int pa, int pb) {
          const uint16_t *a0 = a(pa, I.begin + i), *a1 = a0 + 16 * depth_;
          const uint16_t *b0 = v.bt(pb, J.begin + j, 0), *b1 = v.bt(pb, J.begin + j + 16, 0);
          for (int64_t d = 0; d < depth_; d += 32) multiply(a0 + d, a1 + d, depth_, b0 + d * 16, b1 + d * 16);
        });
        store(c, kTileStride);
      }
  }

  // W and Wᵀ as bfloat16, rows up to the next multiple of 32.
  void pack_weights(const float* w, Block I, Block J, void* scratch) const {
    uint16_t *plain = static_cast<uint16_t*>(scratch), *transposed = plain + Parts * kWeights;
    for (int64_t j = 0; j < J.size; j += 32)
      for (int64_t i = 0; i < I.size; i += 32) {
        __m512i left[Parts][16], right[Parts][16];  // pairs of rows of 16 columns each
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) {
          const float* row = w + (i + 2 * r) * kTileStride + j;
          __m512 x[2][2];  // row, half
          for (int k = 0; k < 2; ++k)
            for (int h = 0; h < 2; ++h) x[k][h] = _mm512_loadu_ps(row + k * kTileStride + h * 16);
#pragma GCC unroll 2
          for (int part = 0; part < Parts; ++part) {
            const __m512i l = to_bfloat16(x[0][0], x[1][0]), h = to_bfloat16(x[0][1], x[1][1]);
            uint16_t* out = plain + part * kWeights + (i + 2 * r) * kWeightStride + j;
            _mm256_storeu_si256((__m256i*)out, _mm512_castsi512_si256(l));
            _mm256_storeu_si256((__m256i*)(out + 16), _mm512_castsi512_si256(h));
            _mm256_storeu_si256((__m256i*)(out + kWeightStride), _mm512_extracti64x4_epi64(l, 1));
            _mm256_storeu_si256((__m256i*)(out + kWeightStride + 16), _mm512_extracti64x4_epi64(h, 1));
            left[part][r] = interleave(l);
            right[part][r] = interleave(h);
            if (part + 1 < Parts) {
              x[0][0] = _mm512_sub_ps(x[0][0], low_half(l));
              x[1][0] = _mm512_sub_ps(x[1][0], high_half(l));
              x[0][1] = _mm512_sub_ps(x[0][1], low_half(h));
              x[1][1] = _mm512_sub_ps(x[1][1], high_half(h));
            }
          }
        }
        for (int part = 0; part < Parts; ++part) {
          uint16_t* out = transposed + part * kWeights + j * kWeightStride + i;
          transpose16(left[part]);
          transpose16(right[part]);
          for (int r = 0; r < 16; ++r) {
            _mm512_storeu_si512(out + r * kWeightStride, left[part][r]);
            _mm512_storeu_si512(out + (r + 16) * kWeightStride, right[part][r]);
          }
        }
      }
  }

  void add(const float*, Block I, Block J, float* du, void* scratch) const {
    product(static_cast<const uint16_t*>(scratch), I, J, du);
  }
  void add_transposed(const float*, Block I, Block J, float* du, void* scratch) const {
    product(static_cast<const uint16_t*>(scratch) + Parts * kWeights, J, I, du);
  }

 private:
  uint16_t* a(int part, int64_t row) const { return a_.template as<uint16_t>() + part * part_ + row * depth_; }
  // Tiles of 16 rows × 32 columns of u, as B of u uᵀ; row a multiple of 16.
  uint16_t* bt(int part, int64_t row, int64_t d) const {
    return bt_.template as<uint16_t>() + part * part_ + row * depth_ + d * 16;
  }
  // Tiles of 32 rows × 16 columns of u, as B of W u; row a multiple of 32.
  uint16_t* b(int part, int64_t row, int64_t d) const {
    return b_.template as<uint16_t>() + part * part_ + row * depth_ + d * 32;
  }

  template <class F>
  static void for_parts(const F& f) {
    f(0, 0);
    if (Parts == 2) f(0, 1), f(1, 0);
  }

  static inline void multiply(const uint16_t* a0, const uint16_t* a1, int64_t lda, const uint16_t* b0,
                              const uint16_t* b1) {
    _tile_loadd(4, a0, lda * 2);
    _tile_loadd(6, b0, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a1, lda * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, b1, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  static inline void load(const float* c, int64_t ldc) {
    _tile_loadd(0, c, ldc * 4);
    _tile_loadd(1, c + 16, ldc * 4);
    _tile_loadd(2, c + 16 * ldc, ldc * 4);
    _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
  }
  static inline void store(float* c, int64_t ldc) {
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + 16, ldc * 4);
    _tile_stored(2, c + 16 * ldc, ldc * 4);
    _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
  }

  // du_I += A u_K, A [I, K] in parts of kWeights.
  void product(const uint16_t* w, Block I, Block K, float* du) const {
    for (int64_t d = 0; d < depth_; d += 32)
      for (int64_t i = 0; i < I.size; i += 32) {
        float* c = du + i * stride_ + d;
        load(c, stride_);
        for_parts([&](int pa, int pb) {
          const uint16_t *a0 = w + pa * kWeights + i * kWeightStride, *a1 = a0 + 16 * kWeightStride;
          for (int64_t k = 0; k < K.size; k += 32) {
            const uint16_t* tile = b(pb, K.begin + k, d);
            multiply(a0 + k, a1 + k, kWeightStride, tile, tile + 512);
          }
        });
        store(c, stride_);
      }
  }

  const int64_t depth_, stride_, part_;
  const bool multiplied_;
  Scratch a_, bt_, b_;
};

}  // namespace pyssl::PYSSL_ISA

#endif
