// Vectors of kLanes floats, vf, and of half as many doubles, vd, written with the compiler's vector extension: the same
// text for every instruction set. No intrinsics here.
#pragma once

#include <cstring>

#include "isa.h"

namespace pyssl::PYSSL_ISA {

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef double vd __attribute__((vector_size(4 * kLanes)));

static inline vf load(const float* p) {
  vf x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
static inline void store(float* p, vf x) { __builtin_memcpy(p, &x, sizeof x); }
static inline vf set(float x) { return x - vf{}; }

static inline vd load(const double* p) {
  vd x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
static inline void store(double* p, vd x) { __builtin_memcpy(p, &x, sizeof x); }
static inline vd set(double x) { return x - vd{}; }

constexpr int kWide = kLanes / 2;  // doubles in a vector
typedef float vh __attribute__((vector_size(4 * kWide)));

static inline vd widen(const float* p) {
  vh x;
  __builtin_memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, vd);
}
static inline vd widen(const double* p) { return load(p); }
static inline void narrow(float* p, vd x) {
  const vh y = __builtin_convertvector(x, vh);
  __builtin_memcpy(p, &y, sizeof y);
}
static inline void narrow(double* p, vd x) { store(p, x); }

// s·c, rounded. Where a maximum of it is subtracted, a fused multiply-subtract would differ from it by half an ulp of t,
// which for logits of 1e9 is 32 octaves.
static inline vf scaled(vf s, float c) {
  vf t = s * c;
#if defined(__AVX2__) || defined(__AVX512F__)
  __asm__("" : "+v"(t));
#elif defined(__aarch64__)
  __asm__("" : "+w"(t));
#endif
  return t;
}

// The larger of each lane. A NaN in x stays (it compares false); one in `running` would be lost, so callers that must
// show it carry it in a sum beside the maximum.
static inline vf max(vf running, vf x) { return running > x ? running : x; }

static inline float hsum(vf x) {
  float sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += x[l];
  return sum;
}
static inline float hmax(vf x) {
  float m = x[0];
  for (int l = 1; l < kLanes; ++l) m = m > x[l] ? m : x[l];
  return m;
}

// 2^t to 0.7 ulp; 2^127 above 127, 0 below −126 (no subnormal is ever made), exactly 1 at 0, NaN for NaN, 0 for −inf.
// It saturates so that 0·2^t is 0 where a row without a gradient was left out of the choice of a reference.
// Round to the nearest integer n by adding 1.5·2²³, whose low bits then hold n; 2^(t−n) by a minimax polynomial of
// degree 6 (relative error 2e-9 on [−½, ½]); 2^n by its exponent bits. Multiplying, not adding exponents, keeps NaN.
static inline vf exp2(vf t) {
  const vf most = set(127.f);
  t = t > most ? most : t;
  const vf round = set(12582912.f);
  const vf shifted = t + round;
  const vf r = t - (shifted - round);
  vf p = set(0x1.41fbbcp-13f);
  p = p * r + set(0x1.5f3e52p-10f);
  p = p * r + set(0x1.3b2d4cp-7f);
  p = p * r + set(0x1.c6aee8p-5f);
  p = p * r + set(0x1.ebfbdcp-3f);
  p = p * r + set(0x1.62e430p-1f);
  p = p * r + set(1.f);
  vi exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + 127) << 23;
  vf power;
  __builtin_memcpy(&power, &exponent, sizeof power);
  return t < set(-126.f) ? vf{} : p * power;
}

}  // namespace pyssl::PYSSL_ISA
