// The kernel as operators of TensorFlow, by its C API. One build works with every version.
//
// This library does not contain the kernel. Python passes it the address of the one in xentx/_kernel, so
// that a process has one kernel and one pool of threads for all frameworks.
//
// There are eight operators. backends/xentx_tensorflow/_kernel.py describes how they make gradients:
//
//   XentxLoss              the reduced loss
//   XentxLossAndGradient   the same, with its gradient from the same pass over the logits
//   XentxRowLosses         the losses of the rows
//   XentxLossGradient      the gradient of either for a cotangent
//   XentxRowStats          the fields of RowStats
//   XentxRowStatsGradient  the gradient for cotangents of the first four fields
//   XentxLogSoftmax, XentxLogSoftmaxGradient
//
// All options are one attribute, `options`, a text such as "axis=1 reduction=mean". An attribute for
// each would be usual, but TensorFlow has no float64 attributes, and each takes time in eager calls.
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernel.h"
#include "options.h"
#include "tensorflow_c_api.h"

namespace {

using xentx::Array;
using xentx::DType;
using xentx::Operation;
using xentx::Reduction;
using xentx::Task;

decltype(&xentx::run) run = nullptr;
std::atomic<int> threads{0};  // the largest number; 0 if it is not set

// ---- Wrappers of the C API

struct Delete {
    void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
    void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
    void operator()(TF_ShapeHandle* shape) const { TF_DeleteShapeHandle(shape); }
};
using Status = std::unique_ptr<TF_Status, Delete>;
using Tensor = std::unique_ptr<TF_Tensor, Delete>;
using Shape = std::unique_ptr<TF_ShapeHandle, Delete>;

Status new_status() { return Status(TF_NewStatus()); }

void check(const Status& status) {
    if (TF_GetCode(status.get()) != TF_OK) throw std::runtime_error(TF_Message(status.get()));
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// Calls body. If it throws, failure(status) reports the error to TensorFlow.
template <class Body, class Failure>
void reporting(const Body& body, const Failure& failure) {
    TF_Code code = TF_INTERNAL;
    std::string message;
    try {
        return body();
    } catch (const std::invalid_argument& error) {
        code = TF_INVALID_ARGUMENT;
        message = error.what();
    } catch (const std::exception& error) {
        message = error.what();
    }
    const Status status = new_status();
    TF_SetStatus(status.get(), code, message.c_str());
    failure(status.get());
}

Tensor input(TF_OpKernelContext* context, int i) {
    const Status status = new_status();
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context, i, &tensor, status.get());
    Tensor owned(tensor);
    check(status);
    return owned;
}

DType dtype_of(const Tensor& tensor) {
    switch (TF_TensorType(tensor.get())) {
        case TF_HALF: return DType::float16;
        case TF_BFLOAT16: return DType::bfloat16;
        case TF_FLOAT: return DType::float32;
        case TF_DOUBLE: return DType::float64;
        case TF_INT32: return DType::int32;
        case TF_INT64: return DType::int64;
        case TF_BOOL: break;  // only of results
    }
    throw std::invalid_argument("xentx: got an array of a dtype that it does not know");
}

// ---- Operators

enum class Kind {
    loss, row_losses, loss_and_gradient, loss_gradient, row_stats, stats_gradient, log_softmax, pullback
};

// The shape of the logits, and the axes of the kernel.
struct Layout {
    static constexpr int max_rank = 254;  // the limit of TensorFlow

    int64_t dims[max_rank], outer = 1, classes = 0, inner = 1;
    int rank = 0, axis = 0;

    Layout(const Tensor& logits, int64_t class_axis) : rank(TF_NumDims(logits.get())) {
        require(0 <= class_axis && class_axis < rank && rank <= max_rank,
                "logits: got a shape without the class axis");
        axis = static_cast<int>(class_axis);
        for (int i = 0; i < rank; ++i) {
            dims[i] = TF_Dim(logits.get(), i);
            if (i < axis) outer *= dims[i];
            if (i == axis) classes = dims[i];
            if (i > axis) inner *= dims[i];
        }
        require(classes > 0, "logits: got no classes");
    }

