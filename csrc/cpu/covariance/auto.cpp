// Every view with itself: squares of columns, the off-diagonal part of AᵀA, the distance of the views; and the gradient.
//
// K = min(N, D), L = max(N, D). Forward, per view: K²L operations and one read; the symmetric matrix is kept. Backward:
// 2K²L, one read, one write; a group of columns is read, multiplied, and its gradient written, without more passes.
#include <memory>
#include <vector>

#include "covariance.h"
#include "sides.h"

namespace pyssl::PYSSL_ISA {

namespace {

// ---- forward ----------------------------------------------------------------------------------------------------------

// What views [begin, end) at a position give with sides of type T; every array [2] is by view.
template <class Out>
struct Results {
  double* square[2];  // [dim]
  double* distance;   // what is added to it; null: it is not wanted
  Out* gram[2];       // [size, size], on the columns' side without its diagonal; null: it is not wanted
  double off[2];      // what is left of T
  double share[2];    // the part of T that is; 0 where floats do not do, told by the columns alone
  Heavy heavy;        // what is not in the matrix on the rows' side; with T = double, and one view, alone
};

template <class T, class Out>
void forward(const Views& views, int64_t position, int begin, int end, Results<Out>& results) {
  const Shape shape(views);
  const Tiles tiles(shape.size, true);
  const int64_t all = groups(shape.dim), group_size = kGroup * shape.rows;
  const int threads = useful_threads(views.threads, std::max(all, (end - begin) * tiles.count()));
  std::unique_ptr<Side<T>> sides[2];
  for (int v = begin; v < end; ++v) sides[v].reset(new Side<T>(shape.by_rows, shape.rows, shape.dim));
  Scratch raws(threads * 2 * group_size * 4), centred(threads * group_size * int64_t{sizeof(T)});
  Scratch scratch(threads * tile_bytes<T>(tiles));
  std::vector<double> totals(2 * tiles.count()), distances(all), crossing(all);
  bool skipped[2] = {};

  parallel(threads, [&](Team team) {
    float* raw[2] = {raws.as<float>() + team.rank * 2 * group_size,
                     raws.as<float>() + (team.rank * 2 + 1) * group_size};
    T* strips = centred.as<T>() + team.rank * group_size;
    for (int64_t g; (g = team.claim()) < all;) {
      const int64_t width = std::min(kGroup, shape.dim - g * kGroup);
      for (int v = begin; v < end; ++v) {
        double mean[kGroup], squares[kGroup];
        load_group(at(views, v, position), g * kGroup, raw[v]);
        moments(raw[v], shape.rows, mean, squares);
        std::copy(squares, squares + width, results.square[v] + g * kGroup);
        if (shape.by_rows) {
          centre(raw[v], shape.rows, mean, nullptr, strips);
          sides[v]->take(g, strips);
        } else {
          centre(raw[v], shape.rows, mean, nullptr, sides[v]->strips(g));
        }
      }
      if (results.distance && views.count() == 2) {
        double apart[kPanel];
        for (int64_t s = 0; s < kStrips; ++s) {
          sum_strip(shape.rows, apart, [&](int64_t n, int w) {
            const int64_t i = (s * shape.rows + n) * kPanel + w * kWide;
            const vd difference = widen(raw[0] + i) - widen(raw[1] + i);
            return difference * difference;
          });
          for (int64_t l = 0; l < kPanel; ++l) distances[g] += apart[l];
        }
      }
    }
    team.barrier();
    bool skip[2] = {};
    for (int v = begin; v < end && sizeof(T) == 4; ++v)
      skip[v] = out_of_range(results.square[v], shape.dim) ||
                (shape.by_rows && uneven(results.square[v], shape.dim, shape.rows));
    if (team.rank == 0) std::copy(skip, skip + 2, skipped);
    if constexpr (sizeof(T) == 8) {
      if (team.rank == 0 && shape.by_rows)
        results.heavy = Heavy(*sides[begin], results.square[begin], shape.rows, shape.dim);
      team.barrier();
      for (int64_t g; (g = team.claim()) < all;)
        for (int64_t d = g * kGroup; d < std::min(shape.dim, (g + 1) * kGroup); ++d)
          crossing[g] += results.heavy.with(*sides[begin], d);
      team.next();
    }

    T* s = reinterpret_cast<T*>(scratch.as<char>() + team.rank * tile_bytes<T>(tiles));
    for (int64_t number; (number = team.claim()) < (end - begin) * tiles.count();) {
      const int v = begin + static_cast<int>(number / tiles.count());
      if (skip[v]) continue;
      const Tiles::Tile tile = tiles[number % tiles.count()];
      sides[v]->scores(tile.I, *sides[v], tile.J, tile.lower, s);
      if (!shape.by_rows) clear_diagonal(tile, s);
      totals[v * tiles.count() + number % tiles.count()] =
          sum_tile(tile, true, s, s, [](double x, double y) { return x * y; });
      if (results.gram[v]) store_tile(tile, true, shape.size, s, results.gram[v]);
    }
  });

  if (results.distance)
    for (double d : distances) *results.distance += d;
  for (int v = begin; v < end; ++v) {
    double total = 0, diagonal = 0;
    for (int64_t t = 0; t < tiles.count(); ++t) total += totals[v * tiles.count() + t];
    if (shape.by_rows)
      for (int64_t d = 0; d < shape.dim; ++d)
        if (!results.heavy.has(d)) diagonal += results.square[v][d] * results.square[v][d];
    results.off[v] = total < diagonal ? 0 : total - diagonal;  // less than 0 by rounding alone; NaN is not less
    results.off[v] += std::accumulate(crossing.begin(), crossing.end(), results.heavy.own());
    results.share[v] = skipped[v] ? 0 : total == 0 ? 1 : results.off[v] / total;
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// The gradient of views [begin, end) at a position; gram [2] and heavy: as forward gives them.
template <class T, class From>
void backward(const AutoCovarianceBackward& a, int64_t position, int begin, int end, const From* const* gram,
              const Heavy& heavy) {
  const Shape shape(a.views);
  const int views = a.views.count();
  const int64_t group_size = kGroup * shape.rows, strip = shape.rows * kPanel;
  const int threads = useful_threads(a.views.threads, (end - begin) * groups(shape.dim));
  std::unique_ptr<RowsLeft<T>> rows[2];
  std::unique_ptr<ColumnsLeft<T>> columns[2];
  for (int v = begin; v < end; ++v) {
    if (shape.by_rows)
      rows[v].reset(new RowsLeft<T>(shape.rows));
    else
      columns[v].reset(new ColumnsLeft<T>(shape.rows, shape.dim));
  }
  Scratch raws(threads * 2 * group_size * 4), centred(shape.by_rows ? threads * group_size * int64_t{sizeof(T)} : 0);
  Scratch outs(threads * padded(shape.rows) * kPanel * int64_t{sizeof(T)}), rooms(threads * strip * 4);
  Scratch rights(shape.by_rows ? 0 : threads * shape.size * kPanel * int64_t{sizeof(T)});

  parallel(threads, [&](Team team) {
    float* raw[2] = {raws.as<float>() + team.rank * 2 * group_size,
                     raws.as<float>() + (team.rank * 2 + 1) * group_size};
    double mean[kGroup], squares[kGroup];
    const int64_t parts = shape.by_rows ? rows[begin]->panels() : groups(shape.dim);
    for (int64_t number; (number = team.claim()) < (end - begin) * parts;) {
      const int v = begin + static_cast<int>(number / parts);
      const int64_t part = number % parts;
      if (shape.by_rows) {
        rows[v]->take(part, gram[v]);
      } else {
        load_group(at(a.views, v, position), part * kGroup, raw[0]);
        moments(raw[0], shape.rows, mean, squares);
        centre(raw[0], shape.rows, mean, nullptr, columns[v]->strips(part));
      }
    }
    team.barrier();

    T* out = outs.as<T>() + team.rank * padded(shape.rows) * kPanel;
    T* right = rights.as<T>() + team.rank * shape.size * kPanel;
    float* room = rooms.as<float>() + team.rank * strip;
    for (int64_t g; (g = team.claim()) < groups(shape.dim);) {
      const int64_t first = g * kGroup, width = std::min(kGroup, shape.dim - first);
      for (int v = 0; v < views; ++v) load_group(at(a.views, v, position), first, raw[v]);
      for (int v = begin; v < end; ++v) {
        T* strips = shape.by_rows ? centred.as<T>() + team.rank * group_size : columns[v]->strips(g);
        if (shape.by_rows) {
          moments(raw[v], shape.rows, mean, squares);
          centre(raw[v], shape.rows, mean, nullptr, strips);
        }
        const int64_t line = v * a.views.positions + position;
        double own[kGroup] = {};  // what each column's own values are multiplied by
        const double off = 4 * a.grad_off_diagonal[line], apart = views == 2 ? 2 * a.grad_distance : 0;
        for (int64_t l = 0; l < width; ++l) {
          own[l] = 2 * a.grad_square[line * shape.dim + first + l];
          if (shape.by_rows && !heavy.has(first + l)) own[l] -= off * squares[l];
        }
        for (int64_t s = 0; s < kStrips && s * kPanel < width; ++s) {
          const int64_t column = first + s * kPanel;
          const T* centre_of = strips + s * strip;
          if (shape.by_rows) {
            rows[v]->multiply(centre_of, out);
            heavy.add_to(out, centre_of, column, shape.rows);
          } else {
            take_columns(gram[v], shape.size, column, false, right);
            columns[v]->multiply(right, out);
          }
          const float *one = raw[v] + s * strip, *other = raw[views - 1 - v] + s * strip;
          const StripOut gradient(at(a.grad, v, position), column, room);
          for (int64_t n = 0; n < shape.rows; ++n) {
#pragma GCC unroll 16
            for (int w = 0; w < kWides; ++w) {
              const int64_t l = w * kWide, i = n * kPanel + l;
              const vd distance = widen(one + i) - widen(other + i);
              narrow(gradient.data + n * gradient.stride + l,
                     off * widen(out + i) + load(own + s * kPanel + l) * widen(centre_of + i) + apart * distance);
            }
          }
          gradient.finish();
        }
      }
    }
  });
}

}  // namespace

void auto_covariance(const AutoCovariance& a) {
  *a.distance = 0;
  const Shape shape(a.views);
  const int views = a.views.count();
  for (int64_t e = 0; e < a.views.positions; ++e) {
    Results<float> results{};
    results.distance = a.distance;
    for (int v = 0; v < views; ++v) {
      const int64_t line = v * a.views.positions + e;
      results.square[v] = a.square + line * shape.dim;
      if (a.gram) results.gram[v] = a.gram + line * shape.size * shape.size;
    }
    forward<float>(a.views, e, 0, views, results);
    results.distance = nullptr;
    for (int v = 0; v < views; ++v) {
      const int64_t line = v * a.views.positions + e;
      const bool exact = results.share[v] < kLeastShare;
      results.gram[v] = nullptr;  // its float form, which does not do, if it was formed at all; backward forms another
      if (exact) forward<double>(a.views, e, v, v + 1, results);
      a.off_diagonal[line] = results.off[v];
      if (a.exact) a.exact[line] = exact;
    }
  }
}

void auto_covariance_backward(const AutoCovarianceBackward& a) {
  for (int v = 0; v < 2; ++v) prefer_huge_pages(a.grad, v);
  const Shape shape(a.views);
  const int64_t size = shape.size * shape.size;
  for (int64_t e = 0; e < a.views.positions; ++e) {
    const auto line = [&](int v) { return v * a.views.positions + e; };
    const auto wanted = [&](int v) { return v < a.views.count() && a.grad.view[v].data; };
    const float* gram[2] = {a.gram + line(0) * size, a.gram + line(1) * size};
    const bool plain[2] = {wanted(0) && !a.exact[line(0)], wanted(1) && !a.exact[line(1)]};
    if (plain[0] || plain[1]) backward<float>(a, e, plain[0] ? 0 : 1, plain[1] ? 2 : 1, gram, {});
    for (int v = 0; v < 2; ++v) {
      if (!wanted(v) || plain[v]) continue;
      Scratch whole(size * 8);
      std::vector<double> square(shape.dim);
      Results<double> results{
          {square.data(), square.data()}, nullptr, {whole.as<double>(), whole.as<double>()}, {}, {}, {}};
      forward<double>(a.views, e, v, v + 1, results);
      backward<double>(a, e, v, v + 1, results.gram, results.heavy);
    }
  }
}

}  // namespace pyssl::PYSSL_ISA
