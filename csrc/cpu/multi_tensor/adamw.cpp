// AdamW, and the teachers in the same pass: 28 bytes an element in float32, 36 with a teacher (40 in two passes).
#include <cmath>

#include "multi_tensor.h"
#include "streams.h"

namespace pyssl::PYSSL_ISA {

namespace {

// What one step does to every element of an entry.
struct Step {
  Step(const Adamw& a, double step)
      : factor(a.factor),
        keep(1 - a.lr * a.weight_decay),
        rate1(1 - a.beta1),
        beta2(a.beta2),
        rate2(1 - a.beta2),
        size(a.lr / (1 - std::pow(a.beta1, step))),
        unroot(1 / std::sqrt(1 - std::pow(a.beta2, step))),
        eps(a.eps) {}
  const float factor, keep, rate1, beta2, rate2, size, unroot, eps;
};

template <bool amsgrad>
void update(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v,
            float* __restrict largest, int64_t count, const Step& s) {
  for (int64_t k = 0; k < count; ++k) {
    const float gradient = s.factor * g[k];
    const float mean = m[k] + s.rate1 * (gradient - m[k]);
    const float square = s.beta2 * v[k] + s.rate2 * gradient * gradient;
    float divisor = square;
    if constexpr (amsgrad) {
      // The comparison is false for a NaN, which so stays.
      divisor = largest[k] > square ? largest[k] : square;
      divisor = largest[k] != largest[k] ? largest[k] : divisor;
      largest[k] = divisor;
    }
    p[k] = s.keep * p[k] - s.size * mean / (std::sqrt(divisor) * s.unroot + s.eps);
    m[k] = mean;
    v[k] = square;
  }
}

}  // namespace

void adamw(const Adamw& a) {
  for_each_chunk(a.entries, [&](const Chunk& chunk) {
    const int64_t e = chunk.entry;
    const Stream parameter(a.parameter, e), gradient(a.gradient, e), exp_avg(a.exp_avg, e), exp_avg_sq(a.exp_avg_sq, e),
        largest(a.max_exp_avg_sq, e), teacher(a.teaching.teacher, e), shadow(a.teaching.shadow, e);
    const Step step(a, *a.step[e] + 1.0);
    for_each_block(chunk, [&](int64_t first, int64_t count) {
      Buffer buffers[5];
      float* p = parameter.edit(first, count, buffers[0]);
      const float* g = gradient.read(first, count, buffers[1]);
      float* m = exp_avg.edit(first, count, buffers[2]);
      float* v = exp_avg_sq.edit(first, count, buffers[3]);
      if (largest) {
        float* most = largest.edit(first, count, buffers[4]);
        update<true>(p, g, m, v, most, count, step);
        largest.write(first, count, most);
      } else {
        update<false>(p, g, m, v, nullptr, count, step);
      }
      parameter.write(first, count, p);
      exp_avg.write(first, count, m);
      exp_avg_sq.write(first, count, v);
      if (teacher) teach(teacher, shadow, first, count, parameter.read(first, count, buffers[0]), a.teaching.momentum);
    });
  });
  for (int64_t e = 0; e < a.entries.size; ++e) *a.step[e] += 1;
}

}  // namespace pyssl::PYSSL_ISA
