// Two views whose columns are normalised over the batch: the diagonal of C = AᵀB and the rest of ‖C‖²; and the gradient,
// through the normalisation. Without a second view B = A.
//
// K = min(N, D), L = max(N, D). 6·K²·L operations in all: on the rows' side ‖AᵀB‖² = ⟨AAᵀ, BBᵀ⟩ takes two symmetric
// matrices and ∂A = BBᵀA, ∂B = AAᵀB; on the columns' side C is one whole product, B Cᵀ and A C two more.
#include <memory>
#include <vector>

#include "covariance.h"
#include "sides.h"

namespace pyssl::PYSSL_ISA {

namespace {

// Matrices that are built: AAᵀ and BBᵀ, or C.
int64_t matrices(const Shape& shape) { return shape.by_rows ? shape.views : 1; }
bool symmetric(const Shape& shape) { return shape.by_rows || shape.views == 1; }

// A group of columns of both views, normalised.
template <class T>
struct Normalized {
  T* strips[2];  // [kStrips, rows, kPanel]
  double weight[2][kGroup], square[2][kGroup];

  void load(const Views& views, double eps, int64_t group, float* raw) {
    const int64_t rows = views.view[0].rows;
    for (int v = 0; v < views.count(); ++v) {
      double mean[kGroup];
      load_group(views.view[v], group * kGroup, raw);
      moments(raw, rows, mean, square[v]);
      normalizing(square[v], rows, eps, weight[v]);
      centre(raw, rows, mean, weight[v], strips[v]);
      for (int64_t l = 0; l < kGroup; ++l) square[v][l] *= weight[v][l] * weight[v][l];
    }
  }
};

// Both views' sides.
template <class T>
struct Operands {
  explicit Operands(const Views& views) : shape(views) {
    for (int v = 0; v < shape.views; ++v) sides[v].reset(new Side<T>(shape.by_rows, shape.rows, shape.dim));
  }
  const Side<T>& other() const { return *sides[shape.views - 1]; }

  // diagonal [dim]: Σ a·b of the columns. squares [2, dim]: of the normalised columns.
  void prepare(Team& team, const Views& views, double eps, float* raw, T* room, double* diagonal, double* squares) {
    for (int64_t g; (g = team.claim()) < groups(shape.dim);) {
      Normalized<T> columns;
      for (int v = 0; v < shape.views; ++v)
        columns.strips[v] = shape.by_rows ? room + v * kGroup * shape.rows : sides[v]->strips(g);
      columns.load(views, eps, g, raw);
      double products[kGroup];
      products_of_columns(columns.strips[0], columns.strips[shape.views - 1], shape.rows, products);
      const int64_t width = std::min(kGroup, shape.dim - g * kGroup);
      std::copy(products, products + width, diagonal + g * kGroup);
      for (int v = 0; v < shape.views; ++v) {
        std::copy(columns.square[v], columns.square[v] + width, squares + v * shape.dim + g * kGroup);
        if (shape.by_rows) sides[v]->take(g, columns.strips[v]);
      }
    }
  }

