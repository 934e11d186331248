// Rows of a float32, float16 or bfloat16 matrix as floats, and back.
#pragma once

#include "../families.h"
#include "vec.h"

namespace pyssl::PYSSL_ISA {

static inline float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

static inline float from_bfloat16(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }

// Round to nearest even; NaN stays NaN.
static inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// Shift exponent and mantissa into place and let a multiplication by 2^112 fix the bias, subnormals included.
static inline float from_float16(uint16_t h) {
  const uint32_t magnitude = uint32_t{h & 0x7fffu} << 13;
  const float x = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u | magnitude : float_to_bits(x);
  return bits_to_float(special | uint32_t{h & 0x8000u} << 16);
}

// Round to nearest even; above 65,519 infinity; NaN stays NaN.
static inline uint16_t to_float16(float x) {
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  // Below 2⁻¹⁴ the sum with ½ leaves the subnormal's bits at the bottom of the mantissa, rounded by the addition.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  if (magnitude >= 0x47800000u) half = 0x7c00u;
  if (magnitude > 0x7f800000u) half = 0x7e00u;
  return static_cast<uint16_t>(half | sign);
}

static inline void load_row(const Matrix& x, int64_t row, int64_t dim, float* out) {
  if (x.dtype == Dtype::float32) {
    __builtin_memcpy(out, static_cast<const float*>(x.data) + row * x.stride, dim * 4);
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(x.data) + row * x.stride;
  if (x.dtype == Dtype::bfloat16)
    for (int64_t d = 0; d < dim; ++d) out[d] = from_bfloat16(in[d]);
  else
    for (int64_t d = 0; d < dim; ++d) out[d] = from_float16(in[d]);
}

static inline void store_row(const Matrix& x, int64_t row, int64_t dim, const float* in) {
  if (x.dtype == Dtype::float32) {
    __builtin_memcpy(static_cast<float*>(x.data) + row * x.stride, in, dim * 4);
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(x.data) + row * x.stride;
  if (x.dtype == Dtype::bfloat16)
    for (int64_t d = 0; d < dim; ++d) out[d] = to_bfloat16(in[d]);
  else
    for (int64_t d = 0; d < dim; ++d) out[d] = to_float16(in[d]);
}

// ⟨x, y⟩ with every product and sum in double; eight sums, so that the additions do not wait for each other.
static inline double dot(const float* x, const float* y, int64_t dim) {
  double sum[8] = {};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8)
    for (int l = 0; l < 8; ++l) sum[l] += double(x[d + l]) * double(y[d + l]);
  for (; d < dim; ++d) sum[0] += double(x[d]) * double(y[d]);
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

}  // namespace pyssl::PYSSL_ISA
