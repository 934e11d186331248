// Augment family: a whole augmentation of every image, by explicit parameters, in one to three launches.
//
//   resample  crop, resize, flips, quarter turns; the colours up to the contrast, whose mean is of the whole image
//   move      the affine map, of the images that have one; then the colours likewise
//   finish    the colours from the contrast on; blur
// Each ends with what it has done wholly: solarize, invert, posterize, normalise, erase, stored once in out's type and
// strides. A crop with a flip is one launch. Of the others, blocks of images that are done leave at once.
//
// Bytes per pixel of a float32 result of three channels, from uint8; 6 less where it is bfloat16:
//   resample  14: 2 read (RandomResizedCrop takes 0.54 of 256² pixels on average, for 224²), 12 written
//   move      24: 12 read (each value four times, three of them from the caches), 12 written
//   finish    24: 12 read (up to 3.1 times with a blur's borders, from the second-level cache), 12 written
// Instructions per pixel, counted in the code for sm_90:
//   resample  210, 65 of them a quarter of what a thread prepares; 150 to store a pixel that is done, 35 to keep one
//             that is not; for each tap along a row 22 (bilinear) or 30 (bicubic), times the crop's rows for one of the
//             tile; for each tap down 20 or 30; for a brightness, contrast or saturation 37, for a hue 80
//   finish    320, 150 of them to store; for a blur of radius r, for each channel, 7 · (1 + r / 2), along r / 16 more
//             rows, then down; the colours for (1 + r / 16)² pixels
// Predicted, not measured: 256 images of 256² pixels to 224². Bytes at the whole bandwidth of the data sheets, then
// instructions at four for each multiprocessor and cycle; the larger number bounds the time, and it is not the bytes.
//                                     A100 40 GB (1.56 TB/s, 1.41 GHz)    H100 SXM (3.35 TB/s, 1.76 GHz)
//   MAE: bicubic, flip                      116 µs,  400 µs                      54 µs,  260 µs
//   SimCLR: bicubic, jitter, blur           294 µs,  730 µs                     137 µs,  480 µs
//
// Along rows first, then down: each row of the crop serves all rows of the output that it is part of. Summed up anew
// for each pixel, a bicubic one takes 16 taps of 35 instructions, 21 from 256 pixels to 224; so, 4 or 5 each way.
// Weights are worked out where they are needed, as a table of them would be as long as the crop.
// A tile is 32 × 32 pixels: its rows are 128 bytes of a plane, and what a thread prepares serves four pixels.
#include "augment.h"

#include <algorithm>
#include <type_traits>

#include "device.cuh"

namespace pyssl::cuda {
namespace {

using Numbers = SampleOf<float>;  // exact, but for boxes beyond 2²⁴ pixels and the matrix

constexpr int kTile = kWarp;                     // pixels of the output, squared, that a block works on
constexpr int kRows = kTile * kTile / kThreads;  // of them, that a thread has, one below the other
constexpr int kGroups = kTile / kRows;           // of as many pixels along a row; the warps
constexpr int kMostChannels = 4;

struct Job {  // what all kernels are given
  Image image;
  int64_t step;
  const Image* each;
  const Sample* samples;
  int channels, height, width;
  bool antialias;
  float mean[kMostChannels], over_std[kMostChannels], erase_value;
  char* out;
  int out_type;
  int64_t strides[4];
  float *resized, *coloured, *partials;
};

__device__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// A block's pixels, of one image; and a thread's, which begin at (row, column) and may be outside of the image.
struct Tile {
  int image, top, left, row, column;

