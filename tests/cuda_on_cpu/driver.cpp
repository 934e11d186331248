// Every kernel on memory that ends where its tensors end, for sanitizers to watch; and kernels that are wrong on purpose,
// which must be caught. The argument says which: all, few, barrier, overread, race.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cuda/augment.h"
#include "../../csrc/cuda/device.cuh"
#include "../../csrc/cuda/multi_tensor.h"

namespace cuda = pyssl::cuda;

namespace {

// Lists of tensors of exactly their size each; `shift` elements into their memory.
class Tensors {
 public:
  Tensors(const std::vector<int64_t>& sizes, int dtype, int shift, bool each_other = false) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int type = each_other ? (dtype + static_cast<int>(i)) % 3 : dtype;
      const size_t item = type == 0 ? 4 : 2, bytes = (static_cast<size_t>(sizes[i] + shift)) * item;
      char* memory = static_cast<char*>(std::malloc(bytes));
      std::memset(memory, 0x11, bytes);  // a small positive number in every dtype
      memory_.push_back(memory);
      data_.push_back(reinterpret_cast<uintptr_t>(memory + shift * item));
      dtypes_.push_back(type);
    }
  }
  ~Tensors() {
    for (char* memory : memory_) std::free(memory);
  }
  Tensors(const Tensors&) = delete;
  operator cuda::List() const { return {data_.data(), dtypes_.data()}; }
  const uintptr_t* pointers() const { return data_.data(); }

 private:
  std::vector<char*> memory_;
  std::vector<uintptr_t> data_;
  std::vector<int> dtypes_;
};

void run_all(const std::vector<int64_t>& sizes, int dtype, int shift, bool each_other) {
  const int64_t count = static_cast<int64_t>(sizes.size());
  int64_t chunks = 0;
  for (const int64_t size : sizes) chunks += (size + cuda::kChunk - 1) / cuda::kChunk;
  const cuda::Entries entries{count, sizes.data(), 0, nullptr};
  const std::vector<int64_t> ones(sizes.size(), 1);
  const auto list = [&] { return Tensors(sizes, dtype, shift, each_other); };
  const Tensors p = list(), g = list(), m = list(), v = list(), largest = list(), t = list(), shadow = list();
  const Tensors steps(ones, 0, 0);
  std::vector<uint8_t> records(static_cast<size_t>(count) * cuda::kRecordBytes);
  std::vector<double> partials(static_cast<size_t>(chunks * cuda::kPartialDoubles));
  std::vector<uint8_t> odd(sizes.size()), few(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) odd[i] = i % 2, few[i] = i % 3 == 0;
  const double number = 0.25;
  const float zero = 0;
  const cuda::Scalar by_value{0.5, nullptr, false}, by_pointer{0, &number, true}, none{0, &zero, false};

  cuda::ema({entries, t, p, shadow, count, by_pointer});
  std::vector<int64_t> bytes(sizes);
  for (size_t i = 0; i < sizes.size(); ++i) bytes[i] = 2 * sizes[i];  // what the smallest dtype has
  cuda::ema({{count, bytes.data(), 0, nullptr}, t, p, {}, 0, by_value});
  double total = 0;
  cuda::square_sum({entries, g, partials.data(), &total});
  cuda::adamw({entries, p, g, m, v, largest, t, shadow, steps.pointers(), by_pointer, by_value, by_value, none, 0.9,
               0.99, 1e-8, 0.1, true, records.data()});
  cuda::adamw({entries,
               p,
               g,
               m,
               v,
               {},
               {},
               {},
               steps.pointers(),
               by_value,
               by_value,
               by_value,
               by_value,
               0.9,
               0.99,
               1e-8,
               0.1,
               false,
               records.data()});
  cuda::lars({entries,        p,   g, m,   t,     shadow, odd.data(), few.data(), by_pointer, by_value, by_value,
              none,           0.9, 0, 0.1, 0.001, 1e-8,   true,       false,      true,       true,     records.data(),
              partials.data()});
  cuda::lars({entries,        p, g, {},  {},    {},   few.data(), odd.data(), by_value, by_value, by_value,
              none,           0, 0, 0.1, 0.001, 1e-8, false,      true,       false,    false,    records.data(),
              partials.data()});
}

// Numbers as parameters on a GPU, which nobody checks, may hold them.
double lie() {
  static uint32_t state = 1;
  constexpr double kLies[] = {NAN, INFINITY, -INFINITY, -1e300, 1e300, -1e9, 1e9, -3, -1, 0, 0.5, 1, 2, 3, 5, 9};
  state = state * 1664525 + 1013904223;
  return kLies[state >> 28];
}

