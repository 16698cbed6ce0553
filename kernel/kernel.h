// The CPU kernel: one cross-entropy for CPUs, with the same bits in every framework.
//
// Start here. A Task describes what to compute. It does not own its arrays. run() computes it.
//
//   rows.h        the row formula of SEMANTICS, in vectors. The mathematics is here and in the
//                 files that it includes: quick.h and general.h, two ways to compute a row,
//                 nll_loss.h and row_stats.h
//   exponential.h exp, log1p and tanh, which are the same on every machine
//   simd.h        64-byte vectors for each instruction set
//   isa_*.cpp     rows.h compiled once for each instruction set
//   run.cpp       distributes the rows over threads, and reduces their losses
//   options.h     the options of a Task as text
//   module.cpp    the interface for NumPy and PyTorch, whose arrays arrays.h reads
//   xla_ffi.cpp   the interface for JAX
//   tensorflow_op.cpp  the interface for TensorFlow
//
// The bits of a row depend only on the numbers of this row. They do not depend on the number of
// threads, on other rows, or on the instruction set (there are always 16 logical lanes and explicit
// fused multiply-adds).
#pragma once
#include <cstdint>
#include <cstring>

namespace xentx {

enum class DType : int32_t { float16, bfloat16, float32, float64, int32, int64 };

inline int64_t size_of(DType dtype) {
    switch (dtype) {
        case DType::float16:
        case DType::bfloat16: return 2;
        case DType::float32:
        case DType::int32: return 4;
        default: return 8;
    }
}

// Whether a float in memory, which may be unaligned, is 1. This is the cotangent of a loss that is
// differentiated directly.
static inline bool is_one(DType dtype, const void* number) {
    auto holds = [&](auto one) { return std::memcmp(number, &one, sizeof one) == 0; };
    switch (dtype) {
        case DType::float16: return holds(uint16_t(0x3c00));
        case DType::bfloat16: return holds(uint16_t(0x3f80));
        case DType::float32: return holds(1.0f);
        case DType::float64: return holds(1.0);
        default: return false;
    }
}

enum class Operation : int32_t {
    cross_entropy,         // value, and the gradient if it is requested
    log_softmax,           // value in the shape of the logits
    log_softmax_pullback,  // gradient, for a cotangent in the shape of the logits
    nll_loss,              // as cross_entropy, for log-probabilities instead of logits
    row_stats,             // the loss and the fields of RowStats for each row, or the gradient of all
    // For a block of the classes:
    block_state,     // value: six doubles a row, as _core/partials.py has them
    block_gradient,  // gradient, from the rows' states of all classes
};

enum class Reduction : int32_t { none, sum, mean, weighted_mean };

// Every array has the axes [group, outer, classes, inner], with strides in elements. The stride of
// a missing axis is 0. Groups are independent problems of the same shape, each with its reduction,
// as vmap makes them. Without vmap there is one group.
struct Array {
    void* data = nullptr;
    DType dtype = DType::float32;
    int64_t group = 0, outer = 0, classes = 0, inner = 0;

    int64_t at(int64_t g, int64_t o, int64_t i) const {
        return g * group + o * outer + i * inner;
    }
    explicit operator bool() const { return data != nullptr; }
};

struct Task {
    Operation operation = Operation::cross_entropy;
    int64_t groups = 1, outer = 0, classes = 0, inner = 1;

    // Arguments. An empty array means that the argument is not given.
    Array logits;         // float16 to float64; log-probabilities for nll_loss
    Array target;         // int32 or int64 indices, or probabilities of any float dtype
    Array weight;         // [classes], float32 or float64
    Array sample_weight;  // one for each row, float32 or float64
    Array normalizer;     // one for each group, float32 or float64
    Array cotangent;      // in the shape of the value, of any float dtype; by default ones
    Reduction reduction = Reduction::none;
    bool has_ignore = false;
    int64_t ignore_index = 0;
    double label_smoothing = 0.0, z_loss = 0.0, logit_softcap = 0.0;  // no cap: 0
    double temperature = 1.0;  // divides the logits, capped ones after the cap
    bool exact = false;  // compute in float64 for any dtype of the logits

    // The first class of a block, and the number of classes of all blocks. `classes`, the weights
    // and the probabilities are those of the block. Class indices count from the first of all.
    int64_t first_class = 0, all_classes = 0;
    Array state;  // six doubles for each row, along the axis of the classes

    // For row_stats: cotangents of the other fields. `cotangent` is that of the losses. Here an
    // empty cotangent means 0, also for the losses.
    Array lse_cotangent, log_prob_cotangent, entropy_cotangent;

    // Results, dense in [group, outer, (classes,) inner]. A null pointer means that a result is not
    // requested. A gradient may be written over the logits.
    void* value = nullptr;     // dtype of the logits; states: [6][rows] doubles
    void* gradient = nullptr;  // dtype of the logits
    // For row_stats, one for each row. The value is the loss.
    void *lse = nullptr, *log_prob = nullptr, *entropy = nullptr;  // dtype of the logits
    bool* correct = nullptr;
    void* prediction = nullptr;
    DType prediction_dtype = DType::int64;  // or int32

    int threads = 0;  // the largest number of threads; 0: one for each available processor
};

// A thread pool of the caller, such as XLA's. `parallel` calls body(state, i) for i = 0 and for any
// number of further i < count, on any threads, and returns when all calls have returned. Each call
// processes work until none is left.
struct Executor {
    void (*parallel)(void* self, int count, void (*body)(void* state, int i), void* state);
    void* self;
};

// Returns the row (counted over group, outer, inner) of the first class index that is out of range,
// or -1. The loss and the gradient of such a row are NaN.
int64_t run(const Task& task, const Executor* executor = nullptr);

// The instruction set in use: "avx512", "avx2", "neon" or "baseline". The environment variable
// XENTX_ISA selects a smaller one.
const char* instruction_set();

// For tests: converts n numbers to another dtype, one by one or in whole vectors. n is a multiple
// of their length. Returns false if this kernel does not have the conversion.
bool convert(DType source, const void* from, int64_t n, DType dtype, void* to, bool vectors);

// Whether fused multiply-add is an instruction of the processor. Without it the kernel is correct
// but slow, and callers should use another implementation if they have one.
bool is_fast();

}  // namespace xentx
