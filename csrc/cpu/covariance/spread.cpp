// Squared distances of all views from the mean of the first few, and the gradient: LeJEPA's invariance.
//
// One read of every view; backward another and one write of each gradient. In double, which costs nothing beside memory.
#include <vector>

#include "columns.h"
#include "covariance.h"

namespace pyssl::PYSSL_ISA {

namespace {

constexpr int64_t kElements = 512;  // elements of each view at a time: 20 KB for ten views

int64_t blocks(const Matrix& x) { return (x.dim + kElements - 1) / kElements; }

// Elements [block·kElements, …) of every view as floats [views, kElements], zeros beyond the last.
void load_block(const Matrix& x, int64_t block, float* out) {
  const int64_t first = block * kElements, width = std::min(kElements, x.dim - first);
  Matrix part = x;
  part.data = static_cast<char*>(x.data) + first * size_of(x.dtype);
  for (int64_t v = 0; v < x.rows; ++v) {
    load_row(part, v, width, out + v * kElements);
    std::fill(out + v * kElements + width, out + (v + 1) * kElements, 0.f);
  }
}

// The mean of the first `count` views' vectors at l.
vd mean(const float* views, int64_t count, int64_t l) {
  vd sum = set(0.0);
  for (int64_t v = 0; v < count; ++v) sum += widen(views + v * kElements + l);
  return sum / set(static_cast<double>(count));
}

}  // namespace

void spread(const Spread& a) {
  Scratch scratch(a.threads * a.x.rows * kElements * 4);
  std::vector<double> sums(blocks(a.x));
  parallel(a.threads, [&](Team team) {
    float* views = scratch.as<float>() + team.rank * a.x.rows * kElements;
    for (int64_t block; (block = team.claim()) < blocks(a.x);) {
      load_block(a.x, block, views);
      vd sum = set(0.0);
      for (int64_t l = 0; l < kElements; l += kWide) {
        const vd centre = mean(views, a.centres, l);
        for (int64_t v = 0; v < a.x.rows; ++v) {
          const vd distance = widen(views + v * kElements + l) - centre;
          sum += distance * distance;
        }
      }
      for (int l = 0; l < kWide; ++l) sums[block] += sum[l];
    }
  });
  *a.distance = 0;
  for (double sum : sums) *a.distance += sum;
}

// d/dx_v Σ_u (x_u − c)² = 2·(x_v − c), less 2·Σ_u (x_u − c) / centres for a view that is in c.
void spread_backward(const SpreadBackward& a) {
  const int64_t size = a.x.rows * kElements;
  Scratch scratch(a.threads * size * 4);
  parallel(a.threads, [&](Team team) {
    float* views = scratch.as<float>() + team.rank * size;
    for (int64_t block; (block = team.claim()) < blocks(a.x);) {
      load_block(a.x, block, views);
      for (int64_t l = 0; l < kElements; l += kWide) {
        const vd centre = mean(views, a.centres, l);
        vd total = set(0.0);
        for (int64_t v = 0; v < a.x.rows; ++v) total += widen(views + v * kElements + l) - centre;
        const vd pull = total / set(static_cast<double>(a.centres));
        for (int64_t v = 0; v < a.x.rows; ++v) {
          const vd distance = widen(views + v * kElements + l) - centre;
          narrow(views + v * kElements + l, set(2 * a.grad_distance) * (v < a.centres ? distance - pull : distance));
        }
      }
      const int64_t first = block * kElements;
      Matrix part = a.grad;
      part.data = static_cast<char*>(part.data) + first * size_of(part.dtype);
      for (int64_t v = 0; v < a.x.rows; ++v)
        store_row(part, v, std::min(kElements, a.x.dim - first), views + v * kElements);
    }
  });
}

}  // namespace pyssl::PYSSL_ISA