  __device__ explicit Tile(const Job& job) {
    const unsigned across = (job.width + kTile - 1) / kTile, down = (job.height + kTile - 1) / kTile;
    const unsigned tile = blockIdx.x % (across * down);
    image = static_cast<int>(blockIdx.x / (across * down));
    top = static_cast<int>(tile / across) * kTile;
    left = static_cast<int>(tile % across) * kTile;
    row = top + kRows * warp();
    column = left + lane();
  }
};

// ---- numbers that may be anything -----------------------------------------------------------------------------------

// To a whole number, low to high; not-a-number is low.
__device__ int whole(float x, int low, int high) {
  return x >= static_cast<float>(high) ? high : x > static_cast<float>(low) ? static_cast<int>(x) : low;
}

// Let not-a-number through, as fminf and fmaxf do not.
__device__ float at_most(float x, float high) { return x > high ? high : x; }
__device__ float unit(float x) { return x < 0 ? 0.f : at_most(x, 1); }

// A row of the table, for all threads of the block.
__device__ void narrow(const Sample& from, Numbers& to) {
  const int k = static_cast<int>(threadIdx.x);
  if (k < kSampleNumbers)
    reinterpret_cast<float*>(&to)[k] = static_cast<float>(reinterpret_cast<const double*>(&from)[k]);
  __syncthreads();
}

// ---- pixels ---------------------------------------------------------------------------------------------------------

template <Pixel pixel>
__device__ float load(const char* at) {
  if constexpr (pixel == Pixel::uint8) return static_cast<float>(__ldg(reinterpret_cast<const uint8_t*>(at)));
  if constexpr (pixel == Pixel::float32) return __ldg(reinterpret_cast<const float*>(at));
  if constexpr (pixel == Pixel::float16 || pixel == Pixel::bfloat16) {
    const uint16_t bits = __ldg(reinterpret_cast<const uint16_t*>(at));
    return pixel == Pixel::bfloat16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16)
                                    : __half2float(__ushort_as_half(bits));
  }
}

// base + i·step in one instruction: the compiler, having moved the step's sign out of the loop, takes four.
__device__ const char* address(const char* base, int i, int step) {
#ifdef __CUDA_ARCH__
  const char* at;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(i), "r"(step), "l"(base));
  return at;
#else
  return base + static_cast<int64_t>(i) * step;
#endif
}

__device__ int64_t plane_offset(const Job& job, int image, int channel, int row, int column) {
  return ((static_cast<int64_t>(image) * job.channels + channel) * job.height + row) * job.width + column;
}

__device__ void keep(const Job& job, float* planes, int image, int row, int column, const float (&x)[kMostChannels]) {
  float* at = planes + plane_offset(job, image, 0, row, column);
#pragma unroll
  for (int c = 0; c < kMostChannels; ++c, at += static_cast<int64_t>(job.height) * job.width)
    if (c < job.channels) *at = x[c];
}

// ---- colours --------------------------------------------------------------------------------------------------------

__device__ float luma(const float* x) { return 0.2989f * x[0] + 0.587f * x[1] + 0.114f * x[2]; }

// v − v·s·max(0, min(n, 4 − n, 1)): channel n = 5, 3, 1 plus six times the hue, modulo 6, of HSV. The brightest channel
// stays as it is, above 1 too, where a cubic filter has overshot.
__device__ float from_hue(float n, float high, float range) {
  n -= n >= 6 ? 6.f : 0.f;
  const float weight = at_most(n < 4 - n ? n : 4 - n, 1);
  return weight <= 0 ? high : unit(high - range * weight);
}

__device__ void hue(float* x, float shift) {
  const float r = x[0], g = x[1], b = x[2];
  const float high = fmaxf(fmaxf(r, g), b), range = high - fminf(fminf(r, g), b);
  // In sixths of the circle, −1 to 5. One division, of what the brightest channel chooses: no branch.
  const float part = high == r ? g - b : high == g ? b - r : r - g;
  float h = (high == r ? 0.f : high == g ? 2.f : 4.f) + part / (range == 0 ? 1.f : range);
  h += 6 * shift + 6;
  h -= h >= 6 ? 6.f : 0.f;
  h -= h >= 6 ? 6.f : 0.f;
  x[0] = from_hue(h + 5, high, range);
  x[1] = from_hue(h + 3, high, range);
  x[2] = from_hue(h + 1, high, range);
}

