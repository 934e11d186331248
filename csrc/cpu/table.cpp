// Compiled once per instruction set: the entries that the set offers.
#include "augment/augment.h"
#include "covariance/covariance.h"
#include "multi_tensor/multi_tensor.h"
#include "simd/isa.h"
#include "similarity/similarity.h"

namespace pyssl::PYSSL_ISA {

extern const Table table;
const Table table = {PYSSL_ISA_NAME,
                     kHasBfloat16,
                     contrast,
                     contrast_backward,
                     bank_contrast,
                     sigmoid_contrast,
                     neighbours,
                     hardest,
                     triplets,
                     auto_covariance,
                     auto_covariance_backward,
                     cross_correlation,
                     cross_correlation_backward,
                     decorrelation,
                     characteristic,
                     characteristic_backward,
                     spread,
                     spread_backward,
                     ema,
                     square_sum,
                     adamw,
                     lars,
                     augment};

}  // namespace pyssl::PYSSL_ISA
