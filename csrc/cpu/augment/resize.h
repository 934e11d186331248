// Crop, resize and flips, row by row: along the rows first, for kLanes rows of the crop at a time, turned so that a
// vector holds one pixel of each; then down the columns from a ring of such rows, which stays in the cache.
#pragma once

#include <cmath>
#include <utility>

#include "rows.h"

namespace pyssl::PYSSL_ISA {

namespace {

// Where each output of a resized axis comes from: `taps` inputs from `first` on, with their weights, [taps, size].
struct Axis {
  int64_t taps;
  int32_t* first;
  float* weight;
  float *offset, *total;  // scratch, [size]
};

inline float triangle(float x) { return std::max(0.f, 1 - std::abs(x)); }

// Keys' cubic: a = −0.5 where antialiased, −0.75 where not, as torch has them.
inline float cubic(float x, float a) {
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((x - 5) * x + 8) * x * a - 4 * a : 0;
}

// By how much the filter is widened, to cover the inputs between two outputs.
inline double stretched(double inputs, int64_t size, bool antialias) {
  return antialias ? std::max(inputs / static_cast<double>(size), 1.0) : 1.0;
}

// The most inputs that an output can come from.
inline int64_t widest(double inputs, int64_t size, bool is_cubic, bool antialias) {
  return static_cast<int64_t>(std::min(inputs, std::ceil((is_cubic ? 4 : 2) * stretched(inputs, size, antialias))));
}

// Antialiased, what the filter covers of the inputs is weighted to 1; else inputs beyond a border are those at it. All
// weights times `factor`; the outputs in reverse where flipped. Beyond the filter's support weights are 0 by themselves.
// Places are in double: torch's, in float, are 2e-5 of full scale wrong at 256 pixels, and 3e-4 at 4,000.
template <bool is_cubic>
void lay(Axis& axis, int64_t inputs, int64_t size, bool flip, bool antialias, float factor) {
  const double scale = double(inputs) / size, stretch = stretched(inputs, size, antialias);
  const double support = (is_cubic ? 2 : 1) * stretch;
  const float a = antialias ? -0.5f : -0.75f, narrow = static_cast<float>(1 / stretch);
  const int64_t taps = axis.taps = widest(inputs, size, is_cubic, antialias);
  const auto value = [a](float x) { return is_cubic ? cubic(x, a) : triangle(x); };
  const auto lowest = [=](double centre) { return static_cast<int64_t>(std::floor(centre - support + 0.5)); };
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = flip ? size - 1 - i : i;
    const double centre = scale * (i + 0.5);
    const int64_t first = std::clamp<int64_t>(lowest(centre), 0, inputs - taps);
    axis.first[at] = static_cast<int32_t>(first);
    axis.offset[at] = static_cast<float>(first + 0.5 - centre);
  }
  std::fill_n(axis.total, size, antialias ? 0.f : 1.f);
  for (int64_t t = 0; t < taps; ++t) {
    float* __restrict weight = axis.weight + t * size;
    const float* __restrict offset = axis.offset;
    float* __restrict total = axis.total;
    const auto step = static_cast<float>(t);
    for (int64_t i = 0; i < size; ++i) weight[i] = value((offset[i] + step) * narrow);
    if (antialias)
      for (int64_t i = 0; i < size; ++i) total[i] += weight[i];
  }
  for (int64_t i = 0; i < size; ++i) axis.total[i] = factor / axis.total[i];
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t i = 0; i < size; ++i) axis.weight[t * size + i] *= axis.total[i];
  if (antialias) return;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = flip ? size - 1 - i : i, low = lowest(scale * (i + 0.5)), high = low + (is_cubic ? 4 : 2);
    if (low >= 0 && high <= inputs) continue;
    for (int64_t t = 0; t < taps; ++t) axis.weight[t * size + at] = 0;
    for (int64_t k = low; k < high; ++k) {
      const int64_t tap = std::clamp<int64_t>(k, 0, inputs - 1) - axis.first[at];
      axis.weight[tap * size + at] += factor * value(static_cast<float>(k + 0.5 - scale * (i + 0.5)));
    }
  }
}

