// The row formula of SEMANTICS.md, in vectors.
//
//     m = max x,  rest = sum of exp(x_k - m) but for one k at the maximum,  tail = log1p(rest)
//     loss = A tail + sum_k q_k (m - x_k) + z (m + tail)^2            with A = sum_k q_k
//     gradient_k = u (A p_k - q_k + 2 z (m + tail) p_k),   p_k = exp(x_k - m) / (1 + rest)
//     and where p_k is above one half, A p_k - q_k = (sum of the other q) - A rest / (1 + rest)
//
// Two ways to compute it. Float logits take the quick one: exponentials in float, sums in double,
// one pass through memory. It goes along a row where its classes are many, and across 16 rows at a
// time where they are few or strided and q is that of a class index alone. All else (capped logits,
// a temperature, float64, exact results, blocks) takes the general one, in double. Losses are rounded once, and
// so are gradients of the general way; those of the quick way are within two units of their terms.
#pragma once
#include "exponential.h"
#include "job.h"

namespace xentx {
namespace {

constexpr int kLanes = 16;        // rows in a batch, floats in a vector
constexpr int kBlock = 2048;      // classes in a block: its logits and exponentials fit in L1
constexpr int kFewClasses = 64;   // up to here it pays to go across rows
constexpr int kManyRows = 8;      // rows of up to a block that go along together
constexpr int kMostTiles = 16;    // of 16 rows that go across together

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
// 2^n for an integer n <= 0.
inline double power_of_2(double n) {
    int64_t bits = n < -1022.0 ? 0 : (int64_t(n) + 1023) << 52;
    double power;
    memcpy(&power, &bits, 8);
    return power;
}
inline double absolute(double x) { return x < 0 ? -x : x; }

constexpr float kInfinity = __builtin_inff();
constexpr float kNaN = __builtin_nanf("");

// What q is made of, but for the share that a class index has of its own.
enum class Shares { none, equal, given, mixed };

inline Shares shares_of(const Task& task) {
    if (task.operation == Operation::log_softmax) return Shares::none;
    if (task.operation == Operation::log_softmax_pullback) return Shares::given;  // the cotangent
    const bool smooth = task.label_smoothing != 0.0;
    if (is_soft(task)) return smooth || task.weight ? Shares::mixed : Shares::given;
    return !smooth ? Shares::none : task.weight ? Shares::given : Shares::equal;
}

inline bool is_quick(const Task& task) {
    if (task.exact || task.logits.dtype == DType::float64) return false;
    if (task.operation == Operation::log_softmax) return true;
    if (task.operation == Operation::log_softmax_pullback)
        return task.cotangent.dtype != DType::float64;
    if (task.operation != Operation::cross_entropy || task.logit_softcap != 0.0 ||
        task.temperature != 1.0)
        return false;
    // What is read by vectors is read as floats.
    if (is_soft(task) && task.target.dtype == DType::float64) return false;
    return shares_of(task) == Shares::none || task.weight.dtype != DType::float64;
}
inline bool goes_across(const Task& task) {
    return is_quick(task) && task.operation == Operation::cross_entropy &&
           shares_of(task) == Shares::none &&
           task.classes <= (task.inner > 1 ? kBlock : kFewClasses);
}

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

// A block of logits as floats: in place where that is what they are.
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

// Where an array that is dense in [group, outer, classes, inner] has a row, and its stride.
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

// ---- What a row is multiplied by.

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

// The loss of a row, to where it belongs.
inline void write_loss(const Job& job, const Row& row, double loss) {
    if (!job.task.value) return;
    if (row.target.state == Target::ignored) loss = 0.0;
    else if (row.target.state == Target::wrong) loss = kNaN;
    else if (job.task.sample_weight)  // nothing times infinity is nothing
        loss = row.share == 0.0 && loss == kInfinity ? 0.0 : row.share * loss;
    if (job.losses) job.losses[row.number] = loss;
    else put_at(job.task.logits.dtype, job.task.value, row.number, loss);
}

// The gradient of a row that needs no computing.
inline bool write_trivial_gradient(const Task& task, const Row& row) {
    if (row.target.state == Target::kept) return false;
    if (task.gradient)
        fill_row(task, task.gradient, dense_at(task, row.group, row.outer, row.inner),
                 row.target.state == Target::ignored ? 0.0 : double(kNaN));
    return true;
}

// ---- From sums to losses, for up to 16 rows at a time.

// How far the log-sum-exp is above the maximum.
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

// A leader is the first entry of a row that is at its maximum. Where its p is above one half by
// more than an error of `rest`, no other is there.
constexpr double kLeads = 0.999999;

struct Finish {
    // In: the maximum, and the sum of exponentials over 2^n of all but the leader; the sum of q but
    // for the leader's, that of the leader, and the sum of q_k (m - x_k), all without the target's
    // own share of q; the target's logit, that share, and what else of q is at the target; the
    // row's unit.
    double top[kLanes], sum[kLanes];
    double others[kLanes], at_leader[kLanes], gaps[kLanes];
    double picked[kLanes], own[kLanes], base[kLanes], unit[kLanes];
    // Out: how far the log-sum-exp is above the maximum; the loss; what an exponential over 2^n is
    // multiplied by to be u (A + 2 z lse) p; the gradient at the target, and at the leader.
    double tail[kLanes], loss[kLanes], factor[kLanes];
    double picked_gradient[kLanes], leader_gradient[kLanes], rest[kLanes];
    int64_t unfit[kLanes];  // whether floats can't hold it: a row for the general way

    // A row of which nothing is asked, or no more than its tail.
    void clear(int i) {
        top[i] = sum[i] = others[i] = at_leader[i] = gaps[i] = picked[i] = base[i] = 0.0;
        own[i] = unit[i] = 1.0;
    }

    void compute(int count, double z_loss) {
        using V = Vec<double>;
        auto fits = [](const V& x) __attribute__((always_inline)) {
            V magnitude = max(x, V(0.0) - x);
            return ((V(0x1p-90) < magnitude) & (magnitude < V(0x1p90))) | (x == V(0.0)) | (x != x);
        };
        for (int i = 0; i < count; i += V::kLanes) {
            V zero(0.0), one(1.0), m = load(top + i), x = load(picked + i), w = load(own + i);
            V n = (m * V(Form<double>::log2e) + V(Form<double>::magic)) - V(Form<double>::magic);
            Reference<double> reference(n, 0);
            Tail t(m, reference, load(sum + i), one);
            V at_picked, error;
            exponential(x, reference, at_picked, error);
            V all = one + t.rest, lse = m + t.tail, below = load(others + i);
            V mass = w + (below + load(at_leader + i));
            // Nothing times infinity is nothing.
            V l = (select(w == zero, zero, w * (m - x)) + load(gaps + i)) + mass * t.tail;
            V slope = mass, extra = zero;
            if (z_loss != 0.0) {
                l = l + V(z_loss) * lse * lse;
                extra = V(2.0 * z_loss) * lse;
                slope = slope + extra;
            }
            V u = load(unit + i), f = u * slope / (t.at_top * all);
            store(tail + i, t.tail);
            store(loss + i, l);
            store(factor + i, f);
            store(rest + i, t.rest);
            store(unfit + i, (fits(f) & fits(u) & (max(m, zero - m) < V(kLargest))) ==
                                 Vec<int64_t>(0));
            auto leads = x == m;
            V rest_of_q = below + select(leads, zero, w);
            V at_lead = u * ((rest_of_q - mass * t.rest / all) + extra / all);
            V p = select(leads, one / all, at_picked / (t.at_top * all));
            V at_target = u * ((mass * p - (w + load(base + i))) + extra * p);
            store(leader_gradient + i, at_lead);
            store(picked_gradient + i, select(leads & (t.rest < V(kLeads)), at_lead, at_target));
        }
    }

