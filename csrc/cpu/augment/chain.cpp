// A whole augmentation, image by image: crop and resize, flips, colours, grey, blur, solarize, normalise. An image is read
// once, worked on as float32 planes that stay in the cache, and written once. What cannot be one pass: the mean that
// contrast turns around, and the neighbours of blur. Quarter turns and rotations are the twin's.
#include <cmath>
#include <utility>

#include "../parallel.h"
#include "../simd/rows.h"
#include "augment.h"

namespace pyssl::PYSSL_ISA {

namespace {

// Where each output of a resized axis comes from: `taps` inputs from `first` on, with their weights, [taps, size].
struct Axis {
  int64_t size, taps;
  int32_t* first;
  float* weight;
};

double triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

// Keys' cubic: a = −0.5 where antialiased, −0.75 where not, as torch has them.
double cubic(double x, double a) {
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((x - 5) * x + 8) * x * a - 4 * a : 0;
}

// By how much the filter is widened, to cover the inputs between two outputs.
double stretched(double inputs, int64_t size, bool antialias) {
  return antialias ? std::max(inputs / static_cast<double>(size), 1.0) : 1.0;
}

// The most inputs that an output can come from.
int64_t widest(double inputs, int64_t size, bool is_cubic, bool antialias) {
  const double support = (is_cubic ? 2 : 1) * stretched(inputs, size, antialias);
  return static_cast<int64_t>(std::min(inputs, std::ceil(support) * 2 + 1));
}

// Antialiased, what the filter covers of the inputs is weighted to 1; else inputs beyond a border are those at it.
void lay(Axis& axis, int64_t inputs, int64_t size, bool flip, bool is_cubic, bool antialias) {
  const double scale = double(inputs) / size, stretch = stretched(inputs, size, antialias);
  const double support = (is_cubic ? 2 : 1) * stretch, a = antialias ? -0.5 : -0.75;
  const int64_t most = widest(inputs, size, is_cubic, antialias);
  axis.size = size;
  axis.taps = 1;
  std::fill_n(axis.weight, most * size, 0.f);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = flip ? size - 1 - i : i;
    const double centre = scale * (i + 0.5);
    const int64_t low = static_cast<int64_t>(std::floor(centre - support + 0.5));
    const int64_t high = static_cast<int64_t>(std::floor(centre + support + 0.5));
    const int64_t begin = std::clamp<int64_t>(low, 0, inputs - 1), end = std::clamp<int64_t>(high, begin + 1, inputs);
    const int64_t first = std::min(begin, inputs - most);
    double total = 0;
    const auto value = [&](int64_t k) {
      const double x = (k - centre + 0.5) / stretch;
      return is_cubic ? cubic(x, a) : triangle(x);
    };
    for (int64_t k = antialias ? begin : low; k < (antialias ? end : high); ++k) total += value(k);
    for (int64_t k = antialias ? begin : low; k < (antialias ? end : high); ++k) {
      const int64_t tap = std::clamp<int64_t>(k, 0, inputs - 1) - first;
      axis.weight[tap * size + at] += static_cast<float>(antialias ? value(k) / total : value(k));
      if (axis.weight[tap * size + at] != 0) axis.taps = std::max(axis.taps, tap + 1);
    }
    axis.first[at] = static_cast<int32_t>(first);
  }
}

// row ← Σ weight·line over the lines of one output row.
template <class T>
void blend(float* __restrict row, const T* line, int64_t step, int64_t count, const float* weight, int64_t stride,
           int64_t taps) {
  for (int64_t t = 0; t < taps; ++t) {
    const T* __restrict from = line + t * step;
    const float w = weight[t * stride];
    if (t == 0)
      for (int64_t k = 0; k < count; ++k) row[k] = w * static_cast<float>(from[k]);
    else
      for (int64_t k = 0; k < count; ++k) row[k] += w * static_cast<float>(from[k]);
  }
}

template <int half, int... lane>
void exchange(vf& x, vf& y, std::integer_sequence<int, lane...>) {
  const vf low = __builtin_shufflevector(x, y, (lane & half ? kLanes + lane - half : lane)...);
  y = __builtin_shufflevector(x, y, (lane & half ? kLanes + lane : lane + half)...);
  x = low;
}

template <int half = kLanes / 2>
void transpose(vf* m) {
  if constexpr (half > 0) {
    for (int i = 0; i < kLanes; ++i)
      if (!(i & half)) exchange<half>(m[i], m[i + half], std::make_integer_sequence<int, kLanes>());
    transpose<half / 2>(m);
  }
}

// Rows are blended kLanes at a time and turned, so that along the other axis a vector holds as many rows. Random crops of
// 256 × 256 pixels to 224 × 224, normalised, took 0.44 ms a core with their inputs gathered, and 0.18 so (Zen 4, AVX-512).
template <class T>
void resize(const Augment& a, const Picture& picture, const Sample& s, Axis& y, Axis& x, float* rows, vf* turned,
            float* planes) {
  const auto height = static_cast<int64_t>(s.height), width = static_cast<int64_t>(s.width);
  lay(y, height, a.height, s.vertical_flip != 0, a.bicubic, a.antialias);
  lay(x, width, a.width, s.horizontal_flip != 0, a.bicubic, a.antialias);
  const T* data = static_cast<const T*>(picture.data) + static_cast<int64_t>(s.top) * picture.row +
                  static_cast<int64_t>(s.left) * picture.pixel;
  const float scale = static_cast<float>(a.scale);
  const bool interleaved = picture.channel == 1 && picture.pixel == a.channels;
  const int64_t together = interleaved ? a.channels : 1;  // channels of a line
  const int64_t line = width * together, stride = (line + kLanes - 1) / kLanes * kLanes;
  for (int64_t top = 0; top < a.height; top += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, a.height - top);
    for (int64_t c = 0; c < a.channels; c += together) {
      for (int64_t i = 0; i < count; ++i)
        blend(rows + i * stride, data + c * picture.channel + y.first[top + i] * picture.row, picture.row, line,
              y.weight + top + i, y.size, y.taps);
      for (int64_t k = 0; k < line; k += kLanes) {
        for (int i = 0; i < kLanes; ++i) turned[k + i] = load(rows + i * stride + k);
        transpose(turned + k);
      }
      for (int64_t own = 0; own < together; ++own) {
        for (int64_t left = 0; left < a.width; left += kLanes) {
          const int64_t across = std::min<int64_t>(kLanes, a.width - left);
          vf block[kLanes];
          for (int64_t i = 0; i < across; ++i) {
            const vf* from = turned + x.first[left + i] * together + own;
            const float* weight = x.weight + left + i;
            vf sum = {};
            for (int64_t t = 0; t < x.taps; ++t) sum += weight[t * x.size] * from[t * together];
            block[i] = scale * sum;
          }
          transpose(block);
          float* out = planes + ((c + own) * a.height + top) * a.width + left;
          for (int64_t i = 0; i < count; ++i) __builtin_memcpy(out + i * a.width, &block[i], across * sizeof(float));
        }
      }
    }
  }
}