inline void lay(Axis& axis, int64_t inputs, int64_t size, bool flip, bool is_cubic, bool antialias, float factor) {
  if (is_cubic)
    lay<true>(axis, inputs, size, flip, antialias, factor);
  else
    lay<false>(axis, inputs, size, flip, antialias, factor);
}

template <int... lane>
__attribute__((always_inline)) inline vf shuffled(vf x, vf y) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(x, y, lane...);
#else
  return __builtin_shuffle(x, y, vi{lane...});
#endif
}

template <int half, int... lane>
__attribute__((always_inline)) inline void exchange(vf& x, vf& y, std::integer_sequence<int, lane...>) {
  const vf low = shuffled<(lane & half ? kLanes + lane - half : lane)...>(x, y);
  y = shuffled<(lane & half ? kLanes + lane : lane + half)...>(x, y);
  x = low;
}

template <int half = kLanes / 2>
__attribute__((always_inline)) inline void transpose(vf* m) {
  if constexpr (half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & half)) exchange<half>(m[i], m[i + half], std::make_integer_sequence<int, kLanes>());
    transpose<half / 2>(m);
  }
}

// Numbers of the input as floats; times kScale they are on a scale of 0 to 1.
struct Bytes {
  typedef uint8_t type;
  static constexpr float kScale = 1 / 255.f;
  static float one(type x) { return x; }
  static vf several(const type* x) { return widen_bytes(x); }
};
struct Floats {
  typedef float type;
  static constexpr float kScale = 1;
  static float one(type x) { return x; }
  static vf several(const type* x) { return load(x); }
};
struct Halves {
  typedef uint16_t type;
  static constexpr float kScale = 1;
  static float one(type x) { return from_float16(x); }
  static vf several(const type* x) { return widen_halves(x); }
};
struct Bfloats {
  typedef uint16_t type;
  static constexpr float kScale = 1;
  static float one(type x) { return from_bfloat16(x); }
  static vf several(const type* x) {
    vf y;
    for (int l = 0; l < kLanes; ++l) y[l] = from_bfloat16(x[l]);
    return y;
  }
};

// column[k] ← pixel k of each of kLanes rows, of which there are `count`; the last one stands in for more.
template <class In>
void turn(const typename In::type* line, int64_t row, int64_t pixel, int64_t count, int64_t length, vf* column) {
  const typename In::type* from[kLanes];
  for (int i = 0; i < kLanes; ++i) from[i] = line + std::min<int64_t>(i, count - 1) * row;
  const auto several = [&](int64_t k) {
    vf block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = In::several(from[i] + k);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) column[k + i] = block[i];
  };
  if (pixel == 1 && length >= kLanes) {
    for (int64_t k = 0; k + kLanes <= length; k += kLanes) several(k);
    if (length % kLanes != 0) several(length - kLanes);
    return;
  }
  for (int64_t k = 0; k < length; ++k)
    for (int i = 0; i < kLanes; ++i) column[k][i] = In::one(from[i][k * pixel]);
}

// kLanes rows of one channel, resized along: out ← [kLanes, width] at steps of `stride`, whole vectors of it.
template <int kTaps>
void along(const Axis& x, const vf* column, int64_t step, int64_t width, float* out, int64_t stride) {
  const int64_t taps = kTaps ? kTaps : x.taps;
  for (int64_t left = 0; left < width; left += kLanes) {
    vf block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const int64_t at = std::min(left + i, width - 1);
      const vf* from = column + x.first[at] * step;
      const float* weight = x.weight + at;
      vf sum = weight[0] * from[0];
      for (int64_t t = 1; t < taps; ++t) sum += weight[t * width] * from[t * step];
      block[i] = sum;
    }
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(out + i * stride + left, block[i]);
  }
}

