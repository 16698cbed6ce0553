// row_stats: the fields of RowStats for each row, or the gradient for their cotangents.
//
//     lse = m + tail,   log_prob = sum_k y_k (x_k - lse),   entropy = tail + gap
//     gradient_k = A p_k - r_k + (2 u z lse + c_lse + c_entropy (m - x_k - gap)) p_k
//     with gap = sum_k p_k (m - x_k),   r = u q - c_log_prob y,   A = sum_k r_k
//
// with the other symbols as in rows.h. y is the target without weights and smoothing. No term of the
// entropy is negative. r takes the place of u q, so the gradient cancels no more than in rows.h.
//
// Losses, and the gradients of rows for which only the loss has a cotangent, have the same bits as those
// of cross_entropy. The same code computes them.
#pragma once
#include "quick.h"

namespace xentx {
namespace {

// Defined in rows.h.
inline void compute_batch(const Job& job, const Batch& batch, void* memory);

inline Task loss_of(Task task) {
    task.operation = Operation::cross_entropy;
    return task;
}

inline bool has_quick_stats(const Task& task) {
    return !is_soft(task) && task.logit_softcap == 0.0 && task.temperature == 1.0 &&
           is_quick(loss_of(task));
}

struct Cotangents {
    double loss = 0.0, lse = 0.0, log_prob = 0.0, entropy = 0.0;

    Cotangents() = default;
    Cotangents(const Task& task, const Row& row)
        : loss(task.cotangent ? row.unit : 0.0),
          lse(read(task.lse_cotangent, row)),
          log_prob(read(task.log_prob_cotangent, row)),
          entropy(read(task.entropy_cotangent, row)) {}

    bool is_loss_alone() const { return lse == 0.0 && log_prob == 0.0 && entropy == 0.0; }

