// The quick implementation: exponentials in float, sums in double, one pass through memory. With many
// classes, vectors are along a row. With few or strided classes, and a q that only depends on a class
// index, vectors are across 16 rows.
#pragma once
#include "general.h"

namespace xentx {
namespace {

constexpr int kBlock = 2048;      // classes in a block: its logits and exponentials fit in L1
constexpr int kFewClasses = 64;   // up to here, vectors across rows are faster
constexpr int kManyRows = 8;      // rows of up to a block that are processed together along the classes
constexpr int kMostTiles = 16;    // tiles of 16 rows that are processed together across rows

// How q is computed, without the share of a class index.
enum class Shares { none, equal, given, mixed };

inline Shares shares_of(const Task& task) {
    if (task.operation == Operation::log_softmax) return Shares::none;
    if (task.operation == Operation::log_softmax_pullback) return Shares::given;  // the cotangent
    const bool smooth = task.label_smoothing != 0.0;
    if (is_soft(task)) return smooth || task.weight ? Shares::mixed : Shares::given;
    return !smooth ? Shares::none : task.weight ? Shares::given : Shares::equal;
}

// Whether logits after cap and temperature stay in the range of two floats.
inline bool is_moderate(const Task& task) {
    auto moderate = [](double x) { return 0x1p-10 <= x && x <= 0x1p10; };
    return (task.logit_softcap == 0.0 || moderate(task.logit_softcap)) &&
           moderate(task.temperature);
}
inline bool is_quick(const Task& task) {
    if (task.exact || task.logits.dtype == DType::float64) return false;
    if (task.operation == Operation::log_softmax) return true;
    // With fewer classes than a vector has lanes, and q along a row, the general implementation is
    // faster and more accurate.
    if (shares_of(task) != Shares::none && task.classes < kLanes) return false;
    if (task.operation == Operation::log_softmax_pullback)
        return task.cotangent.dtype != DType::float64;
    if (task.operation != Operation::cross_entropy || !is_moderate(task)) return false;
    // Arrays that are read in vectors are read as floats.
    if (is_soft(task) && task.target.dtype == DType::float64) return false;
    return shares_of(task) == Shares::none || task.weight.dtype != DType::float64;
}
inline bool goes_across(const Task& task) {
    return is_quick(task) && task.operation == Operation::cross_entropy &&
           shares_of(task) == Shares::none &&
           task.classes <= (task.inner > 1 ? kBlock : kFewClasses);
}

// ---- Cap and temperature.

struct Change {
    double cap, over;  // 0 without a cap; the reciprocal of the temperature

    explicit Change(const Task& task) : cap(task.logit_softcap), over(1.0 / task.temperature) {}
    bool caps() const { return cap != 0.0; }
    // c tanh(x / c) and its slope, as in `soft_cap`, in the precision of floats and with one division.
    XENTX_INLINE void apply_cap(Vec<double>& x, Vec<double>& slope) const {
        using V = Vec<double>;
        const Vec<int64_t> sign_bit(INT64_MIN), bits = reinterpret<int64_t>(x);
        const V t = exp_negative(reinterpret<double>(bits | sign_bit) * V(2.0 / cap));
        const V one(1.0), r = one / (one + t), magnitude = ((one - t) * r) * V(cap * over);
        x = reinterpret<double>(reinterpret<int64_t>(magnitude) | (bits & sign_bit));
        slope = V(4.0) * t * (r * r);
    }
    XENTX_INLINE void apply(Vec<double>& x, Vec<double>& slope) const {
        if (caps()) apply_cap(x, slope);
        else x = x * Vec<double>(over);
    }
    double of(float logit) const {
        Vec<double> x{double(logit)}, slope;
        apply(x, slope);
        return x[0];
    }
};

// A double as the sum of two floats.
struct Factor {
    Vec<float> high, low;
    explicit Factor(double factor) : high(float(factor)), low(float(factor - float(factor))) {}
    XENTX_INLINE Vec<float> times(const Vec<float>& x) const { return fma(x, high, x * low); }
    XENTX_INLINE Vec<float> times(const Vec<float>& x, const Vec<float>& and_add) const {
        return fma(x, high, fma(x, low, and_add));
    }
};
// Exponentials of up to 16 logits, from the k-th of a block on. Returns the exponentials times the
// slope of the cap, for the gradient. Changed logits are not rounded to floats, because an error of
// half a unit in a logit of 20 becomes one of 16 units in its exponential.
struct PlainLogits {
    XENTX_INLINE Vec<float> raise(const Vec<float>& x, int, int, const Reference<float>& to,
                                  Vec<float>& value, Vec<float>& error) const {
        exponential(x, to, value, error);
        return value;
    }
};
struct DividedLogits {
    Factor over;

