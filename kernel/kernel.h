// The CPU kernel: one cross-entropy for CPUs, the same bits behind every framework.
//
// Start here. A Task says what to compute, on arrays that somebody else owns; run() computes it.
//
//   rows.h        the row formula of SEMANTICS, in vectors: the mathematics is in it, and in what it
//                 includes: quick.h and general.h, two ways to compute a row, nll_loss.h and
//                 row_stats.h
//   exponential.h exp, log1p and tanh, which are the same on every machine
//   simd.h        64-byte vectors on whatever instruction set there is
//   isa_*.cpp     rows.h compiled once for each instruction set
//   run.cpp       rows to threads, and from rows to a reduced value
//   options.h     the options of a Task as text
//   module.cpp    the door for NumPy and PyTorch, whose arrays arrays.h reads; xla_ffi.cpp for JAX;
//                 tensorflow_op.cpp
//
// Bits depend on nothing but a row's own numbers: not on the number of threads, the batch around a
// row, or the instruction set (16 logical lanes and explicit fused multiply-adds everywhere).
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

// Whether a float in memory, aligned or not, is 1: so is the cotangent of a loss that nothing follows.
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
    cross_entropy,         // value and, where it is asked for, gradient
    log_softmax,           // value in the shape of the logits
    log_softmax_pullback,  // gradient, for a cotangent in the shape of the logits
    nll_loss,              // as cross_entropy, of log-probabilities in the place of the logits
    row_stats,             // of each row its loss and the fields of RowStats, or the gradient of all
    // Of a block of the classes, beside others: what cross_entropy is made of.
    block_state,     // value: six doubles a row, as _core/partials.py has them
    block_gradient,  // gradient, from the rows' states of all classes
};

enum class Reduction : int32_t { none, sum, mean, weighted_mean };

// Every array is [group, outer, classes, inner], seen through strides in elements; the stride of an
// axis that the array lacks is 0. Groups are independent problems of one shape, each with a
// reduction of its own: what vmap makes. There is one, elsewhere.
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

    // Arguments. Those that are left empty are as if not given.
    Array logits;         // float16 to float64; log-probabilities for nll_loss
    Array target;         // int32 or int64 indices, or probabilities of any float dtype
    Array weight;         // [classes], float32 or float64
    Array sample_weight;  // one a row, float32 or float64
    Array normalizer;     // one a group, float32 or float64
    Array cotangent;      // as the value, of any float dtype; ones where it is empty
    Reduction reduction = Reduction::none;
    bool has_ignore = false;
    int64_t ignore_index = 0;
    double label_smoothing = 0.0, z_loss = 0.0, logit_softcap = 0.0;  // no cap: 0
    double temperature = 1.0;  // divides the logits, capped ones after the cap
    bool exact = false;  // float64 inside, whatever the logits

    // A block's first class, and how many there are in all of them; `classes` are its own, and so
    // are the weights and probabilities. Class indices count from the first class of all.
    int64_t first_class = 0, all_classes = 0;
    Array state;  // six doubles a row, along the axis of the classes

    // Of row_stats: as `cotangent`, which is that of the losses. None is as if it were 0, whatever the
    // row; so is an empty one of the losses, there.
    Array lse_cotangent, log_prob_cotangent, entropy_cotangent;

    // Results, dense in [group, outer, (classes,) inner]; those that are left empty are not wanted.
    // A gradient may be written over the logits.
    void* value = nullptr;     // dtype of the logits; states: [6][rows] doubles
    void* gradient = nullptr;  // dtype of the logits
    // Of row_stats, where the value is the loss: one a row.
    void *lse = nullptr, *log_prob = nullptr, *entropy = nullptr;  // dtype of the logits
    bool* correct = nullptr;
    void* prediction = nullptr;
    DType prediction_dtype = DType::int64;  // or int32

    int threads = 0;  // at the most; 0: one for each processor that this process may use
};

// Somebody else's thread pool, such as XLA's: calls body(state, i) for i = 0 and for as many further
// i < count as it likes, on any threads, and returns when all have returned. Each call takes
// whatever work is left.
struct Executor {
    void (*parallel)(void* self, int count, void (*body)(void* state, int i), void* state);
    void* self;
};

// The row of the first class index that is out of range (counted over group, outer, inner), or -1.
// Such a row's loss and gradient are NaN.
int64_t run(const Task& task, const Executor* executor = nullptr);

// The instruction set in use: "avx512", "avx2", "neon" or "baseline". The environment variable
// XENTX_ISA asks for a lesser one.
const char* instruction_set();

// For tests: n numbers to another dtype, one by one or by whole vectors, of which n is a multiple.
// False where this kernel has no such conversion.
bool convert(DType source, const void* from, int64_t n, DType dtype, void* to, bool vectors);

// Whether fused multiply-add is an instruction here. Without it the kernel is right and slow, so
// that callers who have another way should take it.
bool is_fast();

}  // namespace xentx
