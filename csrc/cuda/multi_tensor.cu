// Multi-tensor family: one pass over all parameters. Everything is bound by memory, so it is bytes that count.
//
// Bytes per float32 element:
//   ema         12: t, s read, t written; 10 with a bfloat16 student; 2 more with a 16-bit shadow
//   square_sum   4
//   adamw       28: p, g, m, v read, p, m, v written; 36 with a teacher; 8 more with amsgrad
//   lars        28: p, g for the norms, then p, g, b read and p, b written; 36 with a teacher
// Predicted, not measured, for the 25.6 M parameters of ResNet-50 at the whole bandwidth of the data sheets; expect 80
// to 90 % of it, and some microseconds for each launch:
//                          A100 40 GB     H100 SXM        B200       RTX 4090
//                         1.56 TB/s      3.35 TB/s      8.0 TB/s    1.01 TB/s
//   ema                      197 µs         92 µs         38 µs       304 µs
//   square_sum                66 µs         31 µs         13 µs       101 µs
//   adamw                    459 µs        214 µs         90 µs       710 µs
//   adamw, teacher           591 µs        275 µs        115 µs       912 µs
//   lars                     459 µs        214 µs         90 µs       710 µs
// The 4 or 5 double-precision instructions per element of the norms take as long as their 8 bytes on an RTX 4090, which
// has two such units per multiprocessor (25.6 M · 5 / 645 G/s = 198 µs); on A100, H100 and B200 they are hidden.
//
// One launch for hundreds of tensors. Its table of pointers is a kernel parameter: no copy to the device, nothing to
// keep alive, and a CUDA graph holds it. The 32,764 bytes that parameters may have hold 738 entries of ema, 1,161 of
// square_sum, 387 of adamw and 541 of lars (ResNet-50 has 161 parameters); more entries take more launches. Each block
// finds its tensor by binary search in the prefix sums of chunks, in constant memory.
//
// A chunk is 4,096 elements: 4 vectors of 4 elements for each of 256 threads, which ema loads at once, so that a block
// is one batch of loads; and 6,250 blocks on ResNet-50, 16 waves of 3 blocks on 132 multiprocessors: of larger chunks
// the last, partly filled wave would weigh more (16,384 elements: 4 waves). The search, ten steps, is hidden by the
// other blocks. Registers are bounded for 3 blocks (ema) or 4 to a multiprocessor, which have 64 to 96 KB of loads in
// flight; B200, which needs most, needs 43 KB (8 TB/s · 800 ns / 148).
// Vectors are of 4 elements also where 16-bit lists go with float32 ones: 8 bytes to a thread are as well coalesced,
// and each list's element k is in the same thread.
#include "multi_tensor.h"

#include <algorithm>
#include <array>

#include "device.cuh"

#ifndef PYSSL_PARAMETER_BYTES
#define PYSSL_PARAMETER_BYTES 32764
#endif
#ifndef PYSSL_MAX_BLOCKS
#define PYSSL_MAX_BLOCKS 0x7fffffff  // of a launch; less in tests
#endif

namespace pyssl::cuda {
namespace {

// ---- the table of a launch ------------------------------------------------------------------------------------------

constexpr int kParameterBytes = PYSSL_PARAMETER_BYTES;
constexpr int kOtherParameters = 256;   // room for what goes along with a table
constexpr int kCopyChunk = 4 * kChunk;  // bytes

enum Path : uint32_t {
  kScalar,  // some pointer is not 16-byte aligned
  kMixed,   // dtypes known when it runs
  kAll32,   // all of the first lists float32
  kAllBFloat16,
  kAllHalf,
  k32FromBFloat16,  // ema
  k32FromHalf,      // ema
  kCopy,            // ema: sizes are bytes
};

enum Flag : uint32_t { kAdapted = 1u << 8, kFresh = 1u << 9 };

template <int N>
struct Entry {
  std::array<uintptr_t, N> data;  // 0: there is none
  std::array<int, N> dtypes;
  int64_t size;
  uint32_t path;  // and flags

