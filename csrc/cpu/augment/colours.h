// Colours and point operations of one row, in place, over whole vectors.
#pragma once

#include <cmath>

#include "rows.h"

namespace pyssl::PYSSL_ISA {

namespace {

inline vf luma(vf r, vf g, vf b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

// f·x + rest, within 0 to 1: brightness, and contrast with its mean in `rest`.
inline void affine(const Row& row, float f, float rest) {
  for (int64_t k = 0; k < row.coloured() * row.length; k += kLanes)
    store(row.data + k, unit(f * load(row.data + k) + set(rest)));
}

// change(r, g, b), vector by vector.
template <class Change>
inline void each_pixel(const Row& row, const Change& change) {
  for (int64_t k = 0; k < row.length; k += kLanes) {
    vf r = load(row.channel(0) + k), g = load(row.channel(1) + k), b = load(row.channel(2) + k);
    change(r, g, b);
    store(row.channel(0) + k, r), store(row.channel(1) + k, g), store(row.channel(2) + k, b);
  }
}

inline void saturation(const Row& row, float f) {
  each_pixel(row, [f](vf& r, vf& g, vf& b) {
    const vf rest = (1 - f) * luma(r, g, b);
    r = unit(f * r + rest), g = unit(f * g + rest), b = unit(f * b + rest);
  });
}

inline void grey(const Row& row) {
  each_pixel(row, [](vf& r, vf& g, vf& b) { r = g = b = luma(r, g, b); });
}

// HSV's hue h, in sixths of a turn, times the range R of the channels needs no division: g − b, 2R + b − r, or
// 4R + r − g by which channel is highest. A channel is then low + clamp(|d| − R, 0, R), where d is h's distance on the
// circle of 6R from the opposite of the channel's own hue: of |m| ≤ 9R the smaller of |m| and ||m| − 6R|.
// What is highest stays as it is: above 1 too, where a cubic filter has overshot and nothing has clamped since. Of a grey
// pixel, whose range is 0, that is the one channel that the shift makes it.
template <bool clamped>
inline void hue(const Row& row, float shift) {
  each_pixel(row, [shift](vf& r, vf& g, vf& b) {
    const vf high = greatest(greatest(r, g), b), low = least(least(b, g), r);
    vf range = high - low;
    if constexpr (!clamped) range = range == vf{} ? set(1.f) : range;
    const vf whole = 6 * range;
    const vf of_green = 2 * range + (b - r), of_blue = 4 * range + (r - g);
    vf h = high == g ? of_green : of_blue;
    h = high == r ? g - b : h;
    h += shift * whole;
    const auto channel = [&](float opposite) {
      const vf m = magnitude(h + opposite * range);
      const vf part = least(range, greatest(vf{}, least(m, magnitude(m - whole)) - range));
      if constexpr (clamped) return low + part;
      const vf x = unit(high == low ? low : low + part);
      return part == range ? high : x;
    };
    r = channel(-3), g = channel(1), b = channel(-1);
  });
}

// Σ luma over the row's pixels.
inline float luma_sum(const Row& row) {
  vf sum = {};
  int64_t k = 0;
  const bool three = row.channels >= 3;
  const float *r = row.data, *g = three ? row.channel(1) : nullptr, *b = three ? row.channel(2) : nullptr;
  for (; k + kLanes <= row.width; k += kLanes) sum += three ? luma(load(r + k), load(g + k), load(b + k)) : load(r + k);
  float total = hsum(sum);
  for (; k < row.width; ++k) total += three ? 0.2989f * r[k] + 0.587f * g[k] + 0.114f * b[k] : r[k];
  return total;
}

// Solarize, invert, posterize.
inline void point(const Row& row, const Sample& s) {
  const int64_t count = row.coloured() * row.length;
  const float threshold = static_cast<float>(s.threshold), levels = static_cast<float>(s.levels);
  float* x = row.data;
  if (s.threshold < INFINITY)
    for (int64_t k = 0; k < count; k += kLanes) {
      const vf v = load(x + k);
      store(x + k, v >= set(threshold) ? 1 - v : v);
    }
  if (s.invert != 0)
    for (int64_t k = 0; k < count; k += kLanes) store(x + k, 1 - load(x + k));
  if (s.levels > 0)
    for (int64_t k = 0; k < count; ++k) x[k] = std::min(std::max(std::floor(x[k] * levels), 0.f), levels - 1) / levels;
}

// The colour steps of a sample, in their order, up to the contrast and from it on.
class Colours {
 public:
  Colours(const Sample& s, int64_t channels, bool within_unit) : clamped_(within_unit) {
    const bool three = channels >= 3;
    if (three && s.grey != 0 && s.grey_first != 0) add(kGrey, 0);
    for (double step : s.order) {
      const int kind = static_cast<int>(step);
      if (kind == kBrightness || kind == kContrast || (kind > kContrast && three)) add(kind, s.factors[kind]);
    }
    if (three && s.grey != 0 && s.grey_first == 0) add(kGrey, 0);
    while (contrast_ < count_ && kind_[contrast_] != kContrast) ++contrast_;
  }

  bool has_contrast() const { return contrast_ < count_; }
  bool ends_grey() const { return count_ > 0 && kind_[count_ - 1] == kGrey; }
  void before_contrast(const Row& row) { run(row, 0, contrast_, 0); }
  void from_contrast(const Row& row, double mean) { run(row, contrast_, count_, mean); }

 private:
  enum { kBrightness, kContrast, kSaturation, kHue, kGrey };

  void add(int kind, double factor) {
    kind_[count_] = kind;
    factor_[count_++] = factor;
  }

  void run(const Row& row, int begin, int end, double mean) const {
    bool clamped = clamped_ || begin > 0;
    for (int i = begin; i < end; ++i) {
      const auto f = static_cast<float>(factor_[i]);
      switch (kind_[i]) {
        case kBrightness:
          affine(row, f, 0);
          break;
        case kContrast:
          affine(row, f, static_cast<float>((1 - factor_[i]) * mean));
          break;
        case kSaturation:
          saturation(row, f);
          break;
        case kHue:
          clamped ? hue<true>(row, f) : hue<false>(row, f);
          break;
        case kGrey:
          grey(row);
          break;
      }
      clamped = clamped || kind_[i] <= kSaturation;
    }
  }

  bool clamped_;  // whether all values are within 0 to 1 from the start
  int kind_[6], count_ = 0, contrast_ = 0;
  double factor_[6];
};

}  // namespace

}  // namespace pyssl::PYSSL_ISA
