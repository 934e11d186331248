// The augment family on a GPU, as the host sees it: pointers, sizes, a device, a stream. No CUDA header is needed.
//
// Errors of a launch come as std::runtime_error with CUDA's text. Nothing here waits for the device.
#pragma once

#include <cstdint>

#include "../samples.h"

namespace pyssl::cuda {

enum class PixelType : int { float32 = 0, float16 = 1, bfloat16 = 2, uint8 = 3 };

struct Image {  // as a table on the device holds it
  Picture picture;
  int64_t height, width;
};

struct Augment {
  int64_t images;
  int channels, height, width;  // of the output
  PixelType type;               // of the images
  Image image;                  // the first, where all are alike; the next one is `step` bytes further on
  int64_t step;
  const Image* each;      // [images], on the device; null: `image` holds
  const Sample* samples;  // [images], on the device
  bool bicubic, antialias;
  double mean[4], over_std[4];  // by channel; 0 and 1: none
  double erase_value;
  void* out;
  PixelType out_type;
  int64_t strides[4];  // of out [images, channels, height, width], in elements
  // Planes [images, channels, height, width] of float: what is to be moved; what is to be finished. Null: no sample is.
  float *resized, *coloured;
  float* partials;  // [images, partials(height, width)]; for `coloured`
  int device;
  void* stream;
};

int64_t partials(int64_t height, int64_t width);  // of an image
void augment(const Augment& args);

}  // namespace pyssl::cuda
