// Reads arrays of NumPy and PyTorch with few function calls, and computes keys of calls with them.
//
// PyTorch's tensors are read by DLPack's exchange API, a table of functions that is an attribute of
// their type. So nothing is built against PyTorch. https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <iterator>
#include <string_view>

#include "kernel.h"

namespace xentx {

namespace nb = nanobind;

// DLPackExchangeAPI, as of DLPack 1.
struct Exchange {
    uint32_t major, minor;
    void* previous;
    int (*allocate)(nb::dlpack::dltensor*, void**, void*, void (*)(void*, const char*, const char*));
    int (*export_managed)(void*, void**);
    int (*import_managed)(void*, void**);
    int (*view)(void* tensor, nb::dlpack::dltensor* out);
    int (*stream)(int32_t, int32_t, void**);
};

// The table of the type of a tensor. Null if it has none.
inline const Exchange* exchange_of(nb::handle tensor) {
    static PyTypeObject* known = nullptr;  // kept alive
    static const Exchange* table = nullptr;
    PyTypeObject* type = Py_TYPE(tensor.ptr());
    if (type == known) return table;
    nb::object capsule = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(type)),
                                     "__dlpack_c_exchange_api__", nb::none());
    auto* found = capsule.is_none() ? nullptr
                                    : static_cast<const Exchange*>(PyCapsule_GetPointer(
                                          capsule.ptr(), "dlpack_exchange_api"));
    if (PyErr_Occurred()) nb::raise_python_error();
    if (!found || found->major != 1 || !found->view) return nullptr;
    // Casts, because these functions take PyObject* in the stable ABI.
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    Py_XDECREF(reinterpret_cast<PyObject*>(known));
    known = type;
    return table = found;
}

// Returns false, with Python's error set, if the memory of a tensor is not accessible.
inline bool view(nb::handle tensor, nb::dlpack::dltensor& out) {
    const Exchange* exchange = exchange_of(tensor);
    if (exchange) return exchange->view(tensor.ptr(), &out) == 0;
    PyErr_SetString(PyExc_TypeError, "expected an array of NumPy, a tensor of PyTorch or None");
    return false;
}

inline void* address_of(nb::handle array) {
    if (array.is_none()) return nullptr;
    if (PyArray_Check(array.ptr()))
        return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr()));
    nb::dlpack::dltensor tensor;
    if (!view(array, tensor)) nb::raise_python_error();
    return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

inline bool is_one_of(PyTypeObject* type, nb::handle types) {
    const Py_ssize_t count = PyTuple_Size(types.ptr());
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyTuple_GetItem(types.ptr(), i) == reinterpret_cast<PyObject*>(type)) return true;
    return false;
}

// Reads a plain tensor on the CPU: its type is exactly one of these, and it is not a view that
// negates the numbers in memory. Returns false, without an error, for others.
inline bool view_plain(nb::handle tensor_types, nb::handle tensor, nb::dlpack::dltensor& out) {
    if (!is_one_of(Py_TYPE(tensor.ptr()), tensor_types)) return false;
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* object = tensor.ptr();
    PyObject* negated = view(tensor, out) ? PyObject_VectorcallMethod(is_neg, &object, 1, nullptr)
                                          : nullptr;
    if (!negated) PyErr_Clear();
    Py_XDECREF(negated);
    return negated == Py_False && out.device.device_type == nb::device::cpu::value;
}

// Whether a plain tensor is the number 1.
inline bool is_tensor_of_one(nb::handle tensor_types, nb::handle tensor) {
    nb::dlpack::dltensor one;
    if (!view_plain(tensor_types, tensor, one) || one.ndim != 0) return false;
    const void* data = static_cast<char*>(one.data) + one.byte_offset;
    const bool brain = one.dtype.code == uint8_t(nb::dlpack::dtype_code::Bfloat);
    if (!brain && one.dtype.code != uint8_t(nb::dlpack::dtype_code::Float)) return false;
    switch (one.dtype.bits) {
        case 16: return is_one(brain ? DType::bfloat16 : DType::float16, data);
        case 32: return is_one(DType::float32, data);
        case 64: return is_one(DType::float64, data);
        default: return false;
    }
}

// The form of a call, as bytes: everything except the values of its tensors. Two calls have the
// same form only if they call the same function, their tensors have the same dtypes, shapes and
// strides in CPU memory, and their options have the same types and values. Calls with other kinds of
// arguments do not have a form.
class Form {
  public:
    // Only exactly these types, because a subclass may change the behaviour.
    explicit Form(nb::handle tensor_types) : tensor_types_(tensor_types) {}

    bool add(nb::handle function, nb::tuple args, nb::dict kwargs) {
        if (args.size() > std::size(addresses_) || !put(function.ptr()) || !put(args.size()))
            return false;
        for (size_t i = 0; i < args.size(); i++)
            if (!add(args[i], &addresses_[i])) return false;
        for (auto [name, value] : kwargs)
            if (!add(name) || !add(value)) return false;
        return true;
    }
    std::string_view bytes() const { return {bytes_, size_}; }
    // The address of the memory of a positional argument. Null if it is not a tensor.
    void* address(size_t argument) const { return addresses_[argument]; }

  private:
    bool add(nb::handle value, void** address = nullptr) {
        PyObject* object = value.ptr();
        if (is_one_of(Py_TYPE(object), tensor_types_)) return add_tensor(object, address);
        if (value.is_none()) return put('0');
        if (PyBool_Check(object)) return put(object == Py_True ? 'T' : 'F');
        if (PyFloat_CheckExact(object)) return put('f') && put(PyFloat_AsDouble(object));
        if (PyLong_CheckExact(object)) {
            int overflow;
            const int64_t integer = PyLong_AsLongLongAndOverflow(object, &overflow);
            return !overflow && put('i') && put(integer);
        }
        if (!PyUnicode_CheckExact(object)) return false;
        Py_ssize_t size;
        const char* text = PyUnicode_AsUTF8AndSize(object, &size);
        if (!text) PyErr_Clear();
        return text && put('s') && put(size) && put(text, size_t(size));
    }
    bool add_tensor(PyObject* object, void** address) {
        nb::dlpack::dltensor tensor;
        if (!view_plain(tensor_types_, object, tensor)) return false;
        if (address) *address = static_cast<char*>(tensor.data) + tensor.byte_offset;
        const size_t size = size_t(tensor.ndim) * sizeof(int64_t);
        return put('t') && put(tensor.dtype) && put(tensor.ndim) && put(tensor.shape, size) &&
               put(tensor.strides, size);
    }

    template <class T> bool put(const T& value) { return put(&value, sizeof value); }
    bool put(const void* from, size_t size) {
        if (size_ + size > sizeof bytes_) return false;
        if (size) std::memcpy(bytes_ + size_, from, size);
        size_ += size;
        return true;
    }

    nb::handle tensor_types_;
    void* addresses_[5] = {};
    char bytes_[1024];
    size_t size_ = 0;
};

}  // namespace xentx
