// Similarity family: reductions over S = U Uᵀ, tile by tile; S is never held.
//
// A pass visits every unordered pair of row blocks once (S is symmetric: half the tiles). What it does with a tile is
// the loss's own; the matrix products come from a Products class (simd/gemm.h: float32; simd/bfloat16.h).

#include "similarity.h"

#include <cmath>

#include "parallel.h"
#include "simd/bfloat16.h"
#include "simd/gemm.h"
#include "simd/rows.h"

namespace pyssl::PYSSL_ISA {
namespace {

constexpr double kNormEps = 1e-12;  // F.normalize's
constexpr double kLog2E = 1.4426950408889634074;
// Rows are normalised, so scale·s never passes |scale|; as long as exp(−2·|scale|) is far from subnormal, that bound
// serves as every row's stabiliser and a pair of rows needs one exponential, not two.
constexpr double kBoundLimit = 40;

// ---- pairs of blocks -------------------------------------------------------------------------------------------------

struct Pair {
  int64_t i, j;            // blocks; i == j on the diagonal
  int64_t turn_i, turn_j;  // how many pairs of that block come before
  bool empty;
};

// Row blocks and the order of their pairs: the diagonal, then the rounds of a round-robin tournament, in which no block
// stands twice in a round. So threads that take pairs in this order hardly ever wait for each other's turn, while every
// block still receives its additions in one fixed order.
class Tournament {
 public:
  Tournament(int64_t rows, int64_t largest_edge)
      : rows_(rows),
        edge_(edge_for(rows, largest_edge)),
        blocks_((rows + edge_ - 1) / edge_),
        players_(blocks_ + blocks_ % 2) {}

  int64_t edge() const { return edge_; }
  int64_t blocks() const { return blocks_; }
  int64_t pairs() const { return blocks_ + (players_ - 1) * (players_ / 2); }
  Block block(int64_t b) const {
    const int64_t begin = b * edge_;
    return {begin, rows_ - begin < edge_ ? rows_ - begin : edge_};
  }

  Pair pair(int64_t number) const {
    if (number < blocks_) return {number, number, 0, 0, false};
    const int64_t round = (number - blocks_) / (players_ / 2), k = (number - blocks_) % (players_ / 2);
    const int64_t circle = players_ - 1;  // the last player stays; the others go round
    const int64_t i = k == 0 ? round : (round + k) % circle;
    const int64_t j = k == 0 ? circle : (round - k + circle) % circle;
    // With an odd number of blocks the last player is missing, and block b sits out round b.
    const bool odd = players_ != blocks_;
    return {i, j, 1 + round - (odd && i < round), 1 + round - (odd && j < round), j >= blocks_};
  }

 private:
  // Small problems are cut into smaller blocks, so that there are pairs enough for the threads to end together. Thread
  // counts have no say in it: that would change the order of additions.
  static int64_t edge_for(int64_t rows, int64_t largest_edge) {
    if (rows < 1536) return kRowPadding;
    return rows < 6144 ? kBlock / 2 : largest_edge;
  }

  const int64_t rows_, edge_, blocks_, players_;
};

// ---- rows of one sample ----------------------------------------------------------------------------------------------

// Calls f(i, j), relative to the tile, wherever rows I.begin + i and J.begin + j belong to one sample.
template <class F>
static inline void for_same_sample(Block I, Block J, int64_t samples, const F& f) {
  const int64_t lowest = J.begin - I.end() + 1, highest = J.end() - 1 - I.begin;  // of the row differences
  const int64_t multiple = (highest >= 0 ? highest / samples : -((samples - 1 - highest) / samples)) * samples;
  if (multiple < lowest) return;
  for (int64_t i = 0; i < I.size; ++i) {
    int64_t j = (I.begin + i - J.begin) % samples;
    if (j < 0) j += samples;
    for (; j < J.size; j += samples) f(i, j);
  }
}

// Takes what is no pair of negatives out of a tile: rows of one sample, the diagonal among them, and the columns beyond
// the last row. Their exponentials come out as 0.
static inline void exclude(float* s, Block I, Block J, int64_t samples, float c) {
  const float nothing = c > 0 ? -INFINITY : INFINITY;
  for_same_sample(I, J, samples, [&](int64_t i, int64_t j) { s[i * kTileStride + j] = nothing; });
  const int64_t padded = round_up(J.size, kLanes);
  if (padded != J.size)
    for (int64_t i = 0; i < I.size; ++i)
      for (int64_t j = J.size; j < padded; ++j) s[i * kTileStride + j] = nothing;
}

// What a thread needs for one tile.
template <class Products>
struct Tile {
  static constexpr int64_t kSums = 4 * kBlock;
  static int64_t bytes(int64_t edge) { return (edge * kTileStride + kSums) * 4 + Products::kTileScratch; }