  const Shape shape;
  std::unique_ptr<Side<T>> sides[2];
};

// Returns the part of T = ‖C‖² that is off its diagonal; 0 where floats do not do, told by the columns alone. gram, if
// any, is in Out.
template <class T, class Out>
double forward(const Views& views, double eps, double* diagonal, double* off, Out* gram) {
  Operands<T> operands(views);
  const Shape& shape = operands.shape;
  const Tiles tiles(shape.size, symmetric(shape));
  const int64_t group_size = kGroup * shape.rows, count = matrices(shape);
  const int threads = useful_threads(views.threads, std::max(groups(shape.dim), tiles.count()));
  Scratch raws(threads * group_size * 4), rooms(threads * 2 * group_size * int64_t{sizeof(T)});
  Scratch scratch(threads * count * tile_bytes<T>(tiles));
  std::vector<double> totals(tiles.count()), squares(2 * shape.dim);
  bool skipped = false;

  parallel(threads, [&](Team team) {
    operands.prepare(team, views, eps, raws.as<float>() + team.rank * group_size,
                     rooms.as<T>() + team.rank * 2 * group_size, diagonal, squares.data());
    team.barrier();
    // Of two rows every normalised column is ±1, and its gradient what eps leaves of a difference; so is a lone one's.
    bool skip = (shape.rows <= 2 || shape.dim == 1) && sizeof(T) == 4;
    for (int v = 0; v < shape.views && shape.by_rows && sizeof(T) == 4; ++v)
      skip |= uneven(squares.data() + v * shape.dim, shape.dim, shape.rows);
    if (team.rank == 0) skipped = skip;
    if (skip) return;

    T* s[2];
    for (int64_t m = 0; m < 2; ++m)
      s[m] = reinterpret_cast<T*>(scratch.as<char>() +
                                  (team.rank * count + std::min(m, count - 1)) * tile_bytes<T>(tiles));
    for (int64_t number; (number = team.claim()) < tiles.count();) {
      const Tiles::Tile tile = tiles[number];
      for (int64_t m = 0; m < count; ++m) {
        const Side<T>& other = shape.by_rows ? *operands.sides[m] : operands.other();
        operands.sides[m]->scores(tile.I, other, tile.J, tile.lower, s[m]);
        if (!shape.by_rows) clear_diagonal(tile, s[m]);
        if (gram) store_tile(tile, symmetric(shape), shape.size, s[m], gram + m * shape.size * shape.size);
      }
      totals[number] = sum_tile(tile, symmetric(shape), s[0], s[1], [](double x, double y) { return x * y; });
    }
  });

  double total = 0, own = 0;
  for (double t : totals) total += t;
  if (shape.by_rows)
    for (int64_t d = 0; d < shape.dim; ++d) own += diagonal[d] * diagonal[d];
  *off = total < own ? 0 : total - own;
  return skipped ? 0 : total == 0 ? 1 : *off / total;
}

template <class T, class From>
void backward(const CrossCorrelationBackward& a, const From* gram) {
  const Shape shape(a.views);
  const int threads = useful_threads(a.views.threads, groups(shape.dim));
  const int64_t group_size = kGroup * shape.rows, strip = shape.rows * kPanel;
  std::unique_ptr<RowsLeft<T>> rows[2];
  std::unique_ptr<ColumnsLeft<T>> columns[2];
  for (int v = 0; v < shape.views; ++v) {
    if (shape.by_rows)
      rows[v].reset(new RowsLeft<T>(shape.rows));
    else
      columns[v].reset(new ColumnsLeft<T>(shape.rows, shape.dim));
  }
  Scratch raws(threads * group_size * 4), normalized(shape.by_rows ? threads * 2 * group_size * int64_t{sizeof(T)} : 0);
  Scratch outs(threads * padded(shape.rows) * kPanel * int64_t{sizeof(T)}), rooms(threads * strip * 4);
  Scratch rights(shape.by_rows ? 0 : threads * shape.dim * kPanel * int64_t{sizeof(T)});
  std::vector<double> weights(shape.by_rows ? 0 : 2 * groups(shape.dim) * kGroup);

  parallel(threads, [&](Team team) {
    float* raw = raws.as<float>() + team.rank * group_size;
    Normalized<T> group;
    const int64_t parts = shape.by_rows ? shape.views * rows[0]->panels() : groups(shape.dim);
    for (int64_t part; (part = team.claim()) < parts;) {
      if (shape.by_rows) {
        const int64_t m = part / rows[0]->panels();
        rows[m]->take(part % rows[0]->panels(), gram + m * shape.rows * shape.rows);
      } else {
        for (int v = 0; v < shape.views; ++v) group.strips[v] = columns[v]->strips(part);
        group.load(a.views, a.eps, part, raw);
        for (int v = 0; v < shape.views; ++v)
          std::copy(group.weight[v], group.weight[v] + kGroup, &weights[(2 * part + v) * kGroup]);
      }
    }
    team.barrier();

    T* out = outs.as<T>() + team.rank * padded(shape.rows) * kPanel;
    T* right = rights.as<T>() + team.rank * shape.dim * kPanel;
    float* room = rooms.as<float>() + team.rank * strip;
    const double twice = shape.views == 1 ? 2 : 1, off = 2 * twice * a.grad_off_diagonal;
    for (int64_t g; (g = team.claim()) < groups(shape.dim);) {
      const int64_t first = g * kGroup, width = std::min(kGroup, shape.dim - first);
      for (int v = 0; v < shape.views; ++v) {
        group.strips[v] = shape.by_rows ? normalized.as<T>() + (team.rank * 2 + v) * group_size : columns[v]->strips(g);
        if (!shape.by_rows) std::copy_n(&weights[(2 * g + v) * kGroup], kGroup, group.weight[v]);
      }
      if (shape.by_rows) group.load(a.views, a.eps, g, raw);
      double products[kGroup], share[kGroup] = {};  // what the other view's columns are multiplied by
      if (shape.by_rows) products_of_columns(group.strips[0], group.strips[shape.views - 1], shape.rows, products);
      for (int64_t l = 0; l < width; ++l) {
        share[l] = twice * a.grad_diagonal[first + l];
        if (shape.by_rows) share[l] -= off * products[l];
      }
      for (int v = 0; v < shape.views; ++v) {
        if (!a.grad.view[v].data) continue;
        const int u = shape.views - 1 - v;
        for (int64_t s = 0; s < kStrips && s * kPanel < width; ++s) {
          const int64_t column = first + s * kPanel;
          const T *own = group.strips[v] + s * strip, *other = group.strips[u] + s * strip;
          if (shape.by_rows) {
            rows[u]->multiply(own, out);
          } else {
            take_columns(gram, shape.dim, column, v == 0 && u == 1, right);
            columns[u]->multiply(right, out);
          }
          // Back through the normalisation: less the mean, less what lies along the column.
          double mean[kPanel], along[kPanel];
          vd sum[kWides] = {}, product[kWides] = {};
          for (int64_t n = 0; n < shape.rows; ++n) {
#pragma GCC unroll 16
            for (int w = 0; w < kWides; ++w) {
              const int64_t l = w * kWide, i = n * kPanel + l;
              const vd before = off * widen(out + i) + load(share + s * kPanel + l) * widen(other + i);
              narrow(out + i, before);
              sum[w] += before;
              product[w] += before * widen(own + i);
            }
          }
          for (int w = 0; w < kWides; ++w) {
            store(mean + w * kWide, sum[w] / static_cast<double>(shape.rows));
            store(along + w * kWide, product[w] / static_cast<double>(shape.rows));
          }
          const StripOut gradient(a.grad.view[v], column, room);
          for (int64_t n = 0; n < shape.rows; ++n) {
#pragma GCC unroll 16
            for (int w = 0; w < kWides; ++w) {
              const int64_t l = w * kWide, i = n * kPanel + l;
              const vd rest = widen(out + i) - load(mean + l) - widen(own + i) * load(along + l);
              narrow(gradient.data + n * gradient.stride + l, load(group.weight[v] + s * kPanel + l) * rest);
            }
          }
          gradient.finish();
        }
      }
    }
  });
}

}  // namespace

void cross_correlation(const CrossCorrelation& a) {
  const double share = forward<float>(a.views, a.eps, a.diagonal, a.off_diagonal, a.gram);
  const bool exact = share < kLeastShare;
  if (exact) forward<double>(a.views, a.eps, a.diagonal, a.off_diagonal, static_cast<double*>(nullptr));
  if (a.exact) *a.exact = exact;
}

void cross_correlation_backward(const CrossCorrelationBackward& a) {
  for (int v = 0; v < 2; ++v) prefer_huge_pages(a.grad, v);
  if (!*a.exact) return backward<float>(a, a.gram);
  const Shape shape(a.views);
  Scratch gram(matrices(shape) * shape.size * shape.size * 8);
  std::vector<double> diagonal(shape.dim);
  double off;
  forward<double>(a.views, a.eps, diagonal.data(), &off, gram.as<double>());
  backward<double>(a, gram.as<double>());
}

}  // namespace pyssl::PYSSL_ISA
