// The multi_tensor family on a GPU, as the host sees it: pointers, sizes, a device, a stream. No CUDA header is needed.
//
// Element k of every list's entry i stands at data[i] + k · itemsize; pointers are aligned to the itemsize only.
// Errors of the launch come as std::runtime_error with CUDA's text. Nothing here waits for the device.
#pragma once

#include <cstdint>

namespace pyssl::cuda {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct List {  // of tensors; null: there is none
  const uintptr_t* data;
  const int* dtypes;
};

struct Scalar {  // pointer: where the device reads it, in stream order; null: `value`
  double value;
  const void* pointer;
  bool is_double;  // of what the pointer points at; else float
};

struct Entries {
  int64_t count;
  const int64_t* sizes;  // elements
  int device;
  void* stream;
};

constexpr int kChunk = 4096;        // elements that one block does
constexpr int kRecordBytes = 32;    // of workspace, for an entry
constexpr int kPartialDoubles = 3;  // of workspace, for a chunk of `lars`; `square_sum` takes one

struct Ema {
  Entries entries;
  List teacher, student, shadow;
  int64_t averaged;  // entries from here on are copied; their sizes are bytes
  Scalar momentum;
};

struct SquareSum {
  Entries entries;
  List tensors;
  double* partials;  // one for each chunk
  double* result;
};

struct AdamW {
  Entries entries;
  List parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher, shadow;
  const uintptr_t* steps;  // of float
  Scalar ema_momentum, lr, factor, found_inf;
  double beta1, beta2, eps, weight_decay;
  bool maximize;
  void* records;  // kRecordBytes for each entry
};

struct Lars {
  Entries entries;
  List parameters, gradients, momentum_buffers, teacher, shadow;
  const uint8_t* adapted;
  const uint8_t* fresh;
  Scalar ema_momentum, lr, factor, found_inf;
  double momentum, dampening, weight_decay, trust_coefficient, eps;
  bool nesterov, maximize, trust_clip, joint;
  void* records;     // kRecordBytes for each entry
  double* partials;  // kPartialDoubles for each chunk
};

void ema(const Ema& args);
void square_sum(const SquareSum& args);
void adamw(const AdamW& args);
void lars(const Lars& args);

}  // namespace pyssl::cuda
