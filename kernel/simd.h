// Vectors of 64 bytes: one register of AVX-512, two of AVX2, or four of NEON.
//
// The lanes are the same for every instruction set, and so are the bits of the results. The operators
// are those of GCC's and Clang's vector types. Other functions are written for each instruction set.
// Everything is in an unnamed namespace: this header is compiled once for each instruction set,
// and a linker that merged two of its functions would run AVX-512 code on a machine without it.
// For the same reason no file that includes it may use an inline function of the standard library.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(XENTX_AVX512) || defined(XENTX_AVX2)
#include <immintrin.h>
#elif defined(XENTX_NEON)
#include <arm_neon.h>
#endif

// Vectors stay in registers only if the functions that they are passed to are inlined.
#define XENTX_INLINE inline __attribute__((always_inline))

namespace xentx {
namespace {

#if defined(XENTX_AVX512)
constexpr int kRegister = 64;
#elif defined(XENTX_AVX2)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

template <class T> struct Bits;  // the integer of a type's size
template <> struct Bits<float> { using type = int32_t; };
template <> struct Bits<double> { using type = int64_t; };
template <> struct Bits<int32_t> { using type = int32_t; };
template <> struct Bits<int64_t> { using type = int64_t; };
template <> struct Bits<uint64_t> { using type = int64_t; };

template <class T> struct Vec {
    static constexpr int kLanes = 64 / sizeof(T), kParts = 64 / kRegister;
    typedef T Register __attribute__((vector_size(kRegister)));
    typedef T Memory __attribute__((vector_size(kRegister), aligned(alignof(T)), may_alias));
    typedef typename Bits<T>::type Integers __attribute__((vector_size(kRegister)));
    Register part[kParts];

    Vec() = default;
    XENTX_INLINE Vec(T value) {
        for (auto& p : part) p = Register{} + value;
    }
    XENTX_INLINE T operator[](int lane) const {
        constexpr int n = kRegister / sizeof(T);
        return part[lane / n][lane % n];
    }
};

// A mask has all bits of a lane set, or none.
template <class T> using Mask = Vec<typename Bits<T>::type>;

template <class T> XENTX_INLINE Vec<T> load(const T* from) {
    Vec<T> v;
    auto* memory = reinterpret_cast<const typename Vec<T>::Memory*>(from);
    for (int i = 0; i < v.kParts; i++) v.part[i] = memory[i];
    return v;
}

template <class T> XENTX_INLINE void store(T* to, const Vec<T>& v) {
    auto* memory = reinterpret_cast<typename Vec<T>::Memory*>(to);
    for (int i = 0; i < v.kParts; i++) memory[i] = v.part[i];
}

// The first n lanes; the others are `rest`.
template <class T> XENTX_INLINE Vec<T> load_first(const T* from, int n, T rest) {
    T lanes[Vec<T>::kLanes];
    store(lanes, Vec<T>(rest));
    memcpy(lanes, from, size_t(n) * sizeof(T));
    return load(lanes);
}

template <class T> XENTX_INLINE void store_first(T* to, const Vec<T>& v, int n) {
    T lanes[Vec<T>::kLanes];
    store(lanes, v);
    memcpy(to, lanes, size_t(n) * sizeof(T));
}

#if defined(XENTX_AVX512)
XENTX_INLINE Vec<float> load_first(const float* from, int n, float rest) {
    __m512 others = _mm512_set1_ps(rest);
    Vec<float> v;
    v.part[0] = (Vec<float>::Register)_mm512_mask_loadu_ps(others, __mmask16((1u << n) - 1), from);
    return v;
}
XENTX_INLINE void store_first(float* to, const Vec<float>& v, int n) {
    _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), (__m512)v.part[0]);
}
#endif

// Past the caches, to an address that is a multiple of 64.
template <class T> XENTX_INLINE void stream(T* to, const Vec<T>& v) {
#if defined(XENTX_AVX512)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v.part[0]);
#elif defined(XENTX_AVX2)
    for (int i = 0; i < v.kParts; i++)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + i, (__m256i)v.part[i]);
#else
    store(to, v);
#endif
}

// Makes what was streamed visible to others in order.
XENTX_INLINE void stream_fence() {
#if defined(XENTX_AVX512) || defined(XENTX_AVX2)
    _mm_sfence();
#endif
}

