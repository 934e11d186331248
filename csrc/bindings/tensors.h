// What torch says of its tensors, of whole lists at a time. It is asked through the C functions of libtorch_cpu that torch
// keeps stable for code compiled ahead of time (aoti_torch_get_…), which come from Python as addresses: no torch headers.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace pyssl {

namespace py = pybind11;

constexpr int kLine = 64;

// The objects of a list are about to be looked at: counting the references of 161 would wait for memory as often.
inline void prefetch(const py::list& objects) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(objects.ptr()); ++i) __builtin_prefetch(PyList_GET_ITEM(objects.ptr(), i));
}

// What dicts hold: the addresses of keys and values, as bytes.
inline py::bytes members(const py::list& dicts) {
  prefetch(dicts);
  for (py::handle dict : dicts) {
    if (!PyDict_Check(dict.ptr())) throw std::invalid_argument("dicts, and nothing else");
    const auto* fields = reinterpret_cast<PyDictObject*>(dict.ptr());
    for (int byte = 0; byte < 2 * kLine; byte += kLine)
      __builtin_prefetch(reinterpret_cast<const char*>(fields->ma_keys) + byte);
  }
  std::vector<uintptr_t> found;
  for (py::handle dict : dicts) {
    PyObject *key = nullptr, *value = nullptr;
    found.push_back(PyDict_GET_SIZE(dict.ptr()));
    for (Py_ssize_t at = 0; PyDict_Next(dict.ptr(), &at, &key, &value);)
      found.insert(found.end(), {reinterpret_cast<uintptr_t>(key), reinterpret_cast<uintptr_t>(value)});
  }
  return {reinterpret_cast<const char*>(found.data()), found.size() * sizeof(uintptr_t)};
}

class Torch {
 public:
  // The order in which the functions come.
  enum { kLayout, kDtype, kDeviceType, kDeviceIndex, kDim, kSizes, kStrides, kDataPtr, kFunctions };

  // probe: a Tensor whose `_cdata` is `cdata`, which shows where in the Python object that pointer stands. types: which
  // are looked at, and no types beneath them: what those say of themselves may run Python.
  Torch(const std::vector<uintptr_t>& functions, py::handle probe, uintptr_t cdata, py::tuple types)
      : types_(std::move(types)) {
    if (functions.size() != kFunctions) throw std::invalid_argument("as many functions as are named");
    if (std::find(functions.begin(), functions.end(), 0) != functions.end()) throw std::invalid_argument("no function");
    std::copy(functions.begin(), functions.end(), functions_.begin());
    const Py_ssize_t size = Py_TYPE(probe.ptr())->tp_basicsize;
    while (offset_ + Py_ssize_t(sizeof(void*)) <= size && word(probe.ptr()) != cdata) offset_ += sizeof(void*);
    if (offset_ + Py_ssize_t(sizeof(void*)) > size) throw std::invalid_argument("a Tensor does not hold its pointer");
  }

  // Dtypes, devices, shapes and strides as bytes, equal for equal ones; and the addresses. None: not all are dense
  // Tensors with memory of their own. Out of the cache a tensor's object, its fields and its storage would be waited for
  // one after the other, 2 µs for each tensor; so all are fetched at once.
  py::object look(const py::list& tensors) const {
    const Py_ssize_t size = PyList_GET_SIZE(tensors.ptr());
    std::vector<void*> fields(size);  // of each; a handle is the address of the pointer to them
    prefetch(tensors);
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* object = PyList_GET_ITEM(tensors.ptr(), i);
      if (!plain(object)) return py::none();
      fields[i] = reinterpret_cast<void*>(word(object));
      for (int byte = 0; byte < kFields; byte += kLine) __builtin_prefetch(static_cast<char*>(fields[i]) + byte);
    }
    std::vector<int64_t> key;
    key.reserve(size * 8);
    py::list addresses(size);
    for (Py_ssize_t i = 0; i < size; ++i) {
      void* handle = &fields[i];
      int32_t layout = -1, dtype = 0, device_type = 0, device = 0;
      int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
      void* data = nullptr;
      const bool told = get(kLayout, handle, &layout) && layout == kStrided && get(kDtype, handle, &dtype) &&
                        get(kDeviceType, handle, &device_type) && get(kDeviceIndex, handle, &device) &&
                        get(kDim, handle, &dim) && get(kSizes, handle, &sizes) && get(kStrides, handle, &strides) &&
                        get(kDataPtr, handle, &data);
      if (!told || (data == nullptr && std::find(sizes, sizes + dim, 0) == sizes + dim)) return py::none();
      key.insert(key.end(), {dtype, device_type, device, dim});
      key.insert(key.end(), sizes, sizes + dim);
      key.insert(key.end(), strides, strides + dim);
      addresses[i] = py::int_(reinterpret_cast<uintptr_t>(data));
    }
    return py::make_tuple(py::bytes(reinterpret_cast<const char*>(key.data()), key.size() * sizeof(int64_t)),
                          std::move(addresses));
  }

 private:
  static constexpr int kFields = 4 * kLine;  // a tensor's take some 200 bytes
  static constexpr int32_t kStrided = 0;

  template <class T>
  bool get(int function, void* handle, T* value) const {
    return reinterpret_cast<int32_t (*)(void*, T*)>(functions_[function])(handle, value) == 0;
  }
  uintptr_t word(const PyObject* object) const {
    uintptr_t found;
    std::memcpy(&found, reinterpret_cast<const char*>(object) + offset_, sizeof found);
    return found;
  }
  bool plain(PyObject* object) const {
    for (py::handle type : types_)
      if (type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(object))) return true;
    return false;
  }

  std::array<uintptr_t, kFunctions> functions_;
  py::tuple types_;
  Py_ssize_t offset_ = sizeof(PyObject);
};

}  // namespace pyssl
