/* Sixteen floats at once, with the operations of the elementwise parts: compiler vectors, the same source for every
 * instruction set. No multiplication is fused with an addition (the build says -ffp-contract=off), so that every
 * instruction set gives the same bits.
 */
#ifndef QSLM_VECTORS_H
#define QSLM_VECTORS_H

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace qslm {

constexpr int kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float FloatsAnywhere __attribute__((vector_size(64), aligned(4), may_alias));

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

inline Floats load(const float *p) { return *reinterpret_cast<const FloatsAnywhere *>(p); }
inline void store(float *p, Floats v) { *reinterpret_cast<FloatsAnywhere *>(p) = v; }

/* The first n of 16 floats, zeros behind them; reads nothing beyond. */
inline Floats load(const float *p, int n) {
    if (n >= kLanes) return load(p);
    alignas(64) float values[kLanes] = {};
    std::memcpy(values, p, sizeof(float) * n);
    return load(values);
}

inline void store(float *p, Floats v, int n) {
    if (n >= kLanes) return store(p, v);
    alignas(64) float values[kLanes];
    store(values, v);
    std::memcpy(p, values, sizeof(float) * n);
}

/* v with zeros from lane n on. */
inline Floats first_lanes(Floats v, int n) {
    if (n >= kLanes) return v;
    alignas(64) float values[kLanes];
    store(values, v);
    return load(values, n);
}

inline Floats all(float x) { return Floats{} + x; }
inline Ints bits_of(Floats v) { return reinterpret_cast<Ints>(v); }
inline Floats floats_of(Ints v) { return reinterpret_cast<Floats>(v); }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats magnitude(Floats v) { return floats_of(bits_of(v) & 0x7fffffff); }

/* Sum of the lanes, always in the same order. */
inline float sum(Floats v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps(v); /* halves onto each other, as below */
#else
    alignas(64) float x[kLanes];
    store(x, v);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
#endif
}

constexpr float kRounder = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers, half to even */

/* e^x to 2 units in the last place; 0 below -87.3, and exactly 1 at 0. Polynomial: Cephes (Moshier), expf. */
inline Floats exp(Floats x) {
    const Floats clamped = larger(smaller(x, all(88.3f)), all(-87.3f));
    const Floats rounded = clamped * 1.44269504f + kRounder;
    const Floats n = rounded - kRounder;
    const Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = all(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    const Ints exponent = (bits_of(rounded) - bits_of(all(kRounder))) << 23;
    return x < -87.3f ? Floats{} : floats_of(bits_of(y) + exponent);
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

/* A float16, with the bits of IEEE binary16. */
inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    float magnitude;
    if (rest >= 0x7c00) { /* infinity or not a number */
        const uint32_t bits = 0x7f800000 | (rest & 0x3ff) << 13;
        std::memcpy(&magnitude, &bits, 4);
    } else { /* shifting gives the right mantissa 112 too low an exponent: 2^112 mends it, subnormals included */
        const uint32_t bits = rest << 13;
        std::memcpy(&magnitude, &bits, 4);
        magnitude *= 5.192296858534828e33f;
    }
    uint32_t bits;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
    std::memcpy(&magnitude, &bits, 4);
    return magnitude;
}

} // namespace qslm
#endif