  private:
    static double read(Array array, const Row& row) {
        double value = 0.0;
        array.classes = 0;
        if (array) gather(array, array.at(row.group, row.outer, row.inner), 1, &value);
        return value;
    }
};

// The kind of the gradient of a row.
enum class Whose { trivial, loss, own };

inline Whose gradient_of(const Task& task, const Row& row, const Cotangents& c) {
    if (row.target.state == Target::ignored) return Whose::trivial;
    // An index out of range affects the loss, and the log-probability, which is constant.
    if (row.target.state == Target::wrong) return c.loss == 0.0 ? Whose::own : Whose::trivial;
    return task.cotangent && c.is_loss_alone() ? Whose::loss : Whose::own;
}

// The first entry that is NaN, else the first of the largest.
template <class S> inline int64_t argmax(const S* x, int64_t stride, int64_t n) {
    int64_t best = 0;
    for (int64_t k = 0; k < n; k++) {
        const auto value = to_float(x[k * stride]);
        if (value != value) return k;
        if (value > to_float(x[best * stride])) best = k;
    }
    return best;
}

struct Fields {
    double lse, log_prob, entropy;
    bool correct;
    int64_t prediction;
};

inline void write_fields(const Task& task, const Row& row, const Fields& fields) {
    const DType dtype = task.logits.dtype;
    put_at(dtype, task.lse, row.number, fields.lse);
    put_at(dtype, task.log_prob, row.number,
           row.target.state == Target::wrong ? double(kNaN) : fields.log_prob);
    put_at(dtype, task.entropy, row.number, fields.entropy);
    task.correct[row.number] = fields.correct;
    if (task.prediction_dtype == DType::int64)
        static_cast<int64_t*>(task.prediction)[row.number] = fields.prediction;
    else
        static_cast<int32_t*>(task.prediction)[row.number] = int32_t(fields.prediction);
}

// ---- In double: everything except the loss and its gradient.

template <class S>
inline void compute_general_stats(const Job& job, const Row& row, const Cotangents& c,
                                  void* memory) {
    using V = Vec<double>;
    const Task& task = job.task;
    const General s(task, memory);
    const int64_t n = task.classes, all = padded(n);
    double* y = s.slope + all;  // see `scratch_bytes`
    Task plain = task;
    plain.label_smoothing = 0.0;
    plain.weight = Array();
    read_distribution(plain, row, y);
    read_logits(task, row, s);
    const Reduced r = reduce(s, all, true);
    const V zero(0.0), top(r.top);
    auto gap_of = [&](int64_t k) __attribute__((always_inline)) {
        return select(load(s.e + k) == zero, zero, top - load(s.x + k));
    };
    ExactSum gaps;
    for (int64_t k = 0; k < all; k += 8) gaps.add(load(s.e + k) * gap_of(k));
    const double gap = gaps.total() * 0x1p-53 / r.all_over_top, lse = r.top + r.tail;

    if (task.value) {
        ExactSum products;
        for (int64_t k = 0; k < all; k += 8) {
            V q = load(y + k);
            products.add(select(q == zero, zero, q * (top - load(s.x + k))));
        }
        const auto* x = static_cast<const S*>(task.logits.data) +
                        task.logits.at(row.group, row.outer, row.inner);
        const int64_t prediction = argmax(x, task.logits.classes, n);
        const int64_t wanted = is_soft(task) ? argmax(y, 1, n) : row.target.index;
        const double loss = sum_of(y, n) * r.tail + products.total();
        write_fields(task, row, {lse, -loss, r.tail + gap, prediction == wanted, prediction});
    }
    if (!task.gradient) return;

    read_distribution(task, row, s.q);
    for (int64_t k = 0; k < all; k += 8)
        store(s.q + k, V(c.loss) * load(s.q + k) - V(c.log_prob) * load(y + k));
    const double mass = sum_of(s.q, n);
    double extra = c.lse - c.entropy * gap;
    if (task.z_loss != 0.0) extra += c.loss * (2.0 * task.z_loss * lse);
    const double p_top = 1.0 / (1.0 + r.rest), p_others = r.rest / (1.0 + r.rest);
    const V scale(0x1p-53 / r.all_over_top), level(mass + extra), slope(c.entropy);
    for (int64_t k = 0; k < all; k += 8) {
        V p = load(s.e + k) * scale;
        store(s.x + k, p * (level + slope * gap_of(k)) - load(s.q + k));
    }
    if (r.ties == 1.0 && r.rest < 1.0) {
        s.q[r.leader] = 0.0;
        s.x[r.leader] = (sum_of(s.q, n) - mass * p_others) + extra * p_top;
    }
    if (task.logit_softcap != 0.0)
        for (int64_t k = 0; k < all; k += 8) store(s.x + k, load(s.x + k) * load(s.slope + k));
    if (task.temperature != 1.0)
        for (int64_t k = 0; k < all; k++) s.x[k] /= task.temperature;
    write_row(task, task.gradient, dense_at(task, row.group, row.outer, row.inner), s.x);
}

template <class S>
inline void compute_row_in_double(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    const Row row = row_of(job, batch, 0);
    const Cotangents c(task, row);
    const Whose whose = gradient_of(task, row, c);
    Job loss = job;
    loss.task = loss_of(task);
    if (whose == Whose::own) loss.task.gradient = nullptr;
    compute_batch(loss, batch, memory);
    if (row.target.state == Target::ignored) {
        if (task.value) write_fields(task, row, {});
    } else if (task.value || whose == Whose::own) {
        compute_general_stats<S>(job, row, c, memory);
    }
}

// ---- The quick implementation for class indices, along a row.

// If the exponential is 0, so is the gap, also for a logit of -inf.
XENTX_INLINE Vec<float> not_infinite(const Vec<float>& x) {
    return max(Vec<float>(-0x1.fffffep127f), x);
}

// The sum of the exponentials of a row times their gaps, over 2^n with the n of the final maximum.
template <class S>
inline double sum_of_gaps(const S* x, int64_t stride, int64_t classes, const Along& row,
                          float* buffer) {
    using V = Vec<double>;
    const V top(row.top);
    double sum = 0.0;
    for (int64_t from = 0; from < classes; from += kBlock) {
        const int count = int(classes - from < kBlock ? classes - from : kBlock);
        const float* block = floats(x + from * stride, stride, count, buffer);
        const float* e = row.exponentials + from;
        V low(0.0), high(0.0);
        for_vectors(count, -1, [&](int k, int n, int) __attribute__((always_inline)) {
            V e_low, e_high, x_low, x_high;
            widen_up_to(e + k, n, 0.0f, e_low, e_high);
            widen(not_infinite(load_up_to(block + k, n, 0.0f)), x_low, x_high);
            low = fma(e_low, top - x_low, low);
            high = fma(e_high, top - x_high, high);
        });
        const double scale = power_of_2(row.scales[from / kBlock] - row.scale);
        sum += sum_of_lanes(low + high) * scale * 0x1p-24;
    }
    return sum;
}

inline bool fits_floats(double x) {
    const double magnitude = absolute(x);
    return (0x1p-90 < magnitude && magnitude < 0x1p90) || x == 0.0 || x != x;
}

// The gradient of a row: e_k (level + slope (m - x_k)), except at the target and the leader.
struct Slopes {
    double level, slope;
    double picked_gradient, leader_gradient;
    int64_t picked, leader;  // -1 if there is no such entry that is written separately
};

template <class S>
inline void write_slopes(const Task& task, const S* x, const Along& row, const Slopes& slopes,
                         bool streams, float* buffer, S* g) {
    using V = Vec<double>;
    const int64_t stride = task.logits.classes;
    const Factor whole(slopes.level * 0x1p-24);
    const V level(slopes.level * 0x1p-24), slope(slopes.slope * 0x1p-24), top(row.top);
    const Reference<float> reference{Vec<float>(float(row.scale))};
    for (int64_t from = 0; from < task.classes; from += kBlock) {
        const int count = int(task.classes - from < kBlock ? task.classes - from : kBlock);
        float* e = row.exponentials + from;
        const float* block = floats(x + from * stride, stride, count, buffer);
        if (row.scales[from / kBlock] != row.scale) {  // as in `write_along`
            Sums ignored;
            exponentials<true>(PlainLogits{}, block, count, reference, -1, ignored, e);
        }
        const bool leads_here = from <= slopes.leader && slopes.leader < from + count;
        auto write = [&](const auto& form) __attribute__((always_inline)) {
            write_block(e, count, form, slopes.picked - from, slopes.picked_gradient,
                        streams && !leads_here, task.inner, g + from * task.inner, buffer);
        };
        if (slopes.slope == 0.0) {
            write([&](const Vec<float>& v, int, int) __attribute__((always_inline)) {
                return whole.times(v);
            });
        } else {
            write([&](const Vec<float>& v, int k, int n) __attribute__((always_inline)) {
                V e_low, e_high, low, high;
                widen(v, e_low, e_high);
                widen(not_infinite(load_up_to(block + k, n, 0.0f)), low, high);
                return narrow(e_low * fma(slope, top - low, level),
                              e_high * fma(slope, top - high, level));
            });
        }
        if (leads_here) put(g + slopes.leader * task.inner, slopes.leader_gradient);
    }
}

template <class S>
inline void compute_stats_along(const Job& job, const Batch& batch, void* memory) {
    const Task& task = job.task;
    const Quick scratch(task, memory);
    const Change change(task);  // none: see `has_quick_stats`
    const auto* logits = static_cast<const S*>(task.logits.data);
    const int64_t stride = task.logits.classes, classes = task.classes;
    const Shares shares = shares_of(task);
    Row rows[kLanes];
    Along along[kLanes];
    Cotangents cotangents[kLanes];
    double gaps[kLanes] = {};
    // For the loss, and for minus the log-probability, whose factor is that of a probability.
    Finish loss, plain;
    auto at = [&](int i) {
        return logits + task.logits.at(rows[i].group, rows[i].outer, rows[i].inner);
    };
    auto whose = [&](int i) { return gradient_of(task, rows[i], cotangents[i]); };
    for (int i = 0; i < batch.count; i++) {
        const Row& row = rows[i] = row_of(job, batch, i);
        if (task.gradient) cotangents[i] = Cotangents(task, row);
        along[i].exponentials = scratch.exponentials + i * padded(classes);
        along[i].slopes = nullptr;
        along[i].changed = nullptr;
        along[i].scales = scratch.scales + i * Quick::blocks(task);
        loss.clear(i);
        plain.clear(i);
        if (task.value ? row.target.state == Target::ignored : whose(i) == Whose::trivial) continue;
        const Distribution q(task, row, scratch.buffer + kBlock);
        read_along(at(i), stride, classes, true, scratch.buffer, change, q, along[i]);
        loss.top[i] = plain.top[i] = along[i].top;
        loss.sum[i] = plain.sum[i] = along[i].sum;
        loss.picked[i] = plain.picked[i] = along[i].top;
        const bool fits = absolute(along[i].top) < kLargest;
        if (fits && (task.value || cotangents[i].entropy != 0.0))
            gaps[i] = sum_of_gaps(at(i), stride, classes, along[i], scratch.buffer);
        if (row.target.state != Target::kept) continue;
        loss.picked[i] = plain.picked[i] = to_float(at(i)[row.target.index * stride]);
        loss.others[i] = q.unit * along[i].others;
        loss.at_leader[i] = q.unit * along[i].at_leader;
        loss.gaps[i] = q.unit * along[i].gaps;
        loss.unit[i] = row.unit;
        loss.own[i] = q.keep * row.weight;
        if (shares != Shares::none) loss.base[i] = q.share * row.weight;
    }
    loss.compute(batch.count, change, task.z_loss);
    plain.compute(batch.count, change, 0.0);

    Job loss_job = job;
    loss_job.task = loss_of(task);
    for (int i = 0; i < batch.count; i++) {
        const Row& row = rows[i];
        const Along& a = along[i];
        const double f = plain.factor[i], gap = gaps[i] * f, lse = a.top + plain.tail[i];
        if (task.value) {
            loss_job.task.gradient = nullptr;
            if (row.target.state == Target::kept && loss.unfit[i])
                compute_general(loss_job, row, scratch.general);
            else
                write_loss(job, row, loss.loss[i]);
            if (row.target.state == Target::ignored) {
                write_fields(task, row, {});
            } else if (plain.unfit[i]) {
                Job fields = job;
                fields.task.gradient = nullptr;
                compute_general_stats<S>(fields, row, {}, scratch.general);
            } else {
                const bool damaged = lse != lse;
                const int64_t leader = damaged ? argmax(at(i), stride, classes) : a.leader;
                write_fields(task, row, {lse, -plain.loss[i], plain.tail[i] + gap,
                                         leader == row.target.index, leader});
            }
        }
        if (!task.gradient) continue;

        const Cotangents& c = cotangents[i];
        auto* g = static_cast<S*>(task.gradient) + dense_at(task, row.group, row.outer, row.inner);
        if (whose(i) == Whose::trivial) {
            write_trivial_gradient(task, row);
            continue;
        }
        const bool kept = row.target.state == Target::kept;
        if (whose(i) == Whose::loss) {
            loss_job.task.value = nullptr;
            loss_job.task.gradient = task.gradient;
            if (loss.unfit[i]) {
                compute_general(loss_job, row, scratch.general);
            } else {
                const Distribution q(task, row, scratch.buffer + kBlock);
                write_along(task, at(i), a, change, q, loss, i, row.target.index, job.streams,
                            scratch.buffer, g);
            }
            continue;
        }
        const double own = kept ? c.loss * row.weight - c.log_prob : 0.0;
        double extra = c.lse - c.entropy * gap;
        if (task.z_loss != 0.0) extra += c.loss * (2.0 * task.z_loss * lse);
        const double level = own + extra, rest = plain.rest[i], all = 1.0 + rest;
        if (plain.unfit[i] || !fits_floats(f * level) || shares != Shares::none) {
            Job gradient = job;
            gradient.task.value = nullptr;
            compute_general_stats<S>(gradient, row, c, scratch.general);
            continue;
        }
        const bool target_leads = kept && plain.picked[i] == a.top;
        Slopes slopes{f * level, f * c.entropy, 0.0, 0.0, kept ? row.target.index : -1, -1};
        slopes.leader_gradient = ((target_leads ? 0.0 : own) - own * rest / all) + extra / all;
        if (kept && target_leads && rest < kLeads) {
            slopes.picked_gradient = slopes.leader_gradient;
        } else if (kept) {
            Vec<double> e, error;
            exponential(Vec<double>(plain.picked[i]), Reference<double>(Vec<double>(a.scale), 0), e,
                        error);
            const double below = a.top - plain.picked[i], e_picked = e[0];
            slopes.picked_gradient =
                (e_picked == 0.0 ? 0.0 : e_picked * (f * level + f * c.entropy * below)) - own;
        }
        if (rest < kLeads && !target_leads) slopes.leader = a.leader;
        write_slopes(task, at(i), a, slopes, job.streams, scratch.buffer, g);
    }
    if (job.streams) stream_fence();
}

template <class S>
inline void compute_row_stats(const Job& job, const Batch& batch, void* memory) {
    if constexpr (sizeof(S) < sizeof(double))
        if (has_quick_stats(job.task)) return compute_stats_along<S>(job, batch, memory);
    compute_row_in_double<S>(job, batch, memory);
}

inline int rows_in_stats_batch(const Task& task) {
    return has_quick_stats(task) ? Quick::rows(task) : 1;
}

}  // namespace
}  // namespace xentx