  int64_t chunks() const {
    const int length = (path & 0xff) == kCopy ? kCopyChunk : kChunk;
    return (size + length - 1) / length;
  }
};

struct Chunk {
  int entry;
  int64_t begin;  // the first element
  int count;
};

// N pointers to each entry.
template <int N>
struct Table {
  static constexpr int kCapacity = (kParameterBytes - kOtherParameters) / (8 * N + 8 + 12);

  char* data[N][kCapacity];
  int64_t size[kCapacity];
  uint32_t dtypes[kCapacity];  // 4 bits for each list
  uint32_t path[kCapacity];
  uint32_t first_chunk[kCapacity + 1];
  int entries;

  __device__ Chunk find(uint32_t chunk) const {
    int low = 0, high = entries;  // the last entry whose first chunk is not beyond: the one before holds nothing else
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_chunk[middle] <= chunk ? low : high) = middle;
    }
    const int length = (path[low] & 0xff) == kCopy ? kCopyChunk : kChunk;
    const int64_t begin = static_cast<int64_t>(chunk - first_chunk[low]) * length;
    const int64_t left = size[low] - begin;
    return {low, begin, left < length ? static_cast<int>(left) : length};
  }

  template <int kDtype>
  __device__ Part<kDtype> part(int n, const Chunk& chunk) const {
    const int dtype = static_cast<int>(dtypes[chunk.entry] >> (4 * n) & 15u);
    char* const start = data[n][chunk.entry];
    return {start ? start + chunk.begin * (dtype == kFloat32 ? 4 : 2) : nullptr, dtype};
  }
};

// Calls run(table) with tables of all entries, in order, each as full as can be.
template <int N, class Make, class Run>
void for_tables(int64_t count, const Make& make, const Run& run) {
  Table<N> table;
  int64_t chunks = 0;
  table.entries = 0;
  table.first_chunk[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Entry<N> entry = make(i);
    const int64_t more = entry.chunks();
    if (more > PYSSL_MAX_BLOCKS) throw std::invalid_argument("a tensor of " + std::to_string(entry.size) + " elements");
    if (table.entries == Table<N>::kCapacity || chunks + more > PYSSL_MAX_BLOCKS) {
      run(table);
      table.entries = 0;
      chunks = 0;
    }
    const int e = table.entries++;
    table.dtypes[e] = 0;
    for (int n = 0; n < N; ++n) {
      table.data[n][e] = reinterpret_cast<char*>(entry.data[n]);
      table.dtypes[e] |= static_cast<uint32_t>(entry.dtypes[n]) << (4 * n);
    }
    table.size[e] = entry.size;
    table.path[e] = entry.path;
    chunks += more;
    table.first_chunk[e + 1] = static_cast<uint32_t>(chunks);
  }
  if (table.entries) run(table);
}

template <int N>
int64_t blocks(const Table<N>& table) {
  return table.first_chunk[table.entries];
}

