// AVX-512 with AVX512-BF16 and the AMX tiles (Sapphire Rapids 2023 and later): float32 as avx512.h; the bfloat16
// products of bfloat16.h run on the tile unit.
#pragma once

#include <cstdint>

namespace pyssl::PYSSL_ISA {

constexpr int kLanes = 16;
constexpr int kRows = 8, kVectors = 3;  // see avx512.h
constexpr bool kHasBfloat16 = true;

}  // namespace pyssl::PYSSL_ISA
