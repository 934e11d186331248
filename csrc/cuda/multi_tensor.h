// The multi_tensor family on a GPU, as the host sees it: pointers, sizes, a device, a stream. No CUDA header is needed.
//
// Element k of every list's entry i stands at data[i] + k · itemsize; pointers are aligned to the itemsize only.
// Errors of the launch come as std::runtime_error with CUDA's text. Nothing here waits for the device.
#pragma once

#include <cstdint>
#include <vector>

namespace pyssl::cuda {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct Tensors {  // no data: there is no such list
  std::vector<uintptr_t> data;
  std::vector<int> dtypes;
};

struct Scalar {  // pointer: where the device reads it, in stream order; null: `value`
  double value;
  const void* pointer;
  bool is_double;  // of what the pointer points at; else float
};

struct Stream {
  int device;
  void* handle;
};

constexpr int kChunk = 4096;        // elements that one block does
constexpr int kRecordBytes = 32;    // of workspace, for an entry
constexpr int kPartialDoubles = 3;  // of workspace, for a chunk of `lars`; `square_sum` takes one

struct Ema {
  Tensors teacher, student, shadow;
  std::vector<int64_t> sizes;  // elements; bytes of what is copied
  int64_t averaged;            // entries from here on are copied
  Scalar momentum;
  Stream stream;
};

struct SquareSum {
  Tensors tensors;
  std::vector<int64_t> sizes;
  double* partials;  // one for each chunk
  double* result;
  Stream stream;
};

struct AdamW {
  Tensors parameters, gradients, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher, shadow;
  std::vector<uintptr_t> steps;  // of float
  std::vector<int64_t> sizes;
  Scalar lr, ema_momentum, factor, found_inf;
  double beta1, beta2, eps, weight_decay;
  bool maximize;
  void* records;  // kRecordBytes for each entry
  Stream stream;
};

struct Lars {
  Tensors parameters, gradients, momentum_buffers, teacher, shadow;
  std::vector<int64_t> sizes;
  std::vector<bool> adapted, fresh;
  Scalar lr, ema_momentum, factor, found_inf;
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
  double trust_coefficient, eps;
  bool trust_clip, joint;
  void* records;     // kRecordBytes for each entry
  double* partials;  // kPartialDoubles for each chunk
  Stream stream;
};

void ema(const Ema& args);
void square_sum(const SquareSum& args);
void adamw(const AdamW& args);
void lars(const Lars& args);

}  // namespace pyssl::cuda
