// The interface for NumPy and PyTorch. A Plan is a task without its arrays.
//
// What can be checked once is checked when a Plan is made, so that a call costs little more than
// the computation. It takes arrays, or None for those that are not given. It returns the first row with
// a class index that is out of range, or -1. Calls is a cache from the form of a call to its Plan.
#include "arrays.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "kernel.h"
#include "options.h"
#include "pool.h"

namespace nb = nanobind;
using namespace xentx;

void bind_xla(nb::module_&);

namespace {

// From this size on, it is useful to release the GIL for other threads.
constexpr int64_t kReleasesTheGIL = 1 << 14;

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

// The result of a call if the elements of an array are not at multiples of their size, or have no
// memory: PyTorch has tensors of zeros without memory.
constexpr int64_t kUnreadable = -2;

// Logits, target, weight, sample_weight, normalizer, state.
constexpr size_t kArrays = 6;

class Plan {
  public:
    // For a task whose arrays are described. `given` are those that are not None.
    Plan(const Task& task, const std::array<bool, kArrays>& given)
        : task_(task),
          given_(given),
          size_(task.groups * task.outer * task.inner * task.classes) {}

    int64_t operator()(nb::handle value, nb::handle gradient, nb::handle cotangent, int threads,
                       nb::args arrays) const {
        if (arrays.size() > kArrays) throw nb::type_error("expected at most six arrays");
        std::array<void*, kArrays> addresses = {};
        for (size_t i = 0; i < arrays.size(); i++) addresses[i] = address_of(arrays[i]);
        void* seed = address_of(cotangent);
        if (!seed && !cotangent.is_none() && size_ > 0) return kUnreadable;
        return compute(addresses, seed, address_of(value), address_of(gradient), threads);
    }

    // For row_stats: the fields of RowStats in their order, or none of them; a gradient or None; and
    // the cotangents of the first four fields, each of which may be None.
    int64_t row_stats(nb::tuple fields, nb::handle gradient, nb::tuple cotangents, int threads,
                      nb::handle logits, nb::handle target, nb::handle weight) const {
        if ((fields.size() != 0 && fields.size() != 6) || cotangents.size() != 4)
            throw nb::type_error("expected six fields or none, and four cotangents");
        Task task = task_;
        if (fields.size()) {
            task.lse = address_of(fields[1]);
            task.log_prob = address_of(fields[2]);
            task.entropy = address_of(fields[3]);
            task.correct = static_cast<bool*>(address_of(fields[4]));
            task.prediction = address_of(fields[5]);
        }
        Array* const seeds[] = {&task.lse_cotangent, &task.log_prob_cotangent,
                                &task.entropy_cotangent};
        for (size_t i = 0; i < 3; i++) {
            seeds[i]->data = address_of(cotangents[i + 1]);
            if (is_misaligned(*seeds[i])) return kUnreadable;
        }
        return compute(task, {address_of(logits), address_of(target), address_of(weight)},
                       address_of(cotangents[0]), fields.size() ? address_of(fields[0]) : nullptr,
                       address_of(gradient), threads);
    }

    int64_t compute(const std::array<void*, kArrays>& arrays, void* cotangent, void* value,
                    void* gradient, int threads) const {
        return compute(task_, arrays, cotangent, value, gradient, threads);
    }

  private:
    int64_t compute(Task task, const std::array<void*, kArrays>& arrays, void* cotangent,
                    void* value, void* gradient, int threads) const {
        Array* const places[] = {&task.logits, &task.target, &task.weight, &task.sample_weight,
                                 &task.normalizer, &task.state};
        for (size_t i = 0; i < kArrays; i++) {
            places[i]->data = arrays[i];
            if (is_misaligned(*places[i]) || (given_[i] && !arrays[i] && size_ > 0))
                return kUnreadable;
        }
        task.cotangent.data = cotangent;
        if (is_misaligned(task.cotangent)) return kUnreadable;
        task.value = value;
        task.gradient = gradient;
        task.threads = threads;
        if (size_ < kReleasesTheGIL) return run(task);
        nb::gil_scoped_release release;
        return run(task);
    }

    static bool is_misaligned(const Array& array) {
        return reinterpret_cast<uintptr_t>(array.data) % uintptr_t(size_of(array.dtype)) != 0;
    }

    Task task_;
    std::array<bool, kArrays> given_;
    int64_t size_;
};

// A cache of calls in eager PyTorch by their forms. It is for small problems, which take less time
// than a call of a Python function.
class Calls {
  public:
    // With PyTorch's torch.is_grad_enabled, torch.get_num_threads and torch.empty_like.
    Calls(nb::tuple tensor_types, nb::object is_grad_enabled, nb::object num_threads,
          nb::object empty_like)
        : tensor_types_(tensor_types),
          is_grad_enabled_(is_grad_enabled),
          num_threads_(num_threads),
          empty_like_(empty_like) {}

    // Returns what is cached for a call of this form. If a plan is cached and autograd is not
    // involved, returns the value. If nothing is cached, returns None.
    nb::object lookup(nb::handle function, nb::tuple args, nb::dict kwargs) const {
        Form form(tensor_types_);
        if (!form.add(function, args, kwargs)) return nb::none();
        const auto found = known_.find(form.bytes());
        if (found == known_.end()) return nb::none();
        const Known& known = found->second;
        if (!known.plan || is_differentiated(args)) return known.what;
        std::array<void*, kArrays> arrays = {};
        for (size_t i = 0; i < args.size(); i++) arrays[i] = form.address(i);
        nb::object value = empty_like_(known.scalar);
        const int threads = nb::cast<int>(num_threads_());
        const int64_t bad = known.plan->compute(arrays, nullptr, address_of(value), nullptr, threads);
        return bad == -1 ? value : known.what;
    }

