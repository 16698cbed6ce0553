"""The row formula as two Triton kernels, for CUDA and for ROCm.

A program computes R rows, B of their classes at a time. Each of the B lanes stores a maximum, and
the sum of the exponentials of its other entries::

    low = min(x, m);   m = max(x, m);   s += exp(low) / 2^N(m)

So the maximum is never part of the sum. An entry needs one exponential. If the maximum grows, the
sum is rescaled by a power of 2, which is exact. The lanes are joined once for each row. The sum
without the exponential of the leader is ``rest``, in full precision::

    lse = M + log1p(rest),   1 - p_max = rest / (1 + rest)

Exponentials are reduced from the logits themselves, ``x = n ln 2 + r``, and not from differences to
a maximum, which would be rounded. A row with a maximum beyond `_LARGE` is read a second time, and
the maximum is subtracted. This is exact for logits near it, and the exponentials of others are 0.

A temperature T is part of the reduction, ``x = n T ln 2 + r``, and r is divided by it.

Sums along a row are in float32 (float64 for float64 logits) together with their rounding errors.
Numbers of a row are in float64. `FAST` omits the errors and uses the exponential of the hardware.
It is for results of 16 bits, if only the entry of the target is a difference.

The bits of a row depend on its numbers, R, B and the number of warps. The launcher chooses these by
the dtype, the number of classes and whether the classes are contiguous.
"""

import triton
import triton.language as tl

_MAGIC32 = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_MAGIC64 = tl.constexpr(6755399441055744.0)
_RATE = tl.constexpr(1.4426950408889634)  # 1 / ln 2
_RATE32 = tl.constexpr(float.fromhex("0x1.715476p+0"))
_RATE32_LOW = tl.constexpr(1.4426950408889634 - float.fromhex("0x1.715476p+0"))
# ln 2 in two parts. Times an n of 11 bits, as of logits up to _LARGE, the first one is exact.
_LN2_HIGH32 = tl.constexpr(float.fromhex("0x1.62ep-1"))
_LN2_LOW32 = tl.constexpr(float.fromhex("0x1.0bfbe8e7bcd5ep-15"))
_LN2_HIGH64 = tl.constexpr(float.fromhex("0x1.62e42feep-1"))
_LN2_LOW64 = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
# (exp r - 1 - r) / r^2 for |r| up to ln 2 / 2, as in kernel/exponential.h
_C0, _C1, _C2, _C3, _C4 = (
    tl.constexpr(float.fromhex(digits))
    for digits in (
        "0x1.6a31d0p-10",
        "0x1.1236aep-7",
        "0x1.5558c8p-5",
        "0x1.555496p-3",
        "0x1.fffffcp-2",
    )
)
_D0, _D1, _D2, _D3, _D4, _D5, _D6, _D7, _D8, _D9 = (
    tl.constexpr(float.fromhex(digits))
    for digits in (
        "0x1.ad67209e80981p-26",
        "0x1.28a7c5a4370eep-22",
        "0x1.71df2dbe67bd0p-19",
        "0x1.a019a0f945a26p-16",
        "0x1.a01a012ab2fadp-13",
        "0x1.6c16c181378cfp-10",
        "0x1.11111111269fdp-7",
        "0x1.555555555189dp-5",
        "0x1.5555555555504p-3",
        "0x1.0000000000006p-1",
    )
)
# Both are multiplied by the temperature. With a maximum of up to _LARGE, logits below the floor
# have a probability of 0.
_LARGE = tl.constexpr(1024.0)
_FLOOR = tl.constexpr(-16384.0)
# Sums are multiplied by this power of 2, so that subnormal exponentials keep their digits.
_BIAS32 = tl.constexpr(24)
_BIAS64 = tl.constexpr(53)

# Kinds of targets.
NONE = tl.constexpr(0)
INDEX = tl.constexpr(1)
DISTRIBUTION = tl.constexpr(2)


@triton.jit
def _fma(a, b, c):
    return tl.fma(a, tl.zeros_like(a) + b, tl.zeros_like(a) + c)


