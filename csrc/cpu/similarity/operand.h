// The rows of one side of S.
#pragma once

#include <cmath>
#include <memory>

#include "../parallel.h"
#include "../simd/bfloat16.h"
#include "../simd/gemm.h"
#include "../simd/rows.h"

namespace pyssl::PYSSL_ISA {

constexpr double kNormEps = 1e-12;  // F.normalize's
constexpr double kLog2E = 1.4426950408889634074;

static inline double clamped(double norm) { return norm < kNormEps ? kNormEps : norm; }

// Calls f with an object of the Products class for a precision.
template <class F>
static inline void with_products(Precision precision, const F& f) {
  if (precision == Precision::float32 || !kHasBfloat16)
    f(static_cast<Float32Products*>(nullptr));
  else if (precision == Precision::bfloat16x3)
    f(static_cast<Bfloat16Products<2>*>(nullptr));
  else
    f(static_cast<Bfloat16Products<1>*>(nullptr));
}

template <class Products>
struct Operand {
  // multiplied: whether its rows are multiplied by weights too, not only by the other side's rows.
  Operand(const Matrix& x, bool normalize, bool multiplied)
      : x(x), normalize(normalize), products(new Products(x.rows, x.dim, multiplied)), norms_(x.rows * 8) {}

  // Floats of a thread's buffer for prepare, at least two rows.
  static int64_t buffer(const Matrix& x) {
    const int64_t rows = x.rows < 2 ? 2 : x.rows < kRowPadding ? x.rows : kRowPadding;
    return rows * Products::stride(x.dim);
  }

  // Measures the rows, divides them by their lengths if asked to, and packs them for the products: a step of the team's.
  void prepare(Team& team, float* buffer) {
    const int64_t stride = Products::stride(x.dim);
    for (int64_t begin; (begin = team.claim() * kRowPadding) < x.rows;) {
      const int64_t count = x.rows - begin < kRowPadding ? x.rows - begin : kRowPadding;
      for (int64_t r = 0; r < count; ++r) {
        float* row = buffer + r * stride;
        load_row(x, begin + r, x.dim, row);
        norm()[begin + r] = std::sqrt(dot(row, row, x.dim));
        if (normalize) {
          const double inverse = 1 / length(begin + r);
          for (int64_t d = 0; d < x.dim; ++d) row[d] = static_cast<float>(row[d] * inverse);
        }
        for (int64_t d = x.dim; d < stride; ++d) row[d] = 0;
      }
      products->pack(begin, count, buffer);
    }
  }

  double* norm() const { return norms_.template as<double>(); }
  // What row i is divided by.
  double length(int64_t i) const { return normalize ? clamped(norm()[i]) : 1; }
  // The longest row that the products see; NaN if any has none.
  double longest() const {
    double most = 0;
    for (int64_t i = 0; i < x.rows; ++i) most = norm()[i] > most || norm()[i] != norm()[i] ? norm()[i] : most;
    if (!normalize) return most;
    return most == most ? 1 : most;
  }

  const Matrix x;
  const bool normalize;
  std::unique_ptr<Products> products;

 private:
  Scratch norms_;
};

// g += weight·u_i; returns ⟨row, that⟩. room: a row's place.
template <class Products>
static double add_row(const Operand<Products>& x, int64_t i, double weight, const float* row, float* g, float* room) {
  load_row(x.x, i, x.x.dim, room);
  weight /= x.length(i);
  for (int64_t d = 0; d < x.x.dim; ++d) g[d] += static_cast<float>(weight * room[d]);
  return weight * dot(row, room, x.x.dim);
}

// The gradient of an operand's rows while it is added up, and the way back through the normalisation.
template <class Products>
struct Gradient {
  explicit Gradient(const Matrix& grad)
      : grad(grad),
        stride(Products::stride(grad.dim)),
        store_(grad.data ? round_up(grad.rows, kRowPadding) * stride * 4 : 0),
        radials_(grad.data ? round_up(grad.rows, kRowPadding) / kRowPadding * 8 : 0) {}

  bool wanted() const { return grad.data; }
  float* rows() const { return store_.template as<float>(); }

  // A step of the team's.
  void clear(Team& team) {
    if (!wanted()) return;
    for (int64_t begin; (begin = team.claim() * kRowPadding) < grad.rows;)
      __builtin_memset(rows() + begin * stride, 0, kRowPadding * stride * 4);
  }

  // grad_x = factor·∂x, where rows() hold ∂u / headroom: a step of the team's. extra(i, x_i, g, room) adds more to ∂u of
  // row i, and returns ⟨x_i, what it added⟩.
  template <class Extra>
  void finish(Team& team, const Operand<Products>& x, double factor, float headroom, float* buffer,
              const Extra& extra) {
    if (!wanted()) return;
    const int64_t dim = grad.dim, chunks = round_up(grad.rows, kRowPadding) / kRowPadding;
    float *row = buffer, *out = buffer + stride;
    for (int64_t chunk; (chunk = team.claim()) < chunks;) {
      double sum = 0;
      for (int64_t i = chunk * kRowPadding; i < grad.rows && i < (chunk + 1) * kRowPadding; ++i) {
        float* g = rows() + i * stride;
        for (int64_t d = 0; d < dim; ++d) g[d] *= headroom;
        load_row(x.x, i, dim, row);
        const double length = x.length(i), tiles = dot(g, row, dim);
        sum += (tiles + extra(i, row, g, out)) / length;  // ⟨∂u, u⟩, before the rounding of what extra added
        const double along = dot(g, row, dim) / length;   // after it: what the normalisation takes out
        const double keep = !x.normalize || x.norm()[i] < kNormEps ? 0 : along, outer = factor / length;
        // Divided, not multiplied by an inverse: a row of one number is ±1 then, and its gradient exactly 0.
        for (int64_t d = 0; d < dim; ++d) out[d] = static_cast<float>(outer * (g[d] - keep * (row[d] / length)));
        store_row(grad, i, dim, out);
      }
      radials_.template as<double>()[chunk] = sum;
    }
  }

  // Σ ⟨∂u, u⟩ over all rows, after finish.
  double radial() const {
    double sum = 0;
    for (int64_t c = 0; c < round_up(grad.rows, kRowPadding) / kRowPadding; ++c)
      sum += radials_.template as<double>()[c];
    return sum;
  }

  const Matrix grad;
  const int64_t stride;

 private:
  Scratch store_, radials_;
};

}  // namespace pyssl::PYSSL_ISA
