#pragma once

#include "families.h"

namespace pyssl::PYSSL_ISA {

void nt_xent(const NtXent& args);
void nt_xent_backward(const NtXentBackward& args);

}  // namespace pyssl::PYSSL_ISA
