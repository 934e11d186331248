// The augment family on a GPU, as the host sees it: pointers, sizes, a device, a stream. No CUDA header is needed.
//
// Errors of a launch come as std::runtime_error with CUDA's text. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "../samples.h"

namespace pyssl::cuda {

struct Image {      // as a table on the device holds it
  Picture picture;  // its step from pixel to pixel is less than 2³¹ bytes
  int64_t height, width;
};

struct Augment {
  int64_t images;
  int channels, height, width;  // of the output
  Pixel input;
  Image image;  // the first, where all are alike; the next one is `step` bytes further on
  int64_t step;
  const Image* each;      // [images], on the device; null: they are alike
  const Sample* samples;  // [images], on the device
  bool bicubic, antialias;
  const double *mean, *std;  // [channels], on the host
  double erase_value;
  void* out;
  Pixel output;
  const int64_t* strides;  // of out [images, channels, height, width], in elements
  // Of float, [images, channels, height, width]: what is to be moved; what is to be finished. Null: no sample is.
  float *resized, *coloured;
  float* partials;  // [images, partials(height, width)]; for `coloured`
  int device;
  void* stream;
};

int64_t partials(int64_t height, int64_t width);  // of an image
void augment(const Augment& args);

}  // namespace pyssl::cuda
