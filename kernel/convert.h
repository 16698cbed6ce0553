// All conversions between dtypes, for tests.
#pragma once
#include "row.h"

namespace xentx {
namespace {

template <class From, class To>
inline void convert_one_by_one(const From* from, int64_t n, To* to) {
    for (int64_t k = 0; k < n; k++) put(to + k, to_float(from[k]));
}
// In whole vectors, for the conversions that the formula uses. n is a multiple of their length.
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

}  // namespace
}  // namespace xentx
