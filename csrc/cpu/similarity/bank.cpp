// A few queries against many keys that get no gradient: a queue, a memory bank, other people's negatives.
//
// The keys are read once, where they stand; nothing of their size is made. Tiles are transposed, S_JI = K_J Q_Iᵀ, so that
// what belongs to one query stands in one lane: maxima, sums and comparisons go down the columns. The work is cut into
// (block of queries) × (run of keys), each with results of its own, which are put together in the order of the keys: the
// bits do not depend on the threads.
//
// In matrix products of 2·M·N·D operations: bank_contrast 1 + 1 for each term, whose softmax-weighted mean of the keys is
// its gradient, formed in the same pass (online, as in FlashAttention); neighbours 1. Bytes: N·D.

#include <cstring>
#include <vector>

#include "blocks.h"
#include "operand.h"
#include "similarity.h"
#include "tiles.h"

namespace pyssl::PYSSL_ISA {
namespace {

constexpr int64_t kRuns = 32;  // of keys, at most; fewer with many blocks of queries

// A block of keys, as one thread holds it.
template <class Products>
class Keys {
 public:
  Keys(const Matrix& k, bool multiplied)
      : k_(k), rows_(kRowPadding * Products::stride(k.dim) * 4), products_(Products::kEdge, k.dim, multiplied) {}

  void take(Block J) {
    const int64_t stride = Products::stride(k_.dim);
    float* rows = rows_.as<float>();
    count_ = J.size;
    for (int64_t begin = 0; begin < J.size; begin += kRowPadding) {
      const int64_t count = J.size - begin < kRowPadding ? J.size - begin : kRowPadding;
      for (int64_t r = 0; r < count; ++r) {
        load_row(k_, J.begin + begin + r, k_.dim, rows + r * stride);
        for (int64_t d = k_.dim; d < stride; ++d) rows[r * stride + d] = 0;
      }
      products_.pack(begin, count, rows);
    }
  }
  // s [J, I] = K_J Q_Iᵀ
  void scores(const Products& q, Block I, float* s) const { products_.scores({0, count_}, q, I, s); }
  // out [I] += Wᵀ K_J, W [J, I] a tile
  void add(float* w, int64_t size, float* out, void* more) const {
    products_.pack_weights(w, {0, count_}, {0, size}, more);
    products_.add_transposed(w, {0, count_}, {0, size}, out, more);
  }

 private:
  const Matrix k_;
  Scratch rows_;
  Products products_;
  int64_t count_ = 0;
};

// In float32 the keys are multiplied where they stand, unless their last numbers would make a vector read beyond the
// row, or their last rows a micro-tile beyond the matrix. Packed first, 256 queries × 65,536 keys × 128 take 8 %
// (neighbours) and 12 % (bank_contrast) longer.
template <>
class Keys<Float32Products> {
 public:
  Keys(const Matrix& k, bool)
      : k_(k),
        stride_(Float32Products::stride(k.dim)),
        direct_(k.dtype == Dtype::float32 && k.dim % kLanes == 0),
        copy_((direct_ ? kRows : kBlock) * stride_ * 4) {}

  void take(Block J) {
    // Whole micro-tiles where they stand; the rest, or all, from the copy.
    const int64_t whole = direct_ ? J.size / kRows * kRows : 0;
    rows_ = static_cast<const float*>(k_.data) + J.begin * k_.stride;
    whole_ = whole;
    rest_ = round_up(J.size - whole, kRows);
    float* copy = copy_.as<float>();
    for (int64_t r = 0; r < rest_; ++r) {
      const bool there = whole + r < J.size;
      if (there) load_row(k_, J.begin + whole + r, k_.dim, copy + r * stride_);
      for (int64_t d = there ? k_.dim : 0; d < stride_; ++d) copy[r * stride_ + d] = 0;
    }
  }
  void scores(const Float32Products& q, Block I, float* s) const {
    q.scores_of(rows_, k_.stride, whole_, I, s);
    q.scores_of(copy_.as<float>(), stride_, rest_, I, s + whole_ * kTileStride);
  }
  void add(float* w, int64_t size, float* out, void*) const {
    // Rows of the tile beyond the last key hold what a key of zeros gives; times zeros, it adds nothing.
    Float32Products::add_rows(w, size, rows_, k_.stride, whole_, k_.dim, out, stride_);
    Float32Products::add_rows(w + whole_ * kTileStride, size, copy_.as<float>(), stride_, rest_, k_.dim, out, stride_);
  }

