// The module pyssl_fast._cpu: plain pointers and sizes, no torch headers. Checks stand in Python, above.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cpu/dispatch.h"
#include "../cpu/parameters.h"
#include "tensors.h"

namespace py = pybind11;
using pyssl::Dtype;
using pyssl::Matrix;
using pyssl::Precision;

namespace {

using pyssl::Pairs;
using Rows = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;  // data, dtype, rows, dim, stride
using Pointer = uintptr_t;                                           // 0: there is none

Matrix matrix(const Rows& x) {
  const auto [data, dtype, rows, dim, stride] = x;
  return {reinterpret_cast<void*>(data), static_cast<Dtype>(dtype), rows, dim, stride};
}

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

Pairs pairs(const Rows& q, const Rows& k, double scale, Pointer row_ids, Pointer column_ids, Pointer row_limit,
            Pointer column_limit, const std::vector<int>& terms, const std::vector<double>& powers, int64_t views,
            bool normalize, int precision, int threads) {
  if (terms.size() > pyssl::kMaxTerms || terms.size() != powers.size())
    throw std::invalid_argument("at most " + std::to_string(pyssl::kMaxTerms) + " terms, with a power each; got " +
                                std::to_string(terms.size()) + " and " + std::to_string(powers.size()));
  Pairs p{matrix(q),
          matrix(k),
          scale,
          as<int32_t>(row_ids),
          as<int32_t>(column_ids),
          as<float>(row_limit),
          as<float>(column_limit),
          {},
          static_cast<int>(terms.size()),
          views,
          normalize,
          static_cast<Precision>(precision),
          threads};
  for (size_t n = 0; n < terms.size(); ++n) p.terms[n] = {(terms[n] & 1) != 0, (terms[n] & 2) != 0, powers[n]};
  return p;
}

void contrast(const Pairs& pairs, Pointer lse, Pointer positive, Pointer statistics) {
  py::gil_scoped_release release;
  pyssl::table().contrast({pairs, as<double>(lse), as<double>(positive), as<double>(statistics)});
}

double contrast_backward(const Pairs& pairs, Pointer grad_lse, Pointer grad_positive, Pointer lse, const Rows& grad_q,
                         const Rows& grad_k) {
  py::gil_scoped_release release;
  double grad_scale = 0;
  pyssl::table().contrast_backward({pairs, as<double>(grad_lse), as<double>(grad_positive), as<double>(lse),
                                    matrix(grad_q), matrix(grad_k), &grad_scale});
  return grad_scale;
}

void bank_contrast(const Pairs& pairs, Pointer lse, Pointer mean_key, Pointer statistics) {
  py::gil_scoped_release release;
  pyssl::table().bank_contrast({pairs, as<double>(lse), as<float>(mean_key), as<double>(statistics)});
}

std::pair<double, double> sigmoid_contrast(const Rows& q, const Rows& k, double scale, double bias, Pointer row_ids,
                                           Pointer column_ids, Pointer row_weight, Pointer positive_weight,
                                           Pointer loss, bool gradient, const Rows& grad_q, const Rows& grad_k,
                                           int precision, int threads) {
  py::gil_scoped_release release;
  std::pair<double, double> grad(0, 0);
  pyssl::table().sigmoid_contrast({matrix(q), matrix(k), scale, bias, as<int32_t>(row_ids), as<int32_t>(column_ids),
                                   as<float>(row_weight), as<float>(positive_weight), as<double>(loss), gradient,
                                   matrix(grad_q), matrix(grad_k), &grad.first, &grad.second,
                                   static_cast<Precision>(precision), threads});
  return grad;
}

void neighbours(const Rows& q, const Rows& k, int64_t count, Pointer row_ids, Pointer column_ids, Pointer similarity,
                Pointer index, int precision, int threads) {
  py::gil_scoped_release release;
  pyssl::table().neighbours({matrix(q), matrix(k), count, as<int32_t>(row_ids), as<int32_t>(column_ids),
                             as<float>(similarity), as<int64_t>(index), static_cast<Precision>(precision), threads});
}

void hardest(const Rows& q, Pointer ids, Pointer offset, Pointer negative, Pointer positive, int precision,
             int threads) {
  py::gil_scoped_release release;
  pyssl::table().hardest({matrix(q), as<int32_t>(ids), as<float>(offset), as<int64_t>(negative), as<int64_t>(positive),
                          static_cast<Precision>(precision), threads});
}

void triplets(const Rows& q, Pointer ids, double margin, bool euclidean, bool semi_hard, Pointer loss, Pointer count,
              Pointer grad_loss, const Rows& grad_q, int precision, int threads) {
  py::gil_scoped_release release;
  pyssl::table().triplets({matrix(q), as<int32_t>(ids), margin, euclidean, semi_hard, as<double>(loss),
                           as<double>(count), as<double>(grad_loss), matrix(grad_q), static_cast<Precision>(precision),
                           threads});
}

using Places = std::pair<Rows, int64_t>;  // a view at position 0, and the step to the next position

pyssl::Views views(const Places& x, const Places& y, int64_t positions, int threads) {
  return {{matrix(x.first), matrix(y.first)}, {x.second, y.second}, positions, threads};
}

void auto_covariance(const pyssl::Views& views, Pointer square, Pointer off_diagonal, Pointer distance, Pointer gram,
                     Pointer exact) {
  py::gil_scoped_release release;
  pyssl::table().auto_covariance(
      {views, as<double>(square), as<double>(off_diagonal), as<double>(distance), as<float>(gram), as<bool>(exact)});
}

void auto_covariance_backward(const pyssl::Views& views, Pointer grad_square, Pointer grad_off_diagonal,
                              double grad_distance, Pointer gram, Pointer exact, const pyssl::Views& grad) {
  py::gil_scoped_release release;
  pyssl::table().auto_covariance_backward({views, as<double>(grad_square), as<double>(grad_off_diagonal), grad_distance,
                                           as<float>(gram), as<bool>(exact), grad});
}

void cross_correlation(const pyssl::Views& views, double eps, Pointer diagonal, Pointer off_diagonal, Pointer gram,
                       Pointer exact) {
  py::gil_scoped_release release;
  pyssl::table().cross_correlation(
      {views, eps, as<double>(diagonal), as<double>(off_diagonal), as<float>(gram), as<bool>(exact)});
}

void cross_correlation_backward(const pyssl::Views& views, double eps, Pointer grad_diagonal, double grad_off_diagonal,
                                Pointer gram, Pointer exact, const pyssl::Views& grad) {
  py::gil_scoped_release release;
  pyssl::table().cross_correlation_backward(
      {views, eps, as<double>(grad_diagonal), grad_off_diagonal, as<float>(gram), as<bool>(exact), grad});
}

void decorrelation(const pyssl::Views& views, Pointer square, Pointer off_correlation, Pointer gram) {
  py::gil_scoped_release release;
  pyssl::table().decorrelation({views, as<double>(square), as<double>(off_correlation), as<double>(gram)});
}

void characteristic(const pyssl::Views& views, double step, int64_t count, Pointer cosine, Pointer sine) {
  py::gil_scoped_release release;
  pyssl::table().characteristic({views, step, count, as<double>(cosine), as<double>(sine)});
}

void characteristic_backward(const pyssl::Views& views, double step, int64_t count, Pointer grad_cosine,
                             Pointer grad_sine, const pyssl::Views& grad) {
  py::gil_scoped_release release;
  pyssl::table().characteristic_backward({views, step, count, as<double>(grad_cosine), as<double>(grad_sine), grad});
}

void spread(const Rows& x, int64_t centres, Pointer distance, int threads) {
  py::gil_scoped_release release;
  pyssl::table().spread({matrix(x), centres, as<double>(distance), threads});
}

void spread_backward(const Rows& x, int64_t centres, double grad_distance, const Rows& grad, int threads) {
  py::gil_scoped_release release;
  pyssl::table().spread_backward({matrix(x), centres, grad_distance, matrix(grad), threads});
}

// What lists of tensors have in common from call to call: lengths, and dtypes by list (none for a list that is empty).
struct Layout {
  std::vector<int64_t> counts;
  std::vector<std::vector<Dtype>> dtypes;

