// The instruction set this file is compiled for: PYSSL_ISA is its namespace, set by CMake with the compiler's flags.
#pragma once

#define PYSSL_QUOTE_(x) #x
#define PYSSL_QUOTE(x) PYSSL_QUOTE_(x)
#define PYSSL_ISA_NAME PYSSL_QUOTE(PYSSL_ISA)
#include PYSSL_QUOTE(PYSSL_ISA.h)