  Tile(const Scratch& scratch, int rank, int64_t edge)
      : s(reinterpret_cast<float*>(scratch.as<char>() + rank * bytes(edge))),
        sums(s + edge * kTileStride),
        more(sums + kSums) {}

  float* s;     // [edge, kTileStride]
  float* sums;  // [4, kBlock]
  void* more;   // the Products' own
};

// This thread's share of all tiles: visit(pair, I, J) finds S_IJ, without what is no pair of negatives, in tile.s.
template <class Products, class Visit>
static inline void for_each_tile(Team& team, const Tournament& tournament, const Products& products,
                                 const Tile<Products>& tile, int64_t samples, float c, const Visit& visit) {
  [[maybe_unused]] const typename Products::Thread thread;
  for (int64_t number; (number = team.claim()) < tournament.pairs();) {
    const Pair pair = tournament.pair(number);
    if (pair.empty) continue;
    const Block I = tournament.block(pair.i), J = tournament.block(pair.j);
    products.scores(I, J, tile.s, tile.more);
    exclude(tile.s, I, J, samples, c);
    visit(pair, I, J);
  }
}

// Adds a tile's parts to its two blocks, each when its turn has come; a tile of the diagonal has one part.
template <class AddI, class AddJ>
static inline void in_turn(const Pair& pair, Turn* turn, const AddI& add_i, const AddJ& add_j) {
  turn[pair.i].wait(pair.turn_i);
  add_i();
  turn[pair.i].pass();
  if (pair.i == pair.j) return;
  turn[pair.j].wait(pair.turn_j);
  add_j();
  turn[pair.j].pass();
}

// ---- nt_xent ---------------------------------------------------------------------------------------------------------
// Operations: forward M²·D (half of a matrix product), backward M²·D + 2·M²·D; bytes: a few M·D. That is two products in
// all, where plain PyTorch takes three; and M²/2 exponentials in either pass, M² with running maxima.
// The negatives go through the tiles. The positives, V − 1 per row, are taken in double at M·D·(V − 1): so a batch that
// is already well told apart, whose loss is the small remainder beside the positive, loses no digits.

static inline double clamped(double norm) { return norm < kNormEps ? kNormEps : norm; }

// The normalised rows: their norms, and their packing for the products.
template <class Products>
void normalise(Team& team, const Matrix& z, int64_t rows, int64_t dim, double* norm, Products& products,
               float* buffer) {
  const int64_t stride = products.stride();
  for (int64_t begin; (begin = team.claim() * kRowPadding) < rows;) {
    const int64_t count = rows - begin < kRowPadding ? rows - begin : kRowPadding;
    for (int64_t r = 0; r < count; ++r) {
      float* row = buffer + r * stride;
      load_row(z, begin + r, dim, row);
      const double length = std::sqrt(dot(row, row, dim));
      norm[begin + r] = length;
      const double inverse = 1 / clamped(length);
      for (int64_t d = 0; d < dim; ++d) row[d] = static_cast<float>(row[d] * inverse);
      for (int64_t d = dim; d < stride; ++d) row[d] = 0;
    }
    products.pack(begin, count, buffer);
  }
}

// Calls f(p, scale·s_ip) for the positives p of row i, whose embedding is in zi; zp is room for another row.
template <class F>
static inline void for_positives(const Matrix& z, int64_t rows, int64_t dim, int64_t samples, double scale,
                                 const double* norm, int64_t i, const float* zi, float* zp, const F& f) {
  for (int64_t p = (i + samples) % rows; p != i; p = (p + samples) % rows) {
    load_row(z, p, dim, zp);
    f(p, scale * dot(zi, zp, dim) / (clamped(norm[i]) * clamped(norm[p])));
  }
}

// Sums over a tile under one bound: row[i] and column[j] of 2^(c·s − bound). kDiagonal: rows alone, the tile is whole.
template <int R, bool kDiagonal>
static inline void bounded_rows(const float* s, int64_t width, float c, float bound, float* row, float* column) {
  vf sum[R] = {};
  for (int64_t j = 0; j < width; j += kLanes) {
    vf down = kDiagonal ? vf{} : load(column + j);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vf e = exp2(load(s + r * kTileStride + j) * c - bound);
      sum[r] += e;
      down += e;
    }
    if (!kDiagonal) store(column + j, down);
  }
  for (int r = 0; r < R; ++r) row[r] = hsum(sum[r]);
}

template <bool kDiagonal>
void bounded_sums(const float* s, Block I, Block J, float c, float bound, float* row, float* column) {
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t j = 0; j < width; ++j) column[j] = 0;
  int64_t i = 0;
  for (; i + 4 <= I.size; i += 4) bounded_rows<4, kDiagonal>(s + i * kTileStride, width, c, bound, row + i, column);
  for (; i < I.size; ++i) bounded_rows<1, kDiagonal>(s + i * kTileStride, width, c, bound, row + i, column);
}

