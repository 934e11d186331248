// AVX-512 F, BW, DQ, VL (Skylake-X 2017, Zen 4 2022 and later): sixteen lanes, 32 registers.
#pragma once

#include <cstdint>

namespace pyssl::PYSSL_ISA {

constexpr int kLanes = 16;
// 8 × 3 accumulators + 3 loads + 1 broadcast = 28 of 32 registers; 11 loads for 24 multiply-adds, two of each a cycle.
constexpr int kRows = 8, kVectors = 3;
constexpr bool kHasBfloat16 = false;

}  // namespace pyssl::PYSSL_ISA