 private:
  const Matrix k_;
  const int64_t stride_;
  const bool direct_;
  Scratch copy_;
  const float* rows_ = nullptr;
  int64_t whole_ = 0, rest_ = 0;
};

// How queries and keys are cut: items are numbered run after run of one block of queries.
template <class Products>
struct Runs {
  Runs(int64_t rows, int64_t columns)
      : rows(rows),
        columns(columns),
        edge(Products::kEdge),
        blocks((rows + edge - 1) / edge),
        key_blocks((columns + edge - 1) / edge),
        runs(blocks >= kRuns ? 1 : std::min(key_blocks, kRuns / blocks)) {}

  int64_t items() const { return blocks * runs; }
  Block queries(int64_t item) const {
    const int64_t begin = item / runs * edge;
    return {begin, std::min(edge, rows - begin)};
  }
  // visit(J) for every block of keys of the item's run, in order.
  template <class Visit>
  void for_keys(int64_t item, const Visit& visit) const {
    const int64_t run = item % runs, first = run * key_blocks / runs, last = (run + 1) * key_blocks / runs;
    for (int64_t b = first; b < last; ++b) visit(Block{b * edge, std::min(edge, columns - b * edge)});
  }
  int64_t first_item(int64_t row) const { return row / edge * runs; }

  const int64_t rows, columns, edge, blocks, key_blocks, runs;
};

// One item's state of one term: per query the reference of the exponentials, their sum and their weighted keys.
struct Online {
  float* reference;  // [edge]
  double* sum;       // [edge]
  float* keys;       // [edge, stride]
};

// Takes a tile in: W in place of S, sums updated, and the weighted keys so far made relative to the reference.
static void online_softmax(float* w, const float* s, Block I, Block J, float c, const Keep& keep, const Online& state,
                           int64_t stride, float* lines) {
  const int64_t width = round_up(I.size, kLanes);
  const bool all = !keep.row_ids && !keep.limit;
  const auto at = [&](int64_t j, int64_t i) {
    const vf x = load(s + j * kTileStride + i);
    return all ? scaled(x, c) : keep(x, J, I, j, i) ? scaled(x, c) : set(-INFINITY);
  };
  float* part = lines;
  for (int64_t i = 0; i < width; i += kLanes) {
    vf largest = set(kLowest);
    for (int64_t j = 0; j < J.size; ++j) largest = max(largest, at(j, i));
    store(part + i, largest);
  }
  // The reference follows the maximum only where that outgrows it by 20 octaves: then all so far is scaled.
  for (int64_t i = 0; i < I.size; ++i) {
    float& reference = state.reference[i];
    const float largest = part[i];
    if (!(reference == kLowest ? largest > kLowest : largest > reference + 20)) continue;
    const float factor = reference == kLowest ? 0 : std::exp2(reference - largest);
    reference = largest;
    if (state.sum[i] == 0) continue;
    state.sum[i] *= factor;
    for (int64_t d = 0; d < stride; ++d) state.keys[i * stride + d] *= factor;
  }
  for (int64_t i = 0; i < width; i += kLanes) {
    const vf reference = load(state.reference + i);
    vf sum = {};
    for (int64_t j = 0; j < J.size; ++j) {
      const vf e = exp2(at(j, i) - reference);
      store(w + j * kTileStride + i, e);
      sum += e;
    }
    store(part + i, sum);
  }
  for (int64_t i = 0; i < I.size; ++i) state.sum[i] += part[i];
  // The products take whole micro-tiles of keys.
  for (int64_t j = J.size; j < round_up(J.size, 32); ++j) std::memset(w + j * kTileStride, 0, kBlock * 4);
}

template <class Products>
void run(const BankContrast& args) {
  const Pairs& a = args.pairs;
  const Runs<Products> cut(a.q.rows, a.k.rows);
  const int threads = static_cast<int>(std::min<int64_t>(a.threads, cut.items()));
  const int64_t stride = Products::stride(a.q.dim), edge = cut.edge, terms = a.term_count, dim = a.q.dim;
  const int64_t buffer = Operand<Products>::buffer(a.q);
  const float unit = static_cast<float>(a.scale);
  constexpr int64_t kLines = 3;

  Operand<Products> q(a.q, false, false);
  Scratch buffers(threads * buffer * 4), tiles(threads * Tile<Products>::bytes(edge, kLines));
  Scratch second(terms > 1 ? threads * edge * kTileStride * 4 : 0);
  const int64_t states = cut.items() * terms;
  Scratch references(states * edge * 4), sums(states * edge * 8), keys(states * edge * stride * 4);
  Scratch statistics(args.statistics ? cut.items() * 3 * edge * 8 : 0);
  const auto state = [&](int64_t item, int64_t n) {
    const int64_t number = (item * terms + n) * edge;
    return Online{references.as<float>() + number, sums.as<double>() + number, keys.as<float>() + number * stride};
  };

  std::vector<std::unique_ptr<Keys<Products>>> blocks;
  for (int t = 0; t < threads; ++t) blocks.emplace_back(new Keys<Products>(a.k, true));

  parallel(threads, [&](Team team) {
    q.prepare(team, buffers.as<float>() + team.rank * buffer);
    team.barrier();
    const Tile<Products> tile(tiles, team.rank, edge, kLines);
    float* weights = terms > 1 ? second.as<float>() + team.rank * edge * kTileStride : tile.s;
    [[maybe_unused]] const typename Products::Thread thread;
    Keys<Products>& block = *blocks[team.rank];
    for (int64_t item; (item = team.claim()) < cut.items();) {
      const Block I = cut.queries(item);
      for (int64_t n = 0; n < terms; ++n) {
        const Online online = state(item, n);
        for (int64_t i = 0; i < edge; ++i) online.reference[i] = kLowest, online.sum[i] = 0;
        std::memset(online.keys, 0, round_up(I.size, 32) * stride * 4);
      }
      double* found = args.statistics ? statistics.as<double>() + item * 3 * edge : nullptr;
      for (int64_t i = 0; found && i < edge; ++i) found[i] = -INFINITY, found[edge + i] = found[2 * edge + i] = 0;
      cut.for_keys(item, [&](Block J) {
        block.take(J);
        block.scores(*q.products, I, tile.s);
        if (found) {
          float *largest = tile.lines, *sum = largest + kBlock, *count = sum + kBlock;
          const Keep negatives{a.column_ids, a.row_ids, false, a.row_limit, true, unit};
          kept_statistics<true>(tile.s, J, I, unit, NAN, negatives, largest, sum, count);  // nothing is excluded here
          add_statistics(found, edge, {0, I.size}, largest, sum, count);
        }
        for (int64_t n = 0; n < terms; ++n) {
          const bool same = a.terms[n].same;
          const float c = slope(a.scale * a.terms[n].power * kLog2E);
          const Keep keep{a.column_ids, a.row_ids, same, same ? nullptr : a.row_limit, true, unit};
          if (same && !a.row_ids) continue;
          const Online online = state(item, n);
          online_softmax(weights, tile.s, I, J, c, keep, online, stride, tile.lines);
          block.add(weights, I.size, online.keys, tile.more);
        }
      });
    }
    team.barrier();

    // The runs together, in order.
    for (int64_t begin; (begin = team.claim() * 8) < a.q.rows;) {
      for (int64_t i = begin; i < a.q.rows && i < begin + 8; ++i) {
        const int64_t first = cut.first_item(i), r = i % edge;
        for (int64_t n = 0; n < terms; ++n) {
          float most = kLowest;
          for (int64_t run = 0; run < cut.runs; ++run) {
            const float x = state(first + run, n).reference[r];
            most = x > most ? x : most;
          }
          double sum = 0;
          for (int64_t run = 0; run < cut.runs; ++run) {
            const Online online = state(first + run, n);
            sum += online.sum[r] * std::exp2(double(online.reference[r]) - most);
          }
          args.lse[n * a.q.rows + i] = sum == 0 ? -INFINITY : std::log(sum) + most / kLog2E;
          float* out = args.mean_key + (n * a.q.rows + i) * dim;
          std::memset(out, 0, dim * 4);
          for (int64_t run = 0; sum != 0 && run < cut.runs; ++run) {
            const Online online = state(first + run, n);
            const float share = static_cast<float>(std::exp2(double(online.reference[r]) - most) / sum);
            for (int64_t d = 0; d < dim; ++d) out[d] += share * online.keys[r * stride + d];
          }
        }
        for (int64_t run = 0; args.statistics && run < cut.runs; ++run) {
          const double* found = statistics.as<double>() + (first + run) * 3 * edge;
          double* out = args.statistics + i;
          if (run == 0) out[0] = -INFINITY, out[a.q.rows] = out[2 * a.q.rows] = 0;
          out[0] = found[r] > out[0] || found[r] != found[r] ? found[r] : out[0];
          out[a.q.rows] += found[edge + r];
          out[2 * a.q.rows] += found[2 * edge + r];
        }
      }
    }
  });
}

// ---- neighbours -------------------------------------------------------------------------------------------------------

// The largest `count` so far of one query, in order; of equal ones the first. A NaN counts as the largest.
struct Best {
  float* similarity;
  int64_t* index;

