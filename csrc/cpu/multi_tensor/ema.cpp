// Teachers follow their students. Float32 reads 8 bytes an element and writes 4, the fewest there are.
#include "multi_tensor.h"
#include "streams.h"

namespace pyssl::PYSSL_ISA {

void ema(const Ema& a) {
  for_each_chunk(a.entries, [&](const Chunk& chunk) {
    if (chunk.entry >= a.averaged) {
      __builtin_memcpy(static_cast<char*>(a.teacher.data[chunk.entry]) + chunk.first,
                       static_cast<const char*>(a.student.data[chunk.entry]) + chunk.first, chunk.end - chunk.first);
      return;
    }
    const Stream teacher(a.teacher, chunk.entry), student(a.student, chunk.entry), shadow(a.shadow, chunk.entry);
    if (!shadow && teacher.dtype == Dtype::float32 && student.dtype == Dtype::float32) {
      const int64_t count = chunk.end - chunk.first;
      follow(teacher.edit(chunk.first, count, nullptr), student.read(chunk.first, count, nullptr), count, a.momentum);
      return;
    }
    for_each_block(chunk, [&](int64_t first, int64_t count) {
      Buffer buffer;
      teach(teacher, shadow, first, count, student.read(first, count, buffer), a.momentum);
    });
  });
}

}  // namespace pyssl::PYSSL_ISA