// The lists' entry i; on the fastest path that its pointers and the dtypes of its first `leading` lists allow.
template <int N>
Entry<N> entry(const Entries& entries, const std::array<List, N>& lists, int64_t i, int leading) {
  Entry<N> made{{}, {}, entries.sizes[i], kScalar};
  uintptr_t bits = 0;
  bool all[3] = {true, true, true};
  for (int n = 0; n < N; ++n) {
    if (lists[n].data == nullptr) continue;
    made.data[n] = lists[n].data[i];
    made.dtypes[n] = lists[n].dtypes[i];
    bits |= made.data[n];
    for (int d = 0; d < 3; ++d) all[d] &= n >= leading || made.dtypes[n] == d;
  }
  if (bits % 16 == 0)
    made.path = all[kFloat32] ? kAll32 : all[kBFloat16] ? kAllBFloat16 : all[kFloat16] ? kAllHalf : kMixed;
  return made;
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

__device__ double read(const Scalar& x) {
  if (x.pointer == nullptr) return x.value;
  return x.is_double ? *static_cast<const double*>(x.pointer) : *static_cast<const float*>(x.pointer);
}

// t + w·(s − t), from the nearer end: s − (1 − w)·(s − t) for w ≥ ½, so that w = 1 gives s itself.
struct Blend {
  float weight;
  bool from_end;

  // Compared in float32: the compiler else puts the comparison, in double precision, into the loops.
  __host__ __device__ static Blend of(double w) {
    const float start = static_cast<float>(w), end = static_cast<float>(w - 1);
    const bool from_end = !(start < 0.5f);
    return {from_end ? end : start, from_end};
  }

  __device__ float operator()(float t, float s) const {
    float d = s - t;
    if (d == 0) d = copysignf(0.0f, -weight);  // the product is −0, which leaves even −0 as it is
    return fmaf(weight, d, from_end ? s : t);
  }
};

// What a small kernel derives from scalars, step or norms, in double precision, once for each entry of the update.
struct alignas(16) Record {
  float rate;    // adamw: −lr / (1 − β1^step); lars: −lr
  float root;    // adamw: 1 / √(1 − β2^step)
  float trust;   // lars
  float decay;   // adamw: −lr · weight_decay; lars: weight_decay
  float factor;  // of the gradient, with its sign
  Blend blend;   // teacher
  bool skip;     // infinities were found
};
static_assert(sizeof(Record) == kRecordBytes);

// The teacher follows a parameter x, the shadow the teacher.
template <int kDtype, int V>
__device__ void teach(const Part<kDtype>& teacher, const Part<kAny>& shadow, const Blend& blend, const Raw<V>& raw,
                      int k, const float (&x)[V]) {
  if (teacher.data == nullptr) return;
  float t[V];
  teacher.unpack(raw, t);
#pragma unroll
  for (int i = 0; i < V; ++i) t[i] = blend(t[i], x[i]);
  teacher.store(k, t);
  if (shadow.data) shadow.store(k, t);
}

// ---- ema ------------------------------------------------------------------------------------------------------------

template <int kTeacher, int kStudent>
struct EmaOp {
  Part<kTeacher> teacher;
  Part<kStudent> student;
  Part<kAny> shadow;
  Blend blend;

  template <int V>
  struct Registers {
    Raw<V> t, s;
  };

  __device__ EmaOp(const Table<3>& table, const Chunk& chunk, const Blend& b)
      : teacher(table.part<kTeacher>(0, chunk)),
        student(table.part<kStudent>(1, chunk)),
        shadow(table.part<kAny>(2, chunk)),
        blend(b) {}

  template <int V>
  __device__ void load(Registers<V>& r, int k) const {
    r.t = teacher.template load<V>(k);
    r.s = student.template load<V>(k);
  }

  template <int V>
  __device__ void use(const Registers<V>& r, int k) const {
    float s[V];
    student.unpack(r.s, s);
    teach(teacher, shadow, blend, r.t, k, s);
  }
};

__device__ void copy(const char* from, char* to, int bytes, bool aligned) {
  const int whole = aligned ? bytes / 16 : 0;
  for (int i = static_cast<int>(threadIdx.x); i < whole; i += kThreads)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (int i = 16 * whole + static_cast<int>(threadIdx.x); i < bytes; i += kThreads) to[i] = from[i];
}

__global__ void __launch_bounds__(kThreads, 3)
    ema_update(const __grid_constant__ Table<3> table, const __grid_constant__ Scalar momentum) {
  const Chunk chunk = table.find(blockIdx.x);
  const uint32_t path = table.path[chunk.entry];
  if (path == kCopy) {
    char* const to = table.data[0][chunk.entry] + chunk.begin;
    const char* const from = table.data[1][chunk.entry] + chunk.begin;
    const bool aligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0;
    return copy(from, to, chunk.count, aligned);
  }
  const Blend blend = Blend::of(1 - read(momentum));
  int done = 0;
  switch (path) {
    case kAll32:
      done = sweep_vectors<4, 4>(EmaOp<kFloat32, kFloat32>(table, chunk, blend), chunk.count);
      break;
    case k32FromBFloat16:
      done = sweep_vectors<4, 4>(EmaOp<kFloat32, kBFloat16>(table, chunk, blend), chunk.count);
      break;
    case k32FromHalf:
      done = sweep_vectors<4, 4>(EmaOp<kFloat32, kFloat16>(table, chunk, blend), chunk.count);
      break;
    case kAllBFloat16:
      done = sweep_vectors<8, 2>(EmaOp<kBFloat16, kBFloat16>(table, chunk, blend), chunk.count);
      break;
    case kAllHalf:
      done = sweep_vectors<8, 2>(EmaOp<kFloat16, kFloat16>(table, chunk, blend), chunk.count);
      break;
    case kMixed:
      done = sweep_vectors<4, 4>(EmaOp<kAny, kAny>(table, chunk, blend), chunk.count);
      break;
  }
  EmaOp<kAny, kAny> rest(table, chunk, blend);
  sweep<1, 4>(rest, done, chunk.count);
}

// ---- sums of squares ------------------------------------------------------------------------------------------------

// Σ x² or, with a second list, Σ x², Σ y², Σ xy; in double precision, where the squares of all floats have room.
template <int kDtype, int kLists>
struct SquareOp {
  static constexpr int kSums = kLists == 1 ? 1 : 3;
  Part<kDtype> lists[kLists];
  double (&sum)[kSums];

  template <int V>
  struct Registers {
    Raw<V> raw[kLists];
  };

  template <int N>
  __device__ SquareOp(const Table<N>& table, const Chunk& chunk, double (&s)[kSums]) : sum(s) {
    for (int n = 0; n < kLists; ++n) lists[n] = table.template part<kDtype>(n, chunk);
  }

  template <int V>
  __device__ void load(Registers<V>& r, int k) const {
#pragma unroll
    for (int n = 0; n < kLists; ++n) r.raw[n] = lists[n].template load<V>(k);
  }

  template <int V>
  __device__ void use(const Registers<V>& r, int) const {
    float x[kLists][V];
#pragma unroll
    for (int n = 0; n < kLists; ++n) lists[n].unpack(r.raw[n], x[n]);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const double a = x[0][i];
      sum[0] = fma(a, a, sum[0]);
      if constexpr (kLists == 2) {
        const double b = x[1][i];
        sum[1] = fma(b, b, sum[1]);
        sum[2] = fma(a, b, sum[2]);
      }
    }
  }
};