  void take(float x, int64_t at, int64_t count) const {
    const auto larger = [](float a, float b) { return a > b || (a != a && b == b); };
    if (!larger(x, similarity[count - 1])) return;
    int64_t place = count - 1;
    for (; place > 0 && larger(x, similarity[place - 1]); --place)
      similarity[place] = similarity[place - 1], index[place] = index[place - 1];
    similarity[place] = x;
    index[place] = at;
  }
};

// Takes the columns of a transposed tile into the lists: sixteen keys at a time, looked at one by one only where the
// largest of them is larger than the list's last.
template <class BestOf>
static void take_tile(float* s, Block I, Block J, const Keep* keep, const BestOf& best, int64_t count, float* lines) {
  constexpr int64_t kGroup = 16;
  float* last = lines;
  int32_t* news = reinterpret_cast<int32_t*>(lines + kBlock);
  for (int64_t i = 0; i < I.size; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) last[i + l] = i + l < I.size ? best(i + l).similarity[count - 1] : INFINITY;
    for (int64_t j = 0; j < J.size; j += kGroup) {
      const int64_t end = std::min(j + kGroup, J.size);
      vf most = set(-INFINITY), sum = {};
      for (int64_t r = j; r < end; ++r) {
        float* at = s + r * kTileStride + i;
        vf x = load(at);
        if (keep) {
          x = (*keep)(x, J, I, r, i) ? x : set(-INFINITY);
          store(at, x);
        }
        most = max(most, x);
        sum += x == x ? vf{} : x;  // a NaN, which the maximum may lose
      }
      const vi better = ~(most <= load(last + i)) | (sum != sum);
      std::memcpy(news, &better, sizeof better);
      int32_t any = 0;
      for (int l = 0; l < kLanes; ++l) any |= news[l];
      if (!any) continue;
      for (int64_t l = 0; l < kLanes && i + l < I.size; ++l) {
        if (!news[l]) continue;
        for (int64_t r = j; r < end; ++r) best(i + l).take(s[r * kTileStride + i + l], J.begin + r, count);
        last[i + l] = best(i + l).similarity[count - 1];
      }
    }
  }
}

template <class Products>
void run(const Neighbours& a) {
  const bool symmetric = !a.k.data;
  const Matrix& k = symmetric ? a.q : a.k;
  const int32_t* column_ids = symmetric ? a.row_ids : a.column_ids;
  const Runs<Products> cut(a.q.rows, k.rows);
  const int threads = static_cast<int>(std::min<int64_t>(a.threads, cut.items()));
  const int64_t edge = cut.edge, count = a.count, buffer = Operand<Products>::buffer(a.q);
  constexpr int64_t kLines = 2;

  Operand<Products> q(a.q, false, false);
  Scratch buffers(threads * buffer * 4), tiles(threads * Tile<Products>::bytes(edge, kLines));
  Scratch similarities(cut.items() * edge * count * 4), indices(cut.items() * edge * count * 8);
  const auto list = [&](int64_t item, int64_t r) {
    const int64_t at = (item * edge + r) * count;
    return Best{similarities.as<float>() + at, indices.as<int64_t>() + at};
  };

  std::vector<std::unique_ptr<Keys<Products>>> blocks;
  for (int t = 0; t < threads; ++t) blocks.emplace_back(new Keys<Products>(k, false));

  parallel(threads, [&](Team team) {
    q.prepare(team, buffers.as<float>() + team.rank * buffer);
    team.barrier();
    const Tile<Products> tile(tiles, team.rank, edge, kLines);
    [[maybe_unused]] const typename Products::Thread thread;
    Keys<Products>& block = *blocks[team.rank];
    const Keep keep{column_ids, a.row_ids, false, nullptr, true, 1};
    for (int64_t item; (item = team.claim()) < cut.items();) {
      const Block I = cut.queries(item);
      const auto best = [&](int64_t r) { return list(item, r); };
      for (int64_t r = 0; r < I.size; ++r)
        for (int64_t n = 0; n < count; ++n) best(r).similarity[n] = -INFINITY, best(r).index[n] = -1;
      cut.for_keys(item, [&](Block J) {
        block.take(J);
        block.scores(*q.products, I, tile.s);
        if (symmetric)
          for (int64_t j = std::max(I.begin, J.begin); j < std::min(I.end(), J.end()); ++j)
            tile.s[(j - J.begin) * kTileStride + j - I.begin] = -INFINITY;
        take_tile(tile.s, I, J, a.row_ids ? &keep : nullptr, best, count, tile.lines);
      });
    }
    team.barrier();

    for (int64_t i; (i = team.claim()) < a.q.rows;) {
      const Best out{a.similarity + i * count, a.index + i * count};
      const int64_t first = cut.first_item(i), r = i % edge;
      for (int64_t n = 0; n < count; ++n) out.similarity[n] = -INFINITY, out.index[n] = -1;
      for (int64_t run = 0; run < cut.runs; ++run) {
        const Best part = list(first + run, r);
        for (int64_t n = 0; n < count && part.index[n] >= 0; ++n) out.take(part.similarity[n], part.index[n], count);
      }
    }
  });
}

}  // namespace

void bank_contrast(const BankContrast& args) {
  with_products(args.pairs.precision, [&](auto* kind) { run<std::remove_pointer_t<decltype(kind)>>(args); });
}

void neighbours(const Neighbours& args) {
  if (!args.k.data && args.count == 1) return nearest(args);
  with_products(args.precision, [&](auto* kind) { run<std::remove_pointer_t<decltype(kind)>>(args); });
}

}  // namespace pyssl::PYSSL_ISA
