// Log-sum-exps of the rows and columns of S: every softmax loss.
//
// In matrix products of 2·M·N·D operations: forward 1, backward 1 to form S again and 1 for each gradient; with rows
// against each other S is symmetric, and it is ½ and ½ + 1. Bytes: a few (M + N)·D. One exponential per entry and pass in
// the plain case. The positives are taken in double, at (V − 1)·M·D: so a batch that is already well told apart, whose
// loss is the small remainder beside the positive, loses no digits.

#include "blocks.h"
#include "operand.h"
#include "similarity.h"
#include "tiles.h"

namespace pyssl::PYSSL_ISA {
namespace {

// The terms, prepared for the tiles.
struct Plan {
  explicit Plan(const Pairs& a)
      : a(a), unit(static_cast<float>(a.scale)), nothing(slope(a.scale) > 0 ? -INFINITY : INFINITY) {
    plain = !a.row_limit && !a.column_limit;
    for (int n = 0; n < a.term_count; ++n) {
      const Term& term = a.terms[n];
      c[n] = slope(a.scale * term.power * kLog2E);
      largest_power = term.power > largest_power ? term.power : largest_power;
      (term.columns ? column : row) = n;
      one_power &= term.power == a.terms[0].power;
      plain &= !term.same && term.power == a.terms[0].power;
      for (int m = 0; m < n; ++m) plain &= a.terms[m].columns != term.columns;
    }
    // Rows of one sample are a multiple of this apart; 0: there are none.
    const int64_t views = a.views ? a.views : 1;
    samples = a.symmetric() ? a.q.rows / views : a.views ? a.q.rows + a.columns() : 0;
    column_ids = a.symmetric() ? a.row_ids : a.column_ids;
  }

  Keep keep(bool same, bool along_columns) const {
    const float* limit = same ? nullptr : along_columns ? a.column_limit : a.row_limit;
    return {a.row_ids, column_ids, same, limit, along_columns, unit};
  }
  // Where term n's numbers start in arrays of all terms.
  int64_t start(int n) const {
    int64_t sum = 0;
    for (int m = 0; m < n; ++m) sum += a.length(m);
    return sum;
  }
  int64_t length() const { return start(a.term_count); }
  // Whether a term of rows is also one of the columns of a tile.
  bool both(const Pair& pair) const { return a.symmetric() && !pair.diagonal; }

  // Leaves in a tile what the terms are to see: in the plain case, the negatives alone.
  void clean(float* s, Block I, Block J) const {
    exclude(s, I, J, samples, nothing);
    if (plain && a.row_ids && column_ids) exclude_ids(s, I, J, a.row_ids, column_ids, nothing);
  }

  const Pairs& a;
  float unit, nothing;
  float c[kMaxTerms];
  double largest_power = 0;
  bool one_power = true;      // of all terms
  bool plain;                 // at most one term along each direction, of negatives, with one power and no limits
  int row = -1, column = -1;  // the terms in the plain case
  int64_t samples;
  const int32_t* column_ids;
};

// No logit is larger; NaN if any row has no length.
template <class Products>
double largest_logit(const Plan& plan, const Operand<Products>& q, const Operand<Products>& k) {
  return std::fabs(plan.a.scale) * plan.largest_power * q.longest() * k.longest();
}

// ---- forward ----------------------------------------------------------------------------------------------------------

// The running sums of a term.
struct Totals {
  double* sum;
  float* maximum;