    // Whether row i has an entry with a probability above one half that is not its target. Its
    // gradient comes from the others: as a rounded exponential times a factor less q, what should
    // be close to 0 would be off by a unit of 1.
    bool misled(int i, bool has_target) const {
        return rest[i] < kLeads && !(has_target && picked[i] == top[i]);
    }
};

// ---- The quick way, along a row.

XENTX_INLINE Vec<float> load_up_to(const float* from, int n, float rest) {
    return n == kLanes ? load(from) : load_first(from, n, rest);
}
XENTX_INLINE void widen_up_to(const float* from, int n, float rest, Vec<double>& low,
                             Vec<double>& high) {
    if (n == kLanes) widen(from, low, high);
    else widen(load_first(from, n, rest), low, high);
}
// Calls step(k, n, lane) for each n <= 16 entries of a block from k on. The leader is in `lane`,
// which is -1 where it is elsewhere.
template <class Step> XENTX_INLINE void for_vectors(int n, int leader, const Step& step) {
    int k = 0;
    const int with_leader = leader < 0 ? n : leader / kLanes * kLanes;
    for (; k + kLanes <= with_leader; k += kLanes) step(k, kLanes, -1);
    if (leader >= 0) {
        step(k, n - k < kLanes ? n - k : kLanes, leader - k);
        k += kLanes;
    }
    for (; k + kLanes <= n; k += kLanes) step(k, kLanes, -1);
    if (k < n) step(k, n - k, -1);
}
// All lanes of a vector but one, which becomes 0.
XENTX_INLINE Vec<float> without(const Vec<float>& v, int lane) {
    static constexpr int32_t masks[2 * kLanes - 1] = {0, 0, 0, 0, 0, 0, 0, 0,
                                                      0, 0, 0, 0, 0, 0, 0, -1};
    return select(load(masks + kLanes - 1 - lane), Vec<float>(0.0f), v);
}

// What exponentials of a block add up to.
struct Sums {
    Vec<double> low, high;  // a sum for each of 16 lanes
    Vec<float> lost;        // by rounding what was summed

    double total() const {
        Vec<double> lost_low, lost_high;
        widen(lost, lost_low, lost_high);
        return sum_of_lanes(low + high) + sum_of_lanes(lost_low + lost_high);
    }
};

inline float maximum(const float* x, int n) {
    Vec<float> a(-kInfinity), b = a, c = a, d = a;
    int k = 0;
    for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
        a = max(load(x + k), a);
        b = max(load(x + k + kLanes), b);
        c = max(load(x + k + 2 * kLanes), c);
        d = max(load(x + k + 3 * kLanes), d);
    }
    for (; k + kLanes <= n; k += kLanes) a = max(load(x + k), a);
    if (k < n) b = max(load_first(x + k, n - k, -kInfinity), b);
    return highest_of(max(max(a, b), max(c, d)));
}

// The first entry of a block that is equal to a number. There is one.
inline int position(const float* x, int n, float number) {
    const Vec<float> v(number);
    int k = 0;
    auto is_at = [&](int i) __attribute__((always_inline)) { return load(x + k + i) == v; };
    for (; k + 4 * kLanes <= n; k += 4 * kLanes)
        if (first_of((is_at(0) | is_at(kLanes)) | (is_at(2 * kLanes) | is_at(3 * kLanes))) >= 0)
            break;
    for (;; k += kLanes) {
        const int lane = first_of(load_up_to(x + k, n - k < kLanes ? n - k : kLanes, kNaN) == v);
        if (lane >= 0) return k + lane;
    }
}

// Exponentials of a block. The leader's is not summed.
template <bool kKeep>
inline void exponentials(const float* x, int n, const Reference<float>& reference, int leader,
                         Sums& sums, float* kept) {
    // Locals, which live in registers: `kept` might otherwise be where a sum is.
    const Reference<float> to = reference;
    Vec<double> low(0.0), high(0.0);
    Vec<float> lost(0.0f);
    for_vectors(n, leader, [&](int k, int count, int lane) __attribute__((always_inline)) {
        Vec<float> value, error;
        __builtin_prefetch(x + k + kBlock);
        exponential(load_up_to(x + k, count, -kInfinity), to, value, error);
        if (kKeep) store(kept + k, value);
        if (lane >= 0) {
            value = without(value, lane);
            error = without(error, lane);
        }
        Vec<double> l, h;
        widen(value, l, h);
        low = low + l;
        high = high + h;
        lost = lost + error;
    });
    sums = {low, high, lost};
}

// q for a block, but for the share that a class index has of its own.
struct Portion {
    const float* q;        // probabilities, a cotangent, or the weights of smoothing
    const float* weights;  // of probabilities, or null
    double keep, share;    // what smoothing makes of probabilities

