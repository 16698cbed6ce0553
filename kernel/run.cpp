// Divides a task into batches of rows, runs them on threads, and reduces the losses of the rows.
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "job.h"
#include "pool.h"
#include "simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace xentx {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
// __builtin_cpu_supports has no f16c in older Clangs.
bool converts_halves() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Engine* find_engine() {
    const char* asked = std::getenv("XENTX_ISA");
    auto allowed = [&](const char* name) { return !asked || std::strcmp(asked, name) == 0; };
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    bool fused = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                 converts_halves();
    bool wide = fused && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (wide && allowed("avx512")) return &avx512;
    if (fused && allowed("avx2")) return &avx2;
#elif defined(__aarch64__)
    if (allowed("neon")) return &neon;
#endif
    return &baseline;
}

const Engine& engine() {
    static const Engine* found = find_engine();
    return *found;
}

// With fewer entries than this, waking another thread takes longer than computing the rows.
constexpr int64_t kWorkOfAThread = 1 << 15;
constexpr int64_t kWorkAtOnce = 1 << 15;
// A result of this many bytes is evicted from any cache before it is read.
constexpr int64_t kStreamed = 16 << 20;
constexpr int64_t kHugePages = 8 << 20;

// Sets the rounding mode and enables subnormal numbers. XLA and TensorFlow run their threads with
// subnormals flushed to 0, which would change the bits.
class StandardFloats {
  public:
    StandardFloats() {
#if defined(__x86_64__) || defined(_M_X64)
        saved_ = _mm_getcsr();
        _mm_setcsr(0x1f80);
#else
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
#endif
    }
    ~StandardFloats() {
#if defined(__x86_64__) || defined(_M_X64)
        _mm_setcsr(saved_);
#else
        std::fesetenv(&saved_);
#endif
    }
    StandardFloats(const StandardFloats&) = delete;

  private:
#if defined(__x86_64__) || defined(_M_X64)
    unsigned saved_;
#else
    std::fenv_t saved_;
#endif
};

