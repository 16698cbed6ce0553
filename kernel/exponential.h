// exp, log1p and tanh in vectors: the same bits on every machine, unlike those of a libm.
#pragma once
#include "simd.h"

namespace xentx {
namespace {

// How the exponentials of a row are computed: 2^bias exp(x) / 2^n, with n near max x / ln 2.
//
// x is reduced by multiples of ln 2 directly, without subtracting the maximum first. The usual
// subtraction has the largest error: x - m is rounded by up to half a unit in the last place of a
// number around 10, which becomes tens of units after exp. Here the first step of the reduction is
// exact, and the division by 2^n only changes the bits of the exponent.
//
// The bias keeps small values from being subnormal. Values that are still too small become 0, also
// for -inf.
template <class Real> struct Form;
template <> struct Form<float> {
    static constexpr float magic = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
    static constexpr float log2e = 0x1.715476p0f;
    // ln 2 in two parts. The first part has so few bits that its product with n is exact.
    static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
    static constexpr float ln2_lost = 0x1.cf79acp-40f;  // by these two
    static constexpr int exponent = 127, mantissa = 23, bias = 24;
    // (exp r - 1 - r) / r^2 on |r| <= ln 2 / 2, minimax, to 2^-28 of exp r
    static constexpr float terms[] = {0x1.6a31d0p-10f, 0x1.1236aep-7f, 0x1.5558c8p-5f,
                                      0x1.555496p-3f, 0x1.fffffcp-2f};
};
template <> struct Form<double> {
    static constexpr double magic = 0x1.8p52;
    static constexpr double log2e = 0x1.71547652b82fep0;
    static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    static constexpr int exponent = 1023, mantissa = 52, bias = 53;
    // to 2^-57
    static constexpr double terms[] = {
        0x1.ad67209e80981p-26, 0x1.28a7c5a4370eep-22, 0x1.71df2dbe67bd0p-19, 0x1.a019a0f945a26p-16,
        0x1.a01a012ab2fadp-13, 0x1.6c16c181378cfp-10, 0x1.11111111269fdp-7,  0x1.555555555189dp-5,
        0x1.5555555555504p-3,  0x1.0000000000006p-1};
};

// For rows with a larger maximum, it is subtracted first. This is then exact for all logits that have
// a relevant exponential.
constexpr double kLargest = 0x1p17;

// The n of a row, which is an integer. The same for a float and for that float as a double.
XENTX_INLINE double scale_of(double top) {
    constexpr double magic = Form<double>::magic;
    return (top * Form<double>::log2e + magic) - magic;
}

template <class Real> struct Reference {
    Vec<Real> magic, lowest, floor;  // the n below which an exponential is 0, and its logit

    XENTX_INLINE explicit Reference(const Vec<Real>& n, int bias = Form<Real>::bias) {
        using F = Form<Real>;
        // The bias of the exponent field is added here too, so that the result has the exponent's bits.
        magic = Vec<Real>(F::magic + F::exponent + bias) - n;
        lowest = n - Vec<Real>(F::exponent + bias);
        floor = lowest * Vec<Real>(Real(0.693147180559945309));
    }
};

// The exponential of r + n ln 2, where t is n and the magic number.
template <class Real>
XENTX_INLINE void reduced_exponential(const Vec<Real>& r, const Vec<Real>& t, Vec<Real>& value,
                                      Vec<Real>& error) {
    using F = Form<Real>;
    using V = Vec<Real>;
    V q(F::terms[0]);
    for (unsigned i = 1; i < sizeof(F::terms) / sizeof(Real); i++) q = fma(q, r, V(F::terms[i]));
    V z = fma(r * r, q, r);
    // 2^n, by moving the integer to where the exponent is; 0 at the floor.
    auto bits = reinterpret<typename Bits<Real>::type>(t);
    V s = reinterpret<Real>(shift_left<F::mantissa>(bits));
    value = fma(z, s, s);
    error = fma(z, s, s - value);
}

// `value` is the rounded exponential, and `error` its rounding error.
template <class Real>
XENTX_INLINE void exponential(Vec<Real> x, const Reference<Real>& to, Vec<Real>& value,
                              Vec<Real>& error) {
    using F = Form<Real>;
    using V = Vec<Real>;
    x = max(to.floor, x);  // NaN stays
    V t = fma(x, V(F::log2e), to.magic);
    V n = t - to.magic;
    V r = fma(n, V(-F::ln2_high), x);
    reduced_exponential(fma(n, V(-F::ln2_low), r), t, value, error);
}
// The exponential of x + lost, where x is that sum, rounded.
XENTX_INLINE void exponential(Vec<float> x, Vec<float> lost, const Reference<float>& to,
                              Vec<float>& value, Vec<float>& error) {
    using F = Form<float>;
    using V = Vec<float>;
    lost = select(x < to.floor, V(0.0f), lost);
    x = max(to.floor, x);
    V t = fma(x, V(F::log2e), to.magic);
    V n = t - to.magic;
    V r = fma(n, V(-F::ln2_high), x);
    lost = fma(n, V(-F::ln2_lost), lost);
    reduced_exponential(fma(n, V(-F::ln2_low), r) + lost, t, value, error);
}

// exp of each lane, for lanes that are not positive.
XENTX_INLINE Vec<double> exp_negative(const Vec<double>& x) {
    Vec<double> value, error;
    exponential(x, Reference<double>(Vec<double>(0.0), 0), value, error);
    return value;
}

// log(1 + s) for s >= 0, after fdlibm's s_log1p.c (Sun Microsystems, 1993).
XENTX_INLINE Vec<double> log1p_positive(const Vec<double>& s) {
    using V = Vec<double>;
    using I = Vec<int64_t>;
    V one(1.0), u = one + s;
    // u = 2^k m with m from sqrt(1/2) to sqrt(2), and 1 + s = u + (the rounding error of u).
    constexpr int64_t root = 0x3fe6a09e667f3bcd;  // the bits of sqrt(1/2)
    // Unsigned, which may wrap, as that of a negative NaN does.
    I above = reinterpret<int64_t>(reinterpret<uint64_t>(u) - Vec<uint64_t>(root));
    V m = reinterpret<double>((above & I(0x000fffffffffffff)) + I(root));
    V k = reinterpret<double>(shift_right<52>(above) | I(0x4330000000000000)) - V(0x1p52);
    V correction = (s - (u - one)) / u;
    auto small = s < V(0x1.a827999fcef32p-2);  // sqrt(2) - 1: k is 0 and m - 1 is s itself
    V f = select(small, s, m - one);
    k = select(small, V(0.0), k);
    correction = select(small, V(0.0), correction);

    V half_square = V(0.5) * f * f;
    V g = f / (V(2.0) + f), z = g * g;
    static constexpr double terms[] = {1.479819860511658591e-01, 1.531383769920937332e-01,
                                       1.818357216161805012e-01, 2.222219843214978396e-01,
                                       2.857142874366239149e-01, 3.999999999940941908e-01,
                                       6.666666666666735130e-01};
    V p(terms[0]);
    for (int i = 1; i < 7; i++) p = fma(p, z, V(terms[i]));
    V series = g * fma(p, z, half_square);
    V low = fma(k, V(1.90821492927058770002e-10), correction);
    V high = k * V(6.93147180369123816490e-01);
    V log = high - ((half_square - (series + low)) - f);
    return select(s == s, log, s);
}

// tanh of 0 <= y < 1/8 by its Taylor series: 1 - exp(-2 y) would lose the digits of a small y.
XENTX_INLINE Vec<double> tanh_of_small(const Vec<double>& y) {
    using V = Vec<double>;
    static constexpr double terms[] = {-929569.0 / 638512875, 21844.0 / 6081075, -1382.0 / 155925,
                                       62.0 / 2835,           -17.0 / 315,       2.0 / 15,
                                       -1.0 / 3};
    V square = y * y, p(terms[0]);
    for (int i = 1; i < 7; i++) p = fma(p, square, V(terms[i]));
    return fma(y * square, p, y);
}

// c tanh(x / c) and its derivative, by t = exp(-2 |x / c|).
XENTX_INLINE void soft_cap(const Vec<double>& x, double cap, Vec<double>& capped, Vec<double>& slope) {
    using V = Vec<double>;
    V y = x / V(cap), zero(0.0);
    V magnitude = max(y, zero - y), t = exp_negative(V(-2.0) * magnitude);
    V large = (V(1.0) - t) / (V(1.0) + t);
    V tanh = select(magnitude < V(0.125), tanh_of_small(magnitude), large);
    capped = V(cap) * select(y < zero, zero - tanh, tanh);
    slope = V(4.0) * t / ((V(1.0) + t) * (V(1.0) + t));
}

}  // namespace
}  // namespace xentx
