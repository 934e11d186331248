// The module pyssl_fast._cpu: plain pointers and sizes, no torch headers. Checks stand in Python, above.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cpu/dispatch.h"

namespace py = pybind11;
using pyssl::Dtype;
using pyssl::Matrix;
using pyssl::Precision;

namespace {

Matrix matrix(uintptr_t data, int dtype, int64_t stride) {
  return {reinterpret_cast<void*>(data), static_cast<Dtype>(dtype), stride};
}

float* floats(uintptr_t data) { return reinterpret_cast<float*>(data); }

void nt_xent(uintptr_t z, int dtype, int64_t stride, int64_t rows, int64_t dim, int64_t views, double scale,
             uintptr_t nll, uintptr_t shift, uintptr_t negative_sum, int precision, int threads) {
  py::gil_scoped_release release;
  pyssl::table().nt_xent({matrix(z, dtype, stride), rows, dim, views, scale, floats(nll), floats(shift),
                          floats(negative_sum), static_cast<Precision>(precision), threads});
}

double nt_xent_backward(uintptr_t grad_nll, uintptr_t z, int dtype, int64_t stride, uintptr_t shift,
                        uintptr_t negative_sum, int64_t rows, int64_t dim, int64_t views, double scale,
                        uintptr_t grad_z, int64_t grad_stride, int precision, int threads) {
  py::gil_scoped_release release;
  double grad_scale = 0;
  pyssl::table().nt_xent_backward({floats(grad_nll), matrix(z, dtype, stride), floats(shift), floats(negative_sum),
                                   rows, dim, views, scale, matrix(grad_z, dtype, grad_stride), &grad_scale,
                                   static_cast<Precision>(precision), threads});
  return grad_scale;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ kernels for the CPU, on pointers and sizes (in elements). Call them through pyssl_fast.functional.";

  m.attr("FLOAT32") = static_cast<int>(Dtype::float32);
  m.attr("FLOAT16") = static_cast<int>(Dtype::float16);
  m.attr("BFLOAT16") = static_cast<int>(Dtype::bfloat16);
  m.attr("PRECISION_FLOAT32") = static_cast<int>(Precision::float32);
  m.attr("PRECISION_BFLOAT16X3") = static_cast<int>(Precision::bfloat16x3);
  m.attr("PRECISION_BFLOAT16") = static_cast<int>(Precision::bfloat16);
  m.attr("COMPILER") = PYSSL_COMPILER;
#ifdef _OPENMP
  m.attr("HAS_OPENMP") = true;
#else
  m.attr("HAS_OPENMP") = false;
#endif

  m.def("isa", [] { return std::string(pyssl::table().name); }, "The instruction set in use.");
  m.def("isas", &pyssl::isas, "The instruction sets that can run on this machine, best first.");
  m.def("set_isa", &pyssl::set_isa, py::arg("name"), "Use another instruction set. ValueError if it cannot run here.");
  m.def(
      "has_bfloat16", [] { return pyssl::table().has_bfloat16; },
      "Whether the bfloat16 precisions have kernels of their own in the instruction set in use.");

  m.def("nt_xent", &nt_xent, py::arg("z"), py::arg("dtype"), py::arg("stride"), py::arg("rows"), py::arg("dim"),
        py::arg("views"), py::arg("scale"), py::arg("nll"), py::arg("shift"), py::arg("negative_sum"),
        py::arg("precision"), py::arg("threads"));
  m.def("nt_xent_backward", &nt_xent_backward, py::arg("grad_nll"), py::arg("z"), py::arg("dtype"), py::arg("stride"),
        py::arg("shift"), py::arg("negative_sum"), py::arg("rows"), py::arg("dim"), py::arg("views"), py::arg("scale"),
        py::arg("grad_z"), py::arg("grad_stride"), py::arg("precision"), py::arg("threads"));
}