void* scratch(int64_t bytes) {
    struct Free {
        void operator()(char* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<char, Free> memory;
    thread_local int64_t size = 0;
    if (bytes > size) {
        memory.reset();
        memory.reset(static_cast<char*>(std::malloc(size_t(bytes) + 64)));
        size = bytes;
    }
    auto address = reinterpret_cast<uintptr_t>(memory.get());
    return reinterpret_cast<void*>((address + 63) & ~uintptr_t(63));
}

// New memory is mapped page by page when it is first written. With small pages this takes longer
// than computing the values.
void ask_for_huge_pages(void* from, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t page = 2 << 20;
    auto address = reinterpret_cast<uintptr_t>(from);
    uintptr_t first = (address + page - 1) & ~(page - 1), last = (address + bytes) & ~(page - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)from;
    (void)bytes;
#endif
}

// Consecutive rows form a line, along the inner axis if there is one, else along the outer axis.
struct Lines {
    int64_t count, length, batches;  // batches of one line
    int batch;

    Lines(const Task& task, int rows) : batch(rows) {
        bool inner = task.inner > 1;
        count = inner ? task.groups * task.outer : task.groups;
        length = inner ? task.inner : task.outer * task.inner;
        batches = (length + batch - 1) / batch;
    }
    Batch at(const Task& task, int64_t i) const {
        int64_t line = i / batches, first = i % batches * batch;
        int64_t left = length - first;
        Batch b;
        b.group = task.inner > 1 ? line / task.outer : line;
        b.outer = task.inner > 1 ? line % task.outer : first;
        b.inner = task.inner > 1 ? first : 0;
        b.row = line * length + first;
        b.count = int(left < batch ? left : batch);
        return b;
    }
};

struct Work {
    const Job* job;
    Lines lines;
    int64_t total, at_once;
    std::atomic<int64_t> next{0};

    static void take(void* state, int) {
        Work& work = *static_cast<Work*>(state);
        const Task& task = work.job->task;
        StandardFloats standard;
        void* memory = scratch(engine().scratch(task));
        for (;;) {
            int64_t from = work.next.fetch_add(work.at_once, std::memory_order_relaxed);
            if (from >= work.total) return;
            int64_t to = from + work.at_once < work.total ? from + work.at_once : work.total;
            for (; from < to; from++)
                engine().compute(*work.job, work.lines.at(task, from), memory);
        }
    }
};

// The number of rows of a group that are not ignored, if the amount of each is 1. `wrong` is as in
// the next function. It runs before the threads start, so with few classes it must be fast.
template <class Index>
double count_rows(const Task& task, int64_t g, int64_t& wrong) {
    const auto* targets = static_cast<const Index*>(task.target.data);
    int64_t ignored = 0, row = g * task.outer * task.inner;
    for (int64_t o = 0; o < task.outer; o++) {
        const Index* line = targets + task.target.at(g, o, 0);
        for (int64_t i = 0; i < task.inner; i++, row++) {
            const int64_t index = line[i * task.target.inner];
            const bool leaves = task.has_ignore && index == task.ignore_index;
            ignored += leaves;
            if (uint64_t(index) >= uint64_t(task.classes) && !leaves && wrong < 0) wrong = row;
        }
    }
    return double(task.outer * task.inner - ignored);
}

// Reads the target of every row. Computes the first row that is out of range, or -1, and the sum of
// the amounts of each group, which is the divisor of a mean.
int64_t read_targets(const Task& task, bool amounts, double* divisors) {
    const bool soft = is_soft(task);
    const bool weighted = task.reduction == Reduction::weighted_mean;
    // With class indices, only the sum of the weights in the mass is the same for all rows.
    double share = 0.0;
    int64_t wrong = -1, row = 0;
    if (!soft && !weighted && !task.weight && !task.sample_weight) {
        const bool wide = task.target.dtype == DType::int64;
        for (int64_t g = 0; g < task.groups; g++)
            divisors[g] = wide ? count_rows<int64_t>(task, g, wrong)
                               : count_rows<int32_t>(task, g, wrong);
        return wrong;
    }
    for (int64_t g = 0; g < task.groups; g++) {
        double amount = 0.0;
        if (!soft && weighted && task.label_smoothing != 0.0) {
            share = 0.0;
            for (int64_t k = 0; k < task.classes; k++)
                share += read(task.weight, g * task.weight.group + k * task.weight.classes);
            share *= task.label_smoothing / double(task.classes);
        }
        for (int64_t o = 0; o < task.outer; o++) {
            for (int64_t i = 0; i < task.inner; i++, row++) {
                double mass = 1.0;
                if (!soft) {
                    Target target = read_target(task, g, o, i);
                    if (target.state == Target::ignored) continue;
                    if (target.state == Target::wrong) {
                        if (wrong < 0) wrong = row;
                        if (task.weight || weighted) mass = 0.0;  // no class has this index
                    } else if (task.weight) {
                        mass = read(task.weight, g * task.weight.group +
                                                     target.index * task.weight.classes);
                    }
                    if (weighted) mass = (1.0 - task.label_smoothing) * mass + share;
                } else if (amounts && weighted) {
                    mass = engine().mass(task, g, o, i, scratch(engine().scratch(task)));
                }
                amount += mass * read(task.sample_weight, task.sample_weight.at(g, o, i));
            }
        }
        divisors[g] = amount;
    }
    return wrong;
}

}  // namespace

const char* instruction_set() { return engine().name; }

bool convert(DType source, const void* from, int64_t n, DType dtype, void* to, bool vectors) {
    StandardFloats standard;
    return engine().convert(source, from, n, dtype, to, vectors);
}

bool is_fast() {
#if defined(__aarch64__)
    return true;
#else
    return &engine() != &baseline;
#endif
}

int64_t run(const Task& task, const Executor* executor) {
    StandardFloats standard;
    const int64_t rows = task.groups * task.outer * task.inner;
    const int64_t entries = rows * task.classes;
    const bool loss = is_loss(task);
    const bool reduces = loss && task.reduction != Reduction::none;
    const bool mean = reduces && task.reduction != Reduction::sum;

    thread_local std::vector<double> divisors, scales, losses;
    divisors.assign(size_t(task.groups), 1.0);
    scales.assign(size_t(task.groups), 1.0);
    int64_t wrong = -1;
    if (loss && !(is_soft(task) && !mean))
        wrong = read_targets(task, mean && !task.normalizer, divisors.data());
    for (int64_t g = 0; mean && g < task.groups; g++) {
        if (task.normalizer) divisors[g] = read(task.normalizer, g * task.normalizer.group);
        scales[g] = divisors[g] == 0.0 ? 0.0 : 1.0 / divisors[g];
    }
    const bool kept = reduces && task.value;
    if (kept) losses.resize(size_t(rows));

    const int64_t bytes = entries * size_of(task.logits.dtype);
    void* result = task.operation == Operation::log_softmax ? task.value : task.gradient;
    const bool fresh = result && result != task.logits.data;
    Job job{task, scales.data(), kept ? losses.data() : nullptr, fresh && bytes >= kStreamed};
    if (fresh && bytes >= kHugePages) ask_for_huge_pages(result, bytes);

    const int rows_at_once = engine().batch(task);
    Lines lines(task, rows_at_once);
    Work work{&job, lines, lines.count * lines.batches, 1};
    // The cost of a row of which only the target is read, in entries.
    constexpr int64_t picking = 32;
    const bool picks = task.operation == Operation::nll_loss && !is_soft(task) && !task.gradient;
    const int64_t row_cost = picks && picking < task.classes ? picking : task.classes;
    const int64_t cost = rows_at_once * row_cost;
    work.at_once = cost >= kWorkAtOnce ? 1 : kWorkAtOnce / cost;
    int64_t threads = task.threads > 0 ? task.threads : default_threads();
    if (threads > rows * row_cost / kWorkOfAThread) threads = rows * row_cost / kWorkOfAThread;
    if (threads > work.total) threads = work.total;
    if (threads > 1 && work.at_once * threads > work.total)
        work.at_once = (work.total + threads - 1) / threads;
    if (rows > 0) {
        if (threads <= 1) Work::take(&work, 0);
        else if (executor) executor->parallel(executor->self, int(threads), Work::take, &work);
        else parallel(int(threads), Work::take, &work);
    }

    for (int64_t g = 0, row = 0; kept && g < task.groups; g++) {
        double sum = 0.0;
        for (int64_t i = 0; i < task.outer * task.inner; i++, row++) sum += losses[row];
        if (mean) sum = divisors[g] == 0.0 ? __builtin_nan("") : sum / divisors[g];
        switch (task.logits.dtype) {
            case DType::float16: put(static_cast<Half*>(task.value) + g, sum); break;
            case DType::bfloat16: put(static_cast<Brain*>(task.value) + g, sum); break;
            case DType::float32: put(static_cast<float*>(task.value) + g, sum); break;
            default: put(static_cast<double*>(task.value) + g, sum);
        }
    }
    return wrong;
}

}  // namespace xentx
