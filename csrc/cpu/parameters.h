// Parameters of image operations: drawn for every sample, and packed into the table that kernels read. Not worth an
// instruction set of its own: what counts is that it is one call.
#pragma once

#include <array>
#include <cstdint>

#include "../samples.h"

namespace pyssl {

// The fields of pyssl_fast.augment.Parameters, a row per sample, contiguous, in their order.
struct Columns {
  int64_t* box;  // [n, 4]
  bool *horizontal_flip, *vertical_flip;
  int64_t* turns;
  float *angle, *translate, *zoom, *shear;  // [n], [n, 2], [n], [n, 2]
  int64_t* order;                           // [n, 4]
  bool* jitter;                             // [n, 4]
  float* factors;                           // [n, 4]
  bool* grey;
  float* sigma;
  bool* solarize;
  float* threshold;
  bool* invert;
  int64_t* bits;
  int64_t* erase;  // [n, 4]
};

// Least and largest, or probability; as pyssl_fast.augment.Recipe has them, prepared by kernels/cpu/augment.py.
struct Recipe {
  double height, width;  // of the result
  double scale[2], ratio[2], log_ratio[2];
  double horizontal_flip, vertical_flip, turns;
  double affine, degrees, translate[2], zoom[2], shear;  // translate: in pixels
  double jitter, uses[4], least[4], span[4];             // of the four factors
  double grey, blur, sigma[2], solarize, threshold, invert, posterize, bits;
  double erase, erase_scale[2], erase_log_ratio[2];
};

// Fills all columns. sizes: [n, 2], height and width of each image; index: [n].
void draw(const Recipe& recipe, int64_t n, const int64_t* sizes, const int64_t* index, uint64_t seed, uint64_t epoch,
          uint64_t view, const Columns& columns);

// What the samples have in common.
struct Common {
  int64_t height, width, blur_kernel;
  bool grey_first;
};

// table ← a row per sample. Whether all numbers are valid, as Parameters.check has them.
bool pack(const Columns& columns, int64_t n, const int64_t* sizes, const Common& common, Sample* table);

}  // namespace pyssl
