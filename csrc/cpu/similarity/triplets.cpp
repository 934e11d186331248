// All triplets of a batch: for every row a, Σ over its positives p and negatives n of max(d_ap − d_an + margin, 0).
//
// The distances of kRowPadding rows to all others are held at a time, a strip; in it every positive sweeps the negatives,
// sixteen at once. Their weights are small integers, so that backward is a matrix product like the others'. In products
// of 2·M²·D: forward 1, backward 3; and M·P·N comparisons, which stay in the caches.

#include <cstring>

#include "blocks.h"
#include "operand.h"
#include "similarity.h"
#include "tiles.h"

namespace pyssl::PYSSL_ISA {
namespace {

// The triplets of one row: d its distances, +∞ in `far` at what is no negative. counts[j] becomes how many of the row's
// triplets above 0 hold j: −1 for each as a negative, +1 as the positive.
template <bool kSemiHard, bool kCounts>
static void sweep(const float* d, const float* far, const int64_t* positives, int64_t positive_count, int64_t width,
                  float margin, double& loss, double& count, float* counts) {
  for (int64_t n = 0; n < positive_count; ++n) {
    const float near = d[positives[n]];
    const vf zero = {}, one = set(1.f);
    vf sum = {}, active = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf f = load(far + j), term = near - f + margin;
      // A NaN is no "larger than 0", but is to be seen: it is larger than nothing and smaller than nothing.
      vi takes = ~(term <= zero);
      if (kSemiHard) takes &= ~(f <= near);
      sum += takes ? term : zero;
      const vf number = takes ? one : zero;
      active += number;
      if (kCounts) store(counts + j, load(counts + j) - number);
    }
    const float total = hsum(active);
    loss += hsum(sum);
    count += total;
    if (kCounts) counts[positives[n]] += total;
  }
}

template <class Products>
void run(const Triplets& a) {
  const bool backward = a.grad_q.data;
  const int64_t rows = a.q.rows, padded = round_up(rows, kRowPadding), strips = padded / kRowPadding;
  const Blocks columns(rows, Products::kEdge);
  // A strip of distances takes as much as 96 / D matrices of rows: no more threads than keep all strips below four.
  const int64_t most = std::max<int64_t>(2, a.q.dim / 24);
  const int threads = static_cast<int>(std::min({static_cast<int64_t>(a.threads), strips, most}));
  const int64_t buffer = Operand<Products>::buffer(a.q), stride = Products::stride(a.q.dim);
  constexpr int64_t kLines = 1;

  Gradient<Products> grad(a.grad_q);                // Wᵀ q, from all strips
  Scratch own(backward ? padded * stride * 4 : 0);  // W q, every strip's own
  float* own_part = own.as<float>();
  Operand<Products> q(a.q, false, backward);
  Scratch buffers(threads * buffer * 4),
      tiles(threads * Tile<Products>::bytes(std::max(columns.edge, kRowPadding), kLines));
  Scratch strips_of(threads * kRowPadding * padded * 4), lines(threads * padded * 16);
  // Of Euclidean distances the gradient also has a part along the rows themselves: Σ_j (w_ij + w_ji).
  Scratch diagonals(backward ? padded * 16 : 0), turns(columns.count * int64_t{sizeof(Turn)});
  double *diagonal = diagonals.as<double>(), *row_sum = diagonal + padded;
  Turn* turn = turns.as<Turn>();
  for (int64_t b = 0; b < columns.count; ++b) new (turn + b) Turn;
  for (int64_t i = 0; backward && i < padded; ++i) diagonal[i] = row_sum[i] = 0;

  parallel(threads, [&](Team team) {
    float* row_buffer = buffers.as<float>() + team.rank * buffer;
    q.prepare(team, row_buffer);
    team.next();
    grad.clear(team);
    team.barrier();
    const Tile<Products> tile(tiles, team.rank, std::max(columns.edge, kRowPadding), kLines);
    float* strip = strips_of.as<float>() + team.rank * kRowPadding * padded;
    float* far = lines.as<float>() + team.rank * padded * 4;
    float* counts = far + padded;
    int64_t* positives = reinterpret_cast<int64_t*>(counts + padded);
    [[maybe_unused]] const typename Products::Thread thread;
    for (int64_t number; (number = team.claim()) < strips;) {
      const Block I{number * kRowPadding, std::min(kRowPadding, rows - number * kRowPadding)};
      for (int64_t b = 0; b < columns.count; ++b) {
        const Block J = columns[b];
        q.products->scores(I, *q.products, J, tile.s);
        for (int64_t i = 0; i < I.size; ++i) {
          const double own = q.norm()[I.begin + i] * q.norm()[I.begin + i];
          for (int64_t j = 0; j < J.size; ++j) {
            const float s = tile.s[i * kTileStride + j];
            const double other = q.norm()[J.begin + j] * q.norm()[J.begin + j];
            double square = own + other - 2 * double(s);
            // What is left of float32's s where two rows nearly coincide is mostly its rounding.
            if (a.euclidean && square < 1e-3 * (own + other)) {
              load_row(a.q, I.begin + i, a.q.dim, row_buffer);
              load_row(a.q, J.begin + j, a.q.dim, row_buffer + stride);
              square = 0;
              for (int64_t d = 0; d < a.q.dim; ++d) {
                const double apart = double(row_buffer[d]) - row_buffer[stride + d];
                square += apart * apart;
              }
            }
            const float root = static_cast<float>(std::sqrt(square < 0 ? 0 : square));
            strip[i * padded + J.begin + j] = a.euclidean ? root : 1 - s;
          }
        }
      }

      for (int64_t i = 0; i < I.size; ++i) {
        float* d = strip + i * padded;
        const int64_t row = I.begin + i;
        int64_t positive_count = 0;
        for (int64_t j = 0; j < rows; ++j) {
          const bool same = a.ids[j] == a.ids[row];
          far[j] = same ? INFINITY : d[j];
          if (same && j != row) positives[positive_count++] = j;
        }
        for (int64_t j = rows; j < padded; ++j) far[j] = INFINITY;
        for (int64_t j = 0; backward && j < padded; ++j) counts[j] = 0;
        double loss = 0, count = 0;
        const auto one = [&](auto semi_hard, auto wanted) {
          sweep<decltype(semi_hard)::value, decltype(wanted)::value>(d, far, positives, positive_count, padded,
                                                                     static_cast<float>(a.margin), loss, count, counts);
        };
        if (backward)
          a.semi_hard ? one(std::true_type(), std::true_type()) : one(std::false_type(), std::true_type());
        else
          a.semi_hard ? one(std::true_type(), std::false_type()) : one(std::false_type(), std::false_type());
        if (!backward) {
          a.loss[row] = loss;
          a.count[row] = loss != loss ? loss : count;
          continue;
        }
        // The weight of s: d = 1 − s, or d² = |x|² + |y|² − 2s. Rows that coincide have none.
        const float g = static_cast<float>(a.grad_loss[row]);
        for (int64_t j = 0; j < rows; ++j) {
          const float w = -g * counts[j];
          d[j] = !a.euclidean ? w : d[j] == 0 ? 0 : w / d[j];
        }
      }
      if (!backward) continue;

      std::memset(own_part + I.begin * stride, 0, kRowPadding * stride * 4);
      for (int64_t b = 0; b < columns.count; ++b) {
        const Block J = columns[b];
        for (int64_t i = 0; i < kRowPadding; ++i) {
          float* w = tile.s + i * kTileStride;
          for (int64_t j = 0; j < round_up(J.size, 32); ++j)
            w[j] = i < I.size && j < J.size ? strip[i * padded + J.begin + j] : 0;
        }
        double sums[kRowPadding];
        for (int64_t i = 0; i < I.size; ++i) {
          sums[i] = 0;
          for (int64_t j = 0; j < J.size; ++j) sums[i] += tile.s[i * kTileStride + j];
        }
        q.products->pack_weights(tile.s, I, J, tile.more);
        q.products->add(tile.s, I, J, own_part + I.begin * stride, tile.more);
        // Strips add to a block in their order: no thread is further ahead than the strip before lets it.
        turn[b].wait(number);
        q.products->add_transposed(tile.s, I, J, grad.rows() + J.begin * stride, tile.more);
        for (int64_t i = 0; i < I.size; ++i)
          for (int64_t j = 0; j < J.size; ++j) diagonal[J.begin + j] += tile.s[i * kTileStride + j];
        turn[b].pass();
        for (int64_t i = 0; i < I.size; ++i) row_sum[I.begin + i] += sums[i];
      }
    }
  });
  if (!backward) return;

  parallel(threads, [&](Team team) {
    float* row_buffer = buffers.as<float>() + team.rank * buffer;
    grad.finish(team, q, 1, 1, row_buffer, [&](int64_t i, const float* row, float* g, float*) {
      const float along = a.euclidean ? static_cast<float>(diagonal[i] + row_sum[i]) : 0;
      for (int64_t d = 0; d < a.q.dim; ++d) g[d] += own_part[i * stride + d] - along * row[d];
      return 0.;
    });
  });
}

}  // namespace

void triplets(const Triplets& args) {
  with_products(args.precision, [&](auto* kind) { run<std::remove_pointer_t<decltype(kind)>>(args); });
}

}  // namespace pyssl::PYSSL_ISA
