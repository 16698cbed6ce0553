// The interface for JAX. XLA calls the kernel with XLA's buffers and threads.
//
// There is one handler. Its attributes tell which arrays are given and which results are requested,
// and have the options. The arrays are dense in [group, outer, classes, inner], without missing
// axes. An array that vmap has not batched has no axis of groups, and is used for all groups.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "kernel.h"
#include "options.h"
#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace nb = nanobind;
namespace ffi = xla::ffi;

namespace xentx {
namespace {

// The state of a call of parallel(). It is shared with tasks that the pool may start after its end.
struct Round {
    void (*body)(void* state, int i);
    void* state;
    int count;
    std::atomic<int> next{0}, finished{0};

    Round(void (*body)(void*, int), void* state, int count)
        : body(body), state(state), count(count) {}

    void help() {
        for (int i; (i = next.fetch_add(1)) < count;) {
            body(state, i);
            finished.fetch_add(1, std::memory_order_release);
        }
    }
};

// The caller computes too, and then waits only for tasks that have started. If all threads of the
// pool are busy, possibly with other calls that wait here, there is less parallelism but no
// deadlock.
void parallel_in_pool(void* self, int count, void (*body)(void*, int), void* state) {
    auto* pool = static_cast<ffi::ThreadPool*>(self);
    auto round = std::make_shared<Round>(body, state, count);
    for (int i = 1; i < count; i++) pool->Schedule([round] { round->help(); });
    round->help();
    int spins = 0;
    while (round->finished.load(std::memory_order_acquire) < count)
        if (spins < 1000) spins++;
        else std::this_thread::yield();
}

bool convert(ffi::DataType type, DType& dtype) {
    switch (type) {
        case ffi::DataType::F16: dtype = DType::float16; return true;
        case ffi::DataType::BF16: dtype = DType::bfloat16; return true;
        case ffi::DataType::F32: dtype = DType::float32; return true;
        case ffi::DataType::F64: dtype = DType::float64; return true;
        case ffi::DataType::S32: dtype = DType::int32; return true;
        case ffi::DataType::S64: dtype = DType::int64; return true;
        default: return false;
    }
}

// The axes of an array.
enum Axes { everything, rows, per_class, scalar };

// Reads the arguments that are given, in their order.
class Arguments {
  public:
    Arguments(const Task& task, ffi::RemainingArgs& buffers, int64_t given)
        : task_(task), buffers_(buffers), given_(given) {}

    Array next(Axes axes) {
        Array array;
        if (!(given_ >> position_++ & 1)) return array;
        auto buffer = buffers_.get<ffi::AnyBuffer>(taken_++);
        if (!buffer.has_value() || !convert(buffer->element_type(), array.dtype)) {
            failed_ = true;
            return array;
        }
        array.data = buffer->untyped_data();
        const int64_t outer = task_.outer, classes = task_.classes, inner = task_.inner;
        int64_t size = 1;
        switch (axes) {
            case everything:
                array.outer = classes * inner;
                array.classes = inner;
                array.inner = 1;
                size = outer * classes * inner;
                break;
            case rows:
                array.outer = inner;
                array.inner = 1;
                size = outer * inner;
                break;
            case per_class:
                array.classes = 1;
                size = classes;
                break;
            case scalar: break;
        }
        const auto count = int64_t(buffer->element_count());
        if (count == size * task_.groups) {
            array.group = size;
        } else if (count != size) {
            failed_ = true;
        }
        return array;
    }

    bool failed() const { return failed_; }

  private:
    const Task& task_;
    ffi::RemainingArgs& buffers_;
    int64_t given_;
    int position_ = 0, taken_ = 0;
    bool failed_ = false;
};

bool all_ones(const Array& array, int64_t groups) {
    const int64_t count = array.group ? groups : 1;
    const char* number = static_cast<const char*>(array.data);
    for (int64_t i = 0; i < count; i++)
        if (!is_one(array.dtype, number + i * size_of(array.dtype))) return false;
    return true;
}

// Parsed once by each thread, because parsing takes as long as a small problem.
const Options& options_of(std::string_view text) {
    constexpr size_t most = 1024;
    thread_local std::map<std::string, Options, std::less<>> known;
    auto found = known.find(text);
    if (found == known.end()) {
        if (known.size() >= most) known.clear();
        found = known.emplace(std::string(text), Options(std::string(text))).first;
    }
    return found->second;
}

ffi::Error solve(ffi::ThreadPool pool, ffi::RemainingArgs buffers, ffi::RemainingRets results,
                 std::string_view text, int64_t groups, int64_t outer, int64_t classes,
                 int64_t inner, int64_t given, int64_t wanted) {
    const Options& options = options_of(text);
    Task task = options.task;
    task.groups = groups;
    task.outer = outer;
    task.classes = classes;
    task.inner = inner;

    Arguments arguments(task, buffers, given);
    task.logits = arguments.next(everything);
    task.target = arguments.next(options.soft ? everything : rows);
    task.weight = arguments.next(per_class);
    task.sample_weight = arguments.next(rows);
    task.normalizer = arguments.next(scalar);
    task.cotangent = arguments.next(task.operation == Operation::log_softmax_pullback ? everything
                                    : task.reduction == Reduction::none               ? rows
                                                                                      : scalar);
    const Array known = arguments.next(everything);  // the gradient for a cotangent of ones
    task.lse_cotangent = arguments.next(rows);
    task.log_prob_cotangent = arguments.next(rows);
    task.entropy_cotangent = arguments.next(rows);

    int position = 0;
    void* correct = nullptr;
    void** const places[] = {&task.value,   &task.gradient, &task.lse,       &task.log_prob,
                             &task.entropy, &correct,       &task.prediction};
    size_t gradient_bytes = 0;
    for (int i = 0; i < 7; i++) {
        if (!(wanted >> i & 1)) continue;
        auto result = results.get<ffi::AnyBuffer>(position++);
        if (!result.has_value()) return result.error();
        *places[i] = (*result)->untyped_data();
        if (places[i] == &task.gradient) gradient_bytes = (*result)->size_bytes();
        if (places[i] == &task.prediction) convert((*result)->element_type(), task.prediction_dtype);
    }
    task.correct = static_cast<bool*>(correct);
    if (arguments.failed()) return ffi::Error::InvalidArgument("xentx: unexpected arrays");

    if (known && all_ones(task.cotangent, groups)) {
        // XLA was requested to use one buffer for both. If it did not, the values are copied.
        if (known.data != task.gradient) std::memcpy(task.gradient, known.data, gradient_bytes);
        return ffi::Error::Success();
    }
    // Without a thread pool, XLA returns 0 as the number of threads.
    const auto threads = std::min<int64_t>(pool.num_threads(), default_threads());
    task.threads = threads > 0 ? int(threads) : 1;
    const Executor executor{parallel_in_pool, &pool};
    run(task, &executor);
    return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER(handler, solve,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::string_view>("options")
                           .Attr<int64_t>("groups")
                           .Attr<int64_t>("outer")
                           .Attr<int64_t>("classes")
                           .Attr<int64_t>("inner")
                           .Attr<int64_t>("given")
                           .Attr<int64_t>("wanted"));

}  // namespace
}  // namespace xentx

void bind_xla(nb::module_& m) {
    m.attr("xla_ffi_api_version") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
    m.def("xla_handlers", [] {
        nb::dict handlers;
        handlers["xentx"] =
            nb::capsule(reinterpret_cast<void*>(xentx::handler), "xla._CUSTOM_CALL_TARGET");
        return handlers;
    });
}