    XENTX_INLINE Vec<float> raise(const Vec<float>& x, int, int, const Reference<float>& to,
                                  Vec<float>& value, Vec<float>& error) const {
        const Vec<float> high = x * over.high;
        const Vec<float> low = fma(x, over.low, fma(x, over.high, Vec<float>(0.0f) - high));
        exponential(high, low, to, value, error);
        return value;
    }
};
struct CappedLogits {
    Change change;
    float* slopes;  // slopes and changed logits of a block, stored if they are not null
    double* changed;

    XENTX_INLINE Vec<float> raise(const Vec<float>& x, int k, int n, const Reference<float>& to,
                                  Vec<float>& value, Vec<float>& error) const {
        using V = Vec<double>;
        V low, high, slope_low, slope_high;
        widen(x, low, high);
        change.apply_cap(low, slope_low);
        change.apply_cap(high, slope_high);
        if (changed) {
            store(changed + k, low);
            store(changed + k + 8, high);
        }
        if (slopes) store(slopes + k, narrow(slope_low, slope_high));

        // Reduced in double, which is faster than logits of two floats.
        const V log2e(Form<double>::log2e), magic(Form<double>::magic), minus_ln2(-0x1.62e42fefa39efp-1);
        const V n_low = fma(low, log2e, magic) - magic, n_high = fma(high, log2e, magic) - magic;
        const Vec<float> r = narrow(fma(n_low, minus_ln2, low), fma(n_high, minus_ln2, high));
        Vec<float> power = narrow(n_low, n_high);
        if (n != kLanes) {  // padding adds nothing to any sum
            float lanes[kLanes];
            store(lanes, power);
            power = load_first(lanes, n, -kInfinity);
        }
        reduced_exponential(r, max(to.lowest, power) + to.magic, value, error);

        V e_low, e_high, lost_low, lost_high;
        widen(value, e_low, e_high);
        widen(error, lost_low, lost_high);
        return narrow((e_low + lost_low) * slope_low, (e_high + lost_high) * slope_high);
    }
};
// Calls run(logits), for the logits of a task.
template <class Run>
XENTX_INLINE void with_logits(const Change& change, float* slopes, double* changed, const Run& run) {
    if (change.caps()) run(CappedLogits{change, slopes, changed});
    else if (change.over != 1.0) run(DividedLogits{Factor(change.over)});
    else run(PlainLogits());
}

// ---- From sums to losses, for up to 16 rows at a time.

// The leader of a row is the first entry at its maximum. If its p is above one half by more than an
// error of `rest`, no other entry is at the maximum.
constexpr double kLeads = 0.999999;

struct Finish {
    // In: the maximum of the logits as they are given, and the sum of exponentials over 2^n of all but
    // the leader; the sum of q but for the leader's, that of the leader, and the sum of q_k (m - x_k), all
    // without the target's own share of q; the target's logit as it is given, that share, and what else
    // of q is at the target; the row's unit.
    double top[kLanes], sum[kLanes];
    double others[kLanes], at_leader[kLanes], gaps[kLanes];
    double picked[kLanes], own[kLanes], base[kLanes], unit[kLanes];
    // Out: how far the log-sum-exp is above the maximum; the loss; what an exponential over 2^n is
    // multiplied by to be u (A + 2 z lse) p; the gradient at the target, and at the leader.
    double tail[kLanes], loss[kLanes], factor[kLanes];
    double picked_gradient[kLanes], leader_gradient[kLanes], rest[kLanes];
    int64_t unfit[kLanes];  // whether the row is outside of the range of floats, and needs general.h

    // A row of which no result is needed, or only its tail.
    void clear(int i) {
        top[i] = sum[i] = others[i] = at_leader[i] = gaps[i] = picked[i] = base[i] = 0.0;
        own[i] = unit[i] = 1.0;
    }