  Layout(std::vector<int64_t> lengths, const std::vector<std::vector<int>>& codes) : counts(std::move(lengths)) {
    for (const auto& list : codes) {
      if (!list.empty() && list.size() != counts.size())
        throw std::invalid_argument("a list has " + std::to_string(list.size()) + " entries, not " +
                                    std::to_string(counts.size()));
      dtypes.emplace_back();
      for (int code : list) dtypes.back().push_back(static_cast<Dtype>(code));
    }
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
  pyssl::Entries entries(int threads) const {
    return {static_cast<int64_t>(layout.counts.size()), layout.counts.data(), threads};
  }
  pyssl::List operator[](size_t l) const {
    if (addresses.at(l).empty()) return {nullptr, nullptr};
    return {reinterpret_cast<void* const*>(addresses[l].data()), layout.dtypes[l].data()};
  }
  const Layout& layout;
  const Addresses& addresses;
};

void ema(const Layout& layout, const Addresses& addresses, int64_t averaged, double momentum, int threads) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  pyssl::table().ema({lists.entries(threads), lists[0], lists[1], lists[2], averaged, momentum});
}

double square_sum(const Layout& layout, const Addresses& addresses, int threads) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  double sum = 0;
  pyssl::table().square_sum({lists.entries(threads), lists[0], &sum});
  return sum;
}

