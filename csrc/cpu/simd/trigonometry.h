// Sine and cosine of vectors of doubles.
#pragma once

#include "vec.h"

namespace pyssl::PYSSL_ISA {

typedef int64_t vl __attribute__((vector_size(4 * kLanes)));

// Beyond this a double has fewer than five bits left behind the point, and the angle counts as 0.
constexpr double kWidestAngle = 0x1p48;

// sin x and cos x to 1 ulp of 1 (1.3e-16) while |x| < 2^20, with x·1e-16 more beyond, and never above 1 by more than a
// rounding; NaN for NaN and ±inf.
// Round x·2/π to an integer n by adding 1.5·2⁵², whose low bits then hold n; take n·π/2 off in two parts, of which the
// first has 33 bits, so that its product is exact without a fused multiply-add; then polynomials on [−π/4, π/4] (errors
// 1e-17 and 5e-19), swapped and negated by n mod 4.
static inline void sincos(vd x, vd* sine, vd* cosine) {
  const vl magnitude = (vl)x & 0x7fffffffffffffff;
  x = (vd)magnitude > set(kWidestAngle) ? x * set(0.0) : x;
  const vd round = set(0x1.8p52);
  const vd shifted = x * set(0x1.45f306dc9c883p-1) + round;
  const vd n = shifted - round;
  const vd r = (x - n * set(0x1.921fb544p+0)) - n * set(0x1.0b4611a626331p-34);
  const vd u = r * r;

  vd s = set(0x1.5e0af186af739p-33);
  s = s * u + set(-0x1.ae600a926c89ap-26);
  s = s * u + set(0x1.71de37961e4c6p-19);
  s = s * u + set(-0x1.a01a019e8357dp-13);
  s = s * u + set(0x1.1111111110bb1p-7);
  s = s * u + set(-0x1.5555555555555p-3);
  s = s * (u * r) + r;
  vd c = set(-0x1.907d7aebd5e3dp-37);
  c = c * u + set(0x1.1eeb68b109173p-29);
  c = c * u + set(-0x1.27e4fa17a41b4p-22);
  c = c * u + set(0x1.a01a019f4e867p-16);
  c = c * u + set(-0x1.6c16c16c16966p-10);
  c = c * u + set(0x1.5555555555555p-5);
  c = c * (u * u) + (set(1.0) - set(0.5) * u);

  const vl quadrant = (vl)shifted;
  const vl odd = -(quadrant & 1);
  const vl swapped_s = odd ? (vl)c : (vl)s, swapped_c = odd ? (vl)s : (vl)c;
  *sine = (vd)(swapped_s ^ (quadrant & 2) << 62);
  *cosine = (vd)(swapped_c ^ ((quadrant + 1) & 2) << 62);
}

}  // namespace pyssl::PYSSL_ISA
