// Threads and scratch. Included by the per-instruction-set files, so everything stands in their namespace.
#pragma once

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
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

// Asks for huge pages where `bytes` from data cover some and are not touched yet. The faults of small ones take 5 ms for
// 8 MB, of huge ones 0.5: as long as the products of a loss at that size, or less than a pass over it.
static inline void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Scratch memory, 64-byte aligned, not initialised. Large pieces are mapped, so that they go back to the system at once:
// the heap would keep them beside what is allocated next (SigLIP of 4,096 × 512 then holds 69 MB instead of 52). They
// take huge pages where the system gives them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : size_((static_cast<size_t>(bytes > 0 ? bytes : 1) + 63) / 64 * 64) {
#ifdef MADV_HUGEPAGE
    if (size_ >= kMapped) {
      size_ = (size_ + kHuge - 1) / kHuge * kHuge + kHuge;  // whole huge pages, and room to begin at one
      mapped_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped_ == MAP_FAILED) throw std::bad_alloc();
      data_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(mapped_) + kHuge - 1) / kHuge * kHuge);
      prefer_huge_pages(data_, static_cast<int64_t>(size_ - kHuge));
      return;
    }
#endif
    if (posix_memalign(&data_, 64, size_) != 0) throw std::bad_alloc();
  }
  ~Scratch() {
    if (mapped_)
      munmap(mapped_, size_);
    else
      std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kHuge = size_t{1} << 21, kMapped = kHuge / 2;
  size_t size_;
  void *data_ = nullptr, *mapped_ = nullptr;
};

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits for another thread, which may not have a core at the moment.
template <class Condition>
static void wait_until(const Condition& holds) {
  for (int spins = 0; !holds(); ++spins) {
    if (spins < 2000) {
      relax();
    } else {
      sched_yield();
      spins = 0;
    }
  }
}

// One parallel region: body(team) runs on every thread; team.claim() deals out work, team.barrier() ends a step.
class Team {
 public:
  Team(int rank, int size, std::atomic<int64_t>* counters) : rank(rank), size(size), counters_(counters) {}

  // The next unclaimed number of this step, in increasing order over all threads.
  int64_t claim() { return counters_[step_].fetch_add(1, std::memory_order_relaxed); }

  // The next step, whose work does not depend on this one's: that may still be under way elsewhere.
  void next() { ++step_; }

  // The next step, when all have ended this one.
  void barrier() {
    next();
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

// Threads that `most` pieces of work can keep busy.
static inline int useful_threads(int threads, int64_t most) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, most)));
}

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
    wait_until([&] { return now.load(std::memory_order_acquire) == mine; });
  }
  void pass() { now.store(now.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
};

}  // namespace pyssl::PYSSL_ISA