// The sums of a chunk of the table's first kLists lists, to `partial`.
template <int kLists, int N>
__device__ void sum_squares(const Table<N>& table, const Chunk& chunk, double* partial) {
  constexpr int kSums = SquareOp<kAny, kLists>::kSums;
  double sum[kSums] = {};
  int done = 0;
  switch (table.path[chunk.entry] & 0xff) {
    case kScalar:
      break;
    case kAll32:
      done = sweep_vectors<4, 4>(SquareOp<kFloat32, kLists>(table, chunk, sum), chunk.count);
      break;
    case kAllBFloat16:
      done = sweep_vectors<8, 2>(SquareOp<kBFloat16, kLists>(table, chunk, sum), chunk.count);
      break;
    default:
      done = sweep_vectors<4, 4>(SquareOp<kAny, kLists>(table, chunk, sum), chunk.count);
  }
  SquareOp<kAny, kLists> rest(table, chunk, sum);
  sweep<1, 4>(rest, done, chunk.count);
  sum_block(sum);
  if (threadIdx.x == 0)
    for (int n = 0; n < kSums; ++n) partial[n] = sum[n];
}

__global__ void __launch_bounds__(kThreads)
    square_sum_chunks(const __grid_constant__ Table<1> table, double* partials) {
  sum_squares<1>(table, table.find(blockIdx.x), partials + blockIdx.x);
}

