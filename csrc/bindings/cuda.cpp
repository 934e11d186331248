// The module pyssl_fast._cuda: plain pointers and sizes, no torch headers. Checks stand in Python, above.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <sstream>

#include "../cuda/augment.h"
#include "../cuda/multi_tensor.h"

namespace py = pybind11;
namespace cuda = pyssl::cuda;

namespace {

using Pointer = uintptr_t;                         // 0: there is none
using Scalar = std::tuple<double, Pointer, bool>;  // value, pointer, whether to a double
using Stream = std::pair<int, Pointer>;            // device, handle
using Flags = std::vector<uint8_t>;

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

cuda::Scalar scalar(const Scalar& x) { return {std::get<0>(x), as<void>(std::get<1>(x)), std::get<2>(x)}; }

// What lists of tensors have in common from call to call: lengths, and dtypes by list (none for a list that is empty).
struct Layout {
  std::vector<int64_t> counts;
  std::vector<std::vector<int>> dtypes;

  Layout(std::vector<int64_t> lengths, std::vector<std::vector<int>> codes)
      : counts(std::move(lengths)), dtypes(std::move(codes)) {
    for (const auto& list : dtypes)
      if (!list.empty() && list.size() != counts.size())
        throw std::invalid_argument("a list has " + std::to_string(list.size()) + " entries, not " +
                                    std::to_string(counts.size()));
  }
};
using Addresses = std::vector<std::vector<Pointer>>;  // by list, as the layout has them

// A layout's lists at their addresses, which the object must outlive.
struct Lists {
  Lists(const Layout& layout, const Addresses& addresses) : layout(layout), addresses(addresses) {
    if (addresses.size() != layout.dtypes.size())
      throw std::invalid_argument("as many lists of addresses as of dtypes");
    for (size_t l = 0; l < addresses.size(); ++l)
      if (addresses[l].size() != layout.dtypes[l].size())
        throw std::invalid_argument("as many addresses as entries; list " + std::to_string(l) + " has " +
                                    std::to_string(addresses[l].size()));
  }
  cuda::Entries entries(const Stream& stream) const {
    return {static_cast<int64_t>(layout.counts.size()), layout.counts.data(), stream.first, as<void>(stream.second)};
  }
  cuda::List operator[](size_t l) const {
    if (addresses.at(l).empty()) return {nullptr, nullptr};
    return {addresses[l].data(), layout.dtypes[l].data()};
  }
  const Layout& layout;
  const Addresses& addresses;
};

void ema(const Layout& layout, const Addresses& addresses, int64_t averaged, const Scalar& momentum,
         const Stream& stream) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  cuda::ema({lists.entries(stream), lists[0], lists[1], lists[2], averaged, scalar(momentum)});
}

void square_sum(const Layout& layout, const Addresses& addresses, Pointer partials, Pointer result,
                const Stream& stream) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  cuda::square_sum({lists.entries(stream), lists[0], as<double>(partials), as<double>(result)});
}

void adamw(const Layout& layout, const Addresses& addresses, const std::vector<Pointer>& steps,
           const Scalar& ema_momentum, const Scalar& lr, const Scalar& factor, const Scalar& found_inf, double beta1,
           double beta2, double eps, double weight_decay, bool maximize, Pointer records, const Stream& stream) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  if (steps.size() != layout.counts.size()) throw std::invalid_argument("as many steps as entries");
  cuda::adamw({lists.entries(stream), lists[0], lists[1], lists[2], lists[3], lists[4], lists[5], lists[6],
               steps.data(), scalar(ema_momentum), scalar(lr), scalar(factor), scalar(found_inf), beta1, beta2, eps,
               weight_decay, maximize, as<void>(records)});
}

void lars(const Layout& layout, const Addresses& addresses, const Flags& adapted, const Flags& fresh,
          const Scalar& ema_momentum, const Scalar& lr, const Scalar& factor, const Scalar& found_inf, double momentum,
          double dampening, double weight_decay, double trust_coefficient, double eps, bool nesterov, bool maximize,
          bool trust_clip, bool joint, Pointer records, Pointer partials, const Stream& stream) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  if (adapted.size() != layout.counts.size() || fresh.size() != layout.counts.size())
    throw std::invalid_argument("as many flags as entries");
  cuda::lars({lists.entries(stream),
              lists[0],
              lists[1],
              lists[2],
              lists[3],
              lists[4],
              adapted.data(),
              fresh.data(),
              scalar(ema_momentum),
              scalar(lr),
              scalar(factor),
              scalar(found_inf),
              momentum,
              dampening,
              weight_decay,
              trust_coefficient,
              eps,
              nesterov,
              maximize,
              trust_clip,
              joint,
              as<void>(records),
              as<double>(partials)});
}