    int64_t rows() const { return outer * inner; }
};

enum class Axes { all, row, per_class, scalar };

// Reads the inputs in their order, and owns them.
class Arguments {
  public:
    Arguments(TF_OpKernelContext* context, const Layout& layout)
        : context_(context), layout_(layout) {}

    // Returns the next input. Its memory must have the size of these axes, since a graph may be wrong.
    Array next(Axes axes, const char* message) {
        const Layout& l = layout_;
        const Tensor& tensor = tensors_[next_] = input(context_, next_);
        ++next_;
        void* data = TF_TensorData(tensor.get());
        static char nothing[64];  // the memory of an array without elements must not be null
        Array array{data ? data : nothing, dtype_of(tensor)};
        int64_t size = 1;
        if (axes == Axes::all) {
            size = l.rows() * l.classes;
            array.outer = l.classes * l.inner, array.classes = l.inner, array.inner = 1;
        } else if (axes == Axes::row) {
            size = l.rows();
            array.outer = l.inner, array.inner = 1;
        } else if (axes == Axes::per_class) {
            size = l.classes;
            array.classes = 1;
        }
        require(TF_TensorElementCount(tensor.get()) == size, message);
        return array;
    }

  private:
    TF_OpKernelContext* context_;
    const Layout& layout_;
    Tensor tensors_[9];
    int next_ = 0;
};

bool is_one(const Tensor& tensor) {
    return TF_TensorElementCount(tensor.get()) == 1 &&
           xentx::is_one(dtype_of(tensor), TF_TensorData(tensor.get()));
}

class Operator {
  public:
    Operator(Kind kind, const std::string& text)
        : kind_(kind), options_(text, [this](const std::string& name, const std::string& value) {
              return set(name, value);
          }) {}

    void compute(TF_OpKernelContext* context) const;

  private:
    Kind kind_;
    bool weight_ = false, sample_weight_ = false, normalizer_ = false;
    bool strict_ = false;  // an index out of range is an error, not NaN
    xentx::Options options_;  // after what it sets

    bool softmax() const { return kind_ == Kind::log_softmax || kind_ == Kind::pullback; }
    bool stats() const { return kind_ == Kind::row_stats || kind_ == Kind::stats_gradient; }
    bool has_cotangent() const {
        return kind_ == Kind::loss_gradient || kind_ == Kind::stats_gradient ||
               kind_ == Kind::pullback;
    }
    bool has_gradient() const { return kind_ == Kind::loss_and_gradient || has_cotangent(); }

    // The place of the known gradient among the inputs: after logits, target, weights and cotangent.
    int known() const {
        const int weights = int(weight_) + int(sample_weight_) + int(normalizer_);
        return 1 + (softmax() ? 0 : 1 + weights) + int(has_cotangent());
    }

    bool hands_out_what_is_known(TF_OpKernelContext* context) const;
    Tensor allocate_value(TF_OpKernelContext* context, const Layout& layout, TF_DataType dtype,
                          int output = 0) const;
    Tensor allocate_gradient(TF_OpKernelContext* context, const Layout& layout) const;

