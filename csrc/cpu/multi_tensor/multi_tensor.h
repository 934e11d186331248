// Multi-tensor family: one pass over all parameters. Bound by memory: every list is read, and written, once.
//
//   streams.h       entries of lists as floats, a block at a time; the chunks that threads claim
//   ema.cpp         teachers follow their students
//   square_sum.cpp  the norm of all gradients
//   adamw.cpp       AdamW, and teachers in the same pass
//   lars.cpp        LARS, the same
#pragma once

#include "../families.h"
#include "../simd/isa.h"

namespace pyssl::PYSSL_ISA {

void ema(const Ema& args);
void square_sum(const SquareSum& args);
void adamw(const Adamw& args);
void lars(const Lars& args);

}  // namespace pyssl::PYSSL_ISA
