#include "parameters.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyssl {

namespace {

constexpr int kAttempts = 10;
// Which uniform number decides what: as in pyssl_fast/kernels/reference/augment.py.
enum Draw {
  kCrop = 0,
  kHorizontal = 22,
  kVertical,
  kTurns,
  kAffine,
  kAngle,
  kJitter,
  kGrey,
  kOrder,
  kFactors = kOrder + 4,
  kBlur = kFactors + 4,
  kSigma,
  kSolarize,
  kInvert,
  kPosterize,
  kErase,
  kErased,
  kTranslate = kErased + 22,
  kZoom = kTranslate + 2,
  kShear,
};

// SplitMix64 (Steele, Lea and Flood 2014, figure 16).
constexpr uint64_t kStep = 0x9E3779B97F4A7C15;

uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
  x = (x ^ x >> 27) * 0x94D049BB133111EB;
  return x ^ x >> 31;
}

// The uniform numbers of one sample.
class Uniform {
 public:
  Uniform(uint64_t seed, uint64_t epoch, uint64_t index, uint64_t view) : state_(mix(seed + kStep)) {
    for (uint64_t counter : {epoch, index, view}) state_ = mix(state_ + (counter + 1) * kStep);
  }
  double operator()(int draw) const {
    return static_cast<double>(mix(state_ + (static_cast<uint64_t>(draw) + 1) * kStep) >> 11) * 0x1p-53;
  }
  double between(int draw, double low, double high) const { return low + (high - low) * (*this)(draw); }
  int64_t below(int draw, int64_t count) const {
    return std::min(static_cast<int64_t>(std::floor((*this)(draw) * static_cast<double>(count))), count - 1);
  }

 private:
  uint64_t state_;
};

// An attempt's area and shape, as torchvision draws them: the sides are the roots of their product and quotient.
void attempt(const Uniform& u, int first, int number, double whole, const double* scale, const double* log_ratio,
             double& area, double& shape) {
  area = whole * u.between(first + number, scale[0], scale[1]);
  shape = std::exp(u.between(first + kAttempts + number, log_ratio[0], log_ratio[1]));
}

void crop(const Recipe& recipe, const Uniform& u, int64_t tall, int64_t wide, int64_t* box) {
  const auto h = static_cast<double>(tall), w = static_cast<double>(wide);
  for (int k = 0; k < kAttempts; ++k) {
    double area, shape;
    attempt(u, kCrop, k, static_cast<double>(tall * wide), recipe.scale, recipe.log_ratio, area, shape);
    const double width = std::nearbyint(std::sqrt(area * shape)), height = std::nearbyint(std::sqrt(area / shape));
    if (!(width > 0 && width <= w && height > 0 && height <= h)) continue;
    box[2] = static_cast<int64_t>(height), box[3] = static_cast<int64_t>(width);
    box[0] = u.below(kCrop + 2 * kAttempts, tall - box[2] + 1);
    box[1] = u.below(kCrop + 2 * kAttempts + 1, wide - box[3] + 1);
    return;
  }
  box[2] = w / h < recipe.ratio[0] ? std::max<int64_t>(1, std::nearbyint(w / recipe.ratio[0])) : tall;
  box[3] = w / h > recipe.ratio[1] ? std::max<int64_t>(1, std::nearbyint(h * recipe.ratio[1])) : wide;
  box[0] = (tall - box[2]) / 2, box[1] = (wide - box[3]) / 2;
}