enum Step : uint32_t { kNone, kBrightness, kContrast, kSaturation, kHue, kGrey };

// Four bits for each step that there is, the first one lowest.
struct Steps {
  uint32_t before, after;  // the first contrast, which waits for the mean; it is the first one of `after`

  // Of one channel, what needs three is left out.
  __device__ Steps(const Numbers& s, int channels) : before(0), after(0) {
    const bool three = channels >= 3, grey = three && s.grey != 0, grey_first = s.grey_first != 0;
    uint32_t all = 0;
    for (int k = 5; k >= 0; --k) {  // from the last to the first
      uint32_t step = kNone;
      if (k == 0 || k == 5) {
        if (grey && grey_first == (k == 0)) step = kGrey;
      } else {
        const int which = whole(s.order[k - 1], -1, 3);
        if (three || which <= 1) step = static_cast<uint32_t>(which + 1);
      }
      if (step == kNone) continue;
      all = all << 4 | step;
      before = before << 4 | step;
      if (step == kContrast) {
        after = all;
        before = 0;
      }
    }
  }
};

__device__ void colour(float* x, const Numbers& s, uint32_t steps, float mean) {
#pragma unroll 1
  for (; steps != 0; steps >>= 4) {
    const uint32_t step = steps & 15;
    if (step == kHue) {
      hue(x, s.factors[3]);
    } else if (step == kGrey) {
      x[0] = x[1] = x[2] = luma(x);
    } else {
      const float f = s.factors[step - kBrightness];
      const float rest = step == kBrightness ? 0.f : (1 - f) * (step == kContrast ? mean : luma(x));
      for (int c = 0; c < 3; ++c) x[c] = unit(f * x[c] + rest);
    }
  }
}

// Solarize, invert, posterize, normalise, erase; rounded to out's type, stored: channels [first, last) of a pixel.
template <int most>
__device__ void store(const Job& job, const Numbers& s, int image, int row, int column, int first, int last,
                      const float (&pixel)[most]) {
  const float down = static_cast<float>(row) - s.erase[0], across = static_cast<float>(column) - s.erase[1];
  const bool erased = down >= 0 && down < s.erase[2] && across >= 0 && across < s.erase[3];
  int64_t at = image * job.strides[0] + first * job.strides[1] + row * job.strides[2] + column * job.strides[3];
#pragma unroll
  for (int k = 0; k < most; ++k, at += job.strides[1]) {
    const int channel = first + k;
    if (channel >= last) break;
    float x = pixel[k];
    if (channel < 3) {
      if (x >= s.threshold) x = 1 - x;
      if (s.invert != 0) x = 1 - x;
      if (s.levels > 0) {
        const float level = floorf(x * s.levels);
        x = (level < 0 ? 0.f : at_most(level, s.levels - 1)) / s.levels;
      }
    }
    x = erased ? job.erase_value : (x - job.mean[channel]) * job.over_std[channel];
    if (job.out_type == static_cast<int>(Pixel::uint8)) {
      reinterpret_cast<uint8_t*>(job.out)[at] = static_cast<uint8_t>(whole(rintf(255 * x), 0, 255));
    } else {
      float value[1] = {x};
      Part<kAny>{job.out + at * (job.out_type == kFloat32 ? 4 : 2), job.out_type}.store<1>(0, value);
    }
  }
}

// A pixel of `resample` or `move` is coloured up to the contrast, and out if nothing more is to come. Returns its luma.
__device__ float settle(const Job& job, const Numbers& s, int image, int row, int column, const Steps& steps,
                        float (&x)[kMostChannels]) {
  colour(x, s, steps.before, 0);
  if (steps.after == 0 && s.sigma == 0)
    store(job, s, image, row, column, 0, job.channels, x);
  else
    keep(job, job.coloured, image, row, column, x);
  return job.channels >= 3 ? luma(x) : x[0];
}

