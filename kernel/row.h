// Functions for all implementations of a row: reading, writing, and the factors of a row.
#pragma once
#include "exponential.h"
#include "job.h"

namespace xentx {
namespace {

constexpr int kLanes = 16;        // rows in a batch, floats in a vector

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
// 2^n for an integer n <= 0.
inline double power_of_2(double n) {
    int64_t bits = n < -1022.0 ? 0 : (int64_t(n) + 1023) << 52;
    double power;
    memcpy(&power, &bits, 8);
    return power;
}
inline double absolute(double x) { return x < 0 ? -x : x; }
XENTX_INLINE auto is_infinite(const Vec<double>& x) {
    const Vec<double> infinity(__builtin_inf());
    return max(x, Vec<double>(0.0) - x) == infinity;
}

constexpr float kInfinity = __builtin_inff();
constexpr float kNaN = __builtin_nanf("");

// ---- Reading and writing rows: n entries, `stride` apart.

template <class From, class To>
inline void gather_as(const From* from, int64_t stride, int64_t n, To* to) {
    for (int64_t k = 0; k < n; k++) to[k] = To(to_float(from[k * stride]));
}
inline void gather(const Array& array, int64_t at, int64_t n, double* to) {
    switch (array.dtype) {
        case DType::float16:
            return gather_as(static_cast<const Half*>(array.data) + at, array.classes, n, to);
        case DType::bfloat16:
            return gather_as(static_cast<const Brain*>(array.data) + at, array.classes, n, to);
        case DType::float32:
            return gather_as(static_cast<const float*>(array.data) + at, array.classes, n, to);
        default:
            return gather_as(static_cast<const double*>(array.data) + at, array.classes, n, to);
    }
}

// A block of logits as floats. It is not copied if the logits are floats.
inline const float* floats(const float* from, int64_t stride, int n, float* buffer) {
    if (stride == 1) return from;
    gather_as(from, stride, n, buffer);
    return buffer;
}
template <class Narrow>
inline const float* floats(const Narrow* from, int64_t stride, int n, float* buffer) {
    int k = 0;
    if (stride == 1)
        for (; k + kLanes <= n; k += kLanes) store(buffer + k, load(from + k));
    for (; k < n; k++) buffer[k] = to_float(from[k * stride]);
    return buffer;
}

template <class From, class To> inline void scatter(const From* from, int64_t n, To* to) {
    for (int64_t k = 0; k < n; k++) put(to + k, from[k]);
}
template <class From> inline void scatter(const From* from, int64_t n, DType dtype, void* to,
                                          int64_t at) {
    switch (dtype) {
        case DType::float16: return scatter(from, n, static_cast<Half*>(to) + at);
        case DType::bfloat16: return scatter(from, n, static_cast<Brain*>(to) + at);
        case DType::float32: return scatter(from, n, static_cast<float*>(to) + at);
        default: return scatter(from, n, static_cast<double*>(to) + at);
    }
}

// The place of a row in an array that is dense in [group, outer, classes, inner], and its stride.
inline int64_t dense_at(const Task& task, int64_t group, int64_t outer, int64_t inner) {
    return (group * task.outer + outer) * task.classes * task.inner + inner;
}

inline void put_at(DType dtype, void* to, int64_t at, double value) {
    scatter(&value, 1, dtype, to, at);
}

// One row of the gradient, or of log_softmax, from doubles.
inline void write_row(const Task& task, void* to, int64_t at, const double* from) {
    if (task.inner == 1) return scatter(from, task.classes, task.logits.dtype, to, at);
    for (int64_t k = 0; k < task.classes; k++)
        put_at(task.logits.dtype, to, at + k * task.inner, from[k]);
}
inline void fill_row(const Task& task, void* to, int64_t at, double value) {
    for (int64_t k = 0; k < task.classes; k++)
        put_at(task.logits.dtype, to, at + k * task.inner, value);
}

// ---- The factors of a row.

struct Row {
    int64_t group, outer, inner, number;
    Target target;
    double weight;  // of its class, or 1
    double share;   // its sample weight, or 1
    double unit;    // cotangent, sample weight and divisor: what the gradient is multiplied by
};

inline Row row_of(const Job& job, const Batch& batch, int i) {
    const Task& task = job.task;
    bool along_inner = task.inner > 1;
    Row row;
    row.group = batch.group;
    row.outer = batch.outer + (along_inner ? 0 : i);
    row.inner = batch.inner + (along_inner ? i : 0);
    row.number = batch.row + i;
    row.target = {Target::kept, 0};
    row.weight = 1.0;
    if (task.target && !is_soft(task)) {
        row.target = read_target(task, row.group, row.outer, row.inner);
        if (row.target.state == Target::kept && !is_block(task))
            row.weight = read(task.weight, row.group * task.weight.group +
                                               row.target.index * task.weight.classes);
    }
    row.share = read(task.sample_weight, task.sample_weight.at(row.group, row.outer, row.inner));
    double cotangent = 1.0;
    if (task.cotangent && task.operation != Operation::log_softmax_pullback) {
        Array one = task.cotangent;
        int64_t at = one.at(row.group, row.outer, row.inner);
        one.classes = 0;
        gather(one, at, 1, &cotangent);
    }
    row.unit = cotangent * row.share * job.scale[row.group];
    return row;
}

// Writes the loss of a row.
inline void write_loss(const Job& job, const Row& row, double loss) {
    if (!job.task.value) return;
    if (row.target.state == Target::ignored) loss = 0.0;
    else if (row.target.state == Target::wrong) loss = kNaN;
    else if (job.task.sample_weight)  // 0, also if the loss is infinite
        loss = row.share == 0.0 && loss == kInfinity ? 0.0 : row.share * loss;
    if (job.losses) job.losses[row.number] = loss;
    else put_at(job.task.logits.dtype, job.task.value, row.number, loss);
}

// Writes the gradient of a row that is not computed.
inline bool write_trivial_gradient(const Task& task, const Row& row) {
    if (row.target.state == Target::kept) return false;
    if (task.gradient)
        fill_row(task, task.gradient, dense_at(task, row.group, row.outer, row.inner),
                 row.target.state == Target::ignored ? 0.0 : double(kNaN));
    return true;
}

// The distance from the maximum to the log-sum-exp.
struct Tail {
    Vec<double> at_top;  // exp of the maximum, over 2^n
    Vec<double> rest, tail;

    // Of the maximum, the sum of exponentials over 2^n, and how many at the maximum are not in it.
    XENTX_INLINE Tail(const Vec<double>& top, const Reference<double>& reference,
                      const Vec<double>& sum, const Vec<double>& ties) {
        Vec<double> error;
        exponential(top, reference, at_top, error);
        rest = (sum + (ties - Vec<double>(1.0)) * at_top) / at_top;
        tail = log1p_positive(rest);
    }
};

}  // namespace
}  // namespace xentx