// The same with each row's and each column's own maximum of c·s over the tile.
template <bool kDiagonal>
void running_sums(const float* s, Block I, Block J, float c, float* row_max, float* row, float* column_max,
                  float* column) {
  constexpr float kLowest = -1e30f;  // finite: with nothing but excluded entries the sums are 0, not NaN
  const int64_t width = round_up(J.size, kLanes);
  for (int64_t j = 0; j < width; ++j) column_max[j] = kLowest, column[j] = 0;
  for (int64_t i = 0; i < I.size; ++i) {
    vf largest = set(kLowest);
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = load(s + i * kTileStride + j) * c;
      largest = max(largest, t);
      if (!kDiagonal) store(column_max + j, max(load(column_max + j), t));
    }
    row_max[i] = hmax(largest);
  }
  for (int64_t i = 0; i < I.size; ++i) {
    vf sum = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = load(s + i * kTileStride + j) * c;
      sum += exp2(t - row_max[i]);
      if (!kDiagonal) store(column + j, load(column + j) + exp2(t - load(column_max + j)));
    }
    row[i] = hsum(sum);
  }
}

// sum·2^maximum += tile_sum·2^tile_max
static inline void merge(double& sum, float& maximum, float tile_sum, float tile_max) {
  const float larger = tile_max > maximum ? tile_max : maximum;
  sum = sum * std::exp2(double(maximum) - larger) + tile_sum * std::exp2(double(tile_max) - larger);
  maximum = larger;
}

template <class Products>
void nt_xent_forward(const NtXent& a) {
  const int64_t samples = a.rows / a.views;
  const bool bounded = std::fabs(a.scale) <= kBoundLimit;
  const float c = static_cast<float>(a.scale * kLog2E), bound = std::fabs(c);
  const Tournament tournament(a.rows, Products::kEdge);
  const int threads = static_cast<int>(a.threads < tournament.blocks() ? a.threads : tournament.blocks());

  Products products(a.rows, a.dim, false);
  const int64_t stride = products.stride();
  Scratch norms(a.rows * 8), sums(a.rows * 8), maxima(a.rows * 4), turns(tournament.blocks() * int64_t{sizeof(Turn)});
  const int64_t buffer = (a.rows < kRowPadding ? a.rows : kRowPadding) * stride;  // of a thread's rows
  Scratch rows(threads * buffer * 4), tiles(threads * Tile<Products>::bytes(tournament.edge()));
  double *norm = norms.as<double>(), *sum = sums.as<double>();
  float* maximum = maxima.as<float>();
  Turn* turn = turns.as<Turn>();
  for (int64_t b = 0; b < tournament.blocks(); ++b) new (turn + b) Turn;
  for (int64_t i = 0; i < a.rows; ++i) sum[i] = 0, maximum[i] = -1e30f;

  parallel(threads, [&](Team team) {
    float* row_buffer = rows.as<float>() + team.rank * buffer;
    normalise(team, a.z, a.rows, a.dim, norm, products, row_buffer);
    team.barrier();

    // The negatives, tile by tile.
    const Tile<Products> tile(tiles, team.rank, tournament.edge());
    float *row = tile.sums, *column = row + kBlock, *row_max = column + kBlock, *column_max = row_max + kBlock;
    for_each_tile(team, tournament, products, tile, samples, c, [&](const Pair& pair, Block I, Block J) {
      if (bounded) {
        if (pair.i == pair.j)
          bounded_sums<true>(tile.s, I, J, c, bound, row, column);
        else
          bounded_sums<false>(tile.s, I, J, c, bound, row, column);
      } else {
        if (pair.i == pair.j)
          running_sums<true>(tile.s, I, J, c, row_max, row, column_max, column);
        else
          running_sums<false>(tile.s, I, J, c, row_max, row, column_max, column);
      }
      const auto add = [&](Block block, const float* part, const float* part_max) {
        for (int64_t r = 0; r < block.size; ++r) {
          if (bounded)
            sum[block.begin + r] += part[r];
          else
            merge(sum[block.begin + r], maximum[block.begin + r], part[r], part_max[r]);
        }
      };
      in_turn(pair, turn, [&] { add(I, row, row_max); }, [&] { add(J, column, column_max); });
    });
    team.barrier();

    // The positives, and the loss.
    float *zi = row_buffer, *zp = row_buffer + stride;
    for (int64_t begin; (begin = team.claim() * kRowPadding) < a.rows;) {
      for (int64_t i = begin; i < a.rows && i < begin + kRowPadding; ++i) {
        load_row(a.z, i, a.dim, zi);
        double largest = bounded ? std::fabs(a.scale) : maximum[i] / kLog2E;
        if (!bounded)
          for_positives(a.z, a.rows, a.dim, samples, a.scale, norm, i, zi, zp,
                        [&](int64_t, double s) { largest = s <= largest ? largest : s; });
        // Everything below is relative to the shift as it is stored, rounded to float.
        const float shift = static_cast<float>(largest);
        const double reference = bounded ? bound : maximum[i];
        const double negative = sum[i] == 0 ? 0 : sum[i] * std::exp2(reference - shift * kLog2E);
        double mean = 0, positive = 0;
        for_positives(a.z, a.rows, a.dim, samples, a.scale, norm, i, zi, zp, [&](int64_t, double s) {
          mean += s / double(a.views - 1);
          positive += std::exp(s - shift);
        });
        a.shift[i] = shift;
        a.negative_sum[i] = static_cast<float>(negative);
        const double ratio = negative / positive;
        a.nll[i] = static_cast<float>(a.views == 2 && ratio < 1e30 ? std::log1p(ratio)
                                                                   : std::log(negative + positive) + shift - mean);
      }
    }
  });
}

