// Plain C++: four lanes, 16 registers. Runs on any machine that the compiler targets, Arm included.
#pragma once

#include <cstdint>

namespace pyssl::PYSSL_ISA {

constexpr int kLanes = 4;
// Micro-tile of the matrix product: kRows × kVectors accumulators + kVectors loads + 1 broadcast ≤ 16 registers.
constexpr int kRows = 4, kVectors = 2;
constexpr bool kHasBfloat16 = false;

}  // namespace pyssl::PYSSL_ISA