// Of all pixels of the block.
__device__ void keep_luma(const Job& job, const Steps& steps, float luma) {
  if (steps.after == 0) return;
  float sum[1] = {luma};
  sum_block(sum);
  if (threadIdx.x == 0) job.partials[blockIdx.x] = sum[0];
}

// ---- resample: crop, resize, flips, quarter turns -------------------------------------------------------------------

// Where an output of a resized axis comes from: `taps` inputs from `first` on, weighted filter((k + at) / stretch).
struct Lay {
  int first, taps;
  float at;
};

__device__ float stretched(int inputs, int size, bool antialias) {
  const float scale = static_cast<float>(inputs) / static_cast<float>(size);
  return antialias && scale > 1 ? scale : 1.f;
}

// Antialiased, what the filter covers of the inputs; else inputs beyond a border are meant too, and are those at it.
// In whole numbers: as a float, (i + ½)·inputs / size has no fraction left in a large image, and doubles may be slow.
__device__ Lay lay(int i, int inputs, int size, float support, bool antialias) {
  const uint64_t over = 2 * static_cast<uint64_t>(size), centre = (2 * static_cast<uint64_t>(i) + 1) * inputs;
  const int middle = static_cast<int>(centre / over);
  const float part = static_cast<float>(centre % over) / static_cast<float>(over);
  int first = middle + static_cast<int>(floorf(part - support + 0.5f));
  int last = middle + static_cast<int>(floorf(part + support + 0.5f));
  if (antialias) {
    first = min(max(first, 0), inputs - 1);
    last = min(max(last, first + 1), inputs);
  }
  return {first, last - first, static_cast<float>(first - middle) - part + 0.5f};
}

template <bool bicubic>
__device__ float filter(float x, float a) {
  x = fabsf(x);
  if constexpr (!bicubic) return fmaxf(1 - x, 0);
  const float near = ((a + 2) * x - (a + 3)) * x * x + 1, far = (((x - 5) * x + 8) * x - 4) * a;
  return x < 1 ? near : x < 2 ? far : 0.f;
}

