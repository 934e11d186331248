// Similarity family: reductions over S = Q Kᵀ, tile by tile; S is never held.
//
//   blocks.h      which tiles there are, in which order, and whose turn it is to add
//   operand.h     the rows of one side: their lengths, and their packing for the products (simd/gemm.h, simd/bfloat16.h)
//   tiles.h       tile programs: what a tile of S gives in the forward pass, what weight each entry gets in backward
//   contrast.cpp  log-sum-exps of rows and columns: every softmax loss
//   bank.cpp      the same, and neighbours, against many keys without gradient
//   sigmoid.cpp   a binary cross-entropy per pair
//   extremes.cpp  the hardest pairs of every row
//   triplets.cpp  all triplets of every row
#pragma once

#include "../families.h"
#include "../simd/isa.h"

namespace pyssl::PYSSL_ISA {

void contrast(const Contrast& args);
void contrast_backward(const ContrastBackward& args);
void bank_contrast(const BankContrast& args);
void sigmoid_contrast(const SigmoidContrast& args);
void neighbours(const Neighbours& args);
void hardest(const Hardest& args);
void triplets(const Triplets& args);

// neighbours, count = 1, rows against each other; in extremes.cpp.
void nearest(const Neighbours& args);

}  // namespace pyssl::PYSSL_ISA