    void compute(int count, const Change& change, double z_loss) {
        using V = Vec<double>;
        auto fits = [](const V& x) __attribute__((always_inline)) {
            V magnitude = max(x, V(0.0) - x);
            return ((V(0x1p-90) < magnitude) & (magnitude < V(0x1p90))) | (x == V(0.0)) | (x != x);
        };
        for (int i = 0; i < count; i += V::kLanes) {
            V zero(0.0), one(1.0), m = load(top + i), x = load(picked + i), w = load(own + i);
            V m_slope, x_slope;
            const auto leads = x == m, is_there = V(-kInfinity) < m;
            change.apply(m, m_slope);
            change.apply(x, x_slope);
            V n = (m * V(Form<double>::log2e) + V(Form<double>::magic)) - V(Form<double>::magic);
            Reference<double> reference(n, 0);
            Tail t(m, reference, load(sum + i), one);
            V at_picked, error;
            exponential(x, reference, at_picked, error);
            V all = one + t.rest, lse = m + t.tail, below = load(others + i);
            V mass = w + (below + load(at_leader + i));
            // 0, also if the other factor is infinite.
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
            store(unfit + i, (fits(f) & fits(u) & is_there & (max(m, zero - m) < V(kLargest))) ==
                                 Vec<int64_t>(0));
            V rest_of_q = below + select(leads, zero, w);
            V at_lead = u * ((rest_of_q - mass * t.rest / all) + extra / all);
            V p = select(leads, one / all, at_picked / (t.at_top * all));
            V at_target = u * ((mass * p - (w + load(base + i))) + extra * p);
            if (change.caps()) {
                at_lead = at_lead * m_slope;
                at_target = at_target * x_slope;
            }
            store(leader_gradient + i, at_lead);
            store(picked_gradient + i, select(leads & (t.rest < V(kLeads)), at_lead, at_target));
        }
    }