// A tile of the resized crop, kTile rows of the crop at a time: each is summed up along itself, for the columns of the
// tile, then those are down. Steps in bytes. Into `lines`, where a thread finds its own pixels.
template <Pixel pixel, bool bicubic, int channels>
__device__ void resize(const char* data, int64_t row_step, int64_t channel_step, int step, int height, int width,
                       const Lay* columns, const Lay* rows, float over_down, float over_across, float a,
                       float (*lines)[kTile * kTile]) {
  const Lay x = columns[lane()];
  const int own = kRows * warp(), begin = min(rows[0].first, rows[kTile - 1].first);
  const int end = max(rows[0].first + rows[0].taps, rows[kTile - 1].first + rows[kTile - 1].taps);
  float sum[kRows][channels] = {}, down[kRows] = {}, across = 0;  // and the sums of the weights
#pragma unroll 1
  for (int j = 0; j < x.taps; ++j) across += filter<bicubic>((static_cast<float>(j) + x.at) * over_across, a);
#pragma unroll 1
  for (int top = begin; top < end; top += kTile) {
    if (top + own < end) {
      const char* line[kRows];
      float part[kRows][channels] = {}, at = x.at;
#pragma unroll
      for (int r = 0; r < kRows; ++r) line[r] = data + min(max(top + own + r, 0), height - 1) * row_step;
#pragma unroll 1
      for (int j = x.first; j < x.first + x.taps; ++j, ++at) {
        const float weight = filter<bicubic>(at * over_across, a);
        const int k = min(max(j, 0), width - 1);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const char* const from = address(line[r], k, step);
#pragma unroll
          for (int c = 0; c < channels; ++c) part[r][c] += weight * load<pixel>(from + c * channel_step);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < channels; ++c) lines[c][(own + r) * kTile + lane()] = part[r][c];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Lay y = rows[own + r];
#pragma unroll 1
      for (int i = max(y.first, top); i < min(y.first + y.taps, top + kTile); ++i) {
        const float weight = filter<bicubic>((static_cast<float>(i - y.first) + y.at) * over_down, a);
        down[r] += weight;
#pragma unroll
        for (int c = 0; c < channels; ++c) sum[r][c] += weight * lines[c][(i - top) * kTile + lane()];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // Rounded as a division is: a pixel that stays as it is may lie on a threshold.
    const float total = across * down[r] * (pixel == Pixel::uint8 ? 255.f : 1.f), over = 1 / total;
#pragma unroll
    for (int c = 0; c < channels; ++c) {
      const float near = sum[r][c] * over;
      lines[c][(own + r) * kTile + lane()] = fmaf(fmaf(-near, total, sum[r][c]), over, near);
    }
  }
}

template <Pixel pixel, bool bicubic>
__global__ void __launch_bounds__(kThreads, 3) resample(const __grid_constant__ Job job) {
  __shared__ Numbers s;
  __shared__ Lay lays[2 * kTile];  // of the crop's columns, then of its rows
  __shared__ float lines[kMostChannels][kTile * kTile];
  const Tile tile(job);
  narrow(job.samples[tile.image], s);

  Image image = job.each ? job.each[tile.image] : job.image;
  const char* data = static_cast<const char*>(image.picture.data) + (job.each ? 0 : tile.image * job.step);
  const int top = whole(s.top, 0, static_cast<int>(image.height) - 1);
  const int left = whole(s.left, 0, static_cast<int>(image.width) - 1);
  const int height = whole(s.height, 1, static_cast<int>(image.height) - top);
  const int width = whole(s.width, 1, static_cast<int>(image.width) - left);
  const bool transposed = s.transposed != 0;
  const float down = stretched(height, job.height, job.antialias), across = stretched(width, job.width, job.antialias);
  if (const int k = static_cast<int>(threadIdx.x); k < 2 * kTile) {
    const bool vertical = k >= kTile;
    const int inputs = vertical ? height : width, size = vertical ? job.height : job.width;
    const int i = min((vertical != transposed ? tile.top : tile.left) + k % kTile, size - 1);
    const bool flip = (vertical ? s.vertical_flip : s.horizontal_flip) != 0;
    // Of an axis that is not resized, one input alone.
    const float support = inputs == size ? 0.5f : (bicubic ? 2.f : 1.f) * (vertical ? down : across);
    lays[k] = lay(flip ? size - 1 - i : i, inputs, size, support, job.antialias);
  }
  __syncthreads();

  constexpr int kItem = pixel == Pixel::uint8 ? 1 : pixel == Pixel::float32 ? 4 : 2;
  const int64_t row_step = image.picture.row * kItem, pixel_step = image.picture.pixel * kItem;
  const int64_t channel_step = image.picture.channel * kItem;
  const char* const origin = data + top * row_step + left * pixel_step;
  const auto run = [&](auto channels, int first) {
    resize<pixel, bicubic, decltype(channels)::value>(
        origin + first * channel_step, row_step, channel_step, static_cast<int>(pixel_step), height, width, lays,
        lays + kTile, 1 / down, 1 / across, job.antialias ? -0.5f : -0.75f, lines + first);
  };
  if (job.channels >= 3) run(std::integral_constant<int, 3>(), 0);
  if (job.channels != 3) run(std::integral_constant<int, 1>(), job.channels - 1);

  const Steps steps(s, job.channels);
  float luma = 0;
#pragma unroll 1
  for (int own = kRows * warp(); own < kRows * (warp() + 1); ++own) {
    const int row = tile.top + (transposed ? lane() : own), column = tile.left + (transposed ? own : lane());
    if (row >= job.height || column >= job.width) continue;
    float x[kMostChannels];
#pragma unroll
    for (int c = 0; c < kMostChannels; ++c) x[c] = lines[c][own * kTile + lane()];
    if (s.moved != 0)
      keep(job, job.resized, tile.image, row, column, x);
    else
      luma += settle(job, s, tile.image, row, column, steps, x);
  }
  if (s.moved == 0) keep_luma(job, steps, luma);
}

// ---- move: the affine map -------------------------------------------------------------------------------------------

// Bilinear, zeros outside, with grid_sample's arithmetic: rounded as there.
__global__ void __launch_bounds__(kThreads) move(const __grid_constant__ Job job) {
  __shared__ Numbers s;
  const Tile tile(job);
  narrow(job.samples[tile.image], s);
  if (s.moved == 0) return;
  const Steps steps(s, job.channels);
  const int64_t plane = static_cast<int64_t>(job.height) * job.width;
  float luma = 0;
#pragma unroll 1
  for (int row = tile.row; row < min(tile.row + kRows, job.height); ++row) {
    if (tile.column >= job.width) break;
    const float right = static_cast<float>(tile.column) - 0.5f * static_cast<float>(job.width - 1);
    const float below = static_cast<float>(row) - 0.5f * static_cast<float>(job.height - 1);
    float place[2];
#pragma unroll
    for (int d = 0; d < 2; ++d) {
      const float half = 0.5f * static_cast<float>(d == 0 ? job.width : job.height), *m = s.matrix + 3 * d;
      place[d] = (fmaf(below, m[1] / half, right * (m[0] / half)) + m[2] / half + 1) * half - 0.5f;
    }
    const float x = floorf(place[0]), y = floorf(place[1]), across = place[0] - x, down = place[1] - y;
    const int left = whole(x, -2, job.width), top = whole(y, -2, job.height);
    float sum[kMostChannels] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int i = top + corner / 2, j = left + corner % 2;
      const float weight = (corner % 2 ? across : 1 - across) * (corner / 2 ? down : 1 - down);
      const bool there = i >= 0 && i < job.height && j >= 0 && j < job.width;
      const float* const from = job.resized + plane_offset(job, tile.image, 0, there ? i : 0, there ? j : 0);
#pragma unroll
      for (int c = 0; c < kMostChannels; ++c)
        if (c < job.channels) sum[c] += weight * (there ? from[c * plane] : 0.f);
    }
    luma += settle(job, s, tile.image, row, tile.column, steps, sum);
  }
  keep_luma(job, steps, luma);
}

// ---- finish: from the contrast on, blur -----------------------------------------------------------------------------

constexpr int kRadius = 12;                 // of a blur for which one piece of the input is enough; even
constexpr int kSide = kTile + 2 * kRadius;  // of a piece
constexpr int kPitch = kSide + 1;           // odd: rows of a warp's 4 are in different banks
static_assert(kRows == 4);                  // pixels that a thread sums up together, along rows too

// Reflected at the borders. Clamped too, for pixels of the tile that are outside of the image.
__device__ int reflected(int i, int size) {
  i = i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i;
  return min(max(i, 0), size - 1);
}

// sum[o] += Σ weight[p − o]·from[p·step], over p of [begin, end). Multiples of 4, as is the weights' place in memory.
__device__ void slide(float (&sum)[kRows], const float* from, int step, const float* weight, int begin, int end) {
  const auto read = [&](int p, float* w) {
    const float4 four = *reinterpret_cast<const float4*>(weight + p);
    w[0] = four.x;
    w[1] = four.y;
    w[2] = four.z;
    w[3] = four.w;
  };
  float w[2 * kRows];
  read(begin - kRows, w);
#pragma unroll 1
  for (int p = begin; p < end; p += kRows) {
    read(p, w + kRows);
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
      const float x = from[(p + q) * step];
#pragma unroll
      for (int o = 0; o < kRows; ++o) sum[o] += w[kRows + q - o] * x;
    }
#pragma unroll
    for (int q = 0; q < kRows; ++q) w[q] = w[kRows + q];
  }
}