void adamw(const Layout& layout, const Addresses& addresses, const std::vector<Pointer>& steps, double ema_momentum,
           double lr, double factor, double beta1, double beta2, double eps, double weight_decay, int threads) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  if (steps.size() != layout.counts.size()) throw std::invalid_argument("as many steps as entries");
  pyssl::table().adamw({lists.entries(threads),
                        lists[0],
                        lists[1],
                        lists[2],
                        lists[3],
                        lists[4],
                        reinterpret_cast<float* const*>(steps.data()),
                        {lists[5], lists[6], ema_momentum},
                        lr,
                        factor,
                        beta1,
                        beta2,
                        eps,
                        weight_decay});
}

void lars(const Layout& layout, const Addresses& addresses, const std::vector<uint8_t>& adapted,
          const std::vector<uint8_t>& fresh, double ema_momentum, double lr, double factor, double momentum,
          double dampening, double weight_decay, double trust_coefficient, double eps, bool nesterov, bool trust_clip,
          bool joint, int threads) {
  py::gil_scoped_release release;
  const Lists lists(layout, addresses);
  if (adapted.size() != layout.counts.size() || fresh.size() != layout.counts.size())
    throw std::invalid_argument("as many flags as entries");
  pyssl::table().lars({lists.entries(threads),
                       lists[0],
                       lists[1],
                       lists[2],
                       {lists[3], lists[4], ema_momentum},
                       adapted.data(),
                       fresh.data(),
                       lr,
                       factor,
                       momentum,
                       dampening,
                       weight_decay,
                       trust_coefficient,
                       eps,
                       nesterov,
                       trust_clip,
                       joint});
}

pyssl::Columns columns_at(const std::array<Pointer, 18>& p) {
  return {as<int64_t>(p[0]), as<bool>(p[1]),     as<bool>(p[2]),    as<int64_t>(p[3]), as<float>(p[4]),
          as<float>(p[5]),   as<float>(p[6]),    as<float>(p[7]),   as<int64_t>(p[8]), as<bool>(p[9]),
          as<float>(p[10]),  as<bool>(p[11]),    as<float>(p[12]),  as<bool>(p[13]),   as<float>(p[14]),
          as<bool>(p[15]),   as<int64_t>(p[16]), as<int64_t>(p[17])};
}

// recipe: a row of float64, as csrc/cpu/parameters.h has it; columns: the addresses of Parameters' tensors.
void draw(Pointer recipe, int64_t samples, Pointer sizes, Pointer index, uint64_t seed, uint64_t epoch, uint64_t view,
          const std::array<Pointer, 18>& columns) {
  pyssl::draw(*as<const pyssl::Recipe>(recipe), samples, as<int64_t>(sizes), as<int64_t>(index), seed, epoch, view,
              columns_at(columns));
}

