// The sum of all squares, in double: a sum for every chunk, and then over these in order, whatever the threads.
#include "multi_tensor.h"
#include "streams.h"

namespace pyssl::PYSSL_ISA {

void square_sum(const SquareSum& a) {
  const Chunks chunks(a.entries);
  std::vector<double> sums(chunks.size());
  for_each_chunk(a.entries, [&](const Chunk& chunk) {
    const Stream x(a.x, chunk.entry);
    double sum = 0;
    for_each_block(chunk, [&](int64_t first, int64_t count) {
      Buffer buffer;
      const float* block = x.read(first, count, buffer);
      sum += dot(block, block, count);
    });
    sums[chunks.begin(chunk.entry) + chunk.number] = sum;
  });
  *a.sum = 0;
  for (double sum : sums) *a.sum += sum;
}

}  // namespace pyssl::PYSSL_ISA
