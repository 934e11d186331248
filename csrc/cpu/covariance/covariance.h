// Covariance family: reductions over C = AᵀB, on the cheaper side: AAᵀ where there are fewer rows than columns.
//
//   columns.h          a group of columns of a view: its means and squares, centred and scaled
//   sides.h            the matrices on either side, their tiles, and their products with a group of columns
//   auto.cpp           every view with itself: VICReg
//   cross.cpp          two views whose columns are normalised: Barlow Twins
//   decorrelation.cpp  what is watched while training
//   characteristic.cpp columns' characteristic functions: SIGReg
#pragma once

#include "../families.h"
#include "../simd/isa.h"

namespace pyssl::PYSSL_ISA {

void auto_covariance(const AutoCovariance& args);
void auto_covariance_backward(const AutoCovarianceBackward& args);
void cross_correlation(const CrossCorrelation& args);
void cross_correlation_backward(const CrossCorrelationBackward& args);
void decorrelation(const Decorrelation& args);
void characteristic(const Characteristic& args);
void characteristic_backward(const CharacteristicBackward& args);

}  // namespace pyssl::PYSSL_ISA
