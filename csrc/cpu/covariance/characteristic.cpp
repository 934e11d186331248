// Empirical characteristic functions of columns: means of cos(k·step·x) and sin(k·step·x) over the samples, k = 1 … count.
// SIGReg.
//
// Nothing of samples × columns × frequencies is held. A value costs one sine and cosine, about 35 operations on vectors of
// doubles; a further frequency costs 4, forward by cos(kθ + θ) = 2·cos θ·cos kθ − cos(kθ − θ), likewise for the sine, and
// a sum of each, backward by Clenshaw's recurrence for Σ_k a_k·cos kθ − b_k·sin kθ. Bytes: x read twice, its gradient
// written. For 2,048 × 1,024 values and 16 frequencies on one thread of AVX-512: 5.6 ms forward, 7.4 backward, where the
// multiply-adds alone, one a cycle on that machine, take 4.6 either way.
//
// All of it in double: three terms multiply a rounding by up to k² (k where θ is no multiple of π). Measured at worst, with
// 16 frequencies 1e-5 in float and 2e-14 in double, with 2,000 0.1 and 3e-10. So sums need no care either.
#include <vector>

#include "../simd/trigonometry.h"
#include "columns.h"
#include "covariance.h"

namespace pyssl::PYSSL_ISA {

namespace {

constexpr int64_t kColumns = 64;  // of a block; 16 frequencies of them are 16 KB of sums
constexpr int64_t kVectorsOf = kColumns / kWide;
// Rows worked on at once, to hide the recurrence's latency: five (backward seven) vectors of each stay in registers.
constexpr int kAbreast = kLanes == 16 ? 4 : 2;

// The blocks of columns of all groups, and the parts that their samples are dealt out in: only the shape decides.
struct Blocks {
  explicit Blocks(const Views& x)
      : rows(x.view[0].rows),
        dim(x.view[0].dim),
        columns((dim + kColumns - 1) / kColumns),
        count(x.positions * columns),
        parts(std::max<int64_t>(1, std::min(kUnits / count, rows / kFewestRows))) {}

  // The first row of a part; that of the last but one is the number of rows.
  int64_t begin(int64_t part) const { return rows * part / parts; }

  static constexpr int64_t kUnits = 32, kFewestRows = 128;
  const int64_t rows, dim, columns, count, parts;
};

static inline void prefetch(const Matrix& x, int64_t row, int64_t width) {
  const int64_t size = size_of(x.dtype);
  const char* p = static_cast<const char*>(x.data) + row * x.stride * size;
  for (int64_t byte = 0; byte < width * size; byte += 64) __builtin_prefetch(p + byte);
}

// Rows [n, n + R) of columns [first, first + kColumns) as floats, zeros beyond the last.
template <int R>
static inline void load_rows(const Matrix& x, int64_t n, int64_t first, float (*out)[kColumns]) {
  const int64_t width = std::min(kColumns, x.dim - first);
  Matrix part = x;
  part.data = static_cast<char*>(x.data) + first * size_of(x.dtype);
  for (int r = 0; r < R; ++r) {
    // The next rows may lie on pages of their own, where the machine does not look ahead: 1.4 ms of 7.2 for 1,024 × 2,048.
    if (n + r + R < x.rows) prefetch(part, n + r + R, width);
    load_row(part, n + r, width, out[r]);
    for (int64_t l = width; l < kColumns; ++l) out[r][l] = 0;
  }
}

// ---- forward ----------------------------------------------------------------------------------------------------------

// sums [kVectorsOf][count][2] += cosines and sines of R rows.
template <int R>
static inline void add_rows(const Matrix& x, int64_t n, int64_t first, double step, int64_t count, double* sums) {
  float rows[R][kColumns];
  load_rows<R>(x, n, first, rows);
  for (int64_t v = 0; v < kVectorsOf && first + v * kWide < x.dim; ++v) {
    vd twice[R], c[R], s[R], c_before[R], s_before[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sincos(set(step) * widen(rows[r] + v * kWide), &s[r], &c[r]);
      twice[r] = c[r] + c[r];
      c_before[r] = set(1.0);
      s_before[r] = set(0.0);
    }
    double* sum = sums + v * count * 2 * kWide;
    const auto add = [&](const vd* cosine, const vd* sine) {
      vd total_c = cosine[0], total_s = sine[0];
#pragma GCC unroll 4
      for (int r = 1; r < R; ++r) {
        total_c += cosine[r];
        total_s += sine[r];
      }
      store(sum, load(sum) + total_c);
      store(sum + kWide, load(sum + kWide) + total_s);
      sum += 2 * kWide;
    };
    for (int64_t k = 0; k < count; k += 2) {
      add(c, s);
      if (k + 1 == count) break;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        c_before[r] = twice[r] * c[r] - c_before[r];
        s_before[r] = twice[r] * s[r] - s_before[r];
      }
      add(c_before, s_before);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        c[r] = twice[r] * c_before[r] - c[r];
        s[r] = twice[r] * s_before[r] - s[r];
      }
    }
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// The gradient of R rows; weights [kVectorsOf][count][2] are a and b of every frequency and column.
template <int R>
static inline void differentiate_rows(const Matrix& x, const Matrix& grad, int64_t n, int64_t first, double step,
                                      int64_t count, const double* weights) {
  float rows[R][kColumns];
  load_rows<R>(x, n, first, rows);
  for (int64_t v = 0; v < kVectorsOf && first + v * kWide < x.dim; ++v) {
    vd twice[R], c[R], s[R], a[R] = {}, b[R] = {}, a_after[R] = {}, b_after[R] = {};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sincos(set(step) * widen(rows[r] + v * kWide), &s[r], &c[r]);
      twice[r] = c[r] + c[r];
    }
    const double* weight = weights + (v + 1) * count * 2 * kWide;
    const auto turn = [&](const vd* a, const vd* b, vd* a_after, vd* b_after) {
      weight -= 2 * kWide;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        a_after[r] = twice[r] * a[r] + (load(weight) - a_after[r]);
        b_after[r] = twice[r] * b[r] + (load(weight + kWide) - b_after[r]);
      }
    };
    if (count % 2 == 1) turn(a_after, b_after, a, b);
    for (int64_t k = count / 2; k > 0; --k) {
      turn(a, b, a_after, b_after);
      turn(a_after, b_after, a, b);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) narrow(rows[r] + v * kWide, (c[r] * a[r] - a_after[r]) - s[r] * b[r]);
  }
  Matrix part = grad;
  part.data = static_cast<char*>(grad.data) + first * size_of(grad.dtype);
  for (int r = 0; r < R; ++r) store_row(part, n + r, std::min(kColumns, x.dim - first), rows[r]);
}

}  // namespace

