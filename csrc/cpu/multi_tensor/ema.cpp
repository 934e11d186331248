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
    for_each_block(
        chunk,
        [&](int64_t first, int64_t count) {
          Buffer buffer;
          teach(teacher, shadow, first, count, student.read(first, count, buffer), a.momentum);
        },
        teacher.in_place() && student.in_place() && !shadow);
  });
}

}  // namespace pyssl::PYSSL_ISA
