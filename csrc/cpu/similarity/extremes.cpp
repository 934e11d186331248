// Of every row the most similar row of another id, and the least similar one of its own: one pass over the tiles of the
// symmetric S, half a matrix product, no gradient.

#include "blocks.h"
#include "operand.h"
#include "similarity.h"
#include "tiles.h"

namespace pyssl::PYSSL_ISA {
namespace {

// What a row is told: of kind 0 the largest s + offset among the other ids, of kind 1 the smallest among its own. A NaN
// counts as further out than any number.
static inline bool better(int kind, float x, float than) {
  return (kind == 0 ? x > than : x < than) || (x != x && than == than);
}
static inline float worst(int kind) { return kind == 0 ? -INFINITY : INFINITY; }

// The values alone, along both directions of a tile: row and column [kind][kBlock]. Where they stand is looked up only
// if they beat what the row has already: among T tiles a row sees, that is about log T times. Returns whether there is a
// NaN, which a maximum may lose.
template <bool kSame>
static bool extremes(const float* s, Block I, Block J, const int32_t* ids, const float* offset, float* const* row,
                     float* const* column) {
  const int64_t width = round_up(J.size, kLanes);
  const vf low = set(-INFINITY), high = set(INFINITY);
  for (int64_t j = 0; j < width; j += kLanes) {
    store(column[0] + j, low);
    if (kSame) store(column[1] + j, high);
  }
  vf nothing = {};  // becomes NaN with any NaN, or infinity
  for (int64_t i = 0; i < I.size; ++i) {
    vf most = low, least = high;
    for (int64_t j = 0; j < width; j += kLanes) {
      const vf x = load(s + i * kTileStride + j);
      const vf along_row = x + load_some(offset + J.begin + j, J.size - j), along_column = x + offset[I.begin + i];
      if (kSame) {
        const vi id = load_ids(ids + J.begin + j, J.size - j);
        const int32_t own = ids[I.begin + i];
        most = max(most, id == own ? low : along_row);
        store(column[0] + j, max(load(column[0] + j), id == own ? low : along_column));
        // −∞ is what `exclude` left: no pair.
        const vf r = id == own ? along_row : high, c = id == own ? along_column : high;
        const vf r_there = x > low ? r : high, c_there = x > low ? c : high;
        least = least < r_there ? least : r_there;
        const vf before = load(column[1] + j);
        store(column[1] + j, before < c_there ? before : c_there);
      } else {
        most = max(most, along_row);
        store(column[0] + j, max(load(column[0] + j), along_column));
      }
      nothing += x == low ? vf{} : x * 0.f;
    }
    row[0][i] = hmax(most);
    if (kSame) row[1][i] = -hmax(-least);
  }
  const float sum = hsum(nothing);
  return sum != sum;
}

// value and index, [M] each, of kind 0 and, if kinds = 2, kind 1. Without ids all other rows are of another one.
template <class Products>
void run(const Matrix& x, int kinds, const int32_t* ids, const float* offset, int wanted_threads, float* value[2],
         int64_t* index[2]) {
  const Tournament order(x, x, Products::kEdge);
  const int threads = team_size(wanted_threads, order);
  const int64_t edge = order.rows.edge, buffer = Operand<Products>::buffer(x);
  constexpr int64_t kLines = 4;
  Operand<Products> q(x, false, false);
  Scratch buffers(threads * buffer * 4), tiles(threads * Tile<Products>::bytes(edge, kLines));
  const Turns<Tournament> turns(order);
  for (int kind = 0; kind < kinds; ++kind)
    for (int64_t i = 0; i < x.rows; ++i) value[kind][i] = worst(kind), index[kind][i] = -1;

  parallel(threads, [&](Team team) {
    q.prepare(team, buffers.as<float>() + team.rank * buffer);
    team.barrier();
    const Tile<Products> tile(tiles, team.rank, edge, kLines);
    float* part[2][2];  // kind, direction
    for (int n = 0; n < 4; ++n) part[n / 2][n % 2] = tile.lines + n * kBlock;
    float* const rows_of[2] = {part[0][0], part[1][0]};
    float* const columns_of[2] = {part[0][1], part[1][1]};
    for_each_tile(team, order, *q.products, *q.products, tile, [&](const Pair& pair, Block I, Block J) {
      exclude(tile.s, I, J, x.rows, -INFINITY);
      const bool overlap = ids && ids_overlap(ids, I, ids, J);
      const int here = overlap ? kinds : 1;
      const bool nan = overlap ? extremes<true>(tile.s, I, J, ids, offset, rows_of, columns_of)
                               : extremes<false>(tile.s, I, J, ids, offset, rows_of, columns_of);
      // Of one row (or column) r of the tile: s + offset at place o of the other side, and whether kind looks at it.
      const auto add = [&](Block block, Block other, bool columns) {
        for (int kind = 0; kind < here; ++kind)
          for (int64_t r = 0; r < block.size; ++r) {
            float& most = value[kind][block.begin + r];
            int64_t& at = index[kind][block.begin + r];
            const float found = part[kind][columns][r];
            if (!nan && (at >= 0 ? !better(kind, found, most) && found != most : found == worst(kind))) continue;
            for (int64_t o = 0; o < other.size; ++o) {
              const float plain = columns ? tile.s[o * kTileStride + r] : tile.s[r * kTileStride + o];
              const float v = plain + offset[other.begin + o];
              if (!nan && v != found) continue;
              if (plain == -INFINITY) continue;
              if (overlap && (ids[block.begin + r] == ids[other.begin + o]) != (kind == 1)) continue;
              const int64_t where = other.begin + o;
              const bool equal = v == most || (v != v && most != most);
              if (at < 0 || better(kind, v, most) || (equal && where < at)) most = v, at = where;
              if (!nan) break;
            }
          }
      };
      turns.add(pair, [&] { add(I, J, false); }, [&] { add(J, I, true); });
    });
  });
}

}  // namespace

void hardest(const Hardest& args) {
  Scratch values(2 * args.q.rows * 4);
  float* value[2] = {values.as<float>(), values.as<float>() + args.q.rows};
  int64_t* index[2] = {args.negative, args.positive};
  with_products(args.precision, [&](auto* kind) {
    run<std::remove_pointer_t<decltype(kind)>>(args.q, 2, args.ids, args.offset, args.threads, value, index);
  });
}

void nearest(const Neighbours& args) {
  Scratch zeros(args.q.rows * 4);
  for (int64_t i = 0; i < args.q.rows; ++i) zeros.as<float>()[i] = 0;
  float* value[2] = {args.similarity, nullptr};
  int64_t* index[2] = {args.index, nullptr};
  with_products(args.precision, [&](auto* kind) {
    run<std::remove_pointer_t<decltype(kind)>>(args.q, 1, args.row_ids, zeros.as<float>(), args.threads, value, index);
  });
}

}  // namespace pyssl::PYSSL_ISA