    XENTX_INLINE Vec<float> read(int k, int n) const {
        return load_up_to(q + k, n, 0.0f);
    }
    // The n < 16 last of a block are padded with 0.
    template <bool kMixed>
    XENTX_INLINE void read(int k, int n, Vec<double>& low, Vec<double>& high) const {
        widen_up_to(q + k, n, 0.0f, low, high);
        if (!kMixed) return;
        low = fma(low, Vec<double>(keep), Vec<double>(share));
        high = fma(high, Vec<double>(keep), Vec<double>(share));
        if (weights) {
            Vec<double> l, h;
            widen_up_to(weights + k, n, 0.0f, l, h);
            low = low * l;
            high = high * h;
        } else if (n != kLanes) {
            double lanes[kLanes] = {};
            store_first(lanes, low, n < 8 ? n : 8);
            if (n > 8) store_first(lanes + 8, high, n - 8);
            low = load(lanes);
            high = load(lanes + 8);
        }
    }
};

// What q of a block adds up to but for the leader's, that of the leader, and the sum of q times the
// gap of its logit to a level, which is the maximum so far.
struct Masses {
    double others, at_leader, gaps;
};

template <bool kMixed, bool kGaps, bool kMasked>
inline Masses weigh(const float* x, const Portion& portion, int n, int leader, float level) {
    using V = Vec<double>;
    const Portion from = portion;
    const V m(level), zero(0.0);
    V low(0.0), high(0.0), gaps_low(0.0), gaps_high(0.0);
    double at_leader = 0.0;
    for_vectors(n, leader, [&](int k, int count, int lane) __attribute__((always_inline)) {
        V l, h, x_low, x_high;
        from.read<kMixed>(k, count, l, h);
        if (kGaps) {
            widen_up_to(x + k, count, level, x_low, x_high);
            x_low = m - x_low;
            x_high = m - x_high;
            if (kMasked) {  // nothing times infinity is nothing
                x_low = select(l == zero, zero, x_low);
                x_high = select(h == zero, zero, x_high);
            }
            gaps_low = fma(l, x_low, gaps_low);
            gaps_high = fma(h, x_high, gaps_high);
        }
        if (lane >= 0) {
            double lanes[kLanes];
            store(lanes, l);
            store(lanes + 8, h);
            at_leader = lanes[lane];
            lanes[lane] = 0.0;
            l = load(lanes);
            h = load(lanes + 8);
        }
        low = low + l;
        high = high + h;
    });
    return {sum_of_lanes(low + high), at_leader, sum_of_lanes(gaps_low + gaps_high)};
}

// The sum of the gaps of a block.
inline double gaps_of(const float* x, int n, float level) {
    const Vec<double> m(level);
    Vec<double> low(0.0), high(0.0), l, h;
    for_vectors(n, -1, [&](int k, int count, int) __attribute__((always_inline)) {
        widen_up_to(x + k, count, level, l, h);
        low = low + (m - l);
        high = high + (m - h);
    });
    return sum_of_lanes(low + high);
}

// Reads the q of a row by blocks.
struct Distribution {
    Shares shares;
    Array from, weights;  // at the row
    bool has_gaps;
    double keep, share;
    double unit;    // of what is read, or of 1 where the shares are equal
    float* buffer;  // two blocks

    Distribution(const Task& task, const Row& row, float* memory)
        : shares(shares_of(task)),
          has_gaps(task.operation != Operation::log_softmax_pullback),
          keep(1.0 - task.label_smoothing),
          share(task.label_smoothing / double(task.classes)),
          unit(1.0),
          buffer(memory) {
        weights = at(task.weight, row.group * task.weight.group);
        if (task.operation == Operation::log_softmax_pullback) {
            from = at(task.cotangent, task.cotangent.at(row.group, row.outer, row.inner));
            // One number, as a sum's gradient is, has the same bits either way.
            if (from && from.classes == 0) {
                shares = Shares::equal;
                gather(from, 0, 1, &unit);
            }
        } else if (is_soft(task)) {
            from = at(task.target, task.target.at(row.group, row.outer, row.inner));
        } else {
            from = weights;
            unit = share;
        }
    }

    // `first` and the n - 1 classes after it.
    Portion block(int64_t first, int n) const {
        Portion portion{nullptr, nullptr, keep, share};
        if (shares == Shares::given || shares == Shares::mixed)
            portion.q = read(from, first, n, buffer);
        if (shares == Shares::mixed && weights)
            portion.weights = read(weights, first, n, buffer + kBlock);
        return portion;
    }
    Masses weigh_block(const float* x, int64_t first, int n, int leader, float level) const {
        const Portion q = block(first, n);
        if (!has_gaps) return weigh<false, false, false>(x, q, n, leader, level);
        const bool mixed = shares == Shares::mixed;
        const Masses found = mixed ? weigh<true, true, false>(x, q, n, leader, level)
                                   : weigh<false, true, false>(x, q, n, leader, level);
        if (found.gaps - found.gaps == 0.0) return found;
        return mixed ? weigh<true, true, true>(x, q, n, leader, level)
                     : weigh<false, true, true>(x, q, n, leader, level);
    }

