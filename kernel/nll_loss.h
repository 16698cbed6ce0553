// nll_loss: the sum of -q times the log-probabilities, without exponentials.
#pragma once
#include "quick.h"

namespace xentx {
namespace {

constexpr int kManyPicked = 64;  // rows in a batch

// Targets that are class indices: one entry of each row is read, and the gradient has one entry.
template <class S> inline void pick(const Job& job, const Batch& batch) {
    const Task& task = job.task;
    const auto* y = static_cast<const S*>(task.logits.data);
    auto loss_at = [&](int64_t outer, int64_t inner, int64_t index) {
        const int64_t row = task.logits.at(batch.group, outer, inner);
        return 0.0 - double(to_float(y[row + index * task.logits.classes]));
    };
    if (job.losses && !task.gradient && !task.weight && !task.sample_weight) {
        // A short path, because the general description of a row takes longer than computing it.
        const bool along_inner = task.inner > 1;
        for (int i = 0; i < batch.count; i++) {
            const int64_t outer = batch.outer + (along_inner ? 0 : i);
            const int64_t inner = batch.inner + (along_inner ? i : 0);
            const Target target = read_target(task, batch.group, outer, inner);
            job.losses[batch.row + i] = target.state == Target::kept
                                            ? loss_at(outer, inner, target.index)
                                        : target.state == Target::ignored ? 0.0
                                                                          : double(kNaN);
        }
        return;
    }
    Row rows[kManyPicked];
    for (int i = 0; i < batch.count; i++) {
        Row& row = rows[i] = row_of(job, batch, i);
        double loss = 0.0;
        if (row.target.state == Target::kept) {
            loss = loss_at(row.outer, row.inner, row.target.index);
            // 0, also if the log-probability is infinite.
            loss = row.weight == 0.0 && absolute(loss) == kInfinity ? 0.0 : row.weight * loss;
        }
        write_loss(job, row, loss);
    }
    if (!task.gradient) return;
    // The gradient may be written over the log-probabilities, which have been read.
    auto* g = static_cast<S*>(task.gradient);
    const int64_t first = dense_at(task, batch.group, batch.outer, batch.inner);
    if (task.inner == 1) {
        memset(static_cast<void*>(g + first), 0, size_t(batch.count * task.classes) * sizeof(S));
    } else {
        for (int64_t k = 0; k < task.classes; k++)
            memset(static_cast<void*>(g + first + k * task.inner), 0,
                   size_t(batch.count) * sizeof(S));
    }
    for (int i = 0; i < batch.count; i++) {
        const Row& row = rows[i];
        const int64_t at = dense_at(task, row.group, row.outer, row.inner);
        if (row.target.state == Target::kept)
            put(g + at + row.target.index * task.inner, 0.0 - row.unit * row.weight);
        else if (row.target.state == Target::wrong)
            write_trivial_gradient(task, row);
    }
}

inline bool is_read_as_floats(const Task& task) {
    return task.logits.dtype != DType::float64 && task.target.dtype != DType::float64 &&
           task.weight.dtype != DType::float64;
}

// Probabilities, read as floats: a pass for the loss, and one for the gradient.
template <class S> inline void weigh_row(const Job& job, const Row& row, void* memory) {
    const Task& task = job.task;
    auto* buffer = static_cast<float*>(memory);
    const Distribution q(task, row, buffer + kBlock);
    const S* y = static_cast<const S*>(task.logits.data) +
                 task.logits.at(row.group, row.outer, row.inner);
    auto* g = static_cast<S*>(task.gradient);
    const int64_t to = dense_at(task, row.group, row.outer, row.inner);
    const int64_t stride = task.logits.classes;
    double loss = 0.0;
    for (int64_t from = 0; task.value && from < task.classes; from += kBlock) {
        const int n = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        const float* block = floats(y + from * stride, stride, n, buffer);
        loss += q.weigh_block(block, from, n, -1, 0.0f).gaps;
    }
    write_loss(job, row, loss);
    const Factor minus_unit(0.0 - row.unit);
    for (int64_t from = 0; task.gradient && from < task.classes; from += kBlock) {
        const int n = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        const Portion portion = q.block(from, n);
        auto write = [&](const auto& form) __attribute__((always_inline)) {
            write_block(portion.q, n, form, -1, 0.0, job.streams, task.inner,
                        g + to + from * task.inner, buffer);
        };
        if (q.shares == Shares::given) {
            write([&](const Vec<float>& v, int, int) __attribute__((always_inline)) {
                return minus_unit.times(v);
            });
        } else {
            const Vec<double> unit(0.0 - row.unit);
            write([&](const Vec<float>&, int k, int count) __attribute__((always_inline)) {
                Vec<double> low, high;
                portion.read<true>(k, count, low, high);
                return narrow(unit * low, unit * high);
            });
        }
    }
    if (job.streams) stream_fence();
}

// The same in double.
inline void weigh_row_wide(const Job& job, const Row& row, void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t all = padded(task.classes);
    read_logits(task, row, s);
    for (int64_t k = task.classes; k < all; k++) s.x[k] = 0.0;
    read_distribution(task, row, s.q);
    ExactSum products;
    for (int64_t k = 0; k < all; k += 8) {
        V q = load(s.q + k), zero(0.0), loss = zero - load(s.x + k);
        products.add(select((q == zero) & is_infinite(loss), zero, q * loss));
        store(s.e + k, q * V(0.0 - row.unit));
    }
    write_loss(job, row, products.total());
    if (task.gradient)
        write_row(task, task.gradient, dense_at(task, row.group, row.outer, row.inner), s.e);
}

template <class S>
inline void compute_nll_loss(const Job& job, const Batch& batch, void* memory) {
    if (!is_soft(job.task)) return pick<S>(job, batch);
    for (int i = 0; i < batch.count; i++) {
        const Row row = row_of(job, batch, i);
        if constexpr (sizeof(S) < sizeof(double)) {
            if (is_read_as_floats(job.task)) {
                weigh_row<S>(job, row, memory);
                continue;
            }
        }
        weigh_row_wide(job, row, memory);
    }
}

}  // namespace
}  // namespace xentx