    // With a plan: a tensor like which the value is allocated.
    void remember(nb::handle function, nb::tuple args, nb::dict kwargs, nb::object what,
                  nb::object plan, nb::object scalar) {
        Form form(tensor_types_);
        if (!form.add(function, args, kwargs)) return;
        if (known_.size() >= kMostCalls) known_.clear();
        const Plan* pointer = nb::isinstance<Plan>(plan) ? nb::cast<const Plan*>(plan) : nullptr;
        known_[std::string(form.bytes())] = {what, plan, scalar, pointer};
    }

  private:
    struct Known {
        nb::object what, owner, scalar;
        const Plan* plan;  // of `owner`
    };
    static constexpr size_t kMostCalls = 4096;

    bool is_differentiated(nb::tuple args) const {
        static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
        if (!is_grad_enabled_().is(nb::bool_(true))) return false;
        for (nb::handle array : args) {
            if (array.is_none()) continue;
            nb::object answer = nb::steal(PyObject_GetAttr(array.ptr(), requires_grad));
            if (!answer.is_valid()) nb::raise_python_error();
            if (answer.is(nb::bool_(true))) return true;
        }
        return false;
    }

    nb::tuple tensor_types_;
    nb::object is_grad_enabled_, num_threads_, empty_like_;
    std::map<std::string, Known, std::less<>> known_;  // also finds a std::string_view
};

Plan make_plan(const std::string& options, int64_t groups, int64_t outer, int64_t classes,
               int64_t inner, const Layout& logits, const Layout& target, const Layout& weight,
               const Layout& sample_weight, const Layout& normalizer, const Layout& state,
               const Layout& cotangent, int64_t first_class, int64_t all_classes) {
    Task task = Options(options).task;
    task.groups = groups;
    task.outer = outer;
    task.classes = classes;
    task.inner = inner;
    task.logits = array_of(logits);
    task.target = array_of(target);
    task.weight = array_of(weight);
    task.sample_weight = array_of(sample_weight);
    task.normalizer = array_of(normalizer);
    task.state = array_of(state);
    task.cotangent = array_of(cotangent);
    // All arrays of row_stats have the same layout.
    task.lse_cotangent = task.log_prob_cotangent = task.entropy_cotangent = task.cotangent;
    task.first_class = first_class;
    task.all_classes = all_classes;
    return Plan(task, {true, target.has_value(), weight.has_value(), sample_weight.has_value(),
                       normalizer.has_value(), state.has_value()});
}

// For tests of the conversions between dtypes. False where the kernel has no such conversion.
bool convert_array(const std::string& source, nb::handle from, const std::string& destination,
                   nb::handle to, int64_t count, bool vectors) {
    return convert(named(kDTypes, source), address_of(from), count, named(kDTypes, destination),
                   address_of(to), vectors);
}

int import_numpy() {
    import_array1(-1);
    return 0;
}

}  // namespace

NB_MODULE(_kernel, m) {
    if (import_numpy() < 0) nb::raise_python_error();
    // Objects that a framework still holds at exit, such as a graph of PyTorch, are not leaks.
    nb::set_leak_warnings(false);
    m.doc() = "The CPU kernel. Its users are the adapters' modules called _kernel.";
    nb::class_<Plan>(m, "Plan")
        .def("__call__", &Plan::operator(), nb::arg("value").none(), nb::arg("gradient").none(),
             nb::arg("cotangent").none(), nb::arg("threads"), nb::arg("arrays"))
        .def("row_stats", &Plan::row_stats, nb::arg("fields"), nb::arg("gradient").none(),
             nb::arg("cotangents"), nb::arg("threads"), nb::arg("logits"), nb::arg("target"),
             nb::arg("weight").none());
    m.def("plan", &make_plan, nb::kw_only(), nb::arg("options"), nb::arg("groups"),
          nb::arg("outer"), nb::arg("classes"), nb::arg("inner"), nb::arg("logits").none(),
          nb::arg("target").none(), nb::arg("weight").none(), nb::arg("sample_weight").none(),
          nb::arg("normalizer").none(), nb::arg("state").none(), nb::arg("cotangent").none(),
          nb::arg("first_class"), nb::arg("all_classes"));
    nb::class_<Calls>(m, "Calls")
        .def(nb::init<nb::tuple, nb::object, nb::object, nb::object>(), nb::arg("tensor_types"),
             nb::arg("is_grad_enabled"), nb::arg("num_threads"), nb::arg("empty_like"))
        .def("lookup", &Calls::lookup, nb::arg("function"), nb::arg("args"), nb::arg("kwargs"))
        .def("remember", &Calls::remember, nb::arg("function"), nb::arg("args"), nb::arg("kwargs"),
             nb::arg("what"), nb::arg("plan").none(), nb::arg("scalar").none());
    m.def("is_one", &is_tensor_of_one, nb::arg("tensor_types"), nb::arg("tensor"));
    m.def("instruction_set", &instruction_set);
    m.def("convert", &convert_array, nb::kw_only(), nb::arg("source"), nb::arg("from_"),
          nb::arg("destination"), nb::arg("to"), nb::arg("count"), nb::arg("vectors"));
    m.def("is_fast", &is_fast);
    m.def("default_threads", &default_threads);
    // For another library in this process that uses this kernel and its threads.
    m.def("run_address", [] { return reinterpret_cast<uintptr_t>(&run); });
#ifdef XENTX_XLA
    bind_xla(m);
#endif
}
