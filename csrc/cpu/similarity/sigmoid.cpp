// A binary cross-entropy for every pair (SigLIP): log(1 + exp(−t)) of positives, log(1 + exp(t)) of the others, with
// t = scale·s + bias. The gradient of a pair needs nothing but that pair, so it is formed in the forward pass: three
// matrix products in all. Per pair an exponential, a logarithm by a series, and two divisions.

#include "blocks.h"
#include "operand.h"
#include "similarity.h"
#include "tiles.h"

namespace pyssl::PYSSL_ISA {
namespace {

// log(1 + exp(x)) and its derivative. log(1 + e) = 2 artanh(e / (2 + e)), whose argument is at most ⅓: no digit is lost
// where e is small, as there would be in 1 + e.
static inline vf softplus(vf x, vf& sigmoid) {
  const vf zero = {}, magnitude = x < zero ? -x : x;
  const vf e = exp2(magnitude * static_cast<float>(-kLog2E));
  const vf z = e / (e + 2.f), z2 = z * z;
  vf p = set(1.f / 15);
  p = p * z2 + 1.f / 13;
  p = p * z2 + 1.f / 11;
  p = p * z2 + 1.f / 9;
  p = p * z2 + 1.f / 7;
  p = p * z2 + 1.f / 5;
  p = p * z2 + 1.f / 3;
  p = p * z2 + 1.f;
  const vf larger = 1.f / (e + 1.f);
  sigmoid = x < zero ? e * larger : larger;
  return (x > zero ? x : zero) + 2.f * (z * p);
}

// One tile: losses and weights of its rows; W takes the place of S if gradient.
template <bool kIds>
static void sigmoid_tile(const SigmoidContrast& a, float scale, float bias, float* s, Block I, Block J, float* loss,
                         float* weight) {
  vi lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  for (int64_t i = 0; i < I.size; ++i) {
    const float positive_weight = a.positive_weight[I.begin + i], row_weight = a.row_weight[I.begin + i];
    vf losses = {}, weights = {};
    for (int64_t j = 0; j < J.size; j += kLanes) {
      float* at = s + i * kTileStride + j;
      const vf t = load(at) * scale + bias;
      const vi outside = lane >= static_cast<int32_t>(J.size - j);
      const vf x_other = outside ? set(-INFINITY) : t;
      vi positive = {};
      if (kIds) positive = (load_ids(a.column_ids + J.begin + j, J.size - j) == a.row_ids[I.begin + i]) & ~outside;
      const vf x = kIds ? (positive ? -t : x_other) : x_other, share = positive ? set(positive_weight) : set(1.f);
      vf sigmoid;
      losses += share * softplus(x, sigmoid);
      if (a.gradient) {
        const vf w = sigmoid * (positive ? -share : share) * row_weight;
        weights += w;
        store(at, w);
      }
    }
    loss[i] = hsum(losses);
    weight[i] = hsum(weights);
  }
}

template <class Products>
void run(const SigmoidContrast& a) {
  const Grid order(a.q, a.k, Products::kEdge);
  const int threads = team_size(a.threads, order);
  const int64_t edge = largest_edge(order);
  const int64_t buffer = std::max(Operand<Products>::buffer(a.q), Operand<Products>::buffer(a.k));
  const int64_t diagonal = a.row_ids ? 0 : a.q.rows + a.k.rows;  // for_same_sample: i == j alone

  Gradient<Products> grad_q(a.grad_q), grad_k(a.grad_k);
  Operand<Products> q(a.q, false, grad_k.wanted()), k(a.k, false, grad_q.wanted());
  Scratch buffers(threads * buffer * 4), biases(order.rows.count * 8);
  double* grad_bias = biases.as<double>();
  for (int64_t b = 0; b < order.rows.count; ++b) grad_bias[b] = 0;
  const float scale = slope(a.scale), bias = static_cast<float>(a.bias);
  for (int64_t i = 0; i < a.q.rows; ++i) a.loss[i] = 0;

  {
    constexpr int64_t kLines = 2;
    Scratch tiles(threads * Tile<Products>::bytes(edge, kLines));
    const Turns<Grid> turns(order);
    parallel(threads, [&](Team team) {
      float* row_buffer = buffers.as<float>() + team.rank * buffer;
      q.prepare(team, row_buffer);
      team.next();
      k.prepare(team, row_buffer);
      team.next();
      grad_q.clear(team);
      team.next();
      grad_k.clear(team);
      team.barrier();

      const Tile<Products> tile(tiles, team.rank, edge, kLines);
      float *loss = tile.lines, *weight = loss + kBlock;
      for_each_tile(team, order, *q.products, *k.products, tile, [&](const Pair& pair, Block I, Block J) {
        for_same_sample(I, J, diagonal,
                        [&](int64_t i, int64_t j) { tile.s[i * kTileStride + j] = scale > 0 ? -INFINITY : INFINITY; });
        if (a.row_ids && ids_overlap(a.row_ids, I, a.column_ids, J))
          sigmoid_tile<true>(a, scale, bias, tile.s, I, J, loss, weight);
        else
          sigmoid_tile<false>(a, scale, bias, tile.s, I, J, loss, weight);
        if (a.gradient) k.products->pack_weights(tile.s, I, J, tile.more);
        turns.add(
            pair,
            [&] {
              for (int64_t i = 0; i < I.size; ++i) {
                a.loss[I.begin + i] += loss[i];
                grad_bias[pair.i] += weight[i];
              }
              if (grad_q.wanted()) k.products->add(tile.s, I, J, grad_q.rows() + I.begin * grad_q.stride, tile.more);
            },
            [&] {
              if (grad_k.wanted())
                q.products->add_transposed(tile.s, I, J, grad_k.rows() + J.begin * grad_k.stride, tile.more);
            });
      });
    });
  }
  q.products.reset();
  k.products.reset();

  // The positives of the diagonal by themselves, in double: with weights of about −1 they would cost the others, of
  // about exp(bias), their last digits.
  const int64_t positives = a.row_ids ? 0 : std::min(a.q.rows, a.k.rows), dim = a.q.dim;
  Scratch weights(positives * 8), bias_chunks(round_up(positives, kRowPadding) / kRowPadding * 8);
  double* weight = weights.as<double>();
  parallel(threads, [&](Team team) {
    float *qi = buffers.as<float>() + team.rank * buffer, *ki = qi + Products::stride(dim);
    for (int64_t chunk; (chunk = team.claim()) * kRowPadding < positives;) {
      double sum = 0;
      for (int64_t i = chunk * kRowPadding; i < positives && i < (chunk + 1) * kRowPadding; ++i) {
        load_row(a.q, i, dim, qi);
        load_row(a.k, i, dim, ki);
        const double t = a.scale * dot(qi, ki, dim) + a.bias, e = std::exp(-std::fabs(t));
        a.loss[i] += a.positive_weight[i] * (std::log1p(e) + (t > 0 ? 0 : -t));
        weight[i] = -double(a.positive_weight[i]) * a.row_weight[i] * (t < 0 ? 1 : e) / (1 + e);
        sum += weight[i];
      }
      bias_chunks.as<double>()[chunk] = sum;
    }
    team.barrier();
    grad_q.finish(team, q, a.scale, 1, qi, [&](int64_t i, const float* row, float* g, float* room) {
      return i < positives ? add_row(k, i, weight[i], row, g, room) : 0;
    });
    team.next();
    grad_k.finish(team, k, a.scale, 1, qi, [&](int64_t j, const float* row, float* g, float* room) {
      return j < positives ? add_row(q, j, weight[j], row, g, room) : 0;
    });
  });
  if (!a.gradient) return;
  *a.grad_scale = grad_q.wanted() ? grad_q.radial() : grad_k.radial();
  *a.grad_bias = 0;
  for (int64_t b = 0; b < order.rows.count; ++b) *a.grad_bias += grad_bias[b];
  for (int64_t c = 0; c * kRowPadding < positives; ++c) *a.grad_bias += bias_chunks.as<double>()[c];
}

}  // namespace

void sigmoid_contrast(const SigmoidContrast& args) {
  with_products(args.precision, [&](auto* kind) { run<std::remove_pointer_t<decltype(kind)>>(args); });
}

}  // namespace pyssl::PYSSL_ISA