  private:
    static Array at(Array array, int64_t offset) {
        if (array) array.data = static_cast<char*>(array.data) + offset * size_of(array.dtype);
        return array;
    }
    static const float* read(const Array& array, int64_t first, int n, float* to) {
        const int64_t stride = array.classes, offset = first * stride;
        switch (array.dtype) {
            case DType::float16:
                return floats(static_cast<const Half*>(array.data) + offset, stride, n, to);
            case DType::bfloat16:
                return floats(static_cast<const Brain*>(array.data) + offset, stride, n, to);
            default: return floats(static_cast<const float*>(array.data) + offset, stride, n, to);
        }
    }
};

// A double in two floats.
struct Factor {
    Vec<float> high, low;
    explicit Factor(double factor) : high(float(factor)), low(float(factor - float(factor))) {}
    XENTX_INLINE Vec<float> times(const Vec<float>& x) const { return fma(x, high, x * low); }
    XENTX_INLINE Vec<float> times(const Vec<float>& x, const Vec<float>& and_add) const {
        return fma(x, high, fma(x, low, and_add));
    }
};

// One row after its first pass.
struct Along {
    float* exponentials;  // of the whole row; each block's over 2^(its own n)
    double* scales;       // the n of each block
    double top, sum, scale;
    double others, at_leader, gaps;  // as `Finish` has them, but in units of what is read
    int64_t leader;
};

template <class S>
inline void read_along(const S* x, int64_t stride, int64_t classes, bool keep, float* buffer,
                       const Distribution& q, Along& row) {
    float top = -kInfinity, level = 0.0f;  // the maximum, and that or 0 where it is -inf
    double n = 0.0, sum = 0.0;
    row.others = row.at_leader = row.gaps = 0.0;
    row.leader = -1;
    for (int64_t from = 0; from < classes; from += kBlock) {
        int count = int(classes - from < kBlock ? classes - from : kBlock), leader = -1;
        const float* block = floats(x + from * stride, stride, count, buffer);
        float highest = maximum(block, count);
        if (highest > top) {
            double before = n;
            n = scale_of(highest);
            if (!(absolute(highest) <= kLargest)) {  // for the general way
                row.top = highest;
                row.sum = 1.0;
                return;
            }
            if (top > -kInfinity) {
                // The leader so far joins the others, and all go over the new power of 2.
                Vec<double> e, error;
                exponential(Vec<double>(top), Reference<double>(Vec<double>(before), 0), e, error);
                sum = (sum + e[0]) * power_of_2(before - n);
            }
            row.others += row.at_leader;
            row.gaps += (q.shares == Shares::equal ? double(from) : row.others) *
                        (double(highest) - double(level));
            leader = position(block, count, highest);
            row.leader = from + leader;
            top = level = highest;
        }
        Reference<float> reference{Vec<float>(float(n))};
        float* kept = row.exponentials + from;
        Sums sums;
        if (keep) exponentials<true>(block, count, reference, leader, sums, kept);
        else exponentials<false>(block, count, reference, leader, sums, kept);
        sum += sums.total() * 0x1p-24;  // the bias of Form<float>
        row.scales[from / kBlock] = n;
        if (q.shares == Shares::equal) {
            if (q.has_gaps) row.gaps += gaps_of(block, count, level);
        } else if (q.shares != Shares::none) {
            const Masses masses = q.weigh_block(block, from, count, leader, level);
            row.others += masses.others;
            row.gaps += masses.gaps;
            if (leader >= 0) row.at_leader = masses.at_leader;
        }
    }
    if (q.shares == Shares::equal) {
        row.others = double(classes - 1);
        row.at_leader = 1.0;
    }
    row.top = top;
    row.scale = n;
    row.sum = sum;
}

// What `form` makes of exponentials; it is told which of the block they are, and how many.
template <class Form>
inline void form_block(const float* e, int from, int to, const Form& form, float* g) {
    int k = from;
    for (; k + kLanes <= to; k += kLanes) store(g + k, form(load(e + k), k, kLanes));
    if (k < to) store_first(g + k, form(load_first(e + k, to - k, 0.0f), k, to - k), to - k);
}
template <class Form>
inline void stream_block(const float* e, int from, int to, const Form& form, float* g) {
    int aligned = from + int((64 - (reinterpret_cast<uintptr_t>(g + from) & 63)) % 64 / 4);
    if (aligned > to) aligned = to;
    int whole = aligned + (to - aligned) / kLanes * kLanes;
    form_block(e, from, aligned, form, g);
    for (int k = aligned; k < whole; k += kLanes) stream(g + k, form(load(e + k), k, kLanes));
    form_block(e, whole, to, form, g);
}

// The gradient of a block, with the target's entry among it where 0 <= picked < n.
template <class Form>
inline void write_block(const float* e, int n, const Form& form, int64_t picked, double value,
                        bool streams, int64_t stride, float* g, float*) {
    if (stride != 1) {
        for (int k = 0; k < n; k += kLanes) {
            float lanes[kLanes];
            const int count = n - k < kLanes ? n - k : kLanes;
            store(lanes, form(load_up_to(e + k, count, 0.0f), k, count));
            for (int i = 0; i < kLanes && k + i < n; i++) g[(k + i) * stride] = lanes[i];
        }
    } else if (streams) {
        // No cache line is written both ways: around the target, none is streamed.
        bool here = 0 <= picked && picked < n;
        int before = here ? int(picked < kLanes ? 0 : picked - kLanes + 1) : n;
        int after = here ? int(picked + kLanes < n ? picked + kLanes : n) : n;
        stream_block(e, 0, before, form, g);
        form_block(e, before, after, form, g);
        stream_block(e, after, n, form, g);
    } else {
        form_block(e, 0, n, form, g);
    }
    if (0 <= picked && picked < n) put(g + picked * stride, value);
}
template <class Form, class Narrow>
inline void write_block(const float* e, int n, const Form& form, int64_t picked, double value,
                        bool, int64_t stride, Narrow* g, float* buffer) {
    form_block(e, 0, n, form, buffer);
    int k = 0;
    if (stride == 1)
        for (; k + kLanes <= n; k += kLanes) store(g + k, load(buffer + k));
    for (; k < n; k++) put(g + k * stride, buffer[k]);
    if (0 <= picked && picked < n) put(g + picked * stride, value);
}

template <class S>
inline void write_along(const Task& task, const S* x, const Along& row, const Distribution& q,
                        const Finish& finish, int i, int64_t picked, bool streams, float* buffer,
                        S* g) {
    const Factor whole(finish.factor[i] * 0x1p-24), minus_given(-finish.unit[i] * q.unit);
    const Vec<float> minus_equal(float(-finish.unit[i] * q.unit));
    const double picked_gradient = finish.picked_gradient[i];
    const bool pullback = task.operation == Operation::log_softmax_pullback;  // whose unit is -1
    const int64_t stride = task.logits.classes;
    const int64_t leader = finish.misled(i, picked >= 0) ? row.leader : -1;
    Reference<float> reference{Vec<float>(float(row.scale))};
    for (int64_t from = 0; from < task.classes; from += kBlock) {
        const int count = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        float* e = row.exponentials + from;
        if (row.scales[from / kBlock] != row.scale) {
            // Formed when the maximum so far was lower: again, so that the bits are the row's own.
            const float* block = floats(x + from * stride, stride, count, buffer);
            Sums ignored;
            exponentials<true>(block, count, reference, -1, ignored, e);
        }
        const bool leads_here = from <= leader && leader < from + count;
        auto write = [&](const auto& form) __attribute__((always_inline)) {
            write_block(e, count, form, picked - from, picked_gradient, streams && !leads_here,
                        task.inner, g + from * task.inner, buffer);
        };
        using F = Vec<float>;
        const Portion portion = q.block(from, count);
        switch (q.shares) {
            case Shares::none:
                write([&](const F& v, int, int) __attribute__((always_inline)) {
                    return whole.times(v);
                });
                break;
            case Shares::equal:
                write([&](const F& v, int, int) __attribute__((always_inline)) {
                    return whole.times(v, minus_equal);
                });
                break;
            case Shares::given:
                if (pullback) {
                    write([&](const F& v, int k, int n) __attribute__((always_inline)) {
                        return whole.times(v, portion.read(k, n));
                    });
                    break;
                }
                write([&](const F& v, int k, int n) __attribute__((always_inline)) {
                    return whole.times(v, minus_given.times(portion.read(k, n)));
                });
                break;
            case Shares::mixed:
                write([&](const F& v, int k, int n) __attribute__((always_inline)) {
                    Vec<double> low, high, unit(-finish.unit[i]);
                    portion.read<true>(k, n, low, high);
                    return whole.times(v, narrow(unit * low, unit * high));
                });
        }
        if (leads_here) put(g + leader * task.inner, finish.leader_gradient[i]);
    }
}

// log_softmax, x - (m + tail). In double that cancels nowhere but at a leader whose p is above one
// half: all others are log 2 or more below 0.
template <class S>
inline void write_log_softmax(const Task& task, const S* x, const Along& row, double tail,
                              bool streams, float* buffer, S* to) {
    const Vec<double> lse(row.top + tail);
    for (int64_t from = 0; from < task.classes; from += kBlock) {
        int count = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        const float* block =
            floats(x + from * task.logits.classes, task.logits.classes, count, buffer);
        auto form = [&](const Vec<float>& v, int, int) __attribute__((always_inline)) {
            Vec<double> low, high;
            widen(v, low, high);
            return narrow(low - lse, high - lse);
        };
        write_block(block, count, form, row.leader - from, 0.0 - tail, streams, task.inner,
                    to + from * task.inner, buffer);
    }
}

// ---- The general way: a row at a time, in double.

struct General {
    double *x, *e, *q, *slope;  // padded to whole vectors