template <class T> XENTX_INLINE Vec<T> operator+(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] += b.part[i];
    return a;
}
template <class T> XENTX_INLINE Vec<T> operator-(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] -= b.part[i];
    return a;
}
template <class T> XENTX_INLINE Vec<T> operator*(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] *= b.part[i];
    return a;
}
template <class T> XENTX_INLINE Vec<T> operator/(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] /= b.part[i];
    return a;
}
template <class T> XENTX_INLINE Vec<T> operator&(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] &= b.part[i];
    return a;
}
template <class T> XENTX_INLINE Vec<T> operator|(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] |= b.part[i];
    return a;
}
template <class T> XENTX_INLINE Mask<T> operator==(const Vec<T>& a, const Vec<T>& b) {
    Mask<T> m;
    for (int i = 0; i < a.kParts; i++) m.part[i] = a.part[i] == b.part[i];
    return m;
}
template <class T> XENTX_INLINE Mask<T> operator<(const Vec<T>& a, const Vec<T>& b) {
    Mask<T> m;
    for (int i = 0; i < a.kParts; i++) m.part[i] = a.part[i] < b.part[i];
    return m;
}
template <class T> XENTX_INLINE Mask<T> operator!=(const Vec<T>& a, const Vec<T>& b) {
    Mask<T> m;
    for (int i = 0; i < a.kParts; i++) m.part[i] = a.part[i] != b.part[i];
    return m;
}
template <class T>
XENTX_INLINE Vec<T> select(const Mask<T>& mask, Vec<T> yes, const Vec<T>& no) {
    for (int i = 0; i < yes.kParts; i++) yes.part[i] = mask.part[i] ? yes.part[i] : no.part[i];
    return yes;
}
// a if it is greater than b, else b. So b if one of them is NaN.
template <class T> XENTX_INLINE Vec<T> max(Vec<T> a, const Vec<T>& b) {
    for (int i = 0; i < a.kParts; i++) a.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
    return a;
}

// a b + c, rounded once.
XENTX_INLINE Vec<float> fma(Vec<float> a, const Vec<float>& b, const Vec<float>& c) {
    for (int i = 0; i < a.kParts; i++) {
#if defined(XENTX_AVX512)
        a.part[i] = (Vec<float>::Register)_mm512_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(XENTX_AVX2)
        a.part[i] = (Vec<float>::Register)_mm256_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(XENTX_NEON)
        a.part[i] = (Vec<float>::Register)vfmaq_f32(c.part[i], a.part[i], b.part[i]);
#else
        for (int j = 0; j < 4; j++)
            a.part[i][j] = __builtin_fmaf(a.part[i][j], b.part[i][j], c.part[i][j]);
#endif
    }
    return a;
}
XENTX_INLINE Vec<double> fma(Vec<double> a, const Vec<double>& b, const Vec<double>& c) {
    for (int i = 0; i < a.kParts; i++) {
#if defined(XENTX_AVX512)
        a.part[i] = (Vec<double>::Register)_mm512_fmadd_pd(a.part[i], b.part[i], c.part[i]);
#elif defined(XENTX_AVX2)
        a.part[i] = (Vec<double>::Register)_mm256_fmadd_pd(a.part[i], b.part[i], c.part[i]);
#elif defined(XENTX_NEON)
        a.part[i] = (Vec<double>::Register)vfmaq_f64(c.part[i], a.part[i], b.part[i]);
#else
        for (int j = 0; j < 2; j++)
            a.part[i][j] = __builtin_fma(a.part[i][j], b.part[i][j], c.part[i][j]);
#endif
    }
    return a;
}

