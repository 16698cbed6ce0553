// The door for NumPy and PyTorch: a Plan is a task whose arrays are yet to come.
//
// What can be checked once is checked when a Plan is made, and a call costs little more than the
// computing: it takes arrays, and None for what isn't there, and returns the first row with a class
// index that is out of range, or -1. `form` is what tells calls apart that need different plans.
#include "arrays.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <iterator>
#include <optional>
#include <string>
#include <tuple>

#include "kernel.h"
#include "pool.h"

namespace nb = nanobind;
using namespace xentx;

void bind_xla(nb::module_&);

namespace {

// Large enough for another Python thread to have something from it.
constexpr int64_t kReleasesTheGIL = 1 << 14;

template <class T> struct Name {
    const char* name;
    T value;
};
constexpr Name<DType> kDTypes[] = {
    {"float16", DType::float16}, {"bfloat16", DType::bfloat16}, {"float32", DType::float32},
    {"float64", DType::float64}, {"int32", DType::int32},       {"int64", DType::int64},
};
constexpr Name<Operation> kOperations[] = {
    {"cross_entropy", Operation::cross_entropy},
    {"log_softmax", Operation::log_softmax},
    {"log_softmax_pullback", Operation::log_softmax_pullback},
};
constexpr Name<Reduction> kReductions[] = {
    {"none", Reduction::none},
    {"sum", Reduction::sum},
    {"mean", Reduction::mean},
    {"weighted_mean", Reduction::weighted_mean},
};

template <class T, size_t n>
T named(const Name<T> (&names)[n], const std::string& name) {
    for (const auto& known : names)
        if (name == known.name) return known.value;
    throw nb::value_error(("unknown name: " + name).c_str());
}

using Strides = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Layout = std::optional<std::tuple<std::string, Strides>>;

Array array_of(const Layout& layout) {
    Array array;
    if (layout) {
        array.dtype = named(kDTypes, std::get<0>(*layout));
        std::tie(array.group, array.outer, array.classes, array.inner) = std::get<1>(*layout);
    }
    return array;
}

// What a call returns where an array's elements don't lie at multiples of their size, or nowhere:
// PyTorch has tensors of zeros without memory.
constexpr int64_t kUnreadable = -2;

bool is_misaligned(const Array& array) {
    return reinterpret_cast<uintptr_t>(array.data) % uintptr_t(size_of(array.dtype)) != 0;
}

class Plan {
  public:
    explicit Plan(const Task& task) : task_(task) {}

    int64_t operator()(nb::handle value, nb::handle gradient, nb::handle cotangent, int threads,
                       nb::args arrays) const {
        Task task = task_;
        Array* const places[] = {&task.logits, &task.target, &task.weight, &task.sample_weight,
                                 &task.normalizer};
        size_t count = 0;
        bool is_unreadable = false;
        const bool is_empty = task.groups * task.outer * task.inner * task.classes == 0;
        auto locate = [&](Array& place, nb::handle array) {
            place.data = address_of(array);
            is_unreadable |= is_misaligned(place);
            is_unreadable |= !place.data && !array.is_none() && !is_empty;
        };
        for (nb::handle array : arrays) {
            if (count == std::size(places)) throw nb::type_error("expected at most five arrays");
            locate(*places[count++], array);
        }
        locate(task.cotangent, cotangent);
        if (is_unreadable) return kUnreadable;
        task.value = address_of(value);
        task.gradient = address_of(gradient);
        task.threads = threads;
        if (task.groups * task.outer * task.inner * task.classes < kReleasesTheGIL)
            return run(task);
        nb::gil_scoped_release release;
        return run(task);
    }

  private:
    Task task_;
};

Plan make_plan(const std::string& operation, int64_t groups, int64_t outer, int64_t classes,
               int64_t inner, const Layout& logits, const Layout& target, const Layout& weight,
               const Layout& sample_weight, const Layout& normalizer, const Layout& cotangent,
               const std::string& reduction, std::optional<int64_t> ignore_index,
               double label_smoothing, double z_loss, std::optional<double> logit_softcap,
               bool exact) {
    Task task;
    task.operation = named(kOperations, operation);
    task.groups = groups;
    task.outer = outer;
    task.classes = classes;
    task.inner = inner;
    task.logits = array_of(logits);
    task.target = array_of(target);
    task.weight = array_of(weight);
    task.sample_weight = array_of(sample_weight);
    task.normalizer = array_of(normalizer);
    task.cotangent = array_of(cotangent);
    task.reduction = named(kReductions, reduction);
    task.has_ignore = ignore_index.has_value();
    task.ignore_index = ignore_index.value_or(0);
    task.label_smoothing = label_smoothing;
    task.z_loss = z_loss;
    task.logit_softcap = logit_softcap.value_or(0.0);
    task.exact = exact;
    return Plan(task);
}

int import_numpy() {
    import_array1(-1);
    return 0;
}

}  // namespace

NB_MODULE(_kernel, m) {
    if (import_numpy() < 0) nb::raise_python_error();
    // What a framework still holds when a program ends, such as a graph of PyTorch's, is no leak.
    nb::set_leak_warnings(false);
    m.doc() = "The native kernel. Its users are the adapters' modules called _native.";
    nb::class_<Plan>(m, "Plan")
        .def("__call__", &Plan::operator(), nb::arg("value").none(), nb::arg("gradient").none(),
             nb::arg("cotangent").none(), nb::arg("threads"), nb::arg("arrays"));
    m.def("plan", &make_plan, nb::kw_only(), nb::arg("operation"), nb::arg("groups"),
          nb::arg("outer"), nb::arg("classes"), nb::arg("inner"), nb::arg("logits").none(),
          nb::arg("target").none(), nb::arg("weight").none(), nb::arg("sample_weight").none(),
          nb::arg("normalizer").none(), nb::arg("cotangent").none(), nb::arg("reduction"),
          nb::arg("ignore_index").none(), nb::arg("label_smoothing"), nb::arg("z_loss"),
          nb::arg("logit_softcap").none(), nb::arg("exact"));
    m.def("form", &form, nb::arg("array_types"), nb::arg("args"), nb::arg("kwargs"));
    m.def("is_one", &is_one, nb::arg("tensor_types"), nb::arg("tensor"));
    m.def("instruction_set", &instruction_set);
    m.def("is_fast", &is_fast);
    m.def("default_threads", &default_threads);
    // For a library that is loaded beside this one and is to use this kernel, with its threads.
    m.def("run_address", [] { return reinterpret_cast<uintptr_t>(&run); });
#ifdef XENTX_XLA
    bind_xla(m);
#endif
}
