// What the compiler's vector extension has no word for, or makes into many instructions.
#pragma once

#include "rows.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pyssl::PYSSL_ISA {

// least, greatest: of each lane; a NaN in y travels, one in x does not. (Of x < y ? x : y GCC makes a comparison and a
// blend.) widen: kLanes numbers at x. stream: past the cache, to a multiple of a vector; other threads see
// it after end_streams.
#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // without a mask GCC 12 warns of an uninitialised source that nobody reads
static inline vf least(vf x, vf y) { return _mm512_maskz_min_ps(kAll, x, y); }
static inline vf greatest(vf x, vf y) { return _mm512_maskz_max_ps(kAll, x, y); }
static inline vf widen_bytes(const uint8_t* x) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
  return _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepu8_epi32(kAll, bytes));
}
static inline vf widen_halves(const uint16_t* x) {
  return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
static inline void stream(float* x, vf y) { _mm512_stream_ps(x, y); }
#elif defined(__AVX2__)
static inline vf least(vf x, vf y) { return _mm256_min_ps(x, y); }
static inline vf greatest(vf x, vf y) { return _mm256_max_ps(x, y); }
static inline vf widen_bytes(const uint8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
static inline vf widen_halves(const uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
static inline void stream(float* x, vf y) { _mm256_stream_ps(x, y); }
#else
#if defined(__SSE2__)
static inline vf least(vf x, vf y) { return _mm_min_ps(x, y); }
static inline vf greatest(vf x, vf y) { return _mm_max_ps(x, y); }
static inline void stream(float* x, vf y) { _mm_stream_ps(x, y); }
#else
static inline vf least(vf x, vf y) { return x < y ? x : y; }
static inline vf greatest(vf x, vf y) { return x > y ? x : y; }
static inline void stream(float* x, vf y) { store(x, y); }
#endif
static inline vf widen_bytes(const uint8_t* x) {
  vf y;
  for (int l = 0; l < kLanes; ++l) y[l] = x[l];
  return y;
}
static inline vf widen_halves(const uint16_t* x) {
  vf y;
  for (int l = 0; l < kLanes; ++l) y[l] = from_float16(x[l]);
  return y;
}
#endif

static inline void end_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// x within 0 to 1; NaN stays.
static inline vf unit(vf x) { return least(set(1.f), greatest(vf{}, x)); }

static inline vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

}  // namespace pyssl::PYSSL_ISA
