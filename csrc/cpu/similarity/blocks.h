// Which tiles a pass visits, in which order, and in which order a block receives its additions.
#pragma once

#include <algorithm>
#include <cmath>

#include "../families.h"
#include "../parallel.h"
#include "../simd/gemm.h"

namespace pyssl::PYSSL_ISA {

// Small problems are cut into smaller blocks, so that there are tiles enough for the threads to end together. Thread
// counts have no say in it: that would change the order of additions.
static inline int64_t edge_for(int64_t rows, int64_t largest_edge) {
  if (rows < 1536) return kRowPadding;
  return rows < 6144 ? kBlock / 2 : largest_edge;
}

class Blocks {
 public:
  Blocks(int64_t rows, int64_t largest_edge)
      : edge(edge_for(rows, largest_edge)), count((rows + edge - 1) / edge), rows_(rows) {}
  Block operator[](int64_t b) const {
    const int64_t begin = b * edge;
    return {begin, rows_ - begin < edge ? rows_ - begin : edge};
  }

  const int64_t edge, count;

 private:
  const int64_t rows_;
};

struct Pair {
  int64_t i, j;            // blocks
  int64_t turn_i, turn_j;  // how many pairs of that block come before
  bool empty;              // an odd tournament's missing player
  bool diagonal;           // symmetric, i == j: the tile is whole, and its rows are its columns
};

// Rows against each other: S is symmetric, and every unordered pair of row blocks is visited once. First the diagonal,
// then the rounds of a round-robin tournament, in which no block stands twice in a round. So threads that take pairs in
// this order hardly ever wait for each other's turn, while every block still receives its additions in one fixed order.
class Tournament {
 public:
  Tournament(const Matrix& q, const Matrix&, int64_t largest_edge)
      : rows(q.rows, largest_edge), columns(rows), players_(rows.count + rows.count % 2) {}

  static constexpr bool kSymmetric = true;
  int64_t pairs() const { return rows.count + (players_ - 1) * (players_ / 2); }

  Pair pair(int64_t number) const {
    if (number < rows.count) return {number, number, 0, 0, false, true};
    const int64_t round = (number - rows.count) / (players_ / 2), k = (number - rows.count) % (players_ / 2);
    const int64_t circle = players_ - 1;  // the last player stays; the others go round
    const int64_t i = k == 0 ? round : (round + k) % circle;
    const int64_t j = k == 0 ? circle : (round - k + circle) % circle;
    // With an odd number of blocks the last player is missing, and block b sits out round b.
    const bool odd = players_ != rows.count;
    return {i, j, 1 + round - (odd && i < round), 1 + round - (odd && j < round), j >= rows.count, false};
  }

  const Blocks rows, columns;

 private:
  const int64_t players_;
};

// Rows against columns: the blocks of the longer side stand around a circle, and in round r the block a of the shorter
// side meets block a + r.
class Grid {
 public:
  Grid(const Matrix& q, const Matrix& k, int64_t largest_edge)
      : rows(q.rows, largest_edge),
        columns(k.rows, largest_edge),
        tall_(rows.count > columns.count),
        few_(tall_ ? columns.count : rows.count),
        circle_(tall_ ? rows.count : columns.count) {}

  static constexpr bool kSymmetric = false;
  int64_t pairs() const { return few_ * circle_; }

  Pair pair(int64_t number) const {
    const int64_t round = number / few_, a = number % few_, b = (a + round) % circle_;
    // b has met those of (b − round, b], around the circle, that the shorter side has.
    const int64_t met = met_before(b - round + 1, round);
    return tall_ ? Pair{b, a, met, round, false, false} : Pair{a, b, round, met, false, false};
  }

  const Blocks rows, columns;

 private:
  // How many of the `length` places from `begin` around the circle are below few_.
  int64_t met_before(int64_t begin, int64_t length) const {
    if (begin < 0) begin += circle_;
    const auto below = [&](int64_t from, int64_t to) { return std::max<int64_t>(0, std::min(to, few_) - from); };
    const int64_t last = begin + length;
    return last <= circle_ ? below(begin, last) : below(begin, circle_) + below(0, last - circle_);
  }

  const bool tall_;
  const int64_t few_, circle_;
};

// The turns of all row blocks and, unless they are the same, all column blocks.
template <class Order>
class Turns {
 public:
  explicit Turns(const Order& order)
      : store_((order.rows.count + (Order::kSymmetric ? 0 : order.columns.count)) * int64_t{sizeof(Turn)}),
        rows_(store_.as<Turn>()),
        columns_(Order::kSymmetric ? rows_ : rows_ + order.rows.count) {
    const int64_t count = order.rows.count + (Order::kSymmetric ? 0 : order.columns.count);
    for (int64_t b = 0; b < count; ++b) new (rows_ + b) Turn;
  }

  // Adds a tile's parts to its two blocks, each when its turn has come; a tile of the diagonal has one part.
  template <class AddRows, class AddColumns>
  void add(const Pair& pair, const AddRows& add_rows, const AddColumns& add_columns) const {
    rows_[pair.i].wait(pair.turn_i);
    add_rows();
    rows_[pair.i].pass();
    if (pair.diagonal) return;
    columns_[pair.j].wait(pair.turn_j);
    add_columns();
    columns_[pair.j].pass();
  }

 private:
  Scratch store_;
  Turn *rows_, *columns_;
};

// What a thread needs for one tile.
template <class Products>
class Tile {
 public:
  static int64_t bytes(int64_t edge, int64_t lines) {
    return (edge * kTileStride + lines * kBlock) * 4 + Products::kTileScratch;
  }
  Tile(const Scratch& scratch, int rank, int64_t edge, int64_t lines)
      : s(reinterpret_cast<float*>(scratch.as<char>() + rank * bytes(edge, lines))),
        lines(s + edge * kTileStride),
        more(this->lines + lines * kBlock) {}

  float* s;      // [edge, kTileStride]
  float* lines;  // [lines, kBlock] for sums along it
  void* more;    // the Products' own
};

// This thread's share of all tiles: visit(pair, I, J) finds S_IJ in s.
template <class Order, class Products, class Visit>
static inline void for_each_tile(Team& team, const Order& order, const Products& left, const Products& right,
                                 const Tile<Products>& tile, const Visit& visit) {
  [[maybe_unused]] const typename Products::Thread thread;
  for (int64_t number; (number = team.claim()) < order.pairs();) {
    const Pair pair = order.pair(number);
    if (pair.empty) continue;
    const Block I = order.rows[pair.i], J = order.columns[pair.j];
    left.scores(I, right, J, tile.s);
    visit(pair, I, J);
  }
}

// Of either side: what tiles must have room for.
template <class Order>
static inline int64_t largest_edge(const Order& order) {
  return std::max(order.rows.edge, order.columns.edge);
}

// More threads than blocks of the longer side would only wait for each other's turns.
template <class Order>
static inline int team_size(int threads, const Order& order) {
  const int64_t most = std::max(order.rows.count, order.columns.count);
  return static_cast<int>(threads < most ? threads : most);
}

}  // namespace pyssl::PYSSL_ISA