@triton.jit
def _two_sum(s, c, e):
    """Add e to s, and the rounding error to c."""
    t = s + e
    back = t - s
    return t, c + ((s - (t - back)) + (e - back))


@triton.jit
def _bits(x, DOUBLE: tl.constexpr):
    return x.to(tl.int64 if DOUBLE else tl.int32, bitcast=True)


@triton.jit
def _power_of_2(n, DOUBLE: tl.constexpr):
    """2^n, or 0 if it is not a normal number."""
    if DOUBLE:
        return (tl.maximum(n.to(tl.int64) + 1023, 0) << 52).to(tl.float64, bitcast=True)
    else:
        return (tl.maximum(n + 127, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _reduction(temperature, high, low, SCALED: tl.constexpr, DOUBLE: tl.constexpr):
    """Numbers of the reduction of x.

    1 / (T ln 2), T ln 2 in two parts, 1 / T, T, and the rounding error of the first number.
    """
    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    zero = tl.zeros([1, 1], tl.float64)
    if SCALED:
        wide = zero + temperature
        rate = ((zero + _RATE) / wide).to(real)
        return (
            rate,
            (zero + high).to(real),
            (zero + low).to(real),
            (1.0 / wide).to(real),
            wide,
            ((zero + _RATE) / wide - rate.to(tl.float64)).to(real),
        )
    else:
        one = zero + 1.0
        return (
            (zero + (_RATE if DOUBLE else _RATE32)).to(real),
            (zero + (_LN2_HIGH64 if DOUBLE else _LN2_HIGH32)).to(real),
            (zero + (_LN2_LOW64 if DOUBLE else _LN2_LOW32)).to(real),
            one.to(real),
            one,
            (zero + _RATE32_LOW).to(real),
        )


@triton.jit
def _rounded(x, scale, DOUBLE: tl.constexpr):
    """Return n of the reduction of x with _MAGIC added, whose bits are n and a constant."""
    floor = scale[4].to(x.dtype) * _FLOOR
    x = tl.where(x < floor, floor, x)  # NaN stays
    if DOUBLE:
        return _fma(x, scale[0], _MAGIC64)
    else:
        return _fma(x, scale[0], _MAGIC32)


@triton.jit
def _reduced(x, scale, SCALED: tl.constexpr, DOUBLE: tl.constexpr):
    """exp(x / T) as (1 + z) 2^n: z, and n with _MAGIC added."""
    floor = scale[4].to(x.dtype) * _FLOOR
    x = tl.where(x < floor, floor, x)
    if DOUBLE:
        t = _fma(x, scale[0], _MAGIC64)
        n = t - _MAGIC64
    else:
        t = _fma(x, scale[0], _MAGIC32)
        n = t - _MAGIC32
    r = _fma(n, -scale[1], x)
    r = _fma(n, -scale[2], r)
    if SCALED:
        r = r * scale[3]
    return _exp_minus_1(r, DOUBLE), t


@triton.jit
def _exp_minus_1(r, DOUBLE: tl.constexpr):
    """exp(r) - 1 for an |r| of up to ln 2 / 2."""
    if DOUBLE:
        q = _fma(r, _D0, _D1)
        q = _fma(q, r, _D2)
        q = _fma(q, r, _D3)
        q = _fma(q, r, _D4)
        q = _fma(q, r, _D5)
        q = _fma(q, r, _D6)
        q = _fma(q, r, _D7)
        q = _fma(q, r, _D8)
        q = _fma(q, r, _D9)
    else:
        q = _fma(r, _C0, _C1)
        q = _fma(q, r, _C2)
        q = _fma(q, r, _C3)
        q = _fma(q, r, _C4)
    return tl.fma(r * r, q, r)


@triton.jit
def _exponential(
    x, top, scale, FAST: tl.constexpr, SCALED: tl.constexpr, DOUBLE: tl.constexpr
):  # fmt: skip
    """2^bias exp(x / T) / 2^N. `top` is N with _MAGIC added."""
    if FAST:
        floor = scale[4].to(x.dtype) * _FLOOR
        x = tl.where(x < floor, floor, x)
        n = top - _MAGIC32
        return tl.exp2(_fma(x, scale[5], _fma(x, scale[0], -(n - _BIAS32))))
    else:
        z, t = _reduced(x, scale, SCALED, DOUBLE)
        bias: tl.constexpr = _BIAS64 if DOUBLE else _BIAS32
        power = _power_of_2(_bits(t, DOUBLE) - _bits(top, DOUBLE) + bias, DOUBLE)
        return tl.fma(z, power, power)


@triton.jit
def _wide_exponential(x, top, scale, SCALED: tl.constexpr, DOUBLE: tl.constexpr):
    """The same in float64, for numbers that are needed once for each row."""
    z, t = _reduced(x, scale, SCALED, DOUBLE)
    bias: tl.constexpr = _BIAS64 if DOUBLE else _BIAS32
    power = _power_of_2(_bits(t, DOUBLE) - _bits(top, DOUBLE) + bias, True)
    return (1.0 + z.to(tl.float64)) * power


@triton.jit
def _log1p(s):
    """log(1 + s) of float64, s >= 0."""
    u = 1.0 + s
    return tl.where(u == 1.0, s, tl.log(u) * (s / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _capped(x, cap, DOUBLE: tl.constexpr):
    """Return c tanh(x / c), and its slope."""
    if not DOUBLE:
        t = tl.exp2(tl.abs(x) / cap * (-2.0 * _RATE32))
        less = t - 1.0
    else:
        y = tl.abs(x) / cap * -2.0
        y = tl.where(y < -1024.0, -1024.0, y)
        n = _fma(y, _RATE, _MAGIC64)
        power = _power_of_2(_bits(n, True) - _bits(tl.zeros_like(n) + _MAGIC64, True), True)
        n = n - _MAGIC64
        z = _exp_minus_1(_fma(n, -_LN2_LOW64, _fma(n, -_LN2_HIGH64, y)), True)
        t = tl.fma(z, power, power)
        less = tl.fma(z, power, power - 1.0)  # t - 1, in full precision if t is near 1
    size = -less / (2.0 + less)
    x = cap * tl.where(x < 0.0, -size, size)
    return x, 4.0 * t / ((1.0 + t) * (1.0 + t))


@triton.jit
def _logits(
    at, mask, cap, shift, real: tl.constexpr, CAP: tl.constexpr
):  # fmt: skip
    """Logits after the cap and minus a shift, and the slope of the cap. -inf outside the mask."""
    x = tl.load(at, mask=mask, other=float("-inf")).to(real)
    bend = x
    if CAP:
        x, bend = _capped(x, cap, real == tl.float64)
        x = tl.where(mask, x, float("-inf"))
    return x - shift, bend


@triton.jit
def _shares(
    T_row, W, k, mask, classes, t_c, smoothing, share, real: tl.constexpr,
    TARGET: tl.constexpr, SMOOTH: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """The target distribution q without the part of a class index, 0 outside the mask."""
    if TARGET == DISTRIBUTION:
        q = tl.load(T_row + k * t_c, mask=mask, other=0.0).to(real)
        if SMOOTH:
            q = tl.where(mask, (1.0 - smoothing).to(real) * q + share.to(real), 0.0)
    else:
        q = tl.where(mask, share.to(real), 0.0)
    if WEIGHT:
        q = q * tl.load(W + k, mask=k < classes, other=0.0).to(real)
    return q


@triton.jit
def _narrowed(x, dtype: tl.constexpr, TRUNCATES: tl.constexpr):
    """Round to the dtype of a result, also where conversions to bfloat16 truncate."""
    if TRUNCATES and dtype == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def _rows(near, R: tl.constexpr):
    """Row numbers of this program: far, near, and whether there are such rows."""
    blocks = tl.cdiv(near, R)
    program = tl.program_id(0)
    far = program // blocks
    row = (program - far * blocks).to(tl.int64) * R + tl.arange(0, R)[:, None]
    return far.to(tl.int64), row, row < near


@triton.jit
def _target(
    T, W, far, row, live, classes, t_f, t_n, ignore, smoothing,
    TARGET: tl.constexpr, IGNORE: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """Class index, its part of q, which rows are not ignored, and which name a class."""
    t = row * 0 - 1
    spike = (row * 0).to(tl.float64)
    keep = live
    known = live
    if TARGET == INDEX:
        t = tl.load(T + far * t_f + row * t_n, mask=live, other=0).to(tl.int64)
        if IGNORE:
            keep = keep & (t != ignore)
        known = keep & (t >= 0) & (t < classes)
        spike = tl.where(known, 1.0 - smoothing, 0.0)
        if WEIGHT:
            spike = spike * tl.load(W + t, mask=known, other=0.0).to(tl.float64)
    return t, spike, keep, known


@triton.jit
def xentx_forward(
    X, T, W, LOSS, STATE, LSE, LOG_PROB, ENTROPY, CORRECT, PREDICTION, Y,
    near, rows, classes, x_f, x_c, x_n, t_f, t_c, t_n, y_f, y_c, y_n, ignore,
    smoothing: tl.float64, z_loss: tl.float64, cap: tl.float64,
    temperature: tl.float64, ln2_high: tl.float64, ln2_low: tl.float64,
    R: tl.constexpr, B: tl.constexpr,
    WIDE: tl.constexpr,  # whether offsets along a row take 64 bits
    TRUNCATES: tl.constexpr,  # as Triton's interpreter does
    DOUBLE: tl.constexpr, FAST: tl.constexpr,
    TARGET: tl.constexpr, IGNORE: tl.constexpr, SMOOTH: tl.constexpr, WEIGHT: tl.constexpr,
    Z: tl.constexpr, CAP: tl.constexpr, SCALED: tl.constexpr,
    LOSSES: tl.constexpr,  # write losses
    FIELDS: tl.constexpr,  # and the other fields of RowStats
    LOGS: tl.constexpr,  # write log-probabilities
):  # fmt: skip
    """Read the logits once. Write the states of the rows, which gradients need, and the results."""
    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    SHARES: tl.constexpr = TARGET == DISTRIBUTION or SMOOTH
    inf: tl.constexpr = float("inf")
    nan: tl.constexpr = float("nan")
    zero = tl.zeros([1, 1], tl.float64)  # the interpreter's scalars are Python's numbers
    smoothing = zero + smoothing
    share = smoothing / classes
    scale = _reduction(temperature, ln2_high, ln2_low, SCALED, DOUBLE)
    large = (scale[4] * _LARGE).to(real)
    cap = (zero + cap).to(real)

    far, row, live = _rows(near, R)
    lane = tl.arange(0, B)[None, :]
    if WIDE:
        lane = lane.to(tl.int64)
    t, spike, keep, known = _target(
        T, W, far, row, live, classes, t_f, t_n, ignore, smoothing, TARGET, IGNORE, WEIGHT
    )
    X_row = X + far * x_f + row * x_n
    T_row = T + far * t_f + row * t_n
    # Nothing is read if all rows are ignored.
    end = tl.where(tl.max(tl.max(keep.to(tl.int32), axis=1), axis=0) > 0, classes, 0)

    shift = tl.zeros([R, 1], real)
    m = tl.full([R, B], -inf, real)
    top = _rounded(m, scale, DOUBLE)
    s = tl.zeros([R, B], real)
    s_low = s
    q_m = s  # of the lane's maximum
    mass = s  # of the other entries of the lane
    mass_low = s
    gaps = s  # sum of q (m - x)
    gaps_low = s
    spread = s  # sum of exp(x) (m - x)
    spread_low = s
    seen = m  # the largest logit before any cap
    first = tl.zeros([R, B], tl.int32)  # its class
    damage = tl.full([R, B], 2147483647, tl.int32)  # the class of the first NaN
    y_m = tl.full([R, B], -inf, real)
    y_first = first
    attempt = 0
    while attempt < 2:
        m = tl.full([R, B], -inf, real)
        top = _rounded(m, scale, DOUBLE)
        s = tl.zeros([R, B], real)
        s_low = s
        q_m = s
        mass = s
        mass_low = s
        gaps = s
        gaps_low = s
        spread = s
        spread_low = s
        seen = m
        y_m = m
        for start in range(0, end, B):
            k = start + lane
            mask = keep & (k < classes)
            x, _ = _logits(X_row + k * x_c, mask, cap, shift, real, CAP)
            if FIELDS:
                raw = x
                if CAP:
                    raw = tl.load(X_row + k * x_c, mask=mask, other=-inf).to(real)
                higher = raw > seen
                seen = tl.where(higher, raw, seen)
                first = tl.where(higher, k.to(tl.int32), first)
                damage = tl.minimum(damage, tl.where(raw != raw, k.to(tl.int32), 2147483647))
            up = x > m
            low = tl.where(up, m, x)
            old = m
            m = tl.where(up, x, m)
            if SHARES:
                q = _shares(
                    T_row, W, k, mask, classes, t_c, smoothing, share, real, TARGET, SMOOTH, WEIGHT
                )
                if FIELDS and TARGET == DISTRIBUTION:
                    y = tl.load(T_row + k * t_c, mask=mask, other=-inf).to(real)
                    y_up = y > y_m
                    y_m = tl.where(y_up, y, y_m)
                    y_first = tl.where(y_up, k.to(tl.int32), y_first)
                q_low = tl.where(up, q_m, q)
                q_m = tl.where(up, q, q_m)
                if LOSSES:
                    gaps += tl.where(up & (old > -inf), mass * (m - old), 0.0)
                    gap = q_low * tl.where(low == -inf, inf, m - low)
                    gap = tl.where(q_low == 0.0, 0.0, gap)
                    gaps, gaps_low = _two_sum(gaps, gaps_low, gap)
                mass, mass_low = _two_sum(mass, mass_low, q_low)
            new = _rounded(m, scale, DOUBLE)
            e = _exponential(low, new, scale, FAST, SCALED, DOUBLE)
            factor = _power_of_2(_bits(top, DOUBLE) - _bits(new, DOUBLE), DOUBLE)
            top = new
            if FIELDS:
                before = s * factor
                spread = spread * factor
                spread += tl.where(up & (old > -inf) & (before != 0.0), before * (m - old), 0.0)
                spread, spread_low = _two_sum(
                    spread, spread_low * factor, tl.where(e == 0.0, 0.0, e * (m - low))
                )
            if FAST:
                s = tl.fma(s, factor, e)
            else:
                s, s_low = _two_sum(s * factor, s_low * factor, e)
        best = tl.max(m, axis=1, keep_dims=True)
        far_off = (tl.abs(best) >= large) & (tl.abs(best) < inf)
        again = tl.max(tl.max(far_off.to(tl.int32), axis=1), axis=0)
        shift = tl.where((attempt == 0) & far_off, best, shift)
        attempt = tl.where((attempt == 0) & (again > 0), 1, 2)

    # The lanes are joined.
    best = tl.max(m, axis=1, keep_dims=True)
    is_top = m == best
    none = m == -inf
    last = _rounded(best, scale, DOUBLE)
    weights = _power_of_2(_bits(top, DOUBLE) - _bits(last, DOUBLE), True)
    sums = (s.to(tl.float64) + s_low.to(tl.float64)) * weights
    own = _wide_exponential(m, last, scale, SCALED, DOUBLE)
    at_top = _wide_exponential(best, last, scale, SCALED, DOUBLE)
    ties = tl.sum(is_top.to(tl.int32), axis=1, keep_dims=True)
    parts = sums + tl.where(is_top | none, 0.0, own)
    rest = tl.sum(parts, axis=1, keep_dims=True) / at_top + (ties - 1).to(tl.float64)
    bad = tl.max((s != s).to(tl.int32), axis=1, keep_dims=True) > 0
    rest = tl.where(bad | ((tl.abs(best) < inf) == 0), nan, rest)
    maximum = best.to(tl.float64) + shift.to(tl.float64)
    behind = tl.where(none | is_top, 0.0, best.to(tl.float64) - m.to(tl.float64))
    all_q = spike
    others = zero + tl.zeros([R, 1], tl.float64)
    if SHARES:
        leads = lane == tl.min(tl.where(is_top, lane, B), axis=1, keep_dims=True)
        q_own = q_m.to(tl.float64)
        q_rest = mass.to(tl.float64) + mass_low.to(tl.float64)
        others = tl.sum(q_rest + tl.where(leads, 0.0, q_own), axis=1, keep_dims=True)
        all_q += others + tl.sum(tl.where(leads, q_own, 0.0), axis=1, keep_dims=True)
    x_t = tl.zeros([R, 1], tl.float64)
    if TARGET == INDEX:
        given, _ = _logits(X_row + t * x_c, known, cap, 0.0, real, CAP)
        x_t = given.to(tl.float64)
        others += tl.where(x_t == maximum, 0.0, spike)
    at = far * near + row
    size = row * 0 + rows  # of 64 bits
    tl.store(STATE + at, maximum, mask=live)
    tl.store(STATE + size + at, rest, mask=live)
    if SHARES:
        tl.store(STATE + 2 * size + at, all_q, mask=live)
        tl.store(STATE + 3 * size + at, others, mask=live)

    tail = _log1p(rest)
    lse = maximum / scale[4] + tail
    if LOSSES:
        loss = tl.where((all_q == 0.0) & (rest == rest), 0.0, all_q * tail)
        if SHARES:
            shares = gaps.to(tl.float64) + gaps_low.to(tl.float64)
            shares = tl.where(shares == shares, shares, gaps.to(tl.float64))  # inf - inf
            shares += tl.where(behind == 0.0, 0.0, (q_rest + q_own) * behind)
            loss += tl.sum(shares, axis=1, keep_dims=True) / scale[4]
        if TARGET == INDEX:
            loss += tl.where(spike == 0.0, 0.0, spike * ((maximum - x_t) / scale[4]))
        log_prob = -loss
        if Z:
            loss += (zero + z_loss) * lse * lse
        if TARGET == INDEX:
            loss = tl.where(known, loss, tl.where(keep, nan, 0.0))
        tl.store(LOSS + at, loss.to(LOSS.dtype.element_ty), mask=live)
        if FIELDS:
            if TARGET == INDEX:
                log_prob = -(tail + (maximum - x_t) / scale[4])
                log_prob = tl.where(known, log_prob, tl.where(keep, nan, 0.0))
            tl.store(LOG_PROB + at, log_prob.to(LOG_PROB.dtype.element_ty), mask=live)
            tl.store(LSE + at, tl.where(keep, lse, 0.0).to(LSE.dtype.element_ty), mask=live)
            wide = spread.to(tl.float64) + spread_low.to(tl.float64)
            wide = tl.where(weights == 0.0, 0.0, wide * weights)  # it may be infinite
            wide = tl.where(none, 0.0, wide + (sums + own) * behind)
            total = tl.sum(wide, axis=1, keep_dims=True)
            mean_gap = total / (at_top * (1.0 + rest)) / scale[4]
            tl.store(STATE + 4 * size + at, mean_gap, mask=live)
            entropy = tl.where(keep, tail + mean_gap, 0.0)
            tl.store(ENTROPY + at, entropy.to(ENTROPY.dtype.element_ty), mask=live)
            nowhere: tl.constexpr = 2147483647
            is_best = seen == tl.max(seen, axis=1, keep_dims=True)
            chosen = tl.min(tl.where(is_best, first, nowhere), axis=1, keep_dims=True)
            broken = tl.min(damage, axis=1, keep_dims=True)
            chosen = tl.where(broken < nowhere, broken, chosen).to(tl.int64)
            if TARGET == DISTRIBUTION:
                is_best = y_m == tl.max(y_m, axis=1, keep_dims=True)
                t = tl.min(tl.where(is_best, y_first, nowhere), axis=1, keep_dims=True)
            chosen = tl.where(keep, chosen, 0)
            tl.store(CORRECT + at, (keep & (chosen == t)).to(tl.int8), mask=live)
            tl.store(PREDICTION + at, chosen, mask=live)
    if LOGS:
        Y_row = Y + far * y_f + row * y_n
        for start in range(0, classes, B):
            k = start + lane
            mask = live & (k < classes)
            x, _ = _logits(X_row + k * x_c, mask, cap, shift, real, CAP)
            y = (x - best) - tail.to(real)
            tl.store(Y_row + k * y_c, _narrowed(y, Y.dtype.element_ty, TRUNCATES), mask=mask)


@triton.jit
def xentx_gradient(
    X, T, W, STATE, C_LOSS, C_LSE, C_LOG_PROB, C_ENTROPY, G,
    near, rows, classes, x_f, x_c, x_n, t_f, t_c, t_n, g_f, g_c, g_n, c_f, c_n, ignore,
    smoothing: tl.float64, z_loss: tl.float64, cap: tl.float64,
    temperature: tl.float64, ln2_high: tl.float64, ln2_low: tl.float64,
    R: tl.constexpr, B: tl.constexpr, WIDE: tl.constexpr, TRUNCATES: tl.constexpr,
    DOUBLE: tl.constexpr, FAST: tl.constexpr,
    TARGET: tl.constexpr, IGNORE: tl.constexpr, SMOOTH: tl.constexpr, WEIGHT: tl.constexpr,
    Z: tl.constexpr, CAP: tl.constexpr, SCALED: tl.constexpr,
    FIELDS: tl.constexpr,  # whether there are cotangents of the other fields of RowStats
):  # fmt: skip
    """Write the gradient with respect to the logits, c (A p - q), also over the logits."""
    real: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    SHARES: tl.constexpr = TARGET == DISTRIBUTION or SMOOTH
    inf: tl.constexpr = float("inf")
    nan: tl.constexpr = float("nan")
    zero = tl.zeros([1, 1], tl.float64)
    smoothing = zero + smoothing
    share = smoothing / classes
    scale = _reduction(temperature, ln2_high, ln2_low, SCALED, DOUBLE)
    large = scale[4] * _LARGE
    cap = (zero + cap).to(real)

    far, row, live = _rows(near, R)
    lane = tl.arange(0, B)[None, :]
    if WIDE:
        lane = lane.to(tl.int64)
    t, spike, keep, known = _target(
        T, W, far, row, live, classes, t_f, t_n, ignore, smoothing, TARGET, IGNORE, WEIGHT
    )
    X_row = X + far * x_f + row * x_n
    T_row = T + far * t_f + row * t_n
    at = far * near + row
    size = row * 0 + rows  # of 64 bits
    maximum = tl.load(STATE + at, mask=live, other=0.0)
    rest = tl.load(STATE + size + at, mask=live, other=0.0)
    shift = tl.where((tl.abs(maximum) >= large) & (tl.abs(maximum) < inf), maximum, 0.0).to(real)
    best = maximum.to(real) - shift
    last = _rounded(best, scale, DOUBLE)
    at_top = _wide_exponential(best, last, scale, SCALED, DOUBLE)
    inverse = 1.0 / (1.0 + rest)
    lead = rest < 1.0

    # What the rows' cotangents make of the amount A, of q, and of the sum of p to which all add up.
    c_at = far * c_f + row * c_n
    unit = tl.load(C_LOSS + c_at, mask=live, other=0.0).to(tl.float64) / scale[4]
    if SHARES:
        all_q = tl.load(STATE + 2 * size + at, mask=live, other=0.0)
        others = tl.load(STATE + 3 * size + at, mask=live, other=0.0)
    else:
        all_q = spike
        others = tl.zeros([R, 1], tl.float64)
    x_t = tl.zeros([R, 1], tl.float64)
    if TARGET == INDEX:
        given, _ = _logits(X_row + t * x_c, known, cap, 0.0, real, CAP)
        x_t = given.to(tl.float64)
        if not SHARES:
            others = tl.where(x_t == maximum, 0.0, spike)
    amount = all_q
    amount_others = others
    all_q = amount * unit
    others = amount_others * unit
    spike = spike * unit
    extra = tl.zeros([R, 1], tl.float64)
    if Z:
        extra = 2.0 * (zero + z_loss) * (maximum / scale[4] + _log1p(rest)) * unit
    q_unit = unit
    if FIELDS:
        mean_gap = tl.load(STATE + 4 * size + at, mask=live, other=0.0)
        by_lse = tl.load(C_LSE + c_at, mask=live, other=0.0).to(tl.float64) / scale[4]
        by_log_prob = tl.load(C_LOG_PROB + c_at, mask=live, other=0.0).to(tl.float64) / scale[4]
        by_entropy = tl.load(C_ENTROPY + c_at, mask=live, other=0.0).to(tl.float64) / scale[4]
        extra += by_lse
        if TARGET == INDEX:
            all_q -= by_log_prob
            spike -= by_log_prob
            others -= tl.where(x_t == maximum, 0.0, by_log_prob)
        else:
            # The log-probability is minus the loss.
            q_unit = unit - by_log_prob
            all_q = amount * q_unit
            others = amount_others * q_unit
    slope = (all_q + extra) * inverse
    g_top = tl.where(lead, others - all_q * (rest * inverse) + extra * inverse, slope).to(real)
    high = (slope / at_top).to(real)
    if TARGET == INDEX:
        q_t = spike
        if SMOOTH:
            if WEIGHT:
                w_t = tl.load(W + t, mask=known, other=0.0).to(tl.float64)
                q_t += share * w_t * unit
            else:
                q_t += share * unit
        p_t = tl.exp((x_t - maximum) / scale[4]) * inverse
        below = (all_q + extra) * p_t - q_t
        if not SHARES:
            # Nothing but the spike: with p near 1, too.
            tied = extra * p_t - all_q * (rest * inverse)
            g_t = tl.where(x_t == maximum, tied, below)
        else:
            above = others - all_q * (rest * inverse) + extra * inverse
            g_t = tl.where((x_t == maximum) & lead, above, below)
        if FIELDS:
            gap_t = (maximum - x_t) / scale[4]
            g_t += tl.where(p_t == 0.0, 0.0, by_entropy * p_t * (gap_t - mean_gap))
        g_t = g_t.to(real)
    if FIELDS:
        g_top = (g_top.to(tl.float64) - by_entropy * inverse * mean_gap).to(real)
        entropy_high = (by_entropy * inverse / at_top).to(real)
        mean_high = mean_gap.to(real)
    q_real = q_unit.to(real)
    nothing = tl.where(known | (keep == 0), 0.0, nan).to(real)
    end = tl.where(tl.max(tl.max(live.to(tl.int32), axis=1), axis=0) > 0, classes, 0)
    G_row = G + far * g_f + row * g_n
    for start in range(0, end, B):
        k = start + lane
        inside = live & (k < classes)
        mask = known & inside
        x, bend = _logits(X_row + k * x_c, mask, cap, shift, real, CAP)
        e = _exponential(x, last, scale, FAST, SCALED, DOUBLE)
        g = e * high
        if FIELDS:
            gap = (best - x) * scale[3] - mean_high
            g += tl.where(e == 0.0, 0.0, (e * entropy_high) * gap)
        is_top = x == best
        if SHARES:
            q = _shares(
                T_row, W, k, mask, classes, t_c, smoothing, share, real, TARGET, SMOOTH, WEIGHT
            )
            g = tl.where(is_top & lead, g_top, g - q * q_real)
        else:
            g = tl.where(is_top, g_top, g)
        if TARGET == INDEX:
            g = tl.where(k == t, g_t, g)
        if CAP:
            g = g * bend
        g = tl.where(known, g, nothing)
        tl.store(G_row + k * g_c, _narrowed(g, G.dtype.element_ty, TRUNCATES), mask=inside)
