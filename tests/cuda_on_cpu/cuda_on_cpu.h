// CUDA's words with their meaning on host threads, so that a kernel's own source runs, and is checked, without a GPU.
//
// A launch has blockDim threads; each runs through all blocks of the grid, one after the other. Threads of a block
// meet only where the kernel says so, at barriers and shuffles, and run ahead into the next blocks else: what a kernel
// forgot to wait for is a race between real threads, which ThreadSanitizer sees. Shared memory is static: blocks that
// have a barrier end together. A barrier that not all threads of the block reach is an error of the launch.
//
// With CUDA_ON_CPU_FIBERS the threads of a launch take turns on one host thread: each runs up to where it has to wait.
// There are no races then, and a barrier of 256 threads takes 25 µs, not 2,000 (on two cores).
#pragma once

#include <math.h>
#ifdef CUDA_ON_CPU_FIBERS
#include <setjmp.h>
#include <ucontext.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- barriers -------------------------------------------------------------------------------------------------------

namespace cuda_on_cpu {

constexpr int kWarp = 32;

// One launch's first error; every thread that waits is woken by it.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#ifdef CUDA_ON_CPU_FIBERS
void yield(std::function<bool()> until);
#endif

class Barrier {
 public:
  void expect(int members) { members_ = members; }

  void wait(int line) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (waiting_ == 0) line_ = line;
    if (line != line_) fail("threads wait in lines " + std::to_string(line_) + " and " + std::to_string(line));
    ++waiting_;
    if (waiting_ == members_) {
      waiting_ = 0;
      ++generation_;
      changed_.notify_all();
      return;
    }
    check();
    const int64_t mine = generation_;
#ifdef CUDA_ON_CPU_FIBERS
    lock.unlock();
    yield([this, mine] { return over(mine); });
#else
    changed_.wait(lock, [this, mine] { return over(mine); });
#endif
    if (generation_ == mine) throw Failure(error_);
  }

  // This thread will not come any more.
  void leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++gone_;
    if (waiting_ && error_.empty()) try {
        check();
      } catch (const Failure&) {  // told by those who wait
      }
  }

 private:
  bool over(int64_t generation) const { return generation_ != generation || !error_.empty(); }
  void check() {
    if (waiting_ + gone_ == members_)
      fail("of " + std::to_string(members_) + " threads " + std::to_string(waiting_) + " wait in line " +
           std::to_string(line_));
  }
  void fail(const std::string& what) {
    error_ = "barrier: " + what;
    changed_.notify_all();
    throw Failure(error_);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::string error_;
  int members_ = 0, waiting_ = 0, gone_ = 0, line_ = 0;
  int64_t generation_ = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t values[kWarp];
};

struct Block {
  Barrier barrier, end;
  std::unique_ptr<Warp[]> warps;
};

inline thread_local Block* block;
inline thread_local bool met;  // this block has a barrier

inline void synchronize(int line) {
  met = true;
  block->barrier.wait(line);
}

