// The whole C++ surface of the CPU kernels: one plain argument struct and one pointer per entry. Sizes and strides are
// in elements. Every instruction set fills a Table of its own; dispatch.cpp chooses one.
#pragma once

#include <cstdint>

#include "../samples.h"

namespace pyssl {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// What the matrix products may use; see torch.set_float32_matmul_precision.
enum class Precision : int {
  float32 = 0,     // true float32
  bfloat16x3 = 1,  // operands split into two bfloat16 each, three products: 16 bits of mantissa
  bfloat16 = 2,    // operands rounded to bfloat16, accumulated in float32
};

struct Matrix {  // [rows, dim], element (i, d) at data[i * stride + d]; data is null where there is none
  void* data;
  Dtype dtype;
  int64_t rows, dim, stride;
};

// ---- similarity: reductions over S = Q Kᵀ. Every pair (i, j) is a positive, a negative, one of the same id, or none;
// see pyssl_fast/kernels/reference/similarity.py for all meanings.

// A log-sum-exp of power·scale·s over the pairs of one kind, for every row or every column.
struct Term {
  bool columns;
  bool same;  // the pairs of the same id, else the negatives
  double power;
};
constexpr int kMaxTerms = 4;

struct Pairs {
  Matrix q, k;                            // [M, dim], [N, dim]; no k: rows against each other
  double scale;                           // 1/temperature
  const int32_t *row_ids, *column_ids;    // [M], [N] or null
  const float *row_limit, *column_limit;  // [M], [N] or null: pairs above it are no negatives of that row, column
  Term terms[kMaxTerms];
  int term_count;
  int64_t views;
  bool normalize;
  Precision precision;
  int threads;

  bool symmetric() const { return !k.data; }
  int64_t columns() const { return symmetric() ? q.rows : k.rows; }
  int64_t length(int term) const { return terms[term].columns ? columns() : q.rows; }
};

struct Contrast {
  Pairs pairs;
  double* lse;         // the terms' [M] or [N], one after the other
  double* positive;    // [views − 1, M]
  double* statistics;  // [3, M (+ N)] or null
};

struct ContrastBackward {
  Pairs pairs;
  const double *grad_lse, *grad_positive, *lse;
  Matrix grad_q, grad_k;  // no data: not wanted
  double* grad_scale;     // [1]
};

struct BankContrast {  // terms of rows alone; views = 0, normalize = false
  Pairs pairs;
  double* lse;         // [terms, M]
  float* mean_key;     // [terms, M, dim]
  double* statistics;  // [3, M] or null
};

struct SigmoidContrast {
  Matrix q, k;
  double scale, bias;
  const int32_t *row_ids, *column_ids;  // null: the positives are the pairs (i, i)
  const float *row_weight, *positive_weight;
  double* loss;           // [M]
  bool gradient;          // of Σ row_weight·loss
  Matrix grad_q, grad_k;  // no data: not wanted
  double *grad_scale, *grad_bias;
  Precision precision;
  int threads;
};

struct Neighbours {
  Matrix q, k;
  int64_t count;
  const int32_t *row_ids, *column_ids;
  float* similarity;  // [M, count]
  int64_t* index;     // [M, count]
  Precision precision;
  int threads;
};

struct Hardest {
  Matrix q;
  const int32_t* ids;            // [M]
  const float* offset;           // [M]
  int64_t *negative, *positive;  // [M]
  Precision precision;
  int threads;
};

struct Triplets {
  Matrix q;
  const int32_t* ids;
  double margin;
  bool euclidean, semi_hard;
  double *loss, *count;     // [M]; forward
  const double* grad_loss;  // [M]; backward
  Matrix grad_q;            // no data: forward
  Precision precision;
  int threads;
};

// ---- covariance: reductions over C = AᵀB, A and B views less the means of their columns, on the cheaper side; see
// pyssl_fast/kernels/reference/covariance.py for all meanings. K is the smaller of the rows and dim.

struct Views {
  Matrix view[2];              // [rows, dim] at position 0; no data: there is no second one
  int64_t position_stride[2];  // from one position to the next
  int64_t positions;
  int threads;