// row ← Σ weight·its inputs.
template <int kTaps>
void down(const float* const* from, const float* weight, int64_t size, int64_t taps, int64_t count,
          float* __restrict row) {
  if (kTaps) taps = kTaps;
  for (int64_t k = 0; k < count; k += kLanes) {
    vf sum = weight[0] * load(from[0] + k);
    for (int64_t t = 1; t < taps; ++t) sum += weight[t * size] * load(from[t] + k);
    store(row + k, sum);
  }
}

template <class Call>
inline void by_taps(int64_t taps, const Call& call) {
  using std::integral_constant;
  switch (taps) {
    case 1:
      return call(integral_constant<int, 1>());
    case 2:
      return call(integral_constant<int, 2>());
    case 3:
      return call(integral_constant<int, 3>());
    case 4:
      return call(integral_constant<int, 4>());
    case 5:
      return call(integral_constant<int, 5>());
    default:
      return call(integral_constant<int, 0>());
  }
}

// Rows that a ring needs, so that kLanes more can come beside those that an output is still to be made of.
inline int64_t ring_rows(int64_t taps) { return rounded_up(taps + kLanes, kLanes); }

struct Resizer {
  Axis y, x;
  vf* column;          // [a line of the crop]
  float* ring;         // [ring_rows, row]
  const float** from;  // [y.taps]
};

// Row i of the result into place(i), then each(that row), in order; of a flipped one from the last to the first.
template <class In, class Place, class Each>
void resize(const Augment& a, Picture picture, Sample s, Resizer& r, const Place& place, const Each& each) {
  if (s.transposed != 0) {
    std::swap(picture.row, picture.pixel);
    std::swap(s.top, s.left), std::swap(s.height, s.width);
    std::swap(s.horizontal_flip, s.vertical_flip);
  }
  const auto height = static_cast<int64_t>(s.height), width = static_cast<int64_t>(s.width);
  lay(r.y, height, a.height, false, a.bicubic, a.antialias, In::kScale);
  lay(r.x, width, a.width, s.horizontal_flip != 0, a.bicubic, a.antialias, 1);
  const auto* data = static_cast<const typename In::type*>(picture.data) + static_cast<int64_t>(s.top) * picture.row +
                     static_cast<int64_t>(s.left) * picture.pixel;
  const bool interleaved = picture.channel == 1 && picture.pixel == a.channels;
  const int64_t step = interleaved ? a.channels : 1,
                jump = interleaved ? 1 : width;  // in columns, of a pixel, a channel
  const int64_t rows = ring_rows(r.y.taps);
  int64_t done = 0;
  for (int64_t i = 0; i < a.height; ++i) {
    const Row row = place(i);
    const int64_t first = r.y.first[i], stride = row.size();
    if (first >= done + kLanes) done = first / kLanes * kLanes;
    for (; done < first + r.y.taps; done += kLanes) {
      const auto* lines = data + done * picture.row;
      const int64_t count = std::min<int64_t>(kLanes, height - done);
      if (interleaved)
        turn<In>(lines, picture.row, 1, count, width * a.channels, r.column);
      else
        for (int64_t c = 0; c < a.channels; ++c)
          turn<In>(lines + c * picture.channel, picture.row, picture.pixel, count, width, r.column + c * width);
      for (int64_t c = 0; c < a.channels; ++c)
        by_taps(r.x.taps, [&](auto taps) {
          along<taps>(r.x, r.column + c * jump, step, a.width, r.ring + done % rows * stride + c * row.length, stride);
        });
    }
    for (int64_t t = 0; t < r.y.taps; ++t) r.from[t] = r.ring + (first + t) % rows * stride;
    by_taps(r.y.taps, [&](auto taps) { down<taps>(r.from, r.y.weight + i, a.height, r.y.taps, row.size(), row.data); });
    each(row);
  }
}

}  // namespace

}  // namespace pyssl::PYSSL_ISA
