// Augment family: whole augmentations, an image per thread at a time, by explicit parameters.
//
//   chain.cpp  what follows what, and the end: solarize, normalise, erase
//   rows.h     what the others hand to each other
//   resize.h   crop, resize, flips, quarter turns
//   move.h     affine maps
//   colours.h  jitter, grey, point operations
//   blur.h
#pragma once

#include "../families.h"
#include "../simd/isa.h"

namespace pyssl::PYSSL_ISA {

void augment(const Augment& args);

}  // namespace pyssl::PYSSL_ISA
