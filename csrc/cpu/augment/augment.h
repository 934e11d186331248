// Augment family: whole augmentations, an image per thread at a time, by explicit parameters.
//
//   chain.cpp  crop and resize, flips, colours, grey, blur, solarize, normalise
#pragma once

#include "../families.h"
#include "../simd/isa.h"

namespace pyssl::PYSSL_ISA {

void augment(const Augment& args);

}  // namespace pyssl::PYSSL_ISA
