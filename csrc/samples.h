// What Python hands to every augment kernel: see pyssl_fast/kernels/samples.py.
#pragma once

#include <cstdint>

namespace pyssl {

enum class Pixel : int { float32 = 0, float16 = 1, bfloat16 = 2, uint8 = 3 };

struct Picture {
  const void* data;
  int64_t channel, row, pixel;  // steps, in elements
};

// One row of a table.
template <class Number>
struct SampleOf {
  Number top, left, height, width;  // the crop
  // After the resize, in this order. Transposed: rows and columns exchanged.
  Number horizontal_flip, vertical_flip, transposed;
  Number moved;                      // whether there is an affine map:
  Number matrix[6];                  // [2, 3]: (x, y, 1) of a pixel, from the centre, to where it comes from
  Number order[4];                   // of the colours: 0 brightness, 1 contrast, 2 saturation, 3 hue, −1 none
  Number factors[4];                 // by those numbers
  Number grey, grey_first;           // the latter: before the colours
  Number sigma, taps;                // of the blur; sigma 0: none
  Number threshold, invert, levels;  // solarize, infinity: none; posterize, 0: none
  Number erase[4];                   // top, left, height, width, of the output
};
using Sample = SampleOf<double>;

constexpr int64_t kSampleNumbers = sizeof(Sample) / sizeof(double);

}  // namespace pyssl
