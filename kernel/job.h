// Between run.cpp, which hands out batches of rows, and rows.h, which computes them.
#pragma once
#include "kernel.h"

namespace xentx {

// A few consecutive rows: of the inner axis where there is one, else of the outer axis.
struct Batch {
    int64_t group, outer, inner;  // of its first row
    int64_t row;                  // counted over group, outer, inner
    int count;
};

struct Job {
    Task task;
    // A gradient is multiplied by one over the divisor of its group; 0 for an empty mean.
    const double* scale;
    double* losses;  // one a row, where they will be reduced
    bool streams;    // the gradient, or log_softmax, is too large for the caches
};

// What is compiled once for each instruction set.
struct Engine {
    const char* name;
    // Rows in a batch, at the most.
    int (*batch)(const Task&);
    int64_t (*scratch)(const Task&);  // bytes that a thread needs, aligned to 64
    void (*compute)(const Job&, const Batch&, void* scratch);
    // The sum of q over a row with a soft target.
    double (*mass)(const Task&, int64_t group, int64_t outer, int64_t inner, void* scratch);
    // n numbers to another dtype, as `compute` does it. False where it has no such conversion.
    bool (*convert)(DType source, const void* from, int64_t n, DType dtype, void* to, bool vectors);
};

extern const Engine baseline, avx2, avx512, neon;

// Functions here are static: each unit must have code of its own instruction set.

// What a row's target says, the same for the divisor and for the loss.
struct Target {
    enum { kept, ignored, wrong } state;
    int64_t index;  // counted from the first class of a block
};

// What has a loss a row, and a reduction over the rows.
static inline bool is_loss(const Task& task) {
    return task.operation == Operation::cross_entropy || task.operation == Operation::nll_loss ||
           task.operation == Operation::row_stats;
}

static inline bool is_block(const Task& task) {
    return task.operation == Operation::block_state || task.operation == Operation::block_gradient;
}

static inline Target read_target(const Task& task, int64_t group, int64_t outer, int64_t inner) {
    int64_t at = task.target.at(group, outer, inner);
    int64_t index = task.target.dtype == DType::int64
                        ? static_cast<const int64_t*>(task.target.data)[at]
                        : static_cast<const int32_t*>(task.target.data)[at];
    if (task.has_ignore && index == task.ignore_index) return {Target::ignored, index};
    const int64_t classes = task.all_classes ? task.all_classes : task.classes;
    bool inside = 0 <= index && index < classes;
    return {inside ? Target::kept : Target::wrong, index - task.first_class};
}

// An entry of float32 or float64, or 1 where the array is not given.
static inline double read(const Array& array, int64_t at) {
    if (!array) return 1.0;
    return array.dtype == DType::float64 ? static_cast<const double*>(array.data)[at]
                                         : static_cast<const float*>(array.data)[at];
}

static inline bool is_soft(const Task& task) {
    return task.target.dtype != DType::int32 && task.target.dtype != DType::int64;
}

}  // namespace xentx
