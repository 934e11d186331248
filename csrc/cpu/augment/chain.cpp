// A whole augmentation, image by image, in one pass where the mathematics allows: rows come from the resize, go through
// the colours, and are written where they belong. Three things need more than a row. An affine map and the mean that
// contrast turns around need the whole image: float32 planes, which stay in the cache. Blur needs a ring of rows.
#include "augment.h"

#include "../parallel.h"
#include "blur.h"
#include "colours.h"
#include "move.h"
#include "resize.h"

namespace pyssl::PYSSL_ISA {

namespace {

// What the samples of a batch need at most.
struct Extent {
  int64_t line = 0, y_taps = 0, x_taps = 0, radius = 0;
  bool moved = false, contrast = false;

  explicit Extent(const Augment& a) {
    for (const Sample* s = a.samples; s < a.samples + a.images; ++s) {
      const bool turned = s->transposed != 0;
      const double height = turned ? s->width : s->height, width = turned ? s->height : s->width;
      line = std::max(line, static_cast<int64_t>(width));
      y_taps = std::max(y_taps, widest(height, a.height, a.bicubic, a.antialias));
      x_taps = std::max(x_taps, widest(width, a.width, a.bicubic, a.antialias));
      if (s->sigma > 0) radius = std::max(radius, static_cast<int64_t>(s->taps) / 2);
      moved = moved || s->moved != 0;
      for (double step : s->order) contrast = contrast || step == 1;
    }
  }
};

// Hands out pieces of one allocation; counts them where there is none yet.
struct Pieces {
  char* begin;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(begin + bytes);
    bytes += rounded_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

// A thread's own: scratch, and how it makes an image.
class Worker {
 public:
  Worker(const Augment& a, const Extent& e, char* scratch)
      : a_(a),
        pieces_{scratch},
        streams_(a.output == Pixel::float32 && a.pixel == 1 && a.width % kLanes == 0 &&
                 a.images * a.channels * a.height * a.width >= kStreamed) {
    const int64_t length = rounded_up(a.width, kLanes), size = a.channels * length;
    row_ = {pieces_.take<float>(size), a.channels, a.width, length};
    resizer_.y = {0, pieces_.take<int32_t>(a.height), pieces_.take<float>(a.height * e.y_taps),
                  pieces_.take<float>(a.height), pieces_.take<float>(a.height)};
    resizer_.x = {0, pieces_.take<int32_t>(a.width), pieces_.take<float>(a.width * e.x_taps),
                  pieces_.take<float>(a.width), pieces_.take<float>(a.width)};
    resizer_.column = pieces_.take<vf>(e.line * a.channels);
    resizer_.ring = pieces_.take<float>(ring_rows(e.y_taps) * size);
    resizer_.from = pieces_.take<const float*>(e.y_taps);
    blur_.half = pieces_.take<float>(e.radius + 1);
    blur_.middle = pieces_.take<float>(length + 2 * e.radius);
    blur_.ring = pieces_.take<float>((2 * e.radius + 2) * size);
    blur_.second = pieces_.take<float>(size);
    blur_.rows = pieces_.take<const float*>(2 * e.radius + 2);
    line_ = pieces_.take<float>(length);
    planes_ = pieces_.take<float>(e.contrast ? a.height * size : 0);
    mover_.height = a.height;
    mover_.stride = Mover::stride_for(a.width);
    mover_.planes = pieces_.take<float>(e.moved ? a.channels * (a.height + 3) * mover_.stride : 0);
    mover_.offset = pieces_.take<int32_t>(mover_.stride);
    mover_.across = pieces_.take<float>(mover_.stride);
    mover_.below = pieces_.take<float>(mover_.stride);
  }

  int64_t bytes() const { return pieces_.bytes; }

  void make(int64_t image) {
    switch (a_.input) {
      case Pixel::uint8:
        return make<Bytes>(image);
      case Pixel::float32:
        return make<Floats>(image);
      case Pixel::float16:
        return make<Halves>(image);
      case Pixel::bfloat16:
        return make<Bfloats>(image);
    }
  }