    static int64_t bytes(const Task& task) { return 4 * padded(task.classes) * 8; }
    General(const Task& task, void* memory) {
        int64_t n = padded(task.classes);
        x = static_cast<double*>(memory);
        e = x + n;
        q = e + n;
        slope = q + n;
    }
};

// q for a soft target or with smoothing. Padded with 0.
inline void read_distribution(const Task& task, const Row& row, double* q) {
    const int64_t n = task.classes;
    if (task.operation == Operation::log_softmax_pullback) {
        gather(task.cotangent, task.cotangent.at(row.group, row.outer, row.inner), n, q);
    } else {
        const int64_t classes = task.all_classes ? task.all_classes : n;
        double keep = 1.0 - task.label_smoothing, share = task.label_smoothing / double(classes);
        if (is_soft(task)) {
            gather(task.target, task.target.at(row.group, row.outer, row.inner), n, q);
            if (task.label_smoothing != 0.0)
                for (int64_t k = 0; k < n; k++) q[k] = keep * q[k] + share;
        } else {
            for (int64_t k = 0; k < n; k++) q[k] = share;
            if (0 <= row.target.index && row.target.index < n) q[row.target.index] += keep;
        }
        if (task.weight)
            for (int64_t k = 0; k < n; k++)
                q[k] *= read(task.weight, row.group * task.weight.group + k * task.weight.classes);
    }
    for (int64_t k = n; k < padded(n); k++) q[k] = 0.0;
}

// A sum that keeps what its additions lose (Knuth's TwoSum): thousands of small terms beside a
// large one would be rounded away one by one.
struct ExactSum {
    Vec<double> sum{0.0}, lost{0.0};

    XENTX_INLINE void add(const Vec<double>& x) {
        Vec<double> s = sum + x, back = s - sum;
        lost = lost + ((sum - (s - back)) + (x - back));
        sum = s;
    }
    double total() const {
        double s = sum_of_lanes(sum);
        return s - s == 0.0 ? s + sum_of_lanes(lost) : s;  // infinity has lost nothing
    }
};

inline double sum_of(const double* x, int64_t n) {
    ExactSum sum;
    for (int64_t k = 0; k < padded(n); k += 8) sum.add(load(x + k));
    return sum.total();
}

// Logits, capped and over the temperature, with the cap's slope. What pads them is -inf, and so has
// no share in anything.
inline void read_logits(const Task& task, const Row& row, const General& s) {
    const int64_t n = task.classes, all = padded(n);
    gather(task.logits, task.logits.at(row.group, row.outer, row.inner), n, s.x);
    if (task.logit_softcap != 0.0) {
        for (int64_t k = n; k < all; k++) s.x[k] = 0.0;
        for (int64_t k = 0; k < all; k += 8) {
            Vec<double> x, slope;
            soft_cap(load(s.x + k), task.logit_softcap, x, slope);
            store(s.x + k, x);
            store(s.slope + k, slope);
        }
    }
    if (task.temperature != 1.0)
        for (int64_t k = 0; k < n; k++) s.x[k] /= task.temperature;
    for (int64_t k = n; k < all; k++) s.x[k] = -__builtin_inf();
}

inline double maximum(const double* x, int64_t all) {
    Vec<double> highest(-__builtin_inf());
    for (int64_t k = 0; k < all; k += 8) highest = max(load(x + k), highest);
    double top = -__builtin_inf();
    for (int lane = 0; lane < 8; lane++) top = highest[lane] > top ? highest[lane] : top;
    return top;
}

inline void compute_general(const Job& job, const Row& row, void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t all = padded(task.classes);
    const int64_t out = dense_at(task, row.group, row.outer, row.inner);
    const bool capped = task.logit_softcap != 0.0;
    read_logits(task, row, s);

    const double top = maximum(s.x, all);
    int64_t leader = -1;

    // Exponentials, over 2^n where the row can be reduced as it stands, else after a shift. A row
    // without a finite maximum comes out as NaN: its shift is infinite.
    const double shift = absolute(top) <= kLargest ? 0.0 : top;
    const double scale = shift == 0.0 ? scale_of(top) : 0.0;
    const Reference<double> reference{V(scale)};
    ExactSum sum;
    double ties = 0.0;
    for (int64_t k = 0; k < all; k += 8) {
        V value, error, x = load(s.x + k) - V(shift), zero(0.0);
        auto is_top = x == V(top - shift);
        exponential(x, reference, value, error);
        store(s.e + k, value);
        sum.add(select(is_top, zero, value));
        sum.lost = sum.lost + select(is_top, zero, error);
        for (int lane = 0; lane < 8; lane++)
            if (is_top[lane]) {
                ties += 1.0;
                leader = k + lane;
            }
    }
    const Tail t(V(top - shift), Reference<double>(V(scale), 0),
                 V(sum.total() * 0x1p-53), V(ties));
    const double rest = t.rest[0], tail = t.tail[0], all_over_top = t.at_top[0] * (1.0 + rest);
    if (task.operation == Operation::log_softmax) {
        for (int64_t k = 0; k < all; k += 8) store(s.e + k, (load(s.x + k) - V(top)) - V(tail));
        return write_row(task, task.value, out, s.e);
    }

    // A tail + sum of q_k (m - x_k), and z lse^2.
    const bool pullback = task.operation == Operation::log_softmax_pullback;
    const bool dense = pullback || is_soft(task) || task.label_smoothing != 0.0;
    const double lse = top + tail, unit = pullback ? -1.0 : row.unit;
    double mass = row.weight, gaps;
    if (dense) {
        read_distribution(task, row, s.q);
        mass = sum_of(s.q, task.classes);
        ExactSum products;
        for (int64_t k = 0; k < all; k += 8) {
            V q = load(s.q + k), zero(0.0);
            products.add(select(q == zero, zero, q * (V(top) - load(s.x + k))));
        }
        gaps = products.total();
    } else {
        gaps = mass == 0.0 ? 0.0 : mass * (top - s.x[row.target.index]);
    }
    const double penalty = task.z_loss == 0.0 ? 0.0 : task.z_loss * lse * lse;
    if (!pullback) write_loss(job, row, mass * tail + gaps + penalty);
    if (!task.gradient) return;

    // u (A p - q + 2 z lse p): with 1 - p for the entry whose p is above one half, if there is one.
    const double extra = task.z_loss == 0.0 ? 0.0 : 2.0 * task.z_loss * lse;
    const V factor(unit * (mass + extra) / all_over_top * 0x1p-53);
    const double p_top = 1.0 / (1.0 + rest), p_others = rest / (1.0 + rest);
    const double picked = dense ? 0.0 : s.x[row.target.index];
    const double e_picked = dense ? 0.0 : s.e[row.target.index] * 0x1p-53;
    for (int64_t k = 0; k < all; k += 8) {
        V g = load(s.e + k) * factor;
        if (dense) g = g - V(unit) * load(s.q + k);
        store(s.e + k, g);
    }
    if (dense && ties == 1.0 && rest < 1.0) {
        s.q[leader] = 0.0;
        s.e[leader] = unit * ((sum_of(s.q, task.classes) - mass * p_others) + extra * p_top);
    } else if (!dense) {
        double p = picked == top ? p_top : e_picked / all_over_top;
        double p_minus_one = picked == top ? -p_others : p - 1.0;
        s.e[row.target.index] = unit * (mass * p_minus_one + extra * p);
    }
    if (capped)
        for (int64_t k = 0; k < all; k += 8) store(s.e + k, load(s.e + k) * load(s.slope + k));
    if (task.temperature != 1.0)
        for (int64_t k = 0; k < all; k++) s.e[k] /= task.temperature;
    write_row(task, task.gradient, out, s.e);
}

// ---- Blocks of the classes: a row at a time, in double.

constexpr int kState = 6;

// As _core/partials.py: top, rest, ties, mass, gaps and whether the row is kept.
inline void compute_block_state(const Job& job, const Row& row, void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t n = task.classes, all = padded(n), rows = task.groups * task.outer * task.inner;
    double state[kState] = {0.0, 0.0, double(n), 0.0, 0.0, 0.0};  // of an ignored row
    if (row.target.state != Target::ignored) {
        read_logits(task, row, s);
        const double top = maximum(s.x, all);

        // What is summed is a share of the top, wherever that is: none of it where it is -inf.
        const double level = top == -__builtin_inf() ? 0.0 : top;
        ExactSum sum, products;
        double ties = 0.0;
        read_distribution(task, row, s.q);
        const Reference<double> reference{V(0.0)};
        for (int64_t k = 0; k < all; k += 8) {
            V x = load(s.x + k), gap = V(level) - x, zero(0.0), value, error, q = load(s.q + k);
            exponential(x - V(level), reference, value, error);
            auto is_top = x == V(level);
            sum.add(select(is_top, zero, value));
            sum.lost = sum.lost + select(is_top, zero, error);
            products.add(select(q == zero, zero, q * gap));
            for (int lane = 0; lane < 8; lane++) ties += is_top[lane] ? 1.0 : 0.0;
        }
        state[0] = top;
        state[1] = sum.total() * 0x1p-53;
        state[2] = top - top == 0.0 || level == 0.0 ? ties : double(kNaN);  // not at infinity
        state[3] = row.target.state == Target::wrong ? double(kNaN) : sum_of(s.q, n);
        state[4] = products.total();
        state[5] = 1.0;
    }
    for (int i = 0; i < kState; i++) static_cast<double*>(task.value)[i * rows + row.number] = state[i];
}

// u (A p - q + 2 z lse p), and (A - q) - A (1 - p) for the entry whose p is above one half.
inline void compute_block_gradient(const Job& job, const Row& row, void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t n = task.classes, all = padded(n);
    const int64_t out = dense_at(task, row.group, row.outer, row.inner);
    double state[kState];
    gather(task.state, task.state.at(row.group, row.outer, row.inner), kState, state);
    const double top = state[0], rest = state[1], ties = state[2], mass = state[3];
    if (state[5] == 0.0) return fill_row(task, task.gradient, out, 0.0);
    if (!(absolute(top) < __builtin_inf())) return fill_row(task, task.gradient, out, double(kNaN));

    read_logits(task, row, s);
    read_distribution(task, row, s.q);
    const V tail = log1p_positive(V(rest + (ties - 1.0)));
    const double extra = 2.0 * task.z_loss * (top + tail[0]), sum = rest + ties;
    const double complement = rest / sum;
    const bool has_leader = sum < 2.0;
    const Reference<double> reference{V(0.0)};
    for (int64_t k = 0; k < all; k += 8) {
        V x = load(s.x + k), q = load(s.q + k), value, error;
        exponential(x - V(top), reference, value, error);
        V p = value * V(0x1p-53) / V(sum), g = V(mass) * p - q;
        if (has_leader) g = select(x == V(top), (V(mass) - q) - V(mass * complement), g);
        g = V(row.unit) * (g + V(extra) * p);
        if (task.logit_softcap != 0.0) g = g * load(s.slope + k);
        if (task.temperature != 1.0) g = g / V(task.temperature);
        store(s.e + k, g);
    }
    write_row(task, task.gradient, out, s.e);
}

// ---- The quick way, for a batch of rows.

struct Quick {
    double* scales;       // [rows of a batch][blocks]
    float* exponentials;  // [rows of a batch][classes], or [classes][16] across
    float* buffer;        // blocks of logits and for q, or [tiles][classes][16] across
    void* general;        // for the rows that turn out to need it