__global__ void __launch_bounds__(kThreads) square_sum_total(const double* partials, int64_t count, double* result) {
  double sum[1] = {};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum[0] += partials[i];
  sum_block(sum);
  if (threadIdx.x == 0) *result = sum[0];
}

// ---- adamw ----------------------------------------------------------------------------------------------------------

struct AdamWScalars {
  Scalar ema_momentum, lr, factor, found_inf;
  double beta1, beta2, weight_decay;
  bool maximize;
};

struct AdamWNumbers {  // of the update, the same for all entries
  Blend average;       // m + (1 − β1)·(g − m)
  float beta2, rest2, eps;
};

constexpr int kAdamWLists = 8;  // p, g, m, v, vmax, teacher, shadow; and the steps

// One thread to an entry: the step goes up, and its powers are taken here, once, not in every block.
__global__ void __launch_bounds__(kThreads) adamw_prepare(const __grid_constant__ Table<kAdamWLists> table,
                                                          const __grid_constant__ AdamWScalars a, Record* records) {
  const int e = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (e >= table.entries) return;
  float* const step = reinterpret_cast<float*>(table.data[7][e]);
  const float count = *step + 1;
  const bool skip = read(a.found_inf) != 0;
  if (!skip) *step = count;
  const double lr = read(a.lr), factor = read(a.factor);
  Record r{};
  r.rate = static_cast<float>(-lr / (1 - pow(a.beta1, static_cast<double>(count))));
  r.root = static_cast<float>(1 / sqrt(1 - pow(a.beta2, static_cast<double>(count))));
  r.decay = static_cast<float>(-lr * a.weight_decay);
  r.factor = static_cast<float>(a.maximize ? -factor : factor);
  r.blend = Blend::of(1 - read(a.ema_momentum));
  r.skip = skip;
  records[e] = r;
}

template <int kDtype>
struct AdamWOp {
  Part<kDtype> parameter, gradient, exp_avg, exp_avg_sq, max_exp_avg_sq, teacher;
  Part<kAny> shadow;
  const Record& record;
  const AdamWNumbers& numbers;

  template <int V>
  struct Registers {
    Raw<V> p, g, m, v, largest, t;
  };

  __device__ AdamWOp(const Table<kAdamWLists>& table, const Chunk& chunk, const Record& r, const AdamWNumbers& a)
      : parameter(table.part<kDtype>(0, chunk)),
        gradient(table.part<kDtype>(1, chunk)),
        exp_avg(table.part<kDtype>(2, chunk)),
        exp_avg_sq(table.part<kDtype>(3, chunk)),
        max_exp_avg_sq(table.part<kDtype>(4, chunk)),
        teacher(table.part<kDtype>(5, chunk)),
        shadow(table.part<kAny>(6, chunk)),
        record(r),
        numbers(a) {}

  template <int V>
  __device__ void load(Registers<V>& r, int k) const {
    r.p = parameter.template load<V>(k);
    r.g = gradient.template load<V>(k);
    r.m = exp_avg.template load<V>(k);
    r.v = exp_avg_sq.template load<V>(k);
    if (max_exp_avg_sq.data) r.largest = max_exp_avg_sq.template load<V>(k);
    if (teacher.data) r.t = teacher.template load<V>(k);
  }

  template <int V>
  __device__ void use(const Registers<V>& r, int k) const {
    float p[V], g[V], m[V], v[V], largest[V];
    parameter.unpack(r.p, p);
    gradient.unpack(r.g, g);
    exp_avg.unpack(r.m, m);
    exp_avg_sq.unpack(r.v, v);
    if (max_exp_avg_sq.data) max_exp_avg_sq.unpack(r.largest, largest);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      g[i] *= record.factor;
      m[i] = numbers.average(m[i], g[i]);
      v[i] = fmaf(numbers.beta2, v[i], numbers.rest2 * g[i] * g[i]);
      // Not fmaxf, which swallows not-a-number.
      largest[i] = !max_exp_avg_sq.data || v[i] > largest[i] || isnan(v[i]) ? v[i] : largest[i];
      p[i] = fmaf(record.decay, p[i], p[i]);
      p[i] = fmaf(record.rate, m[i] / fmaf(sqrtf(largest[i]), record.root, numbers.eps), p[i]);
    }
    exp_avg.store(k, m);
    exp_avg_sq.store(k, v);
    if (max_exp_avg_sq.data) max_exp_avg_sq.store(k, largest);
    parameter.store(k, p);
    teach(teacher, shadow, record.blend, r.t, k, p);
  }
};