  void add(Block block, const float* part, const float* part_max) const {
    for (int64_t r = 0; r < block.size; ++r) {
      double& total = sum[block.begin + r];
      float& most = maximum[block.begin + r];
      if (part_max)
        merge(total, most, part[r], part_max[r]);
      else
        total += part[r];
    }
  }
};

template <class Products, class Order>
void forward(const Contrast& args) {
  const Pairs& a = args.pairs;
  const Plan plan(a);
  const Order order(a.q, a.k, Products::kEdge);
  const int threads = team_size(a.threads, order);

  Operand<Products> q(a.q, a.normalize, false);
  std::unique_ptr<Operand<Products>> other(Order::kSymmetric ? nullptr
                                                             : new Operand<Products>(a.k, a.normalize, false));
  Operand<Products>& k = Order::kSymmetric ? q : *other;
  const int64_t length = plan.length(), buffer = Operand<Products>::buffer(a.q);
  const int64_t largest_buffer = Order::kSymmetric ? buffer : std::max(buffer, Operand<Products>::buffer(a.k));
  constexpr int64_t kLines = 4 * kMaxTerms + 6;
  Scratch sums(length * 8), maxima(length * 4), buffers(threads * largest_buffer * 4);
  const int64_t edge = largest_edge(order);
  Scratch tiles(threads * Tile<Products>::bytes(edge, kLines));
  const Turns<Order> turns(order);
  double* sum = sums.as<double>();
  float* maximum = maxima.as<float>();
  for (int64_t i = 0; i < length; ++i) sum[i] = 0, maximum[i] = kLowest;
  bool any_columns = false;
  for (int n = 0; n < a.term_count; ++n) any_columns |= a.terms[n].columns;
  const int64_t watched = a.q.rows + (any_columns ? a.columns() : 0);
  if (args.statistics) {
    for (int64_t i = 0; i < watched; ++i)
      args.statistics[i] = -INFINITY, args.statistics[i + watched] = args.statistics[i + 2 * watched] = 0;
  }

  parallel(threads, [&](Team team) {
    float* row_buffer = buffers.as<float>() + team.rank * largest_buffer;
    q.prepare(team, row_buffer);
    team.next();
    if (!Order::kSymmetric) k.prepare(team, row_buffer);
    team.barrier();
    const double largest = largest_logit(plan, q, k);
    const bool one_bound = largest <= kBoundLimit;
    const float bound = static_cast<float>(largest * kLog2E);

    const Tile<Products> tile(tiles, team.rank, edge, kLines);
    float* lines[kLines];
    for (int l = 0; l < kLines; ++l) lines[l] = tile.lines + l * kBlock;
    float **statistic = lines + 4 * kMaxTerms, **column_statistic = statistic + 3;
    for_each_tile(team, order, *q.products, *k.products, tile, [&](const Pair& pair, Block I, Block J) {
      plan.clean(tile.s, I, J);
      // lines[4n … 4n+3] of term n: along the rows sum, maximum; along the columns sum, maximum.
      if (plan.plain && a.term_count) {
        const bool alone = Order::kSymmetric ? pair.diagonal : plan.column < 0;
        float *row = lines[0], *row_max = lines[1], *column = lines[2], *column_max = lines[3];
        if (one_bound) {
          if (alone)
            bounded_sums<true>(tile.s, I, J, plan.c[0], bound, row, column);
          else
            bounded_sums<false>(tile.s, I, J, plan.c[0], bound, row, column);
        } else {
          if (alone)
            running_sums<true>(tile.s, I, J, plan.c[0], row_max, row, column_max, column);
          else
            running_sums<false>(tile.s, I, J, plan.c[0], row_max, row, column_max, column);
        }
      } else {
        const auto sums = [&](auto columns, int n, float** line) {
          constexpr bool kColumns = decltype(columns)::value;
          const Keep keep = plan.keep(a.terms[n].same, kColumns);
          if (one_bound)
            kept_sums<kColumns, true>(tile.s, I, J, plan.c[n], bound, keep, nullptr, line[0]);
          else
            kept_sums<kColumns, false>(tile.s, I, J, plan.c[n], 0, keep, line[1], line[0]);
        };
        for (int n = 0; n < a.term_count; ++n) {
          float** line = lines + 4 * n;
          if (!a.terms[n].columns) sums(std::false_type(), n, line);
          if (a.terms[n].columns || plan.both(pair)) sums(std::true_type(), n, line + 2);
        }
      }
      if (args.statistics) {
        kept_statistics<false>(tile.s, I, J, plan.unit, plan.nothing, plan.keep(false, false), statistic[0],
                               statistic[1], statistic[2]);
        if (any_columns || plan.both(pair))
          kept_statistics<true>(tile.s, I, J, plan.unit, plan.nothing, plan.keep(false, true), column_statistic[0],
                                column_statistic[1], column_statistic[2]);
      }

      const auto add = [&](Block block, bool along_columns) {
        for (int n = 0; n < a.term_count; ++n) {
          if (!Order::kSymmetric && a.terms[n].columns != along_columns) continue;
          float** line = lines + (plan.plain ? 0 : 4 * n) + (along_columns ? 2 : 0);
          const int64_t start = plan.start(n);
          Totals{sum + start, maximum + start}.add(block, line[0], one_bound ? nullptr : line[1]);
        }
        float** found = along_columns ? column_statistic : statistic;
        const bool after_rows = along_columns && !Order::kSymmetric;
        if (args.statistics && (any_columns || !after_rows))
          add_statistics(args.statistics + (after_rows ? a.q.rows : 0), watched, block, found[0], found[1], found[2]);
      };
      turns.add(pair, [&] { add(I, false); }, [&] { add(J, true); });
    });
    team.next();

    // The positives.
    float *qi = row_buffer, *kp = row_buffer + Products::stride(a.q.dim);
    for (int64_t begin; (begin = team.claim() * kRowPadding) < a.q.rows;) {
      for (int64_t i = begin; i < a.q.rows && i < begin + kRowPadding; ++i) {
        if (a.views) load_row(a.q, i, a.q.dim, qi);
        for (int64_t v = 1; v < a.views; ++v) {
          const int64_t p = Order::kSymmetric ? (i + v * plan.samples) % a.q.rows : i;
          load_row(k.x, p, a.q.dim, kp);
          args.positive[(v - 1) * a.q.rows + i] = a.scale * dot(qi, kp, a.q.dim) / (q.length(i) * k.length(p));
        }
      }
    }
  });
  const double largest = largest_logit(plan, q, k);
  for (int64_t i = 0; i < length; ++i) {
    const double shift = largest <= kBoundLimit ? static_cast<float>(largest * kLog2E) : maximum[i];
    args.lse[i] = sum[i] == 0 ? -INFINITY : std::log(sum[i]) + shift / kLog2E;
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

template <class Products, class Order>
void backward(const ContrastBackward& args) {
  const Pairs& a = args.pairs;
  const Plan plan(a);
  // Under the bound, rows whose similarities are all −1 have denominators of e⁻⁸⁰, and a loss scale in the gradient would
  // take their inverse beyond float: the tiles' part of the gradient is kept smaller by this power of two.
  constexpr float kHeadroom = 4096;
  // All is computed for gradients of at most 1, and multiplied at the end: a loss scale, or a tiny loss, loses no digits.
  double size = 0;
  const auto look = [&](const double* grad, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      if (std::fabs(grad[i]) > size && std::fabs(grad[i]) < INFINITY) size = std::fabs(grad[i]);
  };
  look(args.grad_lse, plan.length());
  look(args.grad_positive, a.views ? (a.views - 1) * a.q.rows : 0);
  if (size == 0) size = 1;
  constexpr int64_t kLines = 2;
  const Order order(a.q, a.k, Products::kEdge);
  const int threads = team_size(a.threads, order);
  const int64_t edge = largest_edge(order);
  const int64_t buffer = Operand<Products>::buffer(a.q);
  const int64_t largest_buffer = Order::kSymmetric ? buffer : std::max(buffer, Operand<Products>::buffer(a.k));

  Gradient<Products> grad_q(args.grad_q), grad_k(args.grad_k);
  Operand<Products> q(a.q, a.normalize, Order::kSymmetric || grad_k.wanted());
  std::unique_ptr<Operand<Products>> other(
      Order::kSymmetric ? nullptr : new Operand<Products>(a.k, a.normalize, grad_q.wanted()));
  Operand<Products>& k = Order::kSymmetric ? q : *other;
  Scratch buffers(threads * largest_buffer * 4);

  // Per term and line the reference of its exponentials and the factor before them; the same for lines beyond the last.
  const int64_t padded = round_up(std::max(a.q.rows, a.columns()), kRowPadding);
  Scratch references((a.term_count + 1) * padded * 4), factors((a.term_count + 1) * padded * 4);
  const auto reference = [&](int n) { return references.as<float>() + n * padded; };
  const auto factor = [&](int n) { return factors.as<float>() + n * padded; };
  Weight weights[2 * kMaxTerms];
  int weight_count = 0;
  for (int n = 0; n < a.term_count; ++n) {
    const bool columns = a.terms[n].columns;
    weights[weight_count++] = {columns, plan.c[n], plan.keep(a.terms[n].same, columns), reference(n), factor(n)};
    if (Order::kSymmetric)
      weights[weight_count++] = {true, plan.c[n], plan.keep(a.terms[n].same, true), reference(n), factor(n)};
  }
  const int none = a.term_count;  // the factors of the direction that has no term
  const int row = plan.row < 0 ? none : plan.row, column = Order::kSymmetric ? row
                                                           : plan.column < 0 ? none
                                                                             : plan.column;

  {
    Scratch tiles(threads * Tile<Products>::bytes(edge, kLines));
    const Turns<Order> turns(order);
    parallel(threads, [&](Team team) {
      float* row_buffer = buffers.as<float>() + team.rank * largest_buffer;
      q.prepare(team, row_buffer);
      team.next();
      if (!Order::kSymmetric) k.prepare(team, row_buffer);
      team.next();
      grad_q.clear(team);
      team.next();
      grad_k.clear(team);
      team.barrier();
      const double largest = largest_logit(plan, q, k);
      const bool bounded = plan.one_power && largest <= kBoundLimit;
      const float bound = static_cast<float>(largest * kLog2E);
      for (int64_t begin; (begin = team.claim() * kRowPadding) < padded;) {
        for (int64_t i = begin; i < begin + kRowPadding; ++i) {
          reference(none)[i] = factor(none)[i] = 0;
          for (int n = 0; n < a.term_count; ++n) {
            const int64_t at = plan.start(n) + i;
            const double lse = i < a.length(n) ? args.lse[at] * kLog2E : -INFINITY;
            const bool empty = lse == -INFINITY;
            // The exponentials are relative to a rounded number: the difference goes into the factor.
            const float shift = empty ? 0 : bounded ? bound : static_cast<float>(lse);
            const double grad = empty ? 0 : a.terms[n].power * args.grad_lse[at] / size;
            const double apart = bounded ? shift - lse : std::min(shift - lse, 1.);
            reference(n)[i] = shift;
            factor(n)[i] = grad == 0 ? 0 : static_cast<float>(grad * std::exp2(apart) / kHeadroom);
          }
        }
      }
      team.barrier();

      // du_I += W v_J and dv_J += Wᵀ u_I, tile by tile.
      const Tile<Products> tile(tiles, team.rank, edge, kLines);
      for_each_tile(team, order, *q.products, *k.products, tile, [&](const Pair& pair, Block I, Block J) {
        plan.clean(tile.s, I, J);
        if (!plan.plain && bounded)
          bounded_kept_weights(tile.s, I, J, plan.c[0], bound, weights, weight_count);
        else if (!plan.plain)
          kept_weights(tile.s, I, J, weights, weight_count);
        else if (bounded)
          bounded_weights(tile.s, I, J, plan.c[0], bound, factor(row) + I.begin, factor(column) + J.begin);
        else
          running_weights(tile.s, I, J, plan.c[0], reference(row) + I.begin, factor(row) + I.begin,
                          reference(column) + J.begin, factor(column) + J.begin, tile.lines);
        k.products->pack_weights(tile.s, I, J, tile.more);
        float* du = grad_q.rows() + I.begin * grad_q.stride;
        float* dv =
            Order::kSymmetric ? grad_q.rows() + J.begin * grad_q.stride : grad_k.rows() + J.begin * grad_k.stride;
        turns.add(
            pair,
            [&] {
              if (grad_q.wanted()) k.products->add(tile.s, I, J, du, tile.more);
            },
            [&] {
              if (Order::kSymmetric || grad_k.wanted()) q.products->add_transposed(tile.s, I, J, dv, tile.more);
            });
      });
    });
  }

  // The packed rows are not needed any more, and the gradients' pages have not been touched yet: one takes the room of
  // the other.
  q.products.reset();
  k.products.reset();
  const int64_t rows = a.q.rows;
  parallel(threads, [&](Team team) {
    float* row_buffer = buffers.as<float>() + team.rank * largest_buffer;
    grad_q.finish(
        team, q, a.scale * size, kHeadroom, row_buffer, [&](int64_t i, const float* row, float* g, float* room) {
          double along = 0;
          for (int64_t v = 1; v < a.views; ++v) {
            const int64_t p = (i + v * plan.samples) % rows;
            const double own = args.grad_positive[(v - 1) * rows + i];
            if (Order::kSymmetric)  // the pair (i, p), from either row
              along += add_row(q, p, (own + args.grad_positive[(a.views - v - 1) * rows + p]) / size, row, g, room);
            else
              along += add_row(k, i, own / size, row, g, room);
          }
          return along;
        });
    team.next();
    grad_k.finish(team, k, a.scale * size, kHeadroom, row_buffer,
                  [&](int64_t j, const float* row, float* g, float* room) {
                    return a.views && j < rows ? add_row(q, j, args.grad_positive[j] / size, row, g, room) : 0;
                  });
  });
  // Σ ⟨u, ∂u⟩ = Σ W s; of a symmetric S it counts every pair twice.
  *args.grad_scale = size * (grad_q.wanted() ? grad_q.radial() / (Order::kSymmetric ? 2 : 1) : grad_k.radial());
}

}  // namespace

void contrast(const Contrast& args) {
  with_products(args.pairs.precision, [&](auto* kind) {
    using Products = std::remove_pointer_t<decltype(kind)>;
    args.pairs.symmetric() ? forward<Products, Tournament>(args) : forward<Products, Grid>(args);
  });
}

void contrast_backward(const ContrastBackward& args) {
  with_products(args.pairs.precision, [&](auto* kind) {
    using Products = std::remove_pointer_t<decltype(kind)>;
    args.pairs.symmetric() ? backward<Products, Tournament>(args) : backward<Products, Grid>(args);
  });
}

}  // namespace pyssl::PYSSL_ISA