// W = the tile's softmax weights: 2^(c·s − m_i)·a_i + 2^(c·s − m_j)·a_j, with one m for all, `bound`, if kBounded.
template <bool kBounded>
static void weights(float* s, Block I, Block J, float c, float bound, const float* factor, const float* maximum) {
  const int64_t width = round_up(J.size, kLanes);
  const float *factor_j = factor + J.begin, *maximum_j = maximum + J.begin;
  for (int64_t i = 0; i < I.size; ++i) {
    float* w = s + i * kTileStride;
    const float factor_i = factor[I.begin + i], maximum_i = kBounded ? bound : maximum[I.begin + i];
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf t = load(w + j) * c;
      if (kBounded)
        store(w + j, exp2(t - bound) * (factor_i + load(factor_j + j)));
      else
        store(w + j, exp2(t - maximum_i) * factor_i + exp2(t - load(maximum_j + j)) * load(factor_j + j));
    }
  }
}

template <class Products>
void nt_xent_backward(const NtXentBackward& a) {
  const int64_t samples = a.rows / a.views, padded = round_up(a.rows, kRowPadding);
  const bool bounded = std::fabs(a.scale) <= kBoundLimit;
  const float c = static_cast<float>(a.scale * kLog2E), bound = std::fabs(c);
  // Under the bound, rows whose similarities are all −1 have denominators of e⁻⁸⁰, and a loss scale in grad_nll would
  // take their inverse beyond float: the tiles' part of the gradient is kept smaller by this power of two.
  constexpr float kHeadroom = 4096;
  const Tournament tournament(a.rows, Products::kEdge);
  const int threads = static_cast<int>(a.threads < tournament.blocks() ? a.threads : tournament.blocks());

  Products products(a.rows, a.dim, true);
  const int64_t stride = products.stride(), chunks = padded / kRowPadding;
  Scratch norms(a.rows * 8), totals(a.rows * 8), factors(padded * 4), maxima(padded * 4), radials(chunks * 8);
  Scratch gradients(padded * stride * 4), turns(tournament.blocks() * int64_t{sizeof(Turn)});
  const int64_t buffer = (a.rows < kRowPadding ? a.rows : kRowPadding) * stride;  // of a thread's rows
  Scratch rows(threads * buffer * 4), tiles(threads * Tile<Products>::bytes(tournament.edge()));
  double *norm = norms.as<double>(), *total = totals.as<double>(), *radial = radials.as<double>();
  float *factor = factors.as<float>(), *maximum = maxima.as<float>(), *du = gradients.as<float>();
  Turn* turn = turns.as<Turn>();
  for (int64_t b = 0; b < tournament.blocks(); ++b) new (turn + b) Turn;
  for (int64_t i = a.rows; i < padded; ++i) factor[i] = maximum[i] = 0;

  parallel(threads, [&](Team team) {
    float* row_buffer = rows.as<float>() + team.rank * buffer;
    float *zi = row_buffer, *zp = row_buffer + stride;
    normalise(team, a.z, a.rows, a.dim, norm, products, row_buffer);
    team.barrier();

    // The softmax's denominators; the gradient starts at zero.
    for (int64_t begin; (begin = team.claim() * kRowPadding) < a.rows;) {
      for (int64_t i = begin; i < a.rows && i < begin + kRowPadding; ++i) {
        load_row(a.z, i, a.dim, zi);
        double positive = 0;
        for_positives(a.z, a.rows, a.dim, samples, a.scale, norm, i, zi, zp,
                      [&](int64_t, double s) { positive += std::exp(s - a.shift[i]); });
        total[i] = a.negative_sum[i] + positive;
        // The tiles' exponents are relative to a rounded maximum: the difference goes into the factor.
        const double reference = a.shift[i] * kLog2E;
        maximum[i] = bounded ? bound : static_cast<float>(reference);
        factor[i] = static_cast<float>(a.grad_nll[i] / total[i] * std::exp2(maximum[i] - reference) / kHeadroom);
      }
      __builtin_memset(du + begin * stride, 0, kRowPadding * stride * 4);
    }
    team.barrier();

    // The negatives, tile by tile: du_I += W u_J and du_J += Wᵀ u_I.
    const Tile<Products> tile(tiles, team.rank, tournament.edge());
    for_each_tile(team, tournament, products, tile, samples, c, [&](const Pair& pair, Block I, Block J) {
      if (bounded)
        weights<true>(tile.s, I, J, c, bound, factor, maximum);
      else
        weights<false>(tile.s, I, J, c, bound, factor, maximum);
      products.pack_weights(tile.s, I, J, tile.more);
      in_turn(
          pair, turn, [&] { products.add(tile.s, I, J, du, tile.more); },
          [&] { products.add_transposed(tile.s, I, J, du, tile.more); });
    });
    team.barrier();

    // The positives; then back through the normalisation.
    for (int64_t chunk; (chunk = team.claim()) < chunks;) {
      radial[chunk] = 0;
      for (int64_t i = chunk * kRowPadding; i < a.rows && i < (chunk + 1) * kRowPadding; ++i) {
        float* g = du + i * stride;
        for (int64_t d = 0; d < a.dim; ++d) g[d] *= kHeadroom;
        load_row(a.z, i, a.dim, zi);
        const double length = clamped(norm[i]), share = 1 / double(a.views - 1);
        for_positives(a.z, a.rows, a.dim, samples, a.scale, norm, i, zi, zp, [&](int64_t p, double s) {
          // P − Y of the pair, from either row. With two views 1 − P is what the negatives hold: nothing cancels.
          const auto weight = [&](int64_t r) {
            return a.grad_nll[r] *
                   (a.views == 2 ? -a.negative_sum[r] / total[r] : std::exp(s - a.shift[r]) / total[r] - share);
          };
          const double w = (weight(i) + weight(p)) / clamped(norm[p]);
          for (int64_t d = 0; d < a.dim; ++d) g[d] += static_cast<float>(w * zp[d]);
        });
        const double along = dot(g, zi, a.dim) / length;  // ⟨du, u⟩
        radial[chunk] += along;
        const double keep = norm[i] < kNormEps ? 0 : along / length, outer = a.scale / length;
        for (int64_t d = 0; d < a.dim; ++d) zp[d] = static_cast<float>(outer * (g[d] - keep * zi[d]));
        store_row(a.grad_z, i, a.dim, zp);
      }
    }
  });

  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += radial[chunk];
  *a.grad_scale = sum / 2;  // Σ ⟨du, u⟩ counts every pair twice
}

}  // namespace

void nt_xent(const NtXent& args) {
  if (args.precision == Precision::float32 || !kHasBfloat16) return nt_xent_forward<Float32Products>(args);
  if (args.precision == Precision::bfloat16x3) return nt_xent_forward<Bfloat16Products<2>>(args);
  nt_xent_forward<Bfloat16Products<1>>(args);
}

void nt_xent_backward(const NtXentBackward& args) {
  if (args.precision == Precision::float32 || !kHasBfloat16) return nt_xent_backward<Float32Products>(args);
  if (args.precision == Precision::bfloat16x3) return nt_xent_backward<Bfloat16Products<2>>(args);
  nt_xent_backward<Bfloat16Products<1>>(args);
}

}  // namespace pyssl::PYSSL_ISA