void erasure(const Recipe& recipe, const Uniform& u, int64_t* box) {
  std::fill_n(box, 4, 0);
  if (!(u(kErase) < recipe.erase)) return;
  for (int k = 0; k < kAttempts; ++k) {
    double area, shape;
    attempt(u, kErased, k, recipe.height * recipe.width, recipe.erase_scale, recipe.erase_log_ratio, area, shape);
    const double height = std::nearbyint(std::sqrt(area * shape)), width = std::nearbyint(std::sqrt(area / shape));
    if (!(height > 0 && width > 0 && height < recipe.height && width < recipe.width)) continue;
    box[2] = static_cast<int64_t>(height), box[3] = static_cast<int64_t>(width);
    box[0] = u.below(kErased + 2 * kAttempts, static_cast<int64_t>(recipe.height) - box[2] + 1);
    box[1] = u.below(kErased + 2 * kAttempts + 1, static_cast<int64_t>(recipe.width) - box[3] + 1);
    return;
  }
}

bool within(double x, double low, double high) { return x >= low && x <= high; }  // false for NaN

bool lies_inside(const int64_t* box, int64_t least, int64_t height, int64_t width) {
  return box[0] >= 0 && box[1] >= 0 && box[2] >= least && box[3] >= least && box[0] <= height - box[2] &&
         box[1] <= width - box[3];
}

// [2, 3]: see Parameters.inverse_affine.
void invert_affine(double angle, const float* translate, double zoom, const float* shear, double* matrix) {
  constexpr double kRadians = 3.14159265358979323846 / 180;
  const double turn = -angle * kRadians, along_x = shear[0] * kRadians, along_y = shear[1] * kRadians;
  const double cos = std::cos(turn - along_y) / std::cos(along_y), sin = std::sin(turn - along_y) / std::cos(along_y);
  const double tan = std::tan(along_x);
  matrix[0] = (std::cos(turn) - sin * tan) / zoom, matrix[1] = (std::sin(turn) + cos * tan) / zoom;
  matrix[3] = -sin / zoom, matrix[4] = cos / zoom;
  for (int row = 0; row < 6; row += 3) matrix[row + 2] = -(matrix[row] * translate[0] + matrix[row + 1] * translate[1]);
}

}  // namespace

void draw(const Recipe& recipe, int64_t n, const int64_t* sizes, const int64_t* index, uint64_t seed, uint64_t epoch,
          uint64_t view, const Columns& c) {
  for (int64_t i = 0; i < n; ++i) {
    const Uniform u(seed, epoch, static_cast<uint64_t>(index[i]), view);
    crop(recipe, u, sizes[2 * i], sizes[2 * i + 1], c.box + 4 * i);
    c.horizontal_flip[i] = u(kHorizontal) < recipe.horizontal_flip;
    c.vertical_flip[i] = u(kVertical) < recipe.vertical_flip;
    c.turns[i] = recipe.turns != 0 ? static_cast<int64_t>(u(kTurns) * 4) : 0;
    const bool moved = u(kAffine) < recipe.affine;
    c.angle[i] = moved ? static_cast<float>(u.between(kAngle, -recipe.degrees, recipe.degrees)) : 0.f;
    for (int k = 0; k < 2; ++k)
      c.translate[2 * i + k] =
          moved ? static_cast<float>(std::nearbyint(recipe.translate[k] * (2 * u(kTranslate + k) - 1))) : 0.f;
    c.zoom[i] = moved ? static_cast<float>(u.between(kZoom, recipe.zoom[0], recipe.zoom[1])) : 1.f;
    c.shear[2 * i] = moved ? static_cast<float>(u.between(kShear, -recipe.shear, recipe.shear)) : 0.f;
    c.shear[2 * i + 1] = 0;
    const bool jitter = u(kJitter) < recipe.jitter;
    double rank[4];
    for (int k = 0; k < 4; ++k) {
      rank[k] = u(kOrder + k);
      c.order[4 * i + k] = k;
      c.jitter[4 * i + k] = jitter && recipe.uses[k] != 0;
      c.factors[4 * i + k] = static_cast<float>(recipe.least[k] + recipe.span[k] * u(kFactors + k));
    }
    std::sort(c.order + 4 * i, c.order + 4 * i + 4, [&](int64_t a, int64_t b) { return rank[a] < rank[b]; });
    c.grey[i] = u(kGrey) < recipe.grey;
    c.sigma[i] = u(kBlur) < recipe.blur ? static_cast<float>(u.between(kSigma, recipe.sigma[0], recipe.sigma[1])) : 0.f;
    c.solarize[i] = u(kSolarize) < recipe.solarize;
    c.threshold[i] = static_cast<float>(recipe.threshold);
    c.invert[i] = u(kInvert) < recipe.invert;
    c.bits[i] = u(kPosterize) < recipe.posterize ? static_cast<int64_t>(recipe.bits) : 0;
    erasure(recipe, u, c.erase + 4 * i);
  }
}