 private:
  template <class In>
  void make(int64_t image) {
    const Sample& s = a_.samples[image];
    const bool moved = s.moved != 0;
    Colours colours(s, a_.channels, In::kScale != 1 && !a_.bicubic);
    bool backwards = (s.transposed != 0 ? s.horizontal_flip : s.vertical_flip) != 0;
    int64_t delivered = 0;
    double sum = 0;
    if (s.sigma > 0) blur_.begin(s.sigma, static_cast<int64_t>(s.taps), a_.height);
    const auto finish = [&](int64_t i, const Row& row) { write(image, backwards ? a_.height - 1 - i : i, s, row); };
    // From here on one channel stands for three that are grey.
    const int64_t different = colours.ends_grey() && a_.channels == 3 ? 1 : a_.channels;
    const auto deliver = [&](const Row& coloured) {
      const Row row{coloured.data, different, coloured.width, coloured.length};
      if (s.sigma > 0)
        blur_.push(delivered++, row, finish);
      else
        finish(delivered++, row);
    };
    // Where the contrast still needs the mean, rows wait for it in planes.
    const auto place = [&](int64_t i) { return colours.has_contrast() ? plane_row(i) : row_; };
    const auto colour = [&](const Row& row) {
      colours.before_contrast(row);
      if (!colours.has_contrast()) return deliver(row);
      sum += luma_sum(row);
    };
    if (moved) {
      int64_t received = 0;
      mover_.begin(a_.channels);
      const auto put = [&](const Row& row) {
        mover_.put(backwards ? a_.height - 1 - received : received, row);
        ++received;
      };
      resize<In>(a_, a_.pictures[image], s, resizer_, [&](int64_t) { return row_; }, put);
      backwards = false;
      for (int64_t i = 0; i < a_.height; ++i) {
        const Row row = place(i);
        mover_.get(i, s, row);
        colour(row);
      }
    } else {
      resize<In>(a_, a_.pictures[image], s, resizer_, place, colour);
    }
    if (!colours.has_contrast()) return;
    const double mean = sum / (static_cast<double>(a_.height) * static_cast<double>(a_.width));
    for (int64_t i = 0; i < a_.height; ++i) {
      colours.from_contrast(plane_row(i), mean);
      deliver(plane_row(i));
    }
  }

  Row plane_row(int64_t i) const { return {planes_ + i * row_.size(), row_.channels, row_.width, row_.length}; }

  // Point operations, normalised, to where the row belongs, and erased. The row is overwritten.
  void write(int64_t image, int64_t i, const Sample& s, const Row& row) const {
    point(row, s);
    const auto top = static_cast<int64_t>(s.erase[0]), left = static_cast<int64_t>(s.erase[1]);
    const int64_t erased =
        i >= top && i < top + static_cast<int64_t>(s.erase[2]) ? static_cast<int64_t>(s.erase[3]) : 0;
    for (int64_t c = 0; c < a_.channels; ++c) {
      const float* from = row.channel(row.channels == 1 ? 0 : c);
      float* x = line_;
      const auto over = static_cast<float>(1 / a_.std[c]), mean = static_cast<float>(a_.mean[c]);
      const int64_t at = image * a_.image + c * a_.channel + i * a_.row;
      float* direct = static_cast<float*>(a_.out) + at;
      if (streams_ && !erased && reinterpret_cast<uintptr_t>(direct) % sizeof(vf) == 0) {
        for (int64_t k = 0; k < row.length; k += kLanes) stream(direct + k, (load(from + k) - set(mean)) * over);
        continue;
      }
      for (int64_t k = 0; k < row.length; k += kLanes) store(x + k, (load(from + k) - set(mean)) * over);
      if (erased) std::fill_n(x + left, erased, static_cast<float>(a_.erase_value));
      switch (a_.output) {
        case Pixel::float32:
          copy(x, row.width, direct, [](float v) { return v; });
          break;
        case Pixel::bfloat16:
          copy(x, row.width, static_cast<uint16_t*>(a_.out) + at, to_bfloat16);
          break;
        case Pixel::float16:
          copy(x, row.width, static_cast<uint16_t*>(a_.out) + at, to_float16);
          break;
        case Pixel::uint8:
          copy(x, row.width, static_cast<uint8_t*>(a_.out) + at, to_byte);
          break;
      }
    }
  }

  // 255·x to the nearest, within 0 to 255: beyond 1.5·2²³ the last bits of a float are its whole number.
  static uint8_t to_byte(float x) {
    return static_cast<uint8_t>(float_to_bits(std::min(std::max(x * 255, 0.f), 255.f) + 12582912.f));
  }

  template <class T, class Convert>
  void copy(const float* __restrict x, int64_t count, T* __restrict out, const Convert& convert) const {
    if (a_.pixel == 1)
      for (int64_t k = 0; k < count; ++k) out[k] = convert(x[k]);
    else
      for (int64_t k = 0; k < count; ++k) out[k * a_.pixel] = convert(x[k]);
  }

  // From so many floats on rows go past the cache: nobody will find them there, and a line need not be read before it is
  // written. Crop, flip and normalise of 64 images took 102 µs each without, 58 with (Zen 4, one thread).
  static constexpr int64_t kStreamed = int64_t{1} << 20;

  const Augment& a_;
  Pieces pieces_;
  const bool streams_;
  Row row_;
  Resizer resizer_;
  Blur blur_;
  Mover mover_;
  float *planes_, *line_;  // [height, row], [length]
};

}  // namespace

void augment(const Augment& a) {
  const Extent extent(a);
  const int64_t bytes = Worker(a, extent, nullptr).bytes();
  std::atomic<bool> short_of_memory{false};  // an exception that left the region would end the process
  parallel(useful_threads(a.threads, a.images), [&](Team team) {
    try {
      const Scratch scratch(bytes);
      Worker worker(a, extent, scratch.as<char>());
      for (int64_t i; (i = team.claim()) < a.images;) worker.make(i);
      end_streams();
    } catch (const std::bad_alloc&) {
      short_of_memory = true;
    }
  });
  if (short_of_memory) throw std::bad_alloc();
}

}  // namespace pyssl::PYSSL_ISA
