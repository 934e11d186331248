// What kernels on lists of tensors share: elements in memory as float32 in registers, sums over a block, launches.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu.h"  // the same source on host threads
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pyssl::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// ---- elements -------------------------------------------------------------------------------------------------------

constexpr int kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2;  // Dtype's numbers
constexpr int kAny = -1;                                  // known when it runs only

// V elements as they stand in memory: V words of float32, or half as many of a 16-bit type.
template <int V>
struct Raw {
  uint32_t word[V];
};

// The part of a tensor that a block works on. With a dtype known to the compiler, what depends on it is folded away;
// with kAny it is a branch that all threads of the block take alike.
template <int kDtype>
struct Part {
  char* data;  // null: there is none
  int dtype;

  __device__ int type() const { return kDtype == kAny ? dtype : kDtype; }

  // V = 1 for any pointer; 4 and 8 for 16-byte aligned ones, where k is a multiple of V.
  template <int V>
  __device__ Raw<V> load(int k) const {
    Raw<V> raw{};
    if (type() == kFloat32) {
      if constexpr (V == 1) {
        raw.word[0] = reinterpret_cast<const uint32_t*>(data)[k];
      } else {
#pragma unroll
        for (int i = 0; i < V / 4; ++i) spread(reinterpret_cast<const uint4*>(data)[k / 4 + i], raw.word + 4 * i);
      }
    } else if constexpr (V == 1) {
      raw.word[0] = reinterpret_cast<const uint16_t*>(data)[k];
    } else if constexpr (V == 4) {
      const uint2 q = reinterpret_cast<const uint2*>(data)[k / 4];
      raw.word[0] = q.x;
      raw.word[1] = q.y;
    } else {
      spread(reinterpret_cast<const uint4*>(data)[k / 8], raw.word);
    }
    return raw;
  }

  template <int V>
  __device__ void unpack(const Raw<V>& raw, float (&x)[V]) const {
    const int t = type();
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const uint32_t half = i % 2 ? raw.word[i / 2] >> 16 : raw.word[i / 2] & 0xffffu;
      x[i] = t == kFloat32 ? __uint_as_float(raw.word[i]) : widen(half, t);
    }
  }

  // x becomes what was stored.
  template <int V>
  __device__ void store(int k, float (&x)[V]) const {
    const int t = type();
    if (t == kFloat32) {
      if constexpr (V == 1) {
        reinterpret_cast<float*>(data)[k] = x[0];
      } else {
#pragma unroll
        for (int i = 0; i < V; i += 4)
          reinterpret_cast<float4*>(data)[(k + i) / 4] = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
      }
      return;
    }
    uint32_t half[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      half[i] = narrow(x[i], t);
      x[i] = widen(half[i], t);
    }
    if constexpr (V == 1) {
      reinterpret_cast<uint16_t*>(data)[k] = static_cast<uint16_t>(half[0]);
    } else {
      uint32_t word[V / 2];
#pragma unroll
      for (int i = 0; i < V / 2; ++i) word[i] = half[2 * i] | half[2 * i + 1] << 16;
      if constexpr (V == 4) {
        reinterpret_cast<uint2*>(data)[k / 4] = make_uint2(word[0], word[1]);
      } else {
        reinterpret_cast<uint4*>(data)[k / 8] = make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }

 private:
  __device__ static void spread(const uint4& q, uint32_t* word) {
    word[0] = q.x;
    word[1] = q.y;
    word[2] = q.z;
    word[3] = q.w;
  }

  __device__ static float widen(uint32_t half, int t) {
    return t == kBFloat16 ? __uint_as_float(half << 16) : __half2float(__ushort_as_half(static_cast<uint16_t>(half)));
  }

  __device__ static uint32_t narrow(float x, int t) {
    return t == kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
  }
};

// Elements [from, to) of a chunk, V to a thread at a time, U times V of them loaded before the first is used.
template <int V, int U, class Op>
__device__ void sweep(Op& op, int from, int to) {
  constexpr int kStep = kThreads * V;
#pragma unroll 1
  for (int k = from + static_cast<int>(threadIdx.x) * V; k < to; k += U * kStep) {
    typename Op::template Registers<V> registers[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (k + u * kStep < to) op.load(registers[u], k + u * kStep);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (k + u * kStep < to) op.use(registers[u], k + u * kStep);
  }
}

// The whole vectors of a chunk of `count` elements; what is left is a number of elements smaller than V.
template <int V, int U, class Op>
__device__ int sweep_vectors(Op op, int count) {
  const int whole = count / V * V;
  sweep<V, U>(op, 0, whole);
  return whole;
}

// ---- sums -----------------------------------------------------------------------------------------------------------

// Sums over a block, right in thread 0. One barrier, then one warp: always in the same order.
template <class T, int N>
__device__ void sum_block(T (&sum)[N]) {
  __shared__ T shared[N][kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  for (int n = 0; n < N; ++n) shared[n][thread] = sum[n];
  __syncthreads();
  if (thread >= kWarp) return;
  for (int n = 0; n < N; ++n) {
    T total = 0;
    for (int i = thread; i < kThreads; i += kWarp) total += shared[n][i];
    for (int distance = kWarp / 2; distance > 0; distance /= 2) total += __shfl_down_sync(~0u, total, distance);
    sum[n] = total;
  }
}

// ---- launches -------------------------------------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    cudaGetLastError();  // else the next one who asks gets it
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// The tensors' device, until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launch");
}

}  // namespace pyssl::cuda