// The first lane that a mask has set, or -1.
XENTX_INLINE int first_of(const Vec<int32_t>& mask) {
#if defined(XENTX_AVX512)
    unsigned bits = _mm512_test_epi32_mask((__m512i)mask.part[0], (__m512i)mask.part[0]);
    return bits ? __builtin_ctz(bits) : -1;
#elif defined(XENTX_AVX2)
    unsigned low = unsigned(_mm256_movemask_ps((__m256)mask.part[0]));
    unsigned bits = low | unsigned(_mm256_movemask_ps((__m256)mask.part[1])) << 8;
    return bits ? __builtin_ctz(bits) : -1;
#else
    int lane = 0;
    while (lane < 16 && !mask[lane]) lane++;
    return lane < 16 ? lane : -1;
#endif
}
// The highest of lanes without a NaN.
XENTX_INLINE float highest_of(const Vec<float>& v) {
#if defined(XENTX_AVX512)
    return _mm512_reduce_max_ps((__m512)v.part[0]);
#else
    float lanes[16];
    store(lanes, v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    return lanes[0];
#endif
}

// The same bits as another type.
template <class To, class From> XENTX_INLINE Vec<To> reinterpret(const Vec<From>& v) {
    static_assert(sizeof(To) == sizeof(From));
    Vec<To> to;
    for (int i = 0; i < v.kParts; i++) to.part[i] = (typename Vec<To>::Register)v.part[i];
    return to;
}
template <int n, class T> XENTX_INLINE Vec<T> shift_left(Vec<T> v) {
    for (auto& p : v.part) p = p << n;
    return v;
}
// For lanes that are not negative.
template <int n> XENTX_INLINE Vec<int64_t> shift_right(Vec<int64_t> v) {
    typedef uint64_t Unsigned __attribute__((vector_size(kRegister)));
    for (auto& p : v.part) p = (Vec<int64_t>::Register)((Unsigned)p >> n);
    return v;
}

// ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7))
XENTX_INLINE double sum_of_lanes(const Vec<double>& v) {
#if defined(XENTX_AVX512) || defined(XENTX_AVX2)
#if defined(XENTX_AVX512)
    __m256d four = _mm512_castpd512_pd256((__m512d)v.part[0]) +
                   _mm512_extractf64x4_pd((__m512d)v.part[0], 1);
#else
    __m256d four = (__m256d)(v.part[0] + v.part[1]);
#endif
    __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
    return two[0] + two[1];
#else
    double s[8];
    store(s, v);
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
#endif
}

// 16 floats as doubles: lanes 0 to 7 and 8 to 15.
XENTX_INLINE void widen(const Vec<float>& v, Vec<double>& low, Vec<double>& high) {
#if defined(XENTX_AVX512)
    low.part[0] = (Vec<double>::Register)_mm512_cvtps_pd(_mm512_castps512_ps256(v.part[0]));
    high.part[0] = (Vec<double>::Register)_mm512_cvtps_pd(_mm512_extractf32x8_ps(v.part[0], 1));
#elif defined(XENTX_AVX2)
    for (int i = 0; i < 2; i++) {
        Vec<double>& to = i == 0 ? low : high;
        to.part[0] = (Vec<double>::Register)_mm256_cvtps_pd(_mm256_castps256_ps128(v.part[i]));
        to.part[1] = (Vec<double>::Register)_mm256_cvtps_pd(_mm256_extractf128_ps(v.part[i], 1));
    }
#else
    for (int i = 0; i < 8; i++) {
        low.part[i / 2][i % 2] = v.part[i / 4][i % 4];
        high.part[i / 2][i % 2] = v.part[2 + i / 4][i % 4];
    }
#endif
}
// Converted while loading, which avoids splitting a register.
XENTX_INLINE void widen(const float* from, Vec<double>& low, Vec<double>& high) {
#if defined(XENTX_AVX512)
    low.part[0] = (Vec<double>::Register)_mm512_cvtps_pd(_mm256_loadu_ps(from));
    high.part[0] = (Vec<double>::Register)_mm512_cvtps_pd(_mm256_loadu_ps(from + 8));
#else
    widen(load(from), low, high);
#endif
}
// The inverse conversion, with rounding.
XENTX_INLINE Vec<float> narrow(const Vec<double>& low, const Vec<double>& high) {
    Vec<float> v;
#if defined(XENTX_AVX512)
    __m512 lower = _mm512_castps256_ps512(_mm512_cvtpd_ps(low.part[0]));
    v.part[0] = (Vec<float>::Register)_mm512_insertf32x8(lower, _mm512_cvtpd_ps(high.part[0]), 1);
#elif defined(XENTX_AVX2)
    for (int i = 0; i < 2; i++) {
        const Vec<double>& from = i == 0 ? low : high;
        __m256 lower = _mm256_castps128_ps256(_mm256_cvtpd_ps(from.part[0]));
        v.part[i] = (Vec<float>::Register)_mm256_insertf128_ps(
            lower, _mm256_cvtpd_ps(from.part[1]), 1);
    }
#else
    for (int i = 0; i < 8; i++) {
        v.part[i / 4][i % 4] = float(low.part[i / 2][i % 2]);
        v.part[2 + i / 4][i % 4] = float(high.part[i / 2][i % 2]);
    }
#endif
    return v;
}

// float16 and bfloat16, one float at a time: rounded to nearest, ties to even.
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

XENTX_INLINE float as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
XENTX_INLINE uint32_t as_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

XENTX_INLINE float to_float(Brain b) { return as_float(uint32_t(b.bits) << 16); }
XENTX_INLINE float to_float(Half h) {
    uint32_t sign = uint32_t(h.bits & 0x8000) << 16, exponent = (h.bits >> 10) & 31;
    uint32_t mantissa = h.bits & 1023;
    if (exponent == 31) return as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {  // subnormal: mantissa * 2^-24
        float magnitude = float(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
XENTX_INLINE float to_float(float f) { return f; }
XENTX_INLINE double to_float(double d) { return d; }

XENTX_INLINE void put(Brain* to, float f) {
    uint32_t bits = as_bits(f);
    to->bits = f != f ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
XENTX_INLINE void put(Half* to, float f) {
    uint32_t bits = as_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        to->bits = 0x7e00;
    } else if (magnitude >= 0x47800000) {  // 65536 and above; what rounds up to it comes below
        to->bits = uint16_t(sign | 0x7c00);
    } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 rounds to a multiple of 2^-24
        to->bits = uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000));
    } else {
        magnitude += 0xfff + (magnitude >> 13 & 1);
        to->bits = uint16_t(sign | ((magnitude - 0x38000000) >> 13));
    }
}
XENTX_INLINE void put(float* to, float f) { *to = f; }
XENTX_INLINE void put(double* to, double d) { *to = d; }
// Rounds a double to a narrow float once. It is first converted to float. If that is inexact, the
// last bit is set (round to odd), so that the second rounding does not see a false tie.
XENTX_INLINE float round_to_odd(double d) {
    float f = float(d);
    if (double(f) == d || f != f || f - f != 0.0f) return f;
    uint32_t bits = as_bits(f);
    // The sign is that of d, since f may be 0: rounded towards zero, with no bit to take away.
    bool away_from_zero = (double(f) < d) != (d > 0);
    if (away_from_zero) bits -= 1;
    return as_float(bits | 1);
}
XENTX_INLINE void put(Brain* to, double d) { put(to, round_to_odd(d)); }
XENTX_INLINE void put(Half* to, double d) { put(to, round_to_odd(d)); }
XENTX_INLINE void put(float* to, double d) { *to = float(d); }

// The same for whole vectors, if there are instructions for it.
XENTX_INLINE Vec<float> load(const Brain* from) {
    Vec<float> v;
#if defined(XENTX_AVX512)
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    v.part[0] = (Vec<float>::Register)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(XENTX_AVX2)
    for (int i = 0; i < 2; i++) {
        __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
        v.part[i] = (Vec<float>::Register)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    }
#else
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = to_float(from[i]);
    v = load(lanes);
#endif
    return v;
}
XENTX_INLINE Vec<float> load(const Half* from) {
    Vec<float> v;
#if defined(XENTX_AVX512)
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    v.part[0] = (Vec<float>::Register)_mm512_cvtph_ps(half);
#elif defined(XENTX_AVX2)
    for (int i = 0; i < 2; i++) {
        __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i);
        v.part[i] = (Vec<float>::Register)_mm256_cvtph_ps(half);
    }
#else
    float lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = to_float(from[i]);
    v = load(lanes);
#endif
    return v;
}
XENTX_INLINE void store(Half* to, const Vec<float>& v) {
#if defined(XENTX_AVX512)
    __m256i half = _mm512_cvtps_ph(v.part[0], _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), half);
#elif defined(XENTX_AVX2)
    for (int i = 0; i < 2; i++) {
        __m128i half = _mm256_cvtps_ph(v.part[i], _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + i, half);
    }
#else
    for (int i = 0; i < 16; i++) put(to + i, v[i]);
#endif
}
XENTX_INLINE void store(Brain* to, const Vec<float>& v) {
    // Only with vector types: compilers translate the narrowing loop into one or two instructions.
    Vec<int32_t> bits = reinterpret<int32_t>(v), rounded;
    for (int i = 0; i < v.kParts; i++) {
        // NaN first, because its largest bit patterns would overflow in the addition.
        auto number = v.part[i] == v.part[i] ? bits.part[i] : 0x7fc00000;
        rounded.part[i] = (number + 0x7fff + ((number >> 16) & 1)) >> 16;
    }
    int32_t lanes[16];
    store(lanes, rounded);
    for (int i = 0; i < 16; i++) to[i].bits = uint16_t(lanes[i]);
}

}  // namespace
}  // namespace xentx