__global__ void __launch_bounds__(kThreads, 4)
    adamw_update(const __grid_constant__ Table<kAdamWLists> table, const __grid_constant__ AdamWNumbers numbers,
                 const Record* records) {
  const Chunk chunk = table.find(blockIdx.x);
  const Record record = records[chunk.entry];
  if (record.skip) return;
  int done = 0;
  switch (table.path[chunk.entry]) {
    case kScalar:
      break;
    case kAll32:
      done = sweep_vectors<4, 1>(AdamWOp<kFloat32>(table, chunk, record, numbers), chunk.count);
      break;
    default:
      done = sweep_vectors<4, 1>(AdamWOp<kAny>(table, chunk, record, numbers), chunk.count);
  }
  AdamWOp<kAny> rest(table, chunk, record, numbers);
  sweep<1, 1>(rest, done, chunk.count);
}

// ---- lars -----------------------------------------------------------------------------------------------------------

struct LarsScalars {
  Scalar ema_momentum, lr, factor, found_inf;
  double weight_decay, trust_coefficient, eps;
  bool maximize, trust_clip, joint;
};

struct LarsNumbers {
  float momentum, rest;  // 1 − dampening
  bool nesterov;
};

constexpr int kLarsLists = 5;  // p, g, b, teacher, shadow

__global__ void __launch_bounds__(kThreads)
    lars_norms(const __grid_constant__ Table<kLarsLists> table, double* partials) {
  const Chunk chunk = table.find(blockIdx.x);
  if (table.path[chunk.entry] & kAdapted)
    sum_squares<2>(table, chunk, partials + static_cast<int64_t>(blockIdx.x) * kPartialDoubles);
}

// A block to an entry.
__global__ void __launch_bounds__(kThreads)
    lars_trust(const __grid_constant__ Table<kLarsLists> table, const __grid_constant__ LarsScalars a,
               const double* partials, Record* records) {
  const int e = static_cast<int>(blockIdx.x);
  const bool adapted = table.path[e] & kAdapted;
  double sum[3] = {};
  if (adapted) {
    for (uint32_t i = table.first_chunk[e] + threadIdx.x; i < table.first_chunk[e + 1]; i += kThreads)
      for (int n = 0; n < 3; ++n) sum[n] += partials[static_cast<int64_t>(i) * kPartialDoubles + n];
    sum_block(sum);
  }
  if (threadIdx.x != 0) return;
  const double lr = read(a.lr), size = read(a.factor), factor = a.maximize ? -size : size, decay = a.weight_decay;
  double trust = 1;
  if (adapted) {
    const double norm = sqrt(sum[0]), gradient = fabs(factor) * sqrt(sum[1]);
    double below = gradient + decay * norm;
    if (a.joint) {
      const double square = factor * factor * sum[1] + 2 * decay * factor * sum[2] + decay * decay * sum[0];
      below = square < 0 ? 0 : sqrt(square);
    }
    // Comparisons that let not-a-number through.
    if (norm != 0 && (a.joint ? below : gradient) != 0) trust = a.trust_coefficient * norm / (below + a.eps);
    if (a.trust_clip) trust = trust / lr > 1 ? 1 : trust / lr;
  }
  Record r{};
  r.rate = static_cast<float>(-lr);
  r.trust = static_cast<float>(trust);
  r.decay = static_cast<float>(decay);
  r.factor = static_cast<float>(factor);
  r.blend = Blend::of(1 - read(a.ema_momentum));
  r.skip = read(a.found_inf) != 0;
  records[e] = r;
}