inline float unit(float x) { return std::min(std::max(x, 0.f), 1.f); }
inline float luma(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

struct Planes {
  float *r, *g, *b;
  int64_t count;  // of one
};

void brightness(const Planes& p, float f) {
  for (float* x : {p.r, p.g, p.b})
    for (int64_t k = 0; x && k < p.count; ++k) x[k] = unit(f * x[k]);
}

void contrast(const Planes& p, float f) {
  double sum = 0;
  for (int64_t first = 0; first < p.count; first += 256) {
    const int64_t end = std::min(first + 256, p.count);
    float part = 0;
    if (p.g)
      for (int64_t k = first; k < end; ++k) part += luma(p.r[k], p.g[k], p.b[k]);
    else
      for (int64_t k = first; k < end; ++k) part += p.r[k];
    sum += part;
  }
  const float rest = static_cast<float>((1 - double(f)) * (sum / p.count));
  for (float* x : {p.r, p.g, p.b})
    for (int64_t k = 0; x && k < p.count; ++k) x[k] = unit(f * x[k] + rest);
}

void saturation(const Planes& p, float f) {
  float* __restrict r = p.r, * __restrict g = p.g, * __restrict b = p.b;
  for (int64_t k = 0; k < p.count; ++k) {
    const float rest = (1 - f) * luma(r[k], g[k], b[k]);
    r[k] = unit(f * r[k] + rest), g[k] = unit(f * g[k] + rest), b[k] = unit(f * b[k] + rest);
  }
}

// v − v·s·max(0, min(n, 4 − n, 1)): channel n = 5, 3, 1 plus six times the hue, modulo 6, of HSV. The brightest channel
// stays as it is, above 1 too, where a cubic filter has overshot.
inline float from_hue(float n, float v, float range) {
  n -= n >= 6 ? 6.f : 0.f;
  const float weight = std::max(0.f, std::min(std::min(n, 4 - n), 1.f));
  return weight == 0 ? v : unit(v - range * weight);
}

void hue(const Planes& p, float shift) {
  float* __restrict r = p.r, * __restrict g = p.g, * __restrict b = p.b;
  for (int64_t k = 0; k < p.count; ++k) {
    const float high = std::max(std::max(r[k], g[k]), b[k]), range = high - std::min(std::min(r[k], g[k]), b[k]);
    const float over = 1 / (range == 0 ? 1.f : range);
    const float of_red = (g[k] - b[k]) * over, of_green = 2 + (b[k] - r[k]) * over, of_blue = 4 + (r[k] - g[k]) * over;
    float h = high == r[k] ? of_red : high == g[k] ? of_green : of_blue;  // in sixths of the circle, −1 to 5
    h += 6 * shift + 6;
    h -= h >= 6 ? 6.f : 0.f;
    h -= h >= 6 ? 6.f : 0.f;
    r[k] = from_hue(h + 5, high, range);
    g[k] = from_hue(h + 3, high, range);
    b[k] = from_hue(h + 1, high, range);
  }
}

void grey(const Planes& p) {
  for (int64_t k = 0; k < p.count; ++k) p.r[k] = p.g[k] = p.b[k] = luma(p.r[k], p.g[k], p.b[k]);
}

inline int64_t reflected(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// out ← Σ half[|d|]·at(d) of vectors at k; so many that their sums stay in registers.
template <int vectors, class At>
inline void convolve_block(float* out, int64_t k, const float* half, int64_t radius, const At& at) {
  vf sum[vectors];
  for (int u = 0; u < vectors; ++u) sum[u] = half[0] * load(at(0) + k + u * kLanes);
  for (int64_t d = 1; d <= radius; ++d) {
    const float *before = at(-d) + k, *after = at(d) + k;
    for (int u = 0; u < vectors; ++u) sum[u] += half[d] * (load(before + u * kLanes) + load(after + u * kLanes));
  }
  for (int u = 0; u < vectors; ++u) store(out + k + u * kLanes, sum[u]);
}

template <class At>
void convolve(float* out, int64_t count, const float* half, int64_t radius, const At& at) {
  int64_t k = 0;
  for (; k + 7 * kLanes <= count; k += 7 * kLanes) convolve_block<7>(out, k, half, radius, at);
  for (; k + kLanes <= count; k += kLanes) convolve_block<1>(out, k, half, radius, at);
  for (; k < count; ++k) {
    float sum = half[0] * at(0)[k];
    for (int64_t d = 1; d <= radius; ++d) sum += half[d] * (at(-d)[k] + at(d)[k]);
    out[k] = sum;
  }
}

// Separable, borders reflected: first down the columns into a padded row, then along it.
void blur(float* plane, int64_t height, int64_t width, const float* half, int64_t radius, float* scratch) {
  float* copy = scratch;
  float* middle = scratch + height * width + radius;
  __builtin_memcpy(copy, plane, height * width * sizeof(float));
  for (int64_t i = 0; i < height; ++i) {
    convolve(middle, width, half, radius, [&](int64_t d) { return copy + reflected(i + d, height) * width; });
    for (int64_t d = 1; d <= radius; ++d) {
      middle[-d] = middle[reflected(-d, width)];
      middle[width - 1 + d] = middle[reflected(width - 1 + d, width)];
    }
    convolve(plane + i * width, width, half, radius, [&](int64_t d) { return middle + d; });
  }
}

// A Gaussian's values at 0 to radius, of which all 2·radius + 1 sum to 1.
void gaussian(float* half, int64_t radius, double sigma) {
  const auto value = [&](int64_t d) { return std::exp(-0.5 * (d / sigma) * (d / sigma)); };
  double total = 1;
  for (int64_t d = 1; d <= radius; ++d) total += 2 * value(d);
  for (int64_t d = 0; d <= radius; ++d) half[d] = static_cast<float>(value(d) / total);
}

void colour(const Planes& p, const Sample& s) {
  if (p.g && s.grey != 0 && s.grey_first != 0) grey(p);
  for (double step : s.order) {
    if (step == 0) brightness(p, static_cast<float>(s.factors[0]));
    if (step == 1) contrast(p, static_cast<float>(s.factors[1]));
    if (step == 2 && p.g) saturation(p, static_cast<float>(s.factors[2]));
    if (step == 3 && p.g) hue(p, static_cast<float>(s.factors[3]));
  }
  if (p.g && s.grey != 0 && s.grey_first == 0) grey(p);
}

// Solarize, invert, posterize.
void point(float* x, int64_t count, const Sample& s) {
  const float threshold = static_cast<float>(s.threshold), levels = static_cast<float>(s.levels);
  if (s.threshold < INFINITY)
    for (int64_t k = 0; k < count; ++k) x[k] = x[k] >= threshold ? 1 - x[k] : x[k];
  if (s.invert != 0)
    for (int64_t k = 0; k < count; ++k) x[k] = 1 - x[k];
  if (s.levels > 0)
    for (int64_t k = 0; k < count; ++k) x[k] = std::min(std::max(std::floor(x[k] * levels), 0.f), levels - 1) / levels;
}

// Normalised, to where the image belongs, and erased.
void finish(const Augment& a, const Sample& s, const float* planes, int64_t image) {
  const int64_t count = a.height * a.width;
  for (int64_t c = 0; c < a.channels; ++c) {
    const float over = static_cast<float>(1 / a.std[c]), mean = static_cast<float>(a.mean[c]);
    const float* __restrict x = planes + c * count;
    float* __restrict out = a.out + (image * a.channels + c) * count;
    for (int64_t k = 0; k < count; ++k) out[k] = (x[k] - mean) * over;
    const auto top = static_cast<int64_t>(s.erase[0]), left = static_cast<int64_t>(s.erase[1]);
    for (int64_t i = top; i < top + static_cast<int64_t>(s.erase[2]); ++i)
      std::fill_n(out + i * a.width + left, static_cast<int64_t>(s.erase[3]), static_cast<float>(a.erase_value));
  }
}

}  // namespace

void augment(const Augment& a) {
  const int64_t plane = a.height * a.width;
  int64_t longest = 0, most = 0, y_taps = 0, x_taps = 0;
  for (int64_t i = 0; i < a.images; ++i) {
    const Sample& s = a.samples[i];
    longest = std::max(longest, static_cast<int64_t>(s.width));
    most = std::max(most, static_cast<int64_t>(s.taps) / 2);
    y_taps = std::max(y_taps, widest(s.height, a.height, a.bicubic, a.antialias));
    x_taps = std::max(x_taps, widest(s.width, a.width, a.bicubic, a.antialias));
  }
  parallel(useful_threads(a.threads, a.images), [&](Team team) {
    const int64_t line = longest * a.channels + kLanes;
    const Scratch planes(a.channels * plane * 4), rows(line * kLanes * 4), turned(line * kLanes * 4),
        blurred((plane + a.width + 2 * most) * 4), half((most + 1) * 4), down((y_taps + 1) * a.height * 4),
        across((x_taps + 1) * a.width * 4);
    Axis y{a.height, 0, down.as<int32_t>(), down.as<float>() + a.height};
    Axis x{a.width, 0, across.as<int32_t>(), across.as<float>() + a.width};
    for (int64_t i; (i = team.claim()) < a.images;) {
      const Sample& s = a.samples[i];
      float* p = planes.as<float>();
      if (a.bytes)
        resize<uint8_t>(a, a.pictures[i], s, y, x, rows.as<float>(), turned.as<vf>(), p);
      else
        resize<float>(a, a.pictures[i], s, y, x, rows.as<float>(), turned.as<vf>(), p);
      const bool three = a.channels >= 3;  // a fourth is moved and blurred alone
      colour({p, three ? p + plane : nullptr, three ? p + 2 * plane : nullptr, plane}, s);
      if (s.sigma > 0) {
        const int64_t radius = static_cast<int64_t>(s.taps) / 2;
        gaussian(half.as<float>(), radius, s.sigma);
        for (int64_t c = 0; c < a.channels; ++c)
          blur(p + c * plane, a.height, a.width, half.as<float>(), radius, blurred.as<float>());
      }
      point(p, (three ? 3 : 1) * plane, s);
      finish(a, s, p, i);
    }
  });
}

}  // namespace pyssl::PYSSL_ISA