// Images of different sizes, the last channels of the last rows at the end of their memory.
void run_augment(pyssl::Pixel input, pyssl::Pixel output, int count, int channels, int height, int width,
                 bool channels_last, bool bicubic, bool antialias) {
  const size_t item = input == pyssl::Pixel::uint8 ? 1 : input == pyssl::Pixel::float32 ? 4 : 2;
  const size_t out_item = output == pyssl::Pixel::uint8 ? 1 : output == pyssl::Pixel::float32 ? 4 : 2;
  std::vector<std::vector<char>> memory;
  std::vector<cuda::Image> images;
  std::vector<pyssl::Sample> samples(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    const int64_t rows = 1 + 3 * i % 7, columns = 1 + 5 * i % 9;
    memory.emplace_back(static_cast<size_t>(channels * rows * columns) * item, '\x11');
    memory.back().shrink_to_fit();
    const pyssl::Picture last{memory.back().data(), 1, channels * columns, channels};
    const pyssl::Picture first{memory.back().data(), rows * columns, columns, 1};
    images.push_back({channels_last ? last : first, rows, columns});
    double* const numbers = reinterpret_cast<double*>(&samples[static_cast<size_t>(i)]);
    for (int64_t k = 0; k < pyssl::kSampleNumbers; ++k) numbers[k] = lie();
  }
  const size_t pixels = static_cast<size_t>(count * channels * height * width);
  std::vector<char> out(pixels * out_item);
  std::vector<float> resized(pixels), coloured(pixels),
      sums(static_cast<size_t>(count * cuda::partials(height, width)));
  const int64_t plane = static_cast<int64_t>(height) * width, channel = channels_last ? 1 : plane;
  const int64_t row = channels_last ? channels * width : width, column = channels_last ? channels : 1;
  const int64_t strides[] = {channels * plane, channel, row, column};
  const double zeros[4] = {}, ones[4] = {1, 1, 1, 1};
  cuda::augment({count,          channels,       height,          width,       input, {},     0,          images.data(),
                 samples.data(), bicubic,        antialias,       zeros,       ones,  0.5,    out.data(), output,
                 strides,        resized.data(), coloured.data(), sums.data(), 0,     nullptr});
}

__global__ void skip_barrier(int* value) {
  __shared__ int shared;
  if (threadIdx.x == 0) shared = *value;
  if (threadIdx.x < 128) __syncthreads();
  if (threadIdx.x == 1) *value = shared;
}

__global__ void read_beyond(const float* x, int count, float* y) {
  const int i = static_cast<int>(threadIdx.x) + 1;
  if (i <= count) y[i - 1] = x[i];
}

__global__ void forget_barrier(int* value) {
  __shared__ int shared[cuda::kThreads];
  shared[threadIdx.x] = *value;
  // Here a barrier is missing.
  const int next = shared[(threadIdx.x + 1) % cuda::kThreads];
  __syncthreads();
  if (threadIdx.x == 0) *value = next;
}

}  // namespace

int main(int, char** argv) try {
  const std::string what = argv[1];
  if (what == "all") {
    const std::vector<int64_t> sizes{0, 1, 7, 4096, 4097, 8195};
    for (int dtype = 0; dtype < 3; ++dtype) run_all(sizes, dtype, 0, false);
    for (int shift = 0; shift < 2; ++shift) run_all(sizes, 0, shift, true);
    using pyssl::Pixel;
    run_augment(Pixel::uint8, Pixel::float32, 24, 3, 9, 33, true, true, true);
    run_augment(Pixel::float32, Pixel::uint8, 12, 4, 33, 5, false, false, true);
    run_augment(Pixel::bfloat16, Pixel::float16, 12, 1, 8, 32, false, true, false);
    run_augment(Pixel::float16, Pixel::bfloat16, 12, 3, 1, 1, true, false, false);
    std::puts("all ran");
  } else if (what == "few") {
    run_all({0, 5, 4097}, 0, 0, true);
    run_augment(pyssl::Pixel::uint8, pyssl::Pixel::float32, 3, 4, 9, 33, true, true, true);
    std::puts("all ran");
  } else if (what == "barrier") {
    int value = 1;
    cuda::launch(skip_barrier, 1, nullptr, &value);
  } else if (what == "overread") {
    const int count = 3;
    float* const memory = static_cast<float*>(std::malloc(2 * count * sizeof(float)));
    float* const x = static_cast<float*>(std::malloc(count * sizeof(float)));
    std::memset(x, 0, count * sizeof(float));
    cuda::launch(read_beyond, 1, nullptr, x, count, memory);
    std::free(x);
    std::free(memory);
  } else if (what == "race") {
    int value = 1;
    cuda::launch(forget_barrier, 1, nullptr, &value);
  } else {
    return 2;
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
