// What is watched while training, from one reading of the rows: squares of columns, how much they correlate, and the
// matrix whose eigenvalues tell how many directions are in use.
#include <vector>

#include "covariance.h"
#include "sides.h"

namespace pyssl::PYSSL_ISA {

void decorrelation(const Decorrelation& a) {
  const Views& views = a.views;
  const int64_t rows = views.view[0].rows, dim = views.view[0].dim, group_size = kGroup * rows;
  const bool by_rows = rows < dim;
  const Tiles correlations(dim, true), gram(by_rows ? rows : dim, true);
  Side<float> normalized(false, rows, dim);
  Side<double> side(by_rows, rows, dim);
  const int threads = useful_threads(views.threads, std::max(groups(dim), correlations.count()));
  const int64_t bytes = std::max(tile_bytes<float>(correlations), tile_bytes<double>(gram));
  Scratch raws(threads * group_size * 4), rooms(threads * group_size * 8);
  Scratch scratch(threads * bytes);
  std::vector<double> totals(correlations.count());

  parallel(threads, [&](Team team) {
    float* raw = raws.as<float>() + team.rank * group_size;
    double* strips = rooms.as<double>() + team.rank * group_size;
    for (int64_t g; (g = team.claim()) < groups(dim);) {
      double mean[kGroup], squares[kGroup], weight[kGroup];
      load_group(views.view[0], g * kGroup, raw);
      moments(raw, rows, mean, squares);
      std::copy(squares, squares + std::min(kGroup, dim - g * kGroup), a.square + g * kGroup);
      for (int64_t l = 0; l < kGroup; ++l) weight[l] = squares[l] == 0 ? 0 : 1 / std::sqrt(squares[l]);
      centre(raw, rows, mean, weight, normalized.strips(g));
      centre(raw, rows, mean, nullptr, by_rows ? strips : side.strips(g));
      if (by_rows) side.take(g, strips);
    }
    team.barrier();
    char* room = scratch.as<char>() + team.rank * bytes;
    for (int64_t number; (number = team.claim()) < correlations.count();) {
      const Tiles::Tile tile = correlations[number];
      float* s = reinterpret_cast<float*>(room);
      normalized.scores(tile.I, normalized, tile.J, tile.lower, s);
      clear_diagonal(tile, s);
      totals[number] = sum_tile(tile, true, s, s, [](double x, double) { return std::fabs(x); });
    }
    team.next();
    for (int64_t number; (number = team.claim()) < gram.count();) {
      const Tiles::Tile tile = gram[number];
      double* s = reinterpret_cast<double*>(room);
      side.scores(tile.I, side, tile.J, tile.lower, s);
      store_tile(tile, true, by_rows ? rows : dim, s, a.gram);
    }
  });
  *a.off_correlation = 0;
  for (double t : totals) *a.off_correlation += t;
}

}  // namespace pyssl::PYSSL_ISA