bool pack(const std::array<Pointer, 18>& columns, int64_t samples, Pointer sizes, int64_t height, int64_t width,
          int64_t blur_kernel, bool grey_first, Pointer table) {
  return pyssl::pack(columns_at(columns), samples, as<int64_t>(sizes), {height, width, blur_kernel, grey_first},
                     as<pyssl::Sample>(table));
}

// pictures: [images, 4] int64; samples: [images, 33] float64; mean, std: [channels] float64. What they point at is checked
// in Python.
void augment(int64_t images, int64_t channels, int64_t height, int64_t width, Pointer pictures, Pointer samples,
             int input, bool bicubic, bool antialias, Pointer mean, Pointer std, double erase_value, int output,
             Pointer out, std::array<int64_t, 4> steps, int threads) {
  static_assert(sizeof(pyssl::Picture) == 4 * sizeof(int64_t) && pyssl::kSampleNumbers == 33);
  py::gil_scoped_release release;
  pyssl::table().augment({images, channels, height, width, as<pyssl::Picture>(pictures), as<pyssl::Sample>(samples),
                          static_cast<pyssl::Pixel>(input), bicubic, antialias, as<double>(mean), as<double>(std),
                          erase_value, static_cast<pyssl::Pixel>(output), as<void>(out), steps[0], steps[1], steps[2],
                          steps[3], threads});
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

  py::class_<Pairs>(m, "Pairs")
      .def(py::init(&pairs), py::arg("q"), py::arg("k"), py::arg("scale"), py::arg("row_ids"), py::arg("column_ids"),
           py::arg("row_limit"), py::arg("column_limit"), py::arg("terms"), py::arg("powers"), py::arg("views"),
           py::arg("normalize"), py::arg("precision"), py::arg("threads"));
  m.def("contrast", &contrast, py::arg("pairs"), py::arg("lse"), py::arg("positive"), py::arg("statistics"));
  m.def("contrast_backward", &contrast_backward, py::arg("pairs"), py::arg("grad_lse"), py::arg("grad_positive"),
        py::arg("lse"), py::arg("grad_q"), py::arg("grad_k"));
  m.def("bank_contrast", &bank_contrast, py::arg("pairs"), py::arg("lse"), py::arg("mean_key"), py::arg("statistics"));
  m.def("sigmoid_contrast", &sigmoid_contrast, py::arg("q"), py::arg("k"), py::arg("scale"), py::arg("bias"),
        py::arg("row_ids"), py::arg("column_ids"), py::arg("row_weight"), py::arg("positive_weight"), py::arg("loss"),
        py::arg("gradient"), py::arg("grad_q"), py::arg("grad_k"), py::arg("precision"), py::arg("threads"));
  m.def("neighbours", &neighbours, py::arg("q"), py::arg("k"), py::arg("count"), py::arg("row_ids"),
        py::arg("column_ids"), py::arg("similarity"), py::arg("index"), py::arg("precision"), py::arg("threads"));
  m.def("hardest", &hardest, py::arg("q"), py::arg("ids"), py::arg("offset"), py::arg("negative"), py::arg("positive"),
        py::arg("precision"), py::arg("threads"));
  m.def("triplets", &triplets, py::arg("q"), py::arg("ids"), py::arg("margin"), py::arg("euclidean"),
        py::arg("semi_hard"), py::arg("loss"), py::arg("count"), py::arg("grad_loss"), py::arg("grad_q"),
        py::arg("precision"), py::arg("threads"));

  py::class_<pyssl::Views>(m, "Views")
      .def(py::init(&views), py::arg("x"), py::arg("y"), py::arg("positions"), py::arg("threads"));
  m.def("auto_covariance", &auto_covariance, py::arg("views"), py::arg("square"), py::arg("off_diagonal"),
        py::arg("distance"), py::arg("gram"), py::arg("exact"));
  m.def("auto_covariance_backward", &auto_covariance_backward, py::arg("views"), py::arg("grad_square"),
        py::arg("grad_off_diagonal"), py::arg("grad_distance"), py::arg("gram"), py::arg("exact"), py::arg("grad"));
  m.def("cross_correlation", &cross_correlation, py::arg("views"), py::arg("eps"), py::arg("diagonal"),
        py::arg("off_diagonal"), py::arg("gram"), py::arg("exact"));
  m.def("cross_correlation_backward", &cross_correlation_backward, py::arg("views"), py::arg("eps"),
        py::arg("grad_diagonal"), py::arg("grad_off_diagonal"), py::arg("gram"), py::arg("exact"), py::arg("grad"));
  m.def("decorrelation", &decorrelation, py::arg("views"), py::arg("square"), py::arg("off_correlation"),
        py::arg("gram"));
  m.def("characteristic", &characteristic, py::arg("views"), py::arg("step"), py::arg("count"), py::arg("cosine"),
        py::arg("sine"));
  m.def("characteristic_backward", &characteristic_backward, py::arg("views"), py::arg("step"), py::arg("count"),
        py::arg("grad_cosine"), py::arg("grad_sine"), py::arg("grad"));
  m.def("spread", &spread, py::arg("x"), py::arg("centres"), py::arg("distance"), py::arg("threads"));
  m.def("spread_backward", &spread_backward, py::arg("x"), py::arg("centres"), py::arg("grad_distance"),
        py::arg("grad"), py::arg("threads"));

  m.attr("SAMPLE_NUMBERS") = pyssl::kSampleNumbers;
  m.attr("RECIPE_NUMBERS") = sizeof(pyssl::Recipe) / sizeof(double);
  m.def("draw", &draw, py::arg("recipe"), py::arg("samples"), py::arg("sizes"), py::arg("index"), py::arg("seed"),
        py::arg("epoch"), py::arg("view"), py::arg("columns"));
  m.def("pack", &pack, py::arg("columns"), py::arg("samples"), py::arg("sizes"), py::arg("height"), py::arg("width"),
        py::arg("blur_kernel"), py::arg("grey_first"), py::arg("table"));
  m.def("augment", &augment, py::arg("images"), py::arg("channels"), py::arg("height"), py::arg("width"),
        py::arg("pictures"), py::arg("samples"), py::arg("input"), py::arg("bicubic"), py::arg("antialias"),
        py::arg("mean"), py::arg("std"), py::arg("erase_value"), py::arg("output"), py::arg("out"), py::arg("steps"),
        py::arg("threads"));
  m.def("prefetch", &pyssl::prefetch, py::arg("objects"));
  m.def("members", &pyssl::members, py::arg("dicts"));
  py::class_<pyssl::Torch>(m, "Torch")
      .def(py::init<const std::vector<Pointer>&, py::handle, Pointer, py::tuple>(), py::arg("functions"),
           py::arg("probe"), py::arg("cdata"), py::arg("types"))
      .def("look", &pyssl::Torch::look, py::arg("tensors"));
  py::class_<Layout>(m, "Layout")
      .def(py::init<std::vector<int64_t>, const std::vector<std::vector<int>>&>(), py::arg("counts"),
           py::arg("dtypes"));
  m.def("ema", &ema, py::arg("layout"), py::arg("addresses"), py::arg("averaged"), py::arg("momentum"),
        py::arg("threads"));
  m.def("square_sum", &square_sum, py::arg("layout"), py::arg("addresses"), py::arg("threads"));
  m.def("adamw", &adamw, py::arg("layout"), py::arg("addresses"), py::arg("steps"), py::arg("ema_momentum"),
        py::arg("lr"), py::arg("factor"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
        py::arg("threads"));
  m.def("lars", &lars, py::arg("layout"), py::arg("addresses"), py::arg("adapted"), py::arg("fresh"),
        py::arg("ema_momentum"), py::arg("lr"), py::arg("factor"), py::arg("momentum"), py::arg("dampening"),
        py::arg("weight_decay"), py::arg("trust_coefficient"), py::arg("eps"), py::arg("nesterov"),
        py::arg("trust_clip"), py::arg("joint"), py::arg("threads"));
}