    static int tiles(const Task& task) {
        if (task.inner == 1) return 1;
        int64_t most = 1024 / task.classes;  // 64 KiB
        return int(most < 1 ? 1 : most > kMostTiles ? kMostTiles : most);
    }
    static int rows(const Task& task) {
        if (goes_across(task)) return kLanes * tiles(task);
        return task.classes <= kBlock ? kManyRows : 1;
    }
    static int64_t blocks(const Task& task) { return (task.classes + kBlock - 1) / kBlock; }
    // In floats.
    static int64_t exponentials_size(const Task& task) {
        return padded(task.classes) * (goes_across(task) ? kLanes : rows(task));
    }
    static int64_t buffer_size(const Task& task) {
        if (goes_across(task)) return rows(task) * task.classes;
        return shares_of(task) == Shares::none ? kBlock : 3 * kBlock;
    }
    static int64_t scales_size(const Task& task) { return padded(rows(task) * blocks(task)); }
    static int64_t bytes(const Task& task) {
        return scales_size(task) * 8 + (exponentials_size(task) + buffer_size(task)) * 4 +
               General::bytes(task);
    }
    Quick(const Task& task, void* memory) {
        scales = static_cast<double*>(memory);
        exponentials = reinterpret_cast<float*>(scales + scales_size(task));
        buffer = exponentials + exponentials_size(task);
        general = buffer + buffer_size(task);
    }
};

template <class S>
inline void compute_along(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    const Quick scratch(task, memory);
    const auto* logits = static_cast<const S*>(task.logits.data);
    const Shares shares = shares_of(task);
    const bool pullback = task.operation == Operation::log_softmax_pullback;
    const bool picks = task.operation == Operation::cross_entropy && !is_soft(task);
    auto distribution = [&](const Row& row) {
        return Distribution(task, row, scratch.buffer + kBlock);
    };
    Row rows[kLanes];
    Along along[kLanes];
    Finish finish;
    for (int i = 0; i < batch.count; i++) {
        rows[i] = row_of(job, batch, i);
        along[i].exponentials = scratch.exponentials + i * padded(task.classes);
        along[i].scales = scratch.scales + i * Quick::blocks(task);
        finish.clear(i);
        const Row& row = rows[i];
        if (row.target.state != Target::kept) continue;
        const S* x = logits + task.logits.at(row.group, row.outer, row.inner);
        const Distribution q = distribution(row);
        read_along(x, task.logits.classes, task.classes, task.gradient != nullptr, scratch.buffer,
                   q, along[i]);
        finish.top[i] = along[i].top;
        finish.sum[i] = along[i].sum;
        finish.picked[i] = along[i].top;
        if (task.operation == Operation::log_softmax) continue;
        finish.others[i] = q.unit * along[i].others;
        finish.at_leader[i] = q.unit * along[i].at_leader;
        finish.gaps[i] = q.unit * along[i].gaps;
        finish.unit[i] = pullback ? -1.0 : row.unit;
        finish.own[i] = 0.0;
        if (!picks) continue;
        finish.picked[i] = to_float(x[row.target.index * task.logits.classes]);
        finish.own[i] = q.keep * row.weight;
        if (shares != Shares::none) finish.base[i] = q.share * row.weight;
    }
    finish.compute(batch.count, task.z_loss);
    for (int i = 0; i < batch.count; i++) {
        const Row& row = rows[i];
        if (row.target.state == Target::kept && finish.unfit[i]) {
            compute_general(job, row, scratch.general);
            continue;
        }
        int64_t from = task.logits.at(row.group, row.outer, row.inner);
        int64_t to = dense_at(task, row.group, row.outer, row.inner);
        if (task.operation == Operation::log_softmax) {
            write_log_softmax(task, logits + from, along[i], finish.tail[i], job.streams,
                              scratch.buffer, static_cast<S*>(task.value) + to);
            continue;
        }
        if (!pullback) write_loss(job, row, finish.loss[i]);
        if (!task.gradient || write_trivial_gradient(task, row)) continue;
        write_along(task, logits + from, along[i], distribution(row), finish, i,
                    picks ? row.target.index : -1, job.streams, scratch.buffer,
                    static_cast<S*>(task.gradient) + to);
    }
    if (job.streams) stream_fence();
}

// Sums of 16 rows at once, a lane each, by what `read_along` does and in its order: with its bits.
inline void sum_across(const float* tile, int classes, const Vec<float>& top, float* kept,
                       Finish& finish, int32_t* leaders) {
    float scales[kLanes];
    for (int i = 0; i < kLanes; i++) {
        finish.top[i] = top[i];
        scales[i] = absolute(finish.top[i]) <= kLargest ? float(scale_of(finish.top[i])) : 0.0f;
    }
    const Reference<float> reference{load(scales)};
    // A sum for each lane that the row would have along its classes.
    double sums[kLanes][kLanes];
    float lost[kLanes][kLanes];
    for (int j = classes; j < kLanes; j++) {
        memset(sums[j], 0, sizeof sums[j]);
        memset(lost[j], 0, sizeof lost[j]);
    }
    const Vec<float> zero(0.0f);
    Vec<int32_t> leader(-1);
    for (int k = 0; k < classes; k++) {
        Vec<float> v = load(tile + k * kLanes), value, error;
        exponential(v, reference, value, error);
        store(kept + k * kLanes, value);
        auto leads = (v == top) & (leader < Vec<int32_t>(0));
        leader = select(leads, Vec<int32_t>(k), leader);
        value = select(leads, zero, value);
        error = select(leads, zero, error);
        double* sum = sums[k % kLanes];
        float* rest = lost[k % kLanes];
        Vec<double> low, high;
        widen(value, low, high);
        if (k >= kLanes) {
            low = low + load(sum);
            high = high + load(sum + 8);
            error = error + load(rest);
        }
        store(sum, low);
        store(sum + 8, high);
        store(rest, error);
    }
    auto tree = [](const Vec<double>* v) __attribute__((always_inline)) {
        return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
    };
    for (int half = 0; half < kLanes; half += 8) {
        Vec<double> s[8], e[8];
        for (int j = 0; j < 8; j++) {
            Vec<double> a[2], b[2];
            widen(load(lost[j]), a[0], a[1]);
            widen(load(lost[j + 8]), b[0], b[1]);
            s[j] = load(sums[j] + half) + load(sums[j + 8] + half);
            e[j] = a[half / 8] + b[half / 8];
        }
        store(finish.sum + half, (tree(s) + tree(e)) * Vec<double>(0x1p-24));
    }
    store(leaders, leader);
}

// 16 rows: their losses, and their gradients in place of their logits. True in `general` are rows
// for the general way.
inline void compute_tile(const Job& job, const Batch& batch, int first, int count, float* tile,
                         float* kept, bool* general) {
    const Task& task = job.task;
    const int classes = int(task.classes);
    Vec<float> top(-kInfinity);
    for (int k = 0; k < classes; k++) top = max(load(tile + k * kLanes), top);
    Finish finish;
    int32_t leaders[kLanes];
    sum_across(tile, classes, top, kept, finish, leaders);
    Row rows[kLanes];
    for (int i = 0; i < kLanes; i++) {
        finish.others[i] = finish.at_leader[i] = finish.gaps[i] = 0.0;
        finish.picked[i] = finish.base[i] = 0.0;
        finish.own[i] = finish.unit[i] = 1.0;
        if (i >= count) continue;
        rows[i] = row_of(job, batch, first + i);
        if (rows[i].target.state != Target::kept) continue;
        finish.picked[i] = tile[rows[i].target.index * kLanes + i];
        finish.own[i] = rows[i].weight;
        finish.unit[i] = rows[i].unit;
    }
    finish.compute(kLanes, task.z_loss);
    for (int i = 0; i < count; i++) {
        general[i] = rows[i].target.state == Target::kept && finish.unfit[i];
        if (!general[i]) write_loss(job, rows[i], finish.loss[i]);
    }
    if (!task.gradient) return;

    float high[kLanes], low[kLanes];
    for (int i = 0; i < kLanes; i++) {
        double factor = finish.factor[i] * 0x1p-24;
        high[i] = float(factor);
        low[i] = float(factor - high[i]);
    }
    const Vec<float> factor_high = load(high), factor_low = load(low);
    for (int k = 0; k < classes; k++) {
        Vec<float> e = load(kept + k * kLanes);
        store(tile + k * kLanes, fma(e, factor_high, e * factor_low));
    }
    for (int i = 0; i < count; i++) {
        if (rows[i].target.state != Target::kept) {
            float value = rows[i].target.state == Target::wrong ? kNaN : 0.0f;
            for (int k = 0; k < classes; k++) tile[k * kLanes + i] = value;
            continue;
        }
        if (finish.misled(i, true)) put(tile + leaders[i] * kLanes + i, finish.leader_gradient[i]);
        put(tile + rows[i].target.index * kLanes + i, finish.picked_gradient[i]);
    }
}

// Tiles of 16 rows, so many that each class is read and written in long runs.
template <class S>
inline void compute_across(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    const Quick scratch(task, memory);
    const int64_t classes = task.classes;
    const int count = batch.count, tiles = (count + kLanes - 1) / kLanes;
    const int64_t step = task.inner > 1 ? task.logits.inner : task.logits.outer;
    const S* x = static_cast<const S*>(task.logits.data) +
                 task.logits.at(batch.group, batch.outer, batch.inner);
    auto tile = [&](int t) { return scratch.buffer + t * classes * kLanes; };
    const int whole = step == 1 ? count / kLanes : 0;

    for (int64_t k = 0; k < classes; k++)
        for (int t = 0; t < whole; t++)
            store(tile(t) + k * kLanes, load(x + k * task.logits.classes + t * kLanes));
    for (int t = whole; t < tiles; t++)
        for (int i = 0; i < kLanes; i++) {
            const int row = t * kLanes + i;
            float* to = tile(t) + i;
            if (row < count) {
                const S* from = x + row * step;
                for (int64_t k = 0; k < classes; k++)
                    to[k * kLanes] = to_float(from[k * task.logits.classes]);
            } else {
                for (int64_t k = 0; k < classes; k++) to[k * kLanes] = 0.0f;
            }
        }

    bool general[kLanes * kMostTiles], any = false;
    for (int t = 0; t < tiles; t++) {
        const int first = t * kLanes, n = count - first < kLanes ? count - first : kLanes;
        compute_tile(job, batch, first, n, tile(t), scratch.exponentials, general + first);
    }
    // Before the others' gradients are written, which may be over the logits.
    for (int i = 0; i < count; i++) {
        if (!general[i]) continue;
        any = true;
        compute_general(job, row_of(job, batch, i), scratch.general);
    }
    if (!task.gradient) return;

    S* g = static_cast<S*>(task.gradient) + dense_at(task, batch.group, batch.outer, batch.inner);
    const int64_t out = task.inner > 1 ? 1 : classes;
    const int swift = out == 1 && !any ? count / kLanes : 0;
    for (int64_t k = 0; k < classes; k++)
        for (int t = 0; t < swift; t++)
            store(g + k * task.inner + t * kLanes, load(tile(t) + k * kLanes));
    for (int i = swift * kLanes; i < count; i++) {
        if (general[i]) continue;
        const float* from = tile(i / kLanes) + i % kLanes;
        for (int64_t k = 0; k < classes; k++) put(g + i * out + k * task.inner, from[k * kLanes]);
    }
}

// ---- nll_loss: sums of q times minus a log-probability, and no exponential.

constexpr int kManyPicked = 64;  // rows in a batch

// Targets that are class indices: an entry a row is read, and one written among zeros.
template <class S> inline void pick(const Job& job, const Batch& batch) {
    const Task& task = job.task;
    const auto* y = static_cast<const S*>(task.logits.data);
    if (job.losses && !task.gradient && !task.weight && !task.sample_weight) {
        // Nothing else is asked of a row, which takes less time than to describe it.
        const bool along_inner = task.inner > 1;
        for (int i = 0; i < batch.count; i++) {
            const int64_t outer = batch.outer + (along_inner ? 0 : i);
            const int64_t inner = batch.inner + (along_inner ? i : 0);
            const Target target = read_target(task, batch.group, outer, inner);
            double loss = target.state == Target::ignored ? 0.0 : double(kNaN);
            if (target.state == Target::kept)
                loss = 0.0 - double(to_float(y[task.logits.at(batch.group, outer, inner) +
                                               target.index * task.logits.classes]));
            job.losses[batch.row + i] = loss;
        }
        return;
    }
    Row rows[kManyPicked];
    for (int i = 0; i < batch.count; i++) {
        Row& row = rows[i] = row_of(job, batch, i);
        double loss = 0.0;
        if (row.target.state == Target::kept) {
            const int64_t at = task.logits.at(row.group, row.outer, row.inner);
            loss = 0.0 - double(to_float(y[at + row.target.index * task.logits.classes]));
            // Nothing times infinity is nothing.
            loss = row.weight == 0.0 && absolute(loss) == kInfinity ? 0.0 : row.weight * loss;
        }
        write_loss(job, row, loss);
    }
    if (!task.gradient) return;
    // It may be over the log-probabilities, which have been read.
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
    S* g = static_cast<S*>(task.gradient) + dense_at(task, row.group, row.outer, row.inner);
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
            write_block(portion.q, n, form, -1, 0.0, job.streams, task.inner, g + from * task.inner,
                        buffer);
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
        V q = load(s.q + k), zero(0.0);
        products.add(select(q == zero, zero, q * (zero - load(s.x + k))));
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

// ---- Every conversion between dtypes, for tests of them alone.

template <class From, class To>
inline void convert_one_by_one(const From* from, int64_t n, To* to) {
    for (int64_t k = 0; k < n; k++) put(to + k, to_float(from[k]));
}
// By whole vectors, of which n is a multiple: where the formula has such a conversion.
template <class From, class To> inline bool convert_vectors(const From*, int64_t, To*) {
    return false;
}
template <class Narrow> inline bool convert_vectors(const Narrow* from, int64_t n, float* to) {
    for (int64_t k = 0; k < n; k += kLanes) store(to + k, load(from + k));
    return true;
}
template <class Narrow> inline bool convert_vectors(const float* from, int64_t n, Narrow* to) {
    for (int64_t k = 0; k < n; k += kLanes) store(to + k, load(from + k));
    return true;
}
inline bool convert_vectors(const float* from, int64_t n, float* to) {
    for (int64_t k = 0; k < n; k += kLanes) store(to + k, load(from + k));
    return true;
}
inline bool convert_vectors(const double* from, int64_t n, float* to) {
    for (int64_t k = 0; k < n; k += kLanes)
        store(to + k, narrow(load(from + k), load(from + k + 8)));
    return true;
}
inline bool convert_vectors(const float* from, int64_t n, double* to) {
    for (int64_t k = 0; k < n; k += kLanes) {
        Vec<double> low, high;
        widen(load(from + k), low, high);
        store(to + k, low);
        store(to + k + 8, high);
    }
    return true;
}

template <class From>
inline bool convert_from(const From* from, int64_t n, DType dtype, void* to, bool vectors) {
    auto as = [&](auto* typed) {
        if (vectors) return convert_vectors(from, n, typed);
        convert_one_by_one(from, n, typed);
        return true;
    };
    switch (dtype) {
        case DType::float16: return as(static_cast<Half*>(to));
        case DType::bfloat16: return as(static_cast<Brain*>(to));
        case DType::float32: return as(static_cast<float*>(to));
        default: return as(static_cast<double*>(to));
    }
}
inline bool convert_numbers(DType source, const void* from, int64_t n, DType dtype, void* to,
                            bool vectors) {
    switch (source) {
        case DType::float16:
            return convert_from(static_cast<const Half*>(from), n, dtype, to, vectors);
        case DType::bfloat16:
            return convert_from(static_cast<const Brain*>(from), n, dtype, to, vectors);
        case DType::float32:
            return convert_from(static_cast<const float*>(from), n, dtype, to, vectors);
        default: return convert_from(static_cast<const double*>(from), n, dtype, to, vectors);
    }
}

// ---- What run.cpp sees.

inline int rows_in_batch(const Task& task) {
    if (task.operation == Operation::nll_loss) return is_soft(task) ? 1 : kManyPicked;
    return is_quick(task) ? Quick::rows(task) : 1;
}

inline int64_t scratch_bytes(const Task& task) {
    if (is_quick(task)) return Quick::bytes(task);
    // nll_loss has a buffer of its own for three blocks of floats.
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
