// Between run.cpp, which distributes batches of rows, and rows.h, which computes them.
#pragma once
#include "kernel.h"

namespace xentx {

// Consecutive rows along the inner axis if there is one, else along the outer axis.
struct Batch {
    int64_t group, outer, inner;  // of its first row
    int64_t row;                  // counted over group, outer, inner
    int count;
};

struct Job {
    Task task;
    // A gradient is multiplied by the reciprocal of the divisor of its group. For an empty mean: 0.
    const double* scale;
    double* losses;  // one for each row, if they are reduced later
    bool streams;    // the gradient, or log_softmax, is too large for the caches
};

// Functions that are compiled once for each instruction set.
struct Engine {
    const char* name;
    // The largest number of rows in a batch.
    int (*batch)(const Task&);
    int64_t (*scratch)(const Task&);  // bytes that a thread needs, aligned to 64
    void (*compute)(const Job&, const Batch&, void* scratch);
    // The sum of q over a row with a soft target.
    double (*mass)(const Task&, int64_t group, int64_t outer, int64_t inner, void* scratch);
    // Converts n numbers to another dtype, as `compute` does. Returns false if there is no such
    // conversion.
    bool (*convert)(DType source, const void* from, int64_t n, DType dtype, void* to, bool vectors);
};

extern const Engine baseline, avx2, avx512, neon;

// Functions here are static, so that each translation unit has code for its instruction set.

// What the target of a row determines. The divisor and the loss use the same.
struct Target {
    enum { kept, ignored, wrong } state;
    int64_t index;  // counted from the first class of a block
};

// Operations with one loss for each row and a reduction over the rows.
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

// An entry of a float32 or float64 array, or 1 if the array is not given.
static inline double read(const Array& array, int64_t at) {
    if (!array) return 1.0;
    return array.dtype == DType::float64 ? static_cast<const double*>(array.data)[at]
                                         : static_cast<const float*>(array.data)[at];
}

static inline bool is_soft(const Task& task) {
    return task.target.dtype != DType::int32 && task.target.dtype != DType::int64;
}

}  // namespace xentx