__global__ void __launch_bounds__(kThreads, 3) finish(const __grid_constant__ Job job) {
  __shared__ Numbers s;
  __shared__ float piece[3][kSide * kPitch];
  alignas(16) __shared__ float across[kSide * kTile];      // blurred along rows
  alignas(16) __shared__ float weights[2][kTile + kSide];  // down and across
  __shared__ float shared[2];
  const Tile tile(job);
  narrow(job.samples[tile.image], s);
  const Steps steps(s, job.channels);
  const int thread = static_cast<int>(threadIdx.x);
  const bool blurred = s.sigma != 0;
  if (steps.after == 0 && !blurred) return;

  // Beyond 5½ σ there is less than 4·10⁻⁸ of the weight. Even: multiples of 4 all along.
  const int most = min(whole(s.taps / 2, 0, job.height - 1), min(whole(s.taps / 2, 0, job.width - 1), 1 << 20));
  const int radius = !blurred ? 0 : (min(most, whole(ceilf(5.5f * fabsf(s.sigma)), 0, most)) + 1) / 2 * 2;
  const auto gaussian = [&](int d) {
    const float z = static_cast<float>(d) / s.sigma;
    return abs(d) <= most ? expf(-0.5f * z * z) : 0.f;
  };
  float sum[2] = {};  // of the image's luma, of the weights
  if (steps.after != 0) {
    const int tiles = ((job.height + kTile - 1) / kTile) * ((job.width + kTile - 1) / kTile);
    for (int i = thread; i < tiles; i += kThreads) sum[0] += job.partials[static_cast<int64_t>(tile.image) * tiles + i];
  }
  for (int d = thread - radius; d <= radius; d += kThreads) sum[1] += gaussian(d);
  sum_block(sum);
  if (thread == 0) {
    shared[0] = sum[0] / (static_cast<float>(job.height) * static_cast<float>(job.width));
    shared[1] = 1 / (sum[1] * sum[1]);
  }
  __syncthreads();
  const float mean = shared[0], over = blurred ? shared[1] : 1;

  // Three channels are coloured together; the fourth is not.
#pragma unroll 1
  for (int first = 0; first < job.channels; first += 3) {
    const int count = min(job.channels - first, 3);
    const float* const planes = job.coloured + plane_offset(job, tile.image, first, 0, 0);
    const int64_t plane = static_cast<int64_t>(job.height) * job.width;
    const auto colour_piece = [&](int at) {
      float x[3] = {piece[0][at], piece[1][at], piece[2][at]};
      colour(x, s, steps.after, mean);
#pragma unroll
      for (int c = 0; c < 3; ++c) piece[c][at] = x[c];
    };
    float result[3][kRows] = {};
    if (!blurred) {
#pragma unroll
      for (int o = 0; o < kRows; ++o) {
        const int row = min(tile.row + o, job.height - 1);
        const float* const from = planes + static_cast<int64_t>(row) * job.width + min(tile.column, job.width - 1);
#pragma unroll
        for (int c = 0; c < 3; ++c)
          if (c < count) result[c][o] = from[c * plane];
      }
    } else {
      // Pieces of the input, of which most blurs have one.
      const int length = kTile + 2 * radius;
#pragma unroll 1
      for (int top = 0; top < length; top += kSide) {
#pragma unroll 1
        for (int left = 0; left < length; left += kSide) {
          const int rows = min(kSide, length - top), columns = min(kSide, length - left);
          for (int k = thread; k < kTile + kSide; k += kThreads) {
            weights[0][k] = gaussian(k + top - kTile - radius);
            weights[1][k] = gaussian(k + left - kTile - radius);
          }
#pragma unroll 2
          for (int i = warp(); i < rows; i += kGroups) {
            const float* const line =
                planes + static_cast<int64_t>(reflected(tile.top - radius + top + i, job.height)) * job.width;
#pragma unroll
            for (int j = lane(); j < kSide; j += kWarp) {
              const float* const from = line + reflected(tile.left - radius + left + j, job.width);
#pragma unroll
              for (int c = 0; c < 3; ++c)
                if (j < columns && c < count) piece[c][i * kPitch + j] = from[c * plane];
            }
          }
          if (first == 0 && steps.after != 0)
            for (int i = warp(); i < rows; i += kGroups)
              for (int j = lane(); j < columns; j += kWarp) colour_piece(i * kPitch + j);
          __syncthreads();
          // Of pixels [at, at + 4) of the tile, the part of this piece.
          const auto begin = [&](int at, int start) { return max(at - start, 0); };
          const auto end = [&](int at, int start, int size) { return min(at + kRows + 2 * radius - start, size); };
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            if (c >= count) break;
#pragma unroll 1
            for (int k = thread; k < rows * kGroups; k += kThreads) {
              const int i = k / kGroups, at = k % kGroups * kRows;
              float four[kRows] = {};
              slide(four, piece[c] + i * kPitch, 1, weights[1] + kTile - at, begin(at, left), end(at, left, columns));
              *reinterpret_cast<float4*>(across + i * kTile + at) = make_float4(four[0], four[1], four[2], four[3]);
            }
            __syncthreads();
            const int at = kRows * warp();
            slide(result[c], across + lane(), kTile, weights[0] + kTile - at, begin(at, top), end(at, top, rows));
            __syncthreads();
          }
        }
      }
    }
    // By way of shared memory, a thread's own: registers cannot be counted through.
#pragma unroll
    for (int o = 0; o < kRows; ++o)
#pragma unroll
      for (int c = 0; c < 3; ++c) piece[c][(kRows * warp() + o) * kPitch + lane()] = result[c][o] * over;
#pragma unroll 1
    for (int o = 0; o < kRows; ++o) {
      const int at = (kRows * warp() + o) * kPitch + lane();
      if (first == 0 && !blurred) colour_piece(at);
      const float x[3] = {piece[0][at], piece[1][at], piece[2][at]};
      if (tile.row + o < job.height && tile.column < job.width)
        store(job, s, tile.image, tile.row + o, tile.column, first, first + count, x);
    }
    __syncthreads();
  }
}