bool pack(const Columns& c, int64_t n, const int64_t* sizes, const Common& common, Sample* table) {
  bool valid = true;
  for (int64_t i = 0; i < n; ++i) {
    Sample& s = table[i];
    const int64_t *box = c.box + 4 * i, *order = c.order + 4 * i, *erase = c.erase + 4 * i;
    const float *translate = c.translate + 2 * i, *shear = c.shear + 2 * i, *factors = c.factors + 4 * i;
    const int64_t turns = c.turns[i];
    valid = valid && lies_inside(box, 1, sizes[2 * i], sizes[2 * i + 1]) &&
            lies_inside(erase, 0, common.height, common.width) && turns >= 0 && turns <= 3 &&
            (turns % 2 == 0 || common.height == common.width) && within(c.angle[i], -1e6, 1e6) &&
            within(translate[0], -1e6, 1e6) && within(translate[1], -1e6, 1e6) && within(c.zoom[i], 1e-3f, 1e3) &&
            within(shear[0], -89, 89) && within(shear[1], -89, 89) && within(c.sigma[i], 0, 1e3) &&
            within(c.threshold[i], 0, 1) && c.bits[i] >= 0 && c.bits[i] <= 8 && within(factors[0], 0, 1e6) &&
            within(factors[1], 0, 1e6) && within(factors[2], 0, 1e6) && within(factors[3], -0.5, 0.5) &&
            (c.sigma[i] == 0 || common.blur_kernel / 2 < std::min(common.height, common.width));
    int seen = 0;
    for (int k = 0; k < 4; ++k) seen |= order[k] >= 0 && order[k] < 4 ? 1 << order[k] : 0;
    valid = valid && seen == 15;
    if (!valid) return false;
    s.top = static_cast<double>(box[0]), s.left = static_cast<double>(box[1]);
    s.height = static_cast<double>(box[2]), s.width = static_cast<double>(box[3]);
    // A quarter turn is a flip and a transpose.
    s.horizontal_flip = c.horizontal_flip[i] != (turns == 1 || turns == 2);
    s.vertical_flip = c.vertical_flip[i] != (turns == 3 || turns == 2);
    s.transposed = turns % 2 != 0;
    s.moved =
        c.angle[i] != 0 || translate[0] != 0 || translate[1] != 0 || c.zoom[i] != 1 || shear[0] != 0 || shear[1] != 0;
    if (s.moved != 0) invert_affine(c.angle[i], translate, c.zoom[i], shear, s.matrix);
    for (int k = 0; k < 4; ++k) {
      s.order[k] = c.jitter[4 * i + order[k]] ? static_cast<double>(order[k]) : -1;
      s.factors[k] = factors[k];
      s.erase[k] = static_cast<double>(erase[k]);
    }
    s.grey = c.grey[i], s.grey_first = common.grey_first;
    s.sigma = c.sigma[i], s.taps = static_cast<double>(common.blur_kernel);
    s.threshold = c.solarize[i] ? c.threshold[i] : std::numeric_limits<double>::infinity();
    s.invert = c.invert[i];
    s.levels = c.bits[i] > 0 ? static_cast<double>(1 << c.bits[i]) : 0;
  }
  return valid;
}

}  // namespace pyssl
