// The sum of all squares, in double: a sum for every chunk, and then over these in order, whatever the threads.
#include "multi_tensor.h"
#include "streams.h"

namespace pyssl::PYSSL_ISA {

namespace {

double squares(const float* x, int64_t count) {
  vd sum = {}, other = {};
  const int64_t done = by_pages(count, [&](int64_t first) {
    for (int64_t i = first; i < first + kLine; i += kLanes) {
      const vd a = widen(x + i), b = widen(x + i + kWide);
      sum += a * a;
      other += b * b;
    }
  });
  double total = dot(x + done, x + done, count - done);
  for (int l = 0; l < kWide; ++l) total += sum[l] + other[l];
  return total;
}

}  // namespace

void square_sum(const SquareSum& a) {
  const Chunks chunks(a.entries);
  std::vector<double> sums(chunks.size());
  for_each_chunk(a.entries, [&](const Chunk& chunk) {
    const Stream x(a.x, chunk.entry);
    double sum = 0;
    for_each_block(
        chunk,
        [&](int64_t first, int64_t count) {
          Buffer buffer;
          sum += squares(x.read(first, count, buffer), count);
        },
        x.in_place());
    sums[chunks.begin(chunk.entry) + chunk.number] = sum;
  });
  *a.sum = 0;
  for (double sum : sums) *a.sum += sum;
}

}  // namespace pyssl::PYSSL_ISA