    // Which weights are given, and words that only some operators have.
    bool set(const std::string& name, const std::string& value) {
        if (name == "weight") weight_ = xentx::Options::flag(value);
        else if (name == "sample_weight") sample_weight_ = xentx::Options::flag(value);
        else if (name == "normalizer") normalizer_ = xentx::Options::flag(value);
        else if (name == "strict") strict_ = xentx::Options::flag(value);
        else return false;
        return true;
    }
};

// Value and gradient for a cotangent of 1 may have been computed together.
bool Operator::hands_out_what_is_known(TF_OpKernelContext* context) const {
    if (TF_NumInputs(context) <= known() || options_.task.reduction == Reduction::none) return false;
    if (kind_ == Kind::loss_gradient && !is_one(input(context, known() - 1))) return false;
    const Status status = new_status();
    TF_SetOutput(context, 0, input(context, known()).get(), status.get());
    check(status);
    return true;
}

Tensor Operator::allocate_value(TF_OpKernelContext* context, const Layout& layout,
                                TF_DataType dtype, int output) const {
    int64_t dims[Layout::max_rank], size = 1;
    int rank = 0;
    const bool of_rows = kind_ == Kind::row_losses || kind_ == Kind::row_stats;
    if (of_rows || kind_ == Kind::log_softmax) {
        for (int i = 0; i < layout.rank; ++i) {
            if (i == layout.axis && of_rows) continue;
            size *= dims[rank++] = layout.dims[i];
        }
    }
    const bool wide = dtype == TF_DOUBLE || dtype == TF_INT64;
    const size_t bytes = size * (wide ? 8 : dtype == TF_FLOAT ? 4 : dtype == TF_BOOL ? 1 : 2);
    const Status status = new_status();
    Tensor value(TF_AllocateOutput(context, output, dtype, dims, rank, bytes, status.get()));
    check(status);
    return value;
}

// The gradient may overwrite the logits, or a known gradient for another cotangent, if no other operator
// reads them. TensorFlow can only decide this before the inputs are read.
Tensor Operator::allocate_gradient(TF_OpKernelContext* context, const Layout& layout) const {
    const int candidates[] = {0, known()};
    const int count = !stats() && TF_NumInputs(context) > known() ? 2 : 1;
    const Status status = new_status();
    Tensor gradient(TF_ForwardInputOrAllocateOutput(
        context, candidates, count, kind_ == Kind::loss_and_gradient ? 1 : 0, layout.dims,
        layout.rank, nullptr, status.get()));
    check(status);
    return gradient;
}

void Operator::compute(TF_OpKernelContext* context) const {
    require(run, "xentx: import xentx_tensorflow before a graph that uses it is run");
    Tensor first = input(context, 0);
    const TF_DataType dtype = TF_TensorType(first.get());
    const Layout layout(first, options_.axis);
    first.reset();
    if (hands_out_what_is_known(context)) return;
    Tensor value, gradient;
    if (!has_cotangent()) value = allocate_value(context, layout, dtype);
    if (has_gradient()) gradient = allocate_gradient(context, layout);

    Task task = options_.task;
    if (stats()) task.operation = Operation::row_stats;
    Tensor fields[5];
    if (kind_ == Kind::row_stats) {
        const TF_DataType dtypes[] = {dtype, dtype, dtype, TF_BOOL, TF_INT64};
        void* data[5];
        for (int i = 0; i < 5; ++i) {
            fields[i] = allocate_value(context, layout, dtypes[i], i + 1);
            data[i] = TF_TensorData(fields[i].get());
        }
        task.lse = data[0], task.log_prob = data[1], task.entropy = data[2];
        task.correct = static_cast<bool*>(data[3]), task.prediction = data[4];
    }
    task.outer = layout.outer;
    task.classes = layout.classes;
    task.inner = layout.inner;
    task.value = value ? TF_TensorData(value.get()) : nullptr;
    task.gradient = gradient ? TF_TensorData(gradient.get()) : nullptr;
    task.threads = threads;

    Arguments arguments(context, layout);
    task.logits = arguments.next(Axes::all, "logits: got fewer than their shape has");
    if (softmax()) {
        task.operation = has_cotangent() ? Operation::log_softmax_pullback : Operation::log_softmax;
    } else {
        const DType target = dtype_of(input(context, 1));
        const bool hard = target == DType::int32 || target == DType::int64;
        task.has_ignore = options_.task.has_ignore && hard;
        task.target = arguments.next(hard ? Axes::row : Axes::all,
                                     "target: got another size than the logits have");
    }
    if (weight_ && !softmax()) {
        task.weight = arguments.next(Axes::per_class,
                                     "weight: got another size than there are classes");
    }
    if (sample_weight_ && !softmax()) {
        task.sample_weight =
            arguments.next(Axes::row, "sample_weight: got another size than there are rows");
    }
    if (normalizer_ && !softmax()) {
        task.normalizer = arguments.next(Axes::scalar, "normalizer: got more than a number");
    }
    if (has_cotangent()) {
        const bool rows = task.reduction == Reduction::none;
        const Axes axes = softmax() ? Axes::all : rows ? Axes::row : Axes::scalar;
        Array* const seeds[] = {&task.cotangent, &task.lse_cotangent, &task.log_prob_cotangent,
                                &task.entropy_cotangent};
        require(!stats() || TF_NumInputs(context) == known() + 3, "cotangents: got not four");
        for (int i = 0; i < (stats() ? 4 : 1); ++i)
            *seeds[i] = arguments.next(axes, "cotangent: got another size than the value has");
    }

    const int64_t wrong = run(task, nullptr);
    if (wrong >= 0 && strict_) {
        throw std::invalid_argument("target: got a class index out of range in row " +
                                    std::to_string(wrong));
    }
}

template <Kind kind>
void* create(TF_OpKernelConstruction* construction) {
    Operator* made = nullptr;
    reporting(
        [&] {
            const Status status = new_status();
            int32_t length = 0, bytes = 0;
            TF_OpKernelConstruction_GetAttrSize(construction, "options", &length, &bytes,
                                                status.get());
            check(status);
            std::string options(static_cast<size_t>(bytes), ' ');
            TF_OpKernelConstruction_GetAttrString(construction, "options", options.data(),
                                                  options.size(), status.get());
            check(status);
            made = new Operator(kind, options);
        },
        [&](TF_Status* status) { TF_OpKernelConstruction_Failure(construction, status); });
    return made;
}

void compute(void* kernel, TF_OpKernelContext* context) {
    reporting([&] { static_cast<Operator*>(kernel)->compute(context); },
              [&](TF_Status* status) { TF_OpKernelContext_Failure(context, status); });
}

void destroy(void* kernel) { delete static_cast<Operator*>(kernel); }

// ---- Shapes. Here the C API has no attributes except dtypes, so _kernel.py sets the shapes in Python.

void is_scalar(TF_ShapeInferenceContext* context, TF_Status* status) {
    const Shape scalar(TF_ShapeInferenceContextScalar(context));
    TF_ShapeInferenceContextSetOutput(context, 0, scalar.get(), status);
}

void copy_shape(TF_ShapeInferenceContext* context, int from, int to, TF_Status* status) {
    const Shape shape(TF_NewShapeHandle());
    TF_ShapeInferenceContextGetInput(context, from, shape.get(), status);
    if (TF_GetCode(status) == TF_OK) {
        TF_ShapeInferenceContextSetOutput(context, to, shape.get(), status);
    }
}

void is_logits(TF_ShapeInferenceContext* context, TF_Status* status) {
    copy_shape(context, 0, 0, status);
}

void is_scalar_and_logits(TF_ShapeInferenceContext* context, TF_Status* status) {
    is_scalar(context, status);
    if (TF_GetCode(status) == TF_OK) copy_shape(context, 0, 1, status);
}

template <int outputs> void is_rows(TF_ShapeInferenceContext* context, TF_Status* status) {
    TF_DataType target{};
    TF_ShapeInferenceContext_GetAttrType(context, "U", &target, status);
    if (TF_GetCode(status) != TF_OK) return;
    if (target == TF_INT32 || target == TF_INT64) {
        for (int i = 0; i < outputs && TF_GetCode(status) == TF_OK; ++i)
            copy_shape(context, 1, i, status);
    } else {
        TF_ShapeInferenceContextSetUnknownShape(context, status);
    }
}

// ---- Registration

struct Definition {
    const char* name;
    TF_Create* create;
    TF_InferShape* shape;
    const char* inputs[5];  // the rest is null
    const char* outputs[6];
};

constexpr const char *logits = "logits: T", *target = "target: U", *weights = "weights: W",
                     *cotangent = "cotangent: V", *known = "known: count * T",
                     *cotangents = "cotangents: count * T";

const Definition definitions[] = {
    {"XentxLoss", create<Kind::loss>, is_scalar, {logits, target, weights, known}, {"value: T"}},
    {"XentxLossAndGradient", create<Kind::loss_and_gradient>, is_scalar_and_logits,
     {logits, target, weights}, {"value: T", "gradient: T"}},
    {"XentxRowLosses", create<Kind::row_losses>, is_rows<1>, {logits, target, weights},
     {"losses: T"}},
    {"XentxLossGradient", create<Kind::loss_gradient>, is_logits,
     {logits, target, weights, cotangent, known}, {"gradient: T"}},
    {"XentxRowStats", create<Kind::row_stats>, is_rows<6>, {logits, target, weights},
     {"loss: T", "lse: T", "log_prob: T", "entropy: T", "correct: bool", "prediction: int64"}},
    {"XentxRowStatsGradient", create<Kind::stats_gradient>, is_logits,
     {logits, target, weights, cotangents}, {"gradient: T"}},
    {"XentxLogSoftmax", create<Kind::log_softmax>, is_logits, {logits}, {"log_probs: T"}},
    {"XentxLogSoftmaxGradient", create<Kind::pullback>, is_logits, {logits, cotangent},
     {"gradient: T"}},
};

void register_operator(const Definition& definition, TF_Status* status) {
    TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(definition.name);
    TF_OpDefinitionBuilderAddAttr(builder, "T: {half, bfloat16, float, double}");
    for (const char* input : definition.inputs) {
        if (!input) break;
        TF_OpDefinitionBuilderAddInput(builder, input);
        if (input == target) {
            TF_OpDefinitionBuilderAddAttr(
                builder, "U: {int32, int64, half, bfloat16, float, double}");
        }
        if (input == weights) {
            TF_OpDefinitionBuilderAddAttr(builder, "W: list({float, double}) >= 0");
        }
        if (input == cotangent) {
            TF_OpDefinitionBuilderAddAttr(builder, "V: {half, bfloat16, float, double}");
        }
        if (input == known || input == cotangents) {
            TF_OpDefinitionBuilderAddAttr(builder, "count: int >= 0");
        }
    }
    for (const char* output : definition.outputs) {
        if (output) TF_OpDefinitionBuilderAddOutput(builder, output);
    }
    TF_OpDefinitionBuilderAddAttr(builder, "options: string");
    TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, definition.shape);
    TF_RegisterOpDefinition(builder, status);
    if (TF_GetCode(status) != TF_OK) return;
    TF_RegisterKernelBuilder(
        definition.name,
        TF_NewKernelBuilder(definition.name, "CPU", definition.create, compute, destroy), status);
}

// Runs when a library is loaded. TensorFlow is available only if tf.load_op_library loads it. Python
// checks afterwards whether the operators exist.
struct Registration {
    Registration() {
        if (!find_tensorflow()) return;
        const Status status = new_status();
        for (const Definition& definition : definitions) {
            register_operator(definition, status.get());
            if (TF_GetCode(status.get()) != TF_OK) return;
        }
    }
} const registration;

}  // namespace

#define XENTX_EXPORT extern "C" __attribute__((visibility("default")))

// Takes the address of xentx::run. Until then every operator fails.
XENTX_EXPORT void xentx_tensorflow_use(void* address) {
    run = reinterpret_cast<decltype(run)>(address);
}

XENTX_EXPORT void xentx_tensorflow_limit_threads(int most) { threads = most; }
