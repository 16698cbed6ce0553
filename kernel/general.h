// The general implementation: a row at a time, in double, for all options and dtypes, and for blocks
// of the classes.
#pragma once
#include "row.h"

namespace xentx {
namespace {

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

// A sum with the rounding errors of its additions (Knuth's TwoSum). Without them, thousands of small
// terms after a large one would be lost.
struct ExactSum {
    Vec<double> sum{0.0}, lost{0.0};

    XENTX_INLINE void add(const Vec<double>& x) {
        Vec<double> s = sum + x, back = s - sum;
        lost = lost + ((sum - (s - back)) + (x - back));
        sum = s;
    }
    double total() const {
        double s = sum_of_lanes(sum);
        return s - s == 0.0 ? s + sum_of_lanes(lost) : s;  // without the errors if it is not finite
    }
};

inline double sum_of(const double* x, int64_t n) {
    ExactSum sum;
    for (int64_t k = 0; k < padded(n); k += 8) sum.add(load(x + k));
    return sum.total();
}

// Logits after cap and temperature, with the slope of the cap. They are padded with -inf, which adds
// nothing to any sum.
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
    Vec<double> highest(-__builtin_inf()), other = highest;
    for (int64_t k = 0; k < all; k += 16) {
        highest = max(load(x + k), highest);
        other = max(load(x + k + 8), other);
    }
    highest = max(highest, other);
    double top = -__builtin_inf();
    for (int lane = 0; lane < 8; lane++) top = highest[lane] > top ? highest[lane] : top;
    return top;
}

// A row after its logits have become exponentials, which are over 2^n, and times 2^53.
struct Reduced {
    double top, rest, tail, ties;
    double all_over_top;  // the sum of the exponentials over 2^n
    int64_t leader;       // an entry at the maximum
};

// With `keep` the exponentials stay in s.e.
inline Reduced reduce(const General& s, int64_t all, bool keep) {
    using V = Vec<double>;
    const double top = maximum(s.x, all);
    int64_t leader = -1;

    // Exponentials divided by 2^n if the row can be reduced directly, else after a shift. A row
    // without a finite maximum becomes NaN, because its shift is infinite.
    const double shift = absolute(top) <= kLargest ? 0.0 : top;
    const double scale = shift == 0.0 ? scale_of(top) : 0.0;
    const Reference<double> reference{V(scale)};
    ExactSum sum;
    Vec<int64_t> tied(0), last(-1);  // of each lane
    for (int64_t k = 0; k < all; k += 8) {
        V value, error, x = load(s.x + k) - V(shift), zero(0.0);
        auto is_top = x == V(top - shift);
        exponential(x, reference, value, error);
        if (keep) store(s.e + k, value);
        sum.add(select(is_top, zero, value));
        sum.lost = sum.lost + select(is_top, zero, error);
        tied = tied - is_top;  // where it is set, -1
        last = select(is_top, Vec<int64_t>(k), last);
    }
    double ties = 0.0;
    for (int lane = 0; lane < 8; lane++) {
        ties += double(tied[lane]);
        if (last[lane] >= 0) leader = last[lane] + lane;
    }
    const Tail t(V(top - shift), Reference<double>(V(scale), 0),
                 V(sum.total() * 0x1p-53), V(ties));
    const double rest = t.rest[0];
    return {top, rest, t.tail[0], ties, t.at_top[0] * (1.0 + rest), leader};
}

inline void compute_general(const Job& job, const Row& row, void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t all = padded(task.classes);
    const int64_t out = dense_at(task, row.group, row.outer, row.inner);
    const bool capped = task.logit_softcap != 0.0;
    read_logits(task, row, s);
    const auto [top, rest, tail, ties, all_over_top, leader] =
        reduce(s, all, task.gradient != nullptr);
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

        // The sums are relative to the top, or to 0 if the top is -inf.
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

}  // namespace
}  // namespace xentx