template <Pixel pixel>
void launch_resample(const Job& job, bool bicubic, int64_t blocks, void* stream) {
  launch(bicubic ? resample<pixel, true> : resample<pixel, false>, blocks, stream, job);
}

}  // namespace

// ---- the host's side ------------------------------------------------------------------------------------------------

int64_t partials(int64_t height, int64_t width) {
  return ((height + kTile - 1) / kTile) * ((width + kTile - 1) / kTile);
}

void augment(const Augment& args) {
  const OnDevice device(args.device);
  Job job{args.image,
          args.step,
          args.each,
          args.samples,
          args.channels,
          args.height,
          args.width,
          args.antialias,
          {},
          {},
          static_cast<float>(args.erase_value),
          static_cast<char*>(args.out),
          static_cast<int>(args.output),
          {},
          args.resized,
          args.coloured,
          args.partials};
  for (int c = 0; c < args.channels; ++c) {
    job.mean[c] = static_cast<float>(args.mean[c]);
    job.over_std[c] = static_cast<float>(1 / args.std[c]);
  }
  std::copy_n(args.strides, 4, job.strides);
  const int64_t blocks = args.images * partials(args.height, args.width);
  switch (args.input) {
    case Pixel::uint8:
      launch_resample<Pixel::uint8>(job, args.bicubic, blocks, args.stream);
      break;
    case Pixel::float32:
      launch_resample<Pixel::float32>(job, args.bicubic, blocks, args.stream);
      break;
    case Pixel::float16:
      launch_resample<Pixel::float16>(job, args.bicubic, blocks, args.stream);
      break;
    case Pixel::bfloat16:
      launch_resample<Pixel::bfloat16>(job, args.bicubic, blocks, args.stream);
  }
  if (job.resized) launch(move, blocks, args.stream, job);
  if (job.coloured) launch(finish, blocks, args.stream, job);
}

}  // namespace pyssl::cuda