void characteristic(const Characteristic& a) {
  const Blocks blocks(a.views);
  const int64_t size = kColumns * a.count * 2;
  Scratch scratch(blocks.count * blocks.parts * size * 8);

  parallel(a.views.threads, [&](Team team) {
    for (int64_t unit; (unit = team.claim()) < blocks.count * blocks.parts;) {
      const int64_t block = unit / blocks.parts, part = unit % blocks.parts;
      const int64_t first = block % blocks.columns * kColumns, end = blocks.begin(part + 1);
      const Matrix x = at(a.views, 0, block / blocks.columns);
      double* sums = scratch.as<double>() + unit * size;
      std::fill(sums, sums + size, 0.0);
      int64_t n = blocks.begin(part);
      for (; n + kAbreast <= end; n += kAbreast) add_rows<kAbreast>(x, n, first, a.step, a.count, sums);
      for (; n < end; ++n) add_rows<1>(x, n, first, a.step, a.count, sums);
    }
    team.barrier();
    for (int64_t block; (block = team.claim()) < blocks.count;) {
      const int64_t first = block % blocks.columns * kColumns, width = std::min(kColumns, blocks.dim - first);
      const double* sums = scratch.as<double>() + block * blocks.parts * size;
      for (int64_t k = 0; k < a.count; ++k) {
        const int64_t line = (block / blocks.columns * a.count + k) * blocks.dim + first;
        for (int64_t l = 0; l < width; ++l) {
          const double* sum = sums + (l / kWide * a.count + k) * 2 * kWide + l % kWide;
          double cosine = 0, sine = 0;
          for (int64_t part = 0; part < blocks.parts; ++part) {
            cosine += sum[part * size];
            sine += sum[part * size + kWide];
          }
          a.cosine[line + l] = cosine / static_cast<double>(blocks.rows);
          a.sine[line + l] = sine / static_cast<double>(blocks.rows);
        }
      }
    }
  });
}

void characteristic_backward(const CharacteristicBackward& a) {
  const Blocks blocks(a.views);
  const int64_t size = kColumns * a.count * 2;
  Scratch scratch(a.views.threads * size * 8);

  parallel(a.views.threads, [&](Team team) {
    double* weights = scratch.as<double>() + team.rank * size;
    for (int64_t unit; (unit = team.claim()) < blocks.count * blocks.parts;) {
      const int64_t block = unit / blocks.parts, part = unit % blocks.parts, position = block / blocks.columns;
      const int64_t first = block % blocks.columns * kColumns, end = blocks.begin(part + 1);
      const int64_t width = std::min(kColumns, blocks.dim - first);
      std::fill(weights, weights + size, 0.0);
      for (int64_t k = 0; k < a.count; ++k) {
        const int64_t line = (position * a.count + k) * blocks.dim + first;
        const double slope = a.step * static_cast<double>(k + 1) / static_cast<double>(blocks.rows);
        for (int64_t l = 0; l < width; ++l) {
          double* weight = weights + (l / kWide * a.count + k) * 2 * kWide + l % kWide;
          weight[0] = slope * a.grad_sine[line + l];
          weight[kWide] = slope * a.grad_cosine[line + l];
        }
      }
      const Matrix x = at(a.views, 0, position), grad = at(a.grad, 0, position);
      int64_t n = blocks.begin(part);
      for (; n + kAbreast <= end; n += kAbreast)
        differentiate_rows<kAbreast>(x, grad, n, first, a.step, a.count, weights);
      for (; n < end; ++n) differentiate_rows<1>(x, grad, n, first, a.step, a.count, weights);
    }
  });
}

}  // namespace pyssl::PYSSL_ISA