void augment(int64_t images, const std::array<int, 3>& shape, int pixel, const std::array<int64_t, 6>& image,
             int64_t step, Pointer each, Pointer samples, bool bicubic, bool antialias, const std::vector<double>& mean,
             const std::vector<double>& std, double erase_value, Pointer out, int out_pixel,
             const std::array<int64_t, 4>& strides, const std::array<Pointer, 3>& workspace, const Stream& stream) {
  py::gil_scoped_release release;
  const auto [channels, height, width] = shape;
  if (channels > 4 || mean.size() != static_cast<size_t>(channels) || std.size() != mean.size())
    throw std::invalid_argument("as many means and standard deviations as channels, at most 4");
  const pyssl::Picture picture{as<void>(static_cast<Pointer>(image[0])), image[1], image[2], image[3]};
  cuda::augment({images,
                 channels,
                 height,
                 width,
                 static_cast<pyssl::Pixel>(pixel),
                 {picture, image[4], image[5]},
                 step,
                 as<cuda::Image>(each),
                 as<pyssl::Sample>(samples),
                 bicubic,
                 antialias,
                 mean.data(),
                 std.data(),
                 erase_value,
                 as<void>(out),
                 static_cast<pyssl::Pixel>(out_pixel),
                 strides.data(),
                 as<float>(workspace[0]),
                 as<float>(workspace[1]),
                 as<float>(workspace[2]),
                 stream.first,
                 as<void>(stream.second)});
}

std::vector<std::string> targets() {
  std::istringstream words(PYSSL_TARGETS);
  std::vector<std::string> found;
  for (std::string word; words >> word;) found.push_back(word);
  return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels, on pointers and sizes (in elements). Call them through pyssl_fast.functional.";

  m.attr("FLOAT32") = static_cast<int>(cuda::Dtype::float32);
  m.attr("FLOAT16") = static_cast<int>(cuda::Dtype::float16);
  m.attr("BFLOAT16") = static_cast<int>(cuda::Dtype::bfloat16);
  m.attr("CHUNK") = cuda::kChunk;
  m.attr("RECORD_BYTES") = cuda::kRecordBytes;
  m.attr("PARTIAL_DOUBLES") = cuda::kPartialDoubles;
  m.attr("COMPILER") = PYSSL_COMPILER;
  m.attr("TARGETS") = targets();

  py::class_<Layout>(m, "Layout", py::module_local())
      .def(py::init<std::vector<int64_t>, std::vector<std::vector<int>>>(), py::arg("counts"), py::arg("dtypes"));
  m.def("ema", &ema, py::arg("layout"), py::arg("addresses"), py::arg("averaged"), py::arg("momentum"),
        py::arg("stream"));
  m.def("square_sum", &square_sum, py::arg("layout"), py::arg("addresses"), py::arg("partials"), py::arg("result"),
        py::arg("stream"));
  m.def("adamw", &adamw, py::arg("layout"), py::arg("addresses"), py::arg("steps"), py::arg("ema_momentum"),
        py::arg("lr"), py::arg("factor"), py::arg("found_inf"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"),
        py::arg("weight_decay"), py::arg("maximize"), py::arg("records"), py::arg("stream"));
  m.def("lars", &lars, py::arg("layout"), py::arg("addresses"), py::arg("adapted"), py::arg("fresh"),
        py::arg("ema_momentum"), py::arg("lr"), py::arg("factor"), py::arg("found_inf"), py::arg("momentum"),
        py::arg("dampening"), py::arg("weight_decay"), py::arg("trust_coefficient"), py::arg("eps"),
        py::arg("nesterov"), py::arg("maximize"), py::arg("trust_clip"), py::arg("joint"), py::arg("records"),
        py::arg("partials"), py::arg("stream"));
  m.def("partials", &cuda::partials, py::arg("height"), py::arg("width"));
  m.def("augment", &augment, py::arg("images"), py::arg("shape"), py::arg("pixel"), py::arg("image"), py::arg("step"),
        py::arg("each"), py::arg("samples"), py::arg("bicubic"), py::arg("antialias"), py::arg("mean"), py::arg("std"),
        py::arg("erase_value"), py::arg("out"), py::arg("out_pixel"), py::arg("strides"), py::arg("workspace"),
        py::arg("stream"));
}
