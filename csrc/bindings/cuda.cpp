// The module pyssl_fast._cuda: plain pointers and sizes, no torch headers. Checks stand in Python, above.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>

#include "../cuda/multi_tensor.h"

namespace py = pybind11;
namespace cuda = pyssl::cuda;

namespace {

using Pointer = uintptr_t;  // 0: there is none
using Sizes = std::vector<int64_t>;
using Flags = std::vector<bool>;
using Tensors = std::pair<std::vector<Pointer>, std::vector<int>>;  // data, dtypes
using Scalar = std::tuple<double, Pointer, bool>;                   // value, pointer, whether to a double
using Stream = std::pair<int, Pointer>;                             // device, handle

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

cuda::Tensors list(const Tensors& x) { return {x.first, x.second}; }

cuda::Scalar scalar(const Scalar& x) { return {std::get<0>(x), as<void>(std::get<1>(x)), std::get<2>(x)}; }

cuda::Stream on(const Stream& x) { return {x.first, as<void>(x.second)}; }

void ema(const Tensors& teacher, const Tensors& student, const Tensors& shadow, const Sizes& sizes, int64_t averaged,
         const Scalar& momentum, const Stream& stream) {
  py::gil_scoped_release release;
  cuda::ema({list(teacher), list(student), list(shadow), sizes, averaged, scalar(momentum), on(stream)});
}

void square_sum(const Tensors& tensors, const Sizes& sizes, Pointer partials, Pointer result, const Stream& stream) {
  py::gil_scoped_release release;
  cuda::square_sum({list(tensors), sizes, as<double>(partials), as<double>(result), on(stream)});
}

void adamw(const Tensors& parameters, const Tensors& gradients, const Tensors& exp_avg, const Tensors& exp_avg_sq,
           const Tensors& max_exp_avg_sq, const Tensors& teacher, const Tensors& shadow,
           const std::vector<Pointer>& steps, const Sizes& sizes, const Scalar& lr, const Scalar& ema_momentum,
           const Scalar& factor, const Scalar& found_inf, double beta1, double beta2, double eps, double weight_decay,
           bool maximize, Pointer records, const Stream& stream) {
  py::gil_scoped_release release;
  cuda::adamw({list(parameters),
               list(gradients),
               list(exp_avg),
               list(exp_avg_sq),
               list(max_exp_avg_sq),
               list(teacher),
               list(shadow),
               steps,
               sizes,
               scalar(lr),
               scalar(ema_momentum),
               scalar(factor),
               scalar(found_inf),
               beta1,
               beta2,
               eps,
               weight_decay,
               maximize,
               as<void>(records),
               on(stream)});
}

void lars(const Tensors& parameters, const Tensors& gradients, const Tensors& momentum_buffers, const Tensors& teacher,
          const Tensors& shadow, const Sizes& sizes, const Flags& adapted, const Flags& fresh, const Scalar& lr,
          const Scalar& ema_momentum, const Scalar& factor, const Scalar& found_inf, double momentum, double dampening,
          double weight_decay, bool nesterov, bool maximize, double trust_coefficient, double eps, bool trust_clip,
          bool joint, Pointer records, Pointer partials, const Stream& stream) {
  py::gil_scoped_release release;
  cuda::lars({list(parameters),
              list(gradients),
              list(momentum_buffers),
              list(teacher),
              list(shadow),
              sizes,
              adapted,
              fresh,
              scalar(lr),
              scalar(ema_momentum),
              scalar(factor),
              scalar(found_inf),
              momentum,
              dampening,
              weight_decay,
              nesterov,
              maximize,
              trust_coefficient,
              eps,
              trust_clip,
              joint,
              as<void>(records),
              as<double>(partials),
              on(stream)});
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

  m.def("ema", &ema, py::arg("teacher"), py::arg("student"), py::arg("shadow"), py::arg("sizes"), py::arg("averaged"),
        py::arg("momentum"), py::arg("stream"));
  m.def("square_sum", &square_sum, py::arg("tensors"), py::arg("sizes"), py::arg("partials"), py::arg("result"),
        py::arg("stream"));
  m.def("adamw", &adamw, py::arg("parameters"), py::arg("gradients"), py::arg("exp_avg"), py::arg("exp_avg_sq"),
        py::arg("max_exp_avg_sq"), py::arg("teacher"), py::arg("shadow"), py::arg("steps"), py::arg("sizes"),
        py::arg("lr"), py::arg("ema_momentum"), py::arg("factor"), py::arg("found_inf"), py::arg("beta1"),
        py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"), py::arg("maximize"), py::arg("records"),
        py::arg("stream"));
  m.def("lars", &lars, py::arg("parameters"), py::arg("gradients"), py::arg("momentum_buffers"), py::arg("teacher"),
        py::arg("shadow"), py::arg("sizes"), py::arg("adapted"), py::arg("fresh"), py::arg("lr"),
        py::arg("ema_momentum"), py::arg("factor"), py::arg("found_inf"), py::arg("momentum"), py::arg("dampening"),
        py::arg("weight_decay"), py::arg("nesterov"), py::arg("maximize"), py::arg("trust_coefficient"), py::arg("eps"),
        py::arg("trust_clip"), py::arg("joint"), py::arg("records"), py::arg("partials"), py::arg("stream"));
}