template <int kDtype>
struct LarsOp {
  Part<kDtype> parameter, gradient, buffer, teacher;
  Part<kAny> shadow;
  bool adapted, fresh;
  const Record& record;
  const LarsNumbers& numbers;

  template <int V>
  struct Registers {
    Raw<V> p, g, b, t;
  };

  __device__ LarsOp(const Table<kLarsLists>& table, const Chunk& chunk, const Record& r, const LarsNumbers& a)
      : parameter(table.part<kDtype>(0, chunk)),
        gradient(table.part<kDtype>(1, chunk)),
        buffer(table.part<kDtype>(2, chunk)),
        teacher(table.part<kDtype>(3, chunk)),
        shadow(table.part<kAny>(4, chunk)),
        adapted(table.path[chunk.entry] & kAdapted),
        fresh(table.path[chunk.entry] & kFresh),
        record(r),
        numbers(a) {}

  template <int V>
  __device__ void load(Registers<V>& r, int k) const {
    r.p = parameter.template load<V>(k);
    r.g = gradient.template load<V>(k);
    if (buffer.data && !fresh) r.b = buffer.template load<V>(k);
    if (teacher.data) r.t = teacher.template load<V>(k);
  }

  template <int V>
  __device__ void use(const Registers<V>& r, int k) const {
    float p[V], u[V], b[V];
    parameter.unpack(r.p, p);
    gradient.unpack(r.g, u);
    if (buffer.data && !fresh) buffer.unpack(r.b, b);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      u[i] *= record.factor;
      if (adapted) u[i] = record.trust * fmaf(record.decay, p[i], u[i]);
      if (buffer.data) {
        b[i] = fresh ? u[i] : fmaf(numbers.momentum, b[i], numbers.rest * u[i]);
        u[i] = numbers.nesterov ? fmaf(numbers.momentum, b[i], u[i]) : b[i];
      }
      p[i] = fmaf(record.rate, u[i], p[i]);
    }
    if (buffer.data) buffer.store(k, b);
    parameter.store(k, p);
    teach(teacher, shadow, record.blend, r.t, k, p);
  }
};

// Backwards, so that what the norms read last, and the second-level cache still has, is read first.
__global__ void __launch_bounds__(kThreads, 4)
    lars_update(const __grid_constant__ Table<kLarsLists> table, const __grid_constant__ LarsNumbers numbers,
                const Record* records) {
  const Chunk chunk = table.find(gridDim.x - 1 - blockIdx.x);
  const Record record = records[chunk.entry];
  if (record.skip) return;
  int done = 0;
  switch (table.path[chunk.entry] & 0xff) {
    case kScalar:
      break;
    case kAll32:
      done = sweep_vectors<4, 2>(LarsOp<kFloat32>(table, chunk, record, numbers), chunk.count);
      break;
    default:
      done = sweep_vectors<4, 2>(LarsOp<kAny>(table, chunk, record, numbers), chunk.count);
  }
  LarsOp<kAny> rest(table, chunk, record, numbers);
  sweep<1, 1>(rest, done, chunk.count);
}

#if PYSSL_PARAMETER_BYTES == 32764  // as said above
static_assert(Table<3>::kCapacity == 738 && Table<1>::kCapacity == 1161);
static_assert(Table<kAdamWLists>::kCapacity == 387 && Table<kLarsLists>::kCapacity == 541);
#endif
static_assert(sizeof(Table<3>) + sizeof(Scalar) <= kParameterBytes);
static_assert(sizeof(Table<kAdamWLists>) + sizeof(AdamWScalars) + 16 <= kParameterBytes);
static_assert(sizeof(Table<kLarsLists>) + sizeof(LarsScalars) + 32 <= kParameterBytes);

}  // namespace