    // Whether row i has an entry with a probability above one half that is not its target. The
    // gradient of this entry is computed from the other entries. Otherwise a gradient near 0 would
    // have the rounding error of a number near 1.
    bool misled(int i, bool has_target) const {
        return rest[i] < kLeads && !(has_target && picked[i] == top[i]);
    }
};

// ---- Along a row.

XENTX_INLINE Vec<float> load_up_to(const float* from, int n, float rest) {
    return n == kLanes ? load(from) : load_first(from, n, rest);
}
XENTX_INLINE void widen_up_to(const float* from, int n, float rest, Vec<double>& low,
                             Vec<double>& high) {
    if (n == kLanes) widen(from, low, high);
    else widen(load_first(from, n, rest), low, high);
}
XENTX_INLINE void widen_up_to(const double* from, int n, double rest, Vec<double>& low,
                             Vec<double>& high) {
    low = n < 8 ? load_first(from, n, rest) : load(from);
    high = n == kLanes ? load(from + 8) : load_first(from + 8, n < 8 ? 0 : n - 8, rest);
}
// Calls step(k, n, lane) for each n <= 16 entries of a block from k on. `lane` is that of the leader,
// or -1 if the leader is not among them.
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
// A vector with one lane set to 0.
XENTX_INLINE Vec<float> without(const Vec<float>& v, int lane) {
    static constexpr int32_t masks[2 * kLanes - 1] = {0, 0, 0, 0, 0, 0, 0, 0,
                                                      0, 0, 0, 0, 0, 0, 0, -1};
    return select(load(masks + kLanes - 1 - lane), Vec<float>(0.0f), v);
}

// The sum of the exponentials of a block.
struct Sums {
    Vec<double> low, high;  // a sum for each of 16 lanes
    Vec<float> lost;        // the rounding errors of the sums

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

// The first entry of a block that is equal to a number. It must exist.
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
template <bool kKeep, class Logits>
inline void exponentials(const Logits& logits, const float* x, int n, const Reference<float>& reference,
                         int leader, Sums& sums, float* kept) {
    // Local variables stay in registers, because `kept` cannot alias them.
    const Reference<float> to = reference;
    Vec<double> low(0.0), high(0.0);
    Vec<float> lost(0.0f);
    for_vectors(n, leader, [&](int k, int count, int lane) __attribute__((always_inline)) {
        Vec<float> value, error;
        __builtin_prefetch(x + k + kBlock);
        const Vec<float> v = load_up_to(x + k, count, -kInfinity);
        const Vec<float> sloped = logits.raise(v, k, count, to, value, error);
        if (kKeep) store(kept + k, sloped);
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

// q for a block, without the share of a class index.
struct Portion {
    const float* q;        // probabilities, a cotangent, or the weights of smoothing
    const float* weights;  // factors of the probabilities, or null
    double keep, share;    // smoothing: the factor of the probabilities, and what is added

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

// The sum of q of a block without the leader, q of the leader, and the sum of q times the distance of
// its logit to a level, which is the maximum so far.
struct Masses {
    double others, at_leader, gaps;
};

template <bool kMixed, bool kGaps, bool kMasked, class Real>
inline Masses weigh(const Real* x, const Portion& portion, int n, int leader, Real level) {
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
            if (kMasked) {  // 0, also if the other factor is infinite
                x_low = select((l == zero) & is_infinite(x_low), zero, x_low);
                x_high = select((h == zero) & is_infinite(x_high), zero, x_high);
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
template <class Real> inline double gaps_of(const Real* x, int n, Real level) {
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
    double unit;    // the factor of what is read, or of 1 if the shares are equal
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
            // A broadcast number, such as the gradient of a sum, has the same bits in both cases.
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
    template <class Real>
    Masses weigh_block(const Real* x, int64_t first, int n, int leader, Real level) const {
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

// One row after its first pass.
struct Along {
    float* exponentials;  // of the whole row, times the cap's slope; each block over 2^n with its n
    float* slopes;        // of a cap, if q needs them; else null
    double* changed;      // capped logits of a block, if q needs them; else null
    double* scales;       // the n of each block
    float top;            // of the logits before cap and temperature
    double sum, scale;
    double others, at_leader, gaps;  // as in `Finish`, in units of the array that is read
    int64_t leader;
};

// Exponentials of a block. They are stored if the row stores them.
inline Sums raise_block(const Change& change, const float* block, int64_t from, int n, double scale,
                        int leader, bool keep, const Along& row) {
    const Reference<float> reference{Vec<float>(float(scale))};
    Sums sums;
    with_logits(change, keep && row.slopes ? row.slopes + from : nullptr, row.changed,
                [&](const auto& logits) {
                    float* kept = row.exponentials + from;
                    if (keep) exponentials<true>(logits, block, n, reference, leader, sums, kept);
                    else exponentials<false>(logits, block, n, reference, leader, sums, kept);
                });
    return sums;
}

template <class S>
inline void read_along(const S* x, int64_t stride, int64_t classes, bool keep, float* buffer,
                       const Change& change, const Distribution& q, Along& row) {
    // The maximum so far, before and after cap and temperature, and the level of the gaps.
    float top = -kInfinity;
    double changed_top = 0.0, level = 0.0;
    double n = 0.0, sum = 0.0;
    row.others = row.at_leader = row.gaps = 0.0;
    row.leader = -1;
    for (int64_t from = 0; from < classes; from += kBlock) {
        int count = int(classes - from < kBlock ? classes - from : kBlock), leader = -1;
        const float* block = floats(x + from * stride, stride, count, buffer);
        float highest = maximum(block, count);
        if (highest > top) {
            const double before = n, last_top = changed_top, last_level = level;
            changed_top = change.of(highest);
            level = change.caps() ? changed_top : double(highest);
            n = scale_of(changed_top);
            if (!(absolute(changed_top) <= kLargest)) {  // needs general.h
                row.top = highest;
                row.sum = 1.0;
                return;
            }
            if (top > -kInfinity) {
                // The previous leader is added to the others, and all are rescaled to the new power of 2.
                Vec<double> e, error;
                exponential(Vec<double>(last_top), Reference<double>(Vec<double>(before), 0), e,
                            error);
                sum = (sum + e[0]) * power_of_2(before - n);
            }
            row.others += row.at_leader;
            row.gaps += (q.shares == Shares::equal ? double(from) : row.others) *
                        (level - last_level);
            leader = position(block, count, highest);
            row.leader = from + leader;
            top = highest;
        } else if (change.caps() && row.leader < 0) {  // -inf, which a cap makes finite
            break;
        }
        // The bias of Form<float>.
        sum += raise_block(change, block, from, count, n, leader, keep, row).total() * 0x1p-24;
        row.scales[from / kBlock] = n;
        if (q.shares == Shares::equal) {
            if (q.has_gaps)
                row.gaps += change.caps() ? gaps_of(row.changed, count, level)
                                          : gaps_of(block, count, float(level));
        } else if (q.shares != Shares::none) {
            const Masses masses =
                change.caps() ? q.weigh_block(row.changed, from, count, leader, level)
                              : q.weigh_block(block, from, count, leader, float(level));
            row.others += masses.others;
            row.gaps += masses.gaps;
            if (leader >= 0) row.at_leader = masses.at_leader;
        }
    }
    if (!change.caps()) row.gaps *= change.over;
    if (q.shares == Shares::equal) {
        row.others = double(classes - 1);
        row.at_leader = 1.0;
    }
    row.top = top;
    row.scale = n;
    row.sum = sum;
}

// Applies `form` to the exponentials of a block. Its arguments are their place and number.
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
        // A cache line must not be written by both kinds of stores, so those around the target are
        // not streamed.
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
inline void write_along(const Task& task, const S* x, const Along& row, const Change& change,
                        const Distribution& q,
                        const Finish& finish, int i, int64_t picked, bool streams, float* buffer,
                        S* g) {
    const Factor whole(finish.factor[i] * 0x1p-24), minus_given(-finish.unit[i] * q.unit);
    const Vec<float> minus_equal(float(-finish.unit[i] * q.unit));
    const double picked_gradient = finish.picked_gradient[i];
    const bool pullback = task.operation == Operation::log_softmax_pullback;  // whose unit is -1
    const int64_t stride = task.logits.classes;
    const int64_t leader = finish.misled(i, picked >= 0) ? row.leader : -1;
    for (int64_t from = 0; from < task.classes; from += kBlock) {
        const int count = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        float* e = row.exponentials + from;
        if (row.scales[from / kBlock] != row.scale) {
            // The maximum has grown since this block. It is computed again, so that the bits do not
            // depend on the other blocks.
            const float* block = floats(x + from * stride, stride, count, buffer);
            raise_block(change, block, from, count, row.scale, -1, true, row);
        }
        const bool leads_here = from <= leader && leader < from + count;
        auto write = [&](const auto& form) __attribute__((always_inline)) {
            write_block(e, count, form, picked - from, picked_gradient, streams && !leads_here,
                        task.inner, g + from * task.inner, buffer);
        };
        using F = Vec<float>;
        const Portion portion = q.block(from, count);
        const float* slopes = row.slopes ? row.slopes + from : nullptr;
        auto sloped = [&](const F& v, int k, int n) __attribute__((always_inline)) {
            return slopes ? v * load_up_to(slopes + k, n, 0.0f) : v;
        };
        switch (q.shares) {
            case Shares::none:
                write([&](const F& v, int, int) __attribute__((always_inline)) {
                    return whole.times(v);
                });
                break;
            case Shares::equal:
                write([&](const F& v, int k, int n) __attribute__((always_inline)) {
                    return whole.times(v, sloped(minus_equal, k, n));
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
                    return whole.times(v, sloped(minus_given.times(portion.read(k, n)), k, n));
                });
                break;
            case Shares::mixed:
                write([&](const F& v, int k, int n) __attribute__((always_inline)) {
                    Vec<double> low, high, unit(-finish.unit[i]);
                    portion.read<true>(k, n, low, high);
                    return whole.times(v, sloped(narrow(unit * low, unit * high), k, n));
                });
        }
        if (leads_here) put(g + leader * task.inner, finish.leader_gradient[i]);
    }
}

// log_softmax, x - (m + tail). In double this cancels only at a leader whose p is above one half. All
// other results are at least log 2 below 0.
template <class S>
inline void write_log_softmax(const Task& task, const S* x, const Along& row, double tail,
                              bool streams, float* buffer, S* to) {
    const Vec<double> lse(double(row.top) + tail);
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

// ---- A batch of rows.

struct Quick {
    double* scales;       // [rows of a batch][blocks]
    float* exponentials;  // [rows of a batch][classes], or [classes][16] across
    float* slopes;        // likewise, or null
    double* changed;      // a block of capped logits, or null
    float* buffer;        // blocks of logits and for q, or [tiles][classes][16] across
    void* general;        // for rows that need the general implementation

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
    // In numbers of floats.
    static int64_t exponentials_size(const Task& task) {
        return padded(task.classes) * (goes_across(task) ? kLanes : rows(task));
    }
    static int64_t buffer_size(const Task& task) {
        if (goes_across(task)) return rows(task) * task.classes;
        return shares_of(task) == Shares::none ? kBlock : 3 * kBlock;
    }
    static int64_t scales_size(const Task& task) { return padded(rows(task) * blocks(task)); }
    // Whether q is multiplied by the cap's slopes too, and the gaps are those of capped logits.
    static bool keeps_capped(const Task& task) {
        return task.logit_softcap != 0.0 && shares_of(task) != Shares::none;
    }
    static int64_t bytes(const Task& task) {
        const int64_t capped = keeps_capped(task) ? exponentials_size(task) * 4 + kBlock * 8 : 0;
        return scales_size(task) * 8 + (exponentials_size(task) + buffer_size(task)) * 4 + capped +
               General::bytes(task);
    }
    Quick(const Task& task, void* memory) {
        scales = static_cast<double*>(memory);
        exponentials = reinterpret_cast<float*>(scales + scales_size(task));
        buffer = exponentials + exponentials_size(task);
        float* rest = buffer + buffer_size(task);
        slopes = nullptr;
        changed = nullptr;
        if (keeps_capped(task)) {
            changed = reinterpret_cast<double*>(rest);
            slopes = rest + 2 * kBlock;
            rest = slopes + exponentials_size(task);
        }
        general = rest;
    }
};

template <class S>
inline void compute_along(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    const Quick scratch(task, memory);
    const Change change(task);
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
        along[i].slopes =
            scratch.slopes ? scratch.slopes + i * padded(task.classes) : nullptr;
        along[i].changed = scratch.changed;
        along[i].scales = scratch.scales + i * Quick::blocks(task);
        finish.clear(i);
        const Row& row = rows[i];
        if (row.target.state != Target::kept) continue;
        const S* x = logits + task.logits.at(row.group, row.outer, row.inner);
        const Distribution q = distribution(row);
        read_along(x, task.logits.classes, task.classes, task.gradient != nullptr, scratch.buffer,
                   change, q, along[i]);
        finish.top[i] = along[i].top;
        finish.sum[i] = along[i].sum;
        finish.picked[i] = along[i].top;
        if (task.operation == Operation::log_softmax) continue;
        finish.others[i] = q.unit * along[i].others;
        finish.at_leader[i] = q.unit * along[i].at_leader;
        finish.gaps[i] = q.unit * along[i].gaps;
        finish.unit[i] = pullback ? -1.0 : row.unit * change.over;
        finish.own[i] = 0.0;
        if (!picks) continue;
        finish.picked[i] = to_float(x[row.target.index * task.logits.classes]);
        finish.own[i] = q.keep * row.weight;
        if (shares != Shares::none) finish.base[i] = q.share * row.weight;
    }
    finish.compute(batch.count, change, task.z_loss);
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
        write_along(task, logits + from, along[i], change, distribution(row), finish, i,
                    picks ? row.target.index : -1, job.streams, scratch.buffer,
                    static_cast<S*>(task.gradient) + to);
    }
    if (job.streams) stream_fence();
}

// Sums of 16 rows at once, one in each lane. The operations and their order are those of `read_along`,
// and so are the bits.
template <class Logits>
inline void sum_across(const Logits& logits, const float* tile, int classes, const Vec<float>& top,
                       const Reference<float>& reference, float* kept, Finish& finish,
                       int32_t* leaders) {
    // One sum for each lane of a row in `read_along`.
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
        store(kept + k * kLanes, logits.raise(v, 0, kLanes, reference, value, error));
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

// 16 rows: their losses, and their gradients instead of their logits. Rows that are true in `general`
// need the general implementation.
inline void compute_tile(const Job& job, const Batch& batch, int first, int count, float* tile,
                         float* kept, bool* general) {
    const Task& task = job.task;
    const int classes = int(task.classes);
    Vec<float> top(-kInfinity);
    for (int k = 0; k < classes; k++) top = max(load(tile + k * kLanes), top);
    Finish finish;
    float scales[kLanes];
    const Change change(task);
    for (int i = 0; i < kLanes; i++) {
        const double changed = change.of(top[i]);
        finish.top[i] = top[i];
        scales[i] = absolute(changed) <= kLargest ? float(scale_of(changed)) : 0.0f;
    }
    const Reference<float> reference{load(scales)};
    int32_t leaders[kLanes];
    with_logits(change, nullptr, nullptr, [&](const auto& logits) {
        sum_across(logits, tile, classes, top, reference, kept, finish, leaders);
    });
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
        finish.unit[i] = rows[i].unit * change.over;
    }
    finish.compute(kLanes, change, task.z_loss);
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

// Several tiles of 16 rows, so that each class is read and written in long runs.
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
    // Before the gradients of the other rows are written, because they may overwrite the logits.
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

}  // namespace
}  // namespace xentx