template <class T>
T shuffle_down(T value, int distance, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Warp& warp = block->warps[threadIdx.x / kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  std::memcpy(&warp.values[lane], &value, sizeof value);
  warp.barrier.wait(line);
  if (lane + distance < kWarp) std::memcpy(&value, &warp.values[lane + distance], sizeof value);
  warp.barrier.wait(line);
  return value;
}

#ifdef CUDA_ON_CPU_FIBERS
struct Fiber {
  static constexpr size_t kStack = 1 << 16;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf place;
  std::function<bool()> until;  // what it waits for
  bool running = false;
  // Its own of what is one for each thread.
  dim3 index, block_index;
  Block* in = nullptr;
  bool met = false;
};

// setjmp and longjmp once a fiber has begun: swapcontext would ask the operating system each time.
class Pool {
 public:
  // work(0) … work(threads − 1), in turns.
  void run(unsigned threads, const std::function<void(unsigned)>* work) {
    work_ = work;
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    unsigned left = threads;
    for (unsigned number = 0; number < threads; ++number) {
      Fiber& fiber = *fibers_[number];
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.get();
      fiber.start.uc_stack.ss_size = Fiber::kStack;
      makecontext(&fiber.start, reinterpret_cast<void (*)()>(&Pool::begin), 0);
      fiber.running = true;
      current_ = number;
      enter(fiber);
      left -= !fiber.running;
    }
    for (unsigned number = 0; left > 0; number = (number + 1) % threads) {
      Fiber& fiber = *fibers_[number];
      if (!fiber.running || !fiber.until()) continue;
      current_ = number;
      threadIdx = fiber.index;
      blockIdx = fiber.block_index;
      block = fiber.in;
      met = fiber.met;
      resume(fiber);
      left -= !fiber.running;
    }
  }

  void yield(std::function<bool()> until) {
    Fiber& fiber = *fibers_[current_];
    fiber.until = std::move(until);
    fiber.index = threadIdx;
    fiber.block_index = blockIdx;
    fiber.in = block;
    fiber.met = met;
    if (!_setjmp(fiber.place)) _longjmp(home_, 1);
  }

 private:
  // Functions of their own: what is in registers around setjmp does not survive.
  __attribute__((noinline)) void enter(Fiber& fiber) {
    if (!_setjmp(home_)) setcontext(&fiber.start);
  }
  __attribute__((noinline)) void resume(Fiber& fiber) {
    if (!_setjmp(home_)) _longjmp(fiber.place, 1);
  }
  static void begin();
  void end() {
    fibers_[current_]->running = false;
    _longjmp(home_, 1);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void(unsigned)>* work_ = nullptr;
  unsigned current_ = 0;
  jmp_buf home_;
};
#else
// Threads that stay from launch to launch: starting 256 of them takes longer than most launches of a test.
class Pool {
 public:
  ~Pool() {
    run(0, nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  // work(0) … work(threads − 1), each on a thread of its own; without work, the end of them all.
  void run(unsigned threads, const std::function<void(unsigned)>* work) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (threads_.size() < threads) {
      const unsigned number = static_cast<unsigned>(threads_.size());
      threads_.emplace_back([this, number, seen = generation_] { serve(number, seen); });
    }
    work_ = work;
    active_ = threads;
    running_ = threads;
    ++generation_;
    start_.notify_all();
    done_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void serve(unsigned number, int64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (work_ == nullptr) return;
      if (number >= active_) continue;
      lock.unlock();
      (*work_)(number);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> threads_;
  const std::function<void(unsigned)>* work_ = nullptr;
  unsigned active_ = 0, running_ = 0;
  int64_t generation_ = 0;
};
#endif

inline Pool& pool() {
  static Pool threads;
  return threads;
}

#ifdef CUDA_ON_CPU_FIBERS
inline void Pool::begin() {
  (*pool().work_)(pool().current_);
  pool().end();
}
inline void yield(std::function<bool()> until) { pool().yield(std::move(until)); }
#endif

inline std::string& last_error() {
  static std::string text;
  return text;
}

}  // namespace cuda_on_cpu

#define __syncthreads() cuda_on_cpu::synchronize(__LINE__)
#define __shfl_down_sync(mask, value, distance) cuda_on_cpu::shuffle_down(value, distance, __LINE__)

// ---- the runtime ----------------------------------------------------------------------------------------------------

using cudaError_t = int;
using cudaStream_t = struct Stream*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? cuda_on_cpu::last_error().c_str() : "invalid value";
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace cuda_on_cpu;
  const unsigned threads = config->blockDim.x, blocks = config->gridDim.x;
  if (threads == 0 || threads > 1024 || blocks == 0 || blocks > 0x7fffffff) return cudaErrorInvalidValue;
  if ((sizeof(Parameters) + ... + 0) > 32764) return cudaErrorInvalidValue;
  const std::tuple<std::decay_t<Parameters>...> parameters(arguments...);
  const unsigned warps = (threads + kWarp - 1) / kWarp;
  std::vector<Block> all(blocks);
  for (Block& each : all) {
    each.barrier.expect(static_cast<int>(threads));
    each.end.expect(static_cast<int>(threads));
    each.warps = std::make_unique<Warp[]>(warps);
    for (unsigned w = 0; w < warps; ++w) each.warps[w].barrier.expect(kWarp);
  }
  std::atomic<bool> failed{false};
  const std::function<void(unsigned)> run = [&](unsigned thread) {
    threadIdx = dim3(thread);
    blockDim = config->blockDim;
    gridDim = config->gridDim;
    for (unsigned b = 0; b < blocks && !failed; ++b) {
      blockIdx = dim3(b);
      block = &all[b];
      met = false;
      try {
        std::apply(kernel, parameters);
      } catch (const Failure& failure) {
        if (!failed.exchange(true)) last_error() = failure.what();
        return;
      }
      block->warps[thread / kWarp].barrier.leave();
      block->barrier.leave();
      try {
        if (met) block->end.wait(0);
      } catch (const Failure&) {
        return;
      }
      block->end.leave();
    }
  };
  pool().run(threads, &run);
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

// ---- functions, vectors and 16-bit numbers --------------------------------------------------------------------------

template <class T>
T __ldg(const T* at) {
  return *at;
}

using std::max;
using std::min;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent == 0 ? ldexpf(static_cast<float>(mantissa), -24)
                                     : ldexpf(static_cast<float>(1024 + mantissa), exponent - 25);
  return x.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float x) {  // to the nearest, ties to even
  const uint32_t sign = __float_as_uint(x) >> 16 & 0x8000u, size = __float_as_uint(x) & 0x7fffffffu;
  uint32_t bits;
  if (size > 0x7f800000u) return {0x7fff};
  if (size >= 0x477ff000u)
    bits = 0x7c00;  // 65,520 and more
  else if (size < 0x38800000u)
    bits = static_cast<uint32_t>(rintf(ldexpf(fabsf(x), 24)));  // below 2⁻¹⁴, in steps of 2⁻²⁴
  else
    bits = ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10);
  return {static_cast<uint16_t>(sign | bits)};
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
