// AVX2 + FMA + F16C (Haswell 2013, Zen 2017 and later): eight lanes, 16 registers.
#pragma once

#include <cstdint>

namespace pyssl::PYSSL_ISA {

constexpr int kLanes = 8;
// 4 × 3 accumulators + 3 loads + 1 broadcast = 16 registers; 7 loads for 12 multiply-adds, two of each a cycle.
constexpr int kRows = 4, kVectors = 3;
constexpr bool kHasBfloat16 = false;

}  // namespace pyssl::PYSSL_ISA