  int count() const { return view[1].data ? 2 : 1; }
};

struct AutoCovariance {
  Views views;
  double* square;        // [views, positions, dim]
  double* off_diagonal;  // [views, positions]
  double* distance;      // [1]
  float* gram;           // [views, positions, K, K] or null
  bool* exact;           // [views, positions] or null
};

struct AutoCovarianceBackward {
  Views views;
  const double *grad_square, *grad_off_diagonal;  // [views, positions, dim], [views, positions]
  double grad_distance;
  const float* gram;
  const bool* exact;
  Views grad;  // no data: not wanted
};

struct CrossCorrelation {
  Views views;  // of one position
  double eps;
  double *diagonal, *off_diagonal;  // [dim], [1]
  float* gram;                      // [views, rows, rows] or [1, dim, dim], or null
  bool* exact;                      // [1] or null
};

struct CrossCorrelationBackward {
  Views views;
  double eps;
  const double* grad_diagonal;  // [dim]
  double grad_off_diagonal;
  const float* gram;
  const bool* exact;
  Views grad;  // no data: not wanted
};

struct Decorrelation {
  Views views;              // one of one position
  double* square;           // [dim]
  double* off_correlation;  // [1]
  double* gram;             // [K, K]
};

struct Characteristic {
  Views views;  // one, of groups as positions
  double step;  // of the frequencies, k·step with k = 1 … count
  int64_t count;
  double *cosine, *sine;  // [groups, count, dim]
};

struct CharacteristicBackward {
  Views views;
  double step;
  int64_t count;
  const double *grad_cosine, *grad_sine;
  Views grad;
};

struct Spread {
  Matrix x;  // [views, elements]
  int64_t centres;
  double* distance;  // [1]
  int threads;
};

struct SpreadBackward {
  Matrix x;
  int64_t centres;
  double grad_distance;
  Matrix grad;
  int threads;
};

// ---- multi_tensor: one pass over lists of tensors, in place. Entry i of every list has counts[i] elements, one after the
// other; see pyssl_fast/kernels/reference/multi_tensor.py for all meanings.

struct List {  // [entries]; no data: there is no such list
  void* const* data;
  const Dtype* dtype;
};

struct Entries {
  int64_t size;
  const int64_t* counts;
  int threads;
};

struct Ema {
  Entries entries;
  List teacher, student, shadow;
  int64_t averaged;  // the entries after these are copied, and their counts are bytes
  double momentum;
};

struct SquareSum {
  Entries entries;
  List x;
  double* sum;  // [1]
};

struct Teaching {  // of what follows the parameters
  List teacher, shadow;
  double momentum;
};

struct Adamw {
  Entries entries;
  List parameter, gradient, exp_avg, exp_avg_sq, max_exp_avg_sq;
  float* const* step;  // [entries]
  Teaching teaching;
  double lr, factor, beta1, beta2, eps, weight_decay;
};

struct Lars {
  Entries entries;
  List parameter, gradient, momentum_buffer;
  Teaching teaching;
  const uint8_t *adapted, *fresh;  // [entries]
  double lr, factor, momentum, dampening, weight_decay, trust_coefficient, eps;
  bool nesterov, trust_clip, joint;
};

// ---- augment: images by explicit parameters; see pyssl_fast/kernels/reference/augment.py for all meanings.

struct Augment {
  int64_t images, channels, height, width;  // of the output
  const Picture* pictures;                  // [images]
  const Sample* samples;                    // [images]
  Pixel input;
  bool bicubic, antialias;
  const double *mean, *std;  // [channels]
  double erase_value;
  Pixel output;
  void* out;
  int64_t image, channel, row, pixel;  // steps of the output, in elements
  int threads;
};

struct Table {
  const char* name;
  bool has_bfloat16;  // whether the bfloat16 precisions are built; float32 stands in for them where not
  void (*contrast)(const Contrast&);
  void (*contrast_backward)(const ContrastBackward&);
  void (*bank_contrast)(const BankContrast&);
  void (*sigmoid_contrast)(const SigmoidContrast&);
  void (*neighbours)(const Neighbours&);
  void (*hardest)(const Hardest&);
  void (*triplets)(const Triplets&);
  void (*auto_covariance)(const AutoCovariance&);
  void (*auto_covariance_backward)(const AutoCovarianceBackward&);
  void (*cross_correlation)(const CrossCorrelation&);
  void (*cross_correlation_backward)(const CrossCorrelationBackward&);
  void (*decorrelation)(const Decorrelation&);
  void (*characteristic)(const Characteristic&);
  void (*characteristic_backward)(const CharacteristicBackward&);
  void (*spread)(const Spread&);
  void (*spread_backward)(const SpreadBackward&);
  void (*ema)(const Ema&);
  void (*square_sum)(const SquareSum&);
  void (*adamw)(const Adamw&);
  void (*lars)(const Lars&);
  void (*augment)(const Augment&);
};

}  // namespace pyssl
