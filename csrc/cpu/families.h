// The whole C++ surface of the CPU kernels: one plain argument struct and one pointer per entry. Sizes and strides are
// in elements. Every instruction set fills a Table of its own; dispatch.cpp chooses one.
#pragma once

#include <cstdint>

namespace pyssl {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// What the matrix products may use; see torch.set_float32_matmul_precision.
enum class Precision : int {
  float32 = 0,     // true float32
  bfloat16x3 = 1,  // operands split into two bfloat16 each, three products: 16 bits of mantissa
  bfloat16 = 2,    // operands rounded to bfloat16, accumulated in float32
};

struct Matrix {  // [rows, cols], element (i, d) at data[i * stride + d]
  void* data;
  Dtype dtype;
  int64_t stride;
};

// Rows i and j of z belong to one sample when i ≡ j (mod rows / views).
struct NtXent {
  Matrix z;  // [rows, dim]
  int64_t rows, dim, views;
  double scale;         // 1/temperature
  float* nll;           // [rows]
  float* shift;         // [rows] the stabiliser: bound or maximum of scale·s over the row
  float* negative_sum;  // [rows] Σ over the negatives of exp(scale·s − shift)
  Precision precision;
  int threads;
};

struct NtXentBackward {
  const float* grad_nll;      // [rows]
  Matrix z;                   // [rows, dim]
  const float* shift;         // [rows]
  const float* negative_sum;  // [rows]
  int64_t rows, dim, views;
  double scale;
  Matrix grad_z;       // [rows, dim]
  double* grad_scale;  // [1]
  Precision precision;
  int threads;
};

struct Table {
  const char* name;
  bool has_bfloat16;  // whether the bfloat16 precisions are built; float32 stands in for them where not
  void (*nt_xent)(const NtXent&);
  void (*nt_xent_backward)(const NtXentBackward&);
};

}  // namespace pyssl
