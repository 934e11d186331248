// Compiled once per instruction set: the entries that the set offers.
#include "simd/isa.h"
#include "similarity.h"

namespace pyssl::PYSSL_ISA {

extern const Table table;
const Table table = {PYSSL_ISA_NAME, kHasBfloat16, nt_xent, nt_xent_backward};

}  // namespace pyssl::PYSSL_ISA
