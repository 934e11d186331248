// Compiled once per instruction set: the entries that the set offers.
#include "simd/isa.h"
#include "similarity/similarity.h"

namespace pyssl::PYSSL_ISA {

extern const Table table;
const Table table = {PYSSL_ISA_NAME,   kHasBfloat16, contrast, contrast_backward, bank_contrast,
                     sigmoid_contrast, neighbours,   hardest,  triplets};

}  // namespace pyssl::PYSSL_ISA
