// Threads and scratch. Included by the per-instruction-set files, so everything stands in their namespace.
#pragma once

#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace pyssl {
// Defined in dispatch.cpp: after fork() a region of several threads would wait for ever for the parent's pool.
bool is_forked_child();
}  // namespace pyssl

namespace pyssl::PYSSL_ISA {

// Scratch memory, 64-byte aligned, not initialised. Huge pages where the system gives them: at 2 MiB and more the page
// faults of small ones cost as much as a normalisation pass.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    const size_t huge = size_t{1} << 21;
    const size_t alignment = static_cast<size_t>(bytes) >= huge ? huge : 64;
    const size_t size = (static_cast<size_t>(bytes) + 63) / 64 * 64;
    if (posix_memalign(&data_, alignment, size ? size : 64) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (alignment == huge) madvise(data_, size / huge * huge, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// One parallel region: body(team) runs on every thread; team.claim() deals out work, team.barrier() ends a step.
class Team {
 public:
  Team(int rank, int size, std::atomic<int64_t>* counters) : rank(rank), size(size), counters_(counters) {}

  // The next unclaimed number of this step, in increasing order over all threads.
  int64_t claim() { return counters_[step_].fetch_add(1, std::memory_order_relaxed); }

  void barrier() {
    ++step_;
    if (size == 1) return;
#ifdef _OPENMP
#pragma omp barrier
#endif
  }

  const int rank, size;

 private:
  std::atomic<int64_t>* counters_;
  int step_ = 0;
};

constexpr int kMaxSteps = 8;

template <class Body>
static void parallel(int threads, const Body& body) {
  std::atomic<int64_t> counters[kMaxSteps] = {};
#ifdef _OPENMP
  if (threads > 1 && !is_forked_child()) {
#pragma omp parallel num_threads(threads)
    body(Team(omp_get_thread_num(), omp_get_num_threads(), counters));
    return;
  }
#endif
  (void)threads;
  body(Team(0, 1, counters));
}

// Whose turn it is to add to a block: makes the order of additions, and so the bits, the same for any thread count.
struct alignas(64) Turn {
  std::atomic<int64_t> now{0};

  void wait(int64_t mine) const {
    for (int spins = 0; now.load(std::memory_order_acquire) != mine; ++spins) {
      if (spins < 2000) {
        relax();
      } else {
        sched_yield();
        spins = 0;
      }
    }
  }
  void pass() { now.store(now.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
};

}  // namespace pyssl::PYSSL_ISA
