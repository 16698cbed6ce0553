// The row formula of SEMANTICS.md, in vectors.
//
//     m = max x,  rest = sum of exp(x_k - m) except one k at the maximum,  tail = log1p(rest)
//     loss = A tail + sum_k q_k (m - x_k) + z (m + tail)^2            with A = sum_k q_k
//     gradient_k = u (A p_k - q_k + 2 z (m + tail) p_k),   p_k = exp(x_k - m) / (1 + rest)
//     and if p_k is above one half, A p_k - q_k = (sum of the other q) - A rest / (1 + rest)
//
// with x the capped and scaled logits that the softmax uses.
//
// There are two implementations. quick.h is for float logits. general.h is for everything else
// (float64, exact results, blocks, caps and scales far from 1), in double. Losses are rounded once,
// and so are the gradients of general.h. Those of quick.h are within two units of their terms.
#pragma once
#include "convert.h"
#include "general.h"
#include "nll_loss.h"
#include "quick.h"
#include "row_stats.h"

namespace xentx {
namespace {

inline int rows_in_batch(const Task& task) {
    if (task.operation == Operation::row_stats) return rows_in_stats_batch(task);
    if (task.operation == Operation::nll_loss) return is_soft(task) ? 1 : kManyPicked;
    return is_quick(task) ? Quick::rows(task) : 1;
}

inline int64_t scratch_bytes(const Task& task) {
    if (task.operation == Operation::row_stats) {
        const int64_t more = padded(task.classes) * 8;
        if (has_quick_stats(task)) return Quick::bytes(task) + more;
        const int64_t loss = scratch_bytes(loss_of(task)), own = General::bytes(task) + more;
        return loss < own ? own : loss;
    }
    if (is_quick(task)) return Quick::bytes(task);
    // nll_loss has a separate buffer for three blocks of floats.
    const int64_t least = 3 * kBlock * int64_t(sizeof(float)), general = General::bytes(task);
    return task.operation == Operation::nll_loss && general < least ? least : general;
}

inline void compute_batch(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    if (task.operation == Operation::nll_loss) {
        switch (task.logits.dtype) {
            case DType::float16: return compute_nll_loss<Half>(job, batch, memory);
            case DType::bfloat16: return compute_nll_loss<Brain>(job, batch, memory);
            case DType::float32: return compute_nll_loss<float>(job, batch, memory);
            default: return compute_nll_loss<double>(job, batch, memory);
        }
    }
    if (task.operation == Operation::row_stats) {
        switch (task.logits.dtype) {
            case DType::float16: return compute_row_stats<Half>(job, batch, memory);
            case DType::bfloat16: return compute_row_stats<Brain>(job, batch, memory);
            case DType::float32: return compute_row_stats<float>(job, batch, memory);
            default: return compute_row_stats<double>(job, batch, memory);
        }
    }
    if (is_quick(task)) {
        const bool across = goes_across(task);
        switch (task.logits.dtype) {
            case DType::float16:
                return across ? compute_across<Half>(job, batch, memory)
                              : compute_along<Half>(job, batch, memory);
            case DType::bfloat16:
                return across ? compute_across<Brain>(job, batch, memory)
                              : compute_along<Brain>(job, batch, memory);
            default:
                return across ? compute_across<float>(job, batch, memory)
                              : compute_along<float>(job, batch, memory);
        }
    }
    for (int i = 0; i < batch.count; i++) {
        Row row = row_of(job, batch, i);
        if (task.operation == Operation::block_state) {
            compute_block_state(job, row, memory);
        } else if (task.operation == Operation::block_gradient) {
            compute_block_gradient(job, row, memory);
        } else if (row.target.state == Target::kept) {
            compute_general(job, row, memory);
        } else {
            write_loss(job, row, 0.0);
            write_trivial_gradient(task, row);
        }
    }
}

inline double mass_of_row(const Task& task, int64_t group, int64_t outer, int64_t inner,
                          void* memory) {
    Row row{group, outer, inner, 0, {Target::kept, 0}, 1.0, 1.0, 1.0};
    double* q = static_cast<double*>(memory);
    read_distribution(task, row, q);
    return sum_of(q, task.classes);
}

}  // namespace
}  // namespace xentx