// ---- the host's side ------------------------------------------------------------------------------------------------

void ema(const Ema& args) {
  const OnDevice device(args.entries.device);
  const auto make = [&](int64_t i) {
    if (i >= args.averaged)
      return Entry<3>{{args.teacher.data[i], args.student.data[i]}, {}, args.entries.sizes[i], kCopy};
    Entry<3> made = entry<3>(args.entries, {args.teacher, args.student, args.shadow}, i, 2);
    if (made.path == kMixed && made.dtypes[0] == kFloat32)
      made.path = made.dtypes[1] == kBFloat16 ? k32FromBFloat16 : k32FromHalf;
    return made;
  };
  for_tables<3>(args.entries.count, make, [&](const Table<3>& table) {
    launch(ema_update, blocks(table), args.entries.stream, table, args.momentum);
  });
}

void square_sum(const SquareSum& args) {
  const OnDevice device(args.entries.device);
  int64_t count = 0;
  const auto make = [&](int64_t i) { return entry<1>(args.entries, {args.tensors}, i, 1); };
  for_tables<1>(args.entries.count, make, [&](const Table<1>& table) {
    launch(square_sum_chunks, blocks(table), args.entries.stream, table, args.partials + count);
    count += blocks(table);
  });
  launch(square_sum_total, 1, args.entries.stream, args.partials, count, args.result);
}

void adamw(const AdamW& args) {
  const OnDevice device(args.entries.device);
  const AdamWScalars scalars{args.ema_momentum, args.lr,    args.factor,       args.found_inf,
                             args.beta1,        args.beta2, args.weight_decay, args.maximize};
  const AdamWNumbers numbers{Blend::of(1 - args.beta1), static_cast<float>(args.beta2),
                             static_cast<float>(1 - args.beta2), static_cast<float>(args.eps)};
  Record* const records = static_cast<Record*>(args.records);
  const auto make = [&](int64_t i) {
    Entry<kAdamWLists> made = entry<kAdamWLists>(args.entries,
                                                 {args.parameters, args.gradients, args.exp_avg, args.exp_avg_sq,
                                                  args.max_exp_avg_sq, args.teacher, args.shadow},
                                                 i, 6);
    made.data[7] = args.steps[i];
    return made;
  };
  for_tables<kAdamWLists>(args.entries.count, make, [&](const Table<kAdamWLists>& table) {
    launch(adamw_prepare, (table.entries + kThreads - 1) / kThreads, args.entries.stream, table, scalars, records);
    launch(adamw_update, blocks(table), args.entries.stream, table, numbers, records);
  });
}

void lars(const Lars& args) {
  const OnDevice device(args.entries.device);
  const LarsScalars scalars{args.ema_momentum,      args.lr,  args.factor,   args.found_inf,  args.weight_decay,
                            args.trust_coefficient, args.eps, args.maximize, args.trust_clip, args.joint};
  const LarsNumbers numbers{static_cast<float>(args.momentum), static_cast<float>(1 - args.dampening), args.nesterov};
  Record* const records = static_cast<Record*>(args.records);
  const bool any = std::any_of(args.adapted, args.adapted + args.entries.count, [](uint8_t x) { return x != 0; });
  const auto make = [&](int64_t i) {
    Entry<kLarsLists> made = entry<kLarsLists>(
        args.entries, {args.parameters, args.gradients, args.momentum_buffers, args.teacher, args.shadow}, i, 4);
    made.path |= (args.adapted[i] ? kAdapted : 0u) | (args.fresh[i] ? kFresh : 0u);
    return made;
  };
  for_tables<kLarsLists>(args.entries.count, make, [&](const Table<kLarsLists>& table) {
    if (any) launch(lars_norms, blocks(table), args.entries.stream, table, args.partials);
    launch(lars_trust, table.entries, args.entries.stream, table, scalars, args.partials, records);
    launch(lars_update, blocks(table), args.entries.stream, table, numbers, records);
  });
}

}  // namespace pyssl::cuda
