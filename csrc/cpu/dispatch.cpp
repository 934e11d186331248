#include "dispatch.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyssl {

namespace generic {
extern const Table table;
}
#ifdef PYSSL_HAS_AVX2
namespace avx2 {
extern const Table table;
}
#endif
#ifdef PYSSL_HAS_AVX512
namespace avx512 {
extern const Table table;
}
#endif
#ifdef PYSSL_HAS_AMX
namespace amx {
extern const Table table;
}
#endif

namespace {

#if defined(__x86_64__)
// What the processor has and the operating system saves (XCR0): cpuid alone would let zmm registers be lost.
struct Features {
  bool avx2 = false, avx512 = false, amx = false;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (!osxsave) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const auto saved = [&](unsigned mask) { return (low & mask) == mask; };
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = saved(0x6) && fma && f16c && (b >> 5 & 1);
    avx512 = avx2 && saved(0xe6) && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
    const bool tiles = (d >> 24 & 1) && (d >> 22 & 1);  // AMX-TILE, AMX-BF16
    unsigned a1, b1, c1, d1;
    const bool bfloat16 = __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 5 & 1);  // AVX512-BF16
    amx = avx512 && tiles && bfloat16 && saved(0x60000) && permitted();
  }

  // Linux gives a process the tile registers when it asks; without asking the first tile instruction is SIGILL.
  static bool permitted() {
#if defined(__linux__)
    constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
    return false;
#endif
  }
};
#endif

// Best first.
std::vector<const Table*> usable() {
  std::vector<const Table*> tables;
#if defined(__x86_64__)
  static const Features features;
#ifdef PYSSL_HAS_AMX
  if (features.amx) tables.push_back(&amx::table);
#endif
#ifdef PYSSL_HAS_AVX512
  if (features.avx512) tables.push_back(&avx512::table);
#endif
#ifdef PYSSL_HAS_AVX2
  if (features.avx2) tables.push_back(&avx2::table);
#endif
#endif
  tables.push_back(&generic::table);
  return tables;
}

const Table* find(const std::string& name) {
  std::string known;
  for (const Table* candidate : usable()) {
    if (name == candidate->name) return candidate;
    known += (known.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is unknown, not built, or not usable on this machine; usable: " + known);
}

std::atomic<const Table*>& current() {
  static std::atomic<const Table*> chosen = [] {
    const char* forced = std::getenv("PYSSL_FAST_ISA");
    return forced && *forced ? find(forced) : usable().front();
  }();
  return chosen;
}

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

const Table& table() { return *current(); }

void set_isa(const std::string& name) { current() = find(name); }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Table* candidate : usable()) names.emplace_back(candidate->name);
  return names;
}

}  // namespace pyssl
