/* 4 rows at a time in plain C++: the fallback for every processor, and what the others are held against. */
#ifndef QSLM_LANES_PORTABLE_H
#define QSLM_LANES_PORTABLE_H

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace qslm {

struct Isa {
    static constexpr const char *kName = "cpu portable";
    static constexpr int kRows = 4;
    static constexpr int kBytes = 16;
    static constexpr int kTileVectors = 4;
    static constexpr int kTileTokens = 4;
    static constexpr int kInputWords = 1;
    static constexpr bool kSigned8 = false;
    static constexpr bool kRaised = false;
    union I {
        int32_t word[4];
        uint8_t byte[16];
    };
    struct F {
        float at[4];
    };
    typedef I Inputs;

    static bool runs_here() { return true; }

    static I zero() { return I{}; }
    static I load(const void *p) { return load_part(p, kBytes); }
    static I loaded(const void *p) { return load(p); }
    static I load_part(const void *p, int bytes) {
        I v{};
        std::memcpy(&v, p, bytes);
        return v;
    }
    static void store(void *p, I v) { std::memcpy(p, &v, kBytes); }
    static I all(int32_t x) { return I{{x, x, x, x}}; }
    static I add(I a, I b) {
        for (int i = 0; i < 4; ++i) a.word[i] += b.word[i];
        return a;
    }
    static I flip_sign(I v) {
        for (int i = 0; i < 16; ++i) v.byte[i] ^= 0x80;
        return v;
    }
    template <int kBits> static I dot(I acc, I codes, I inputs) {
        for (int i = 0; i < 4; ++i)
            for (int j = 4 * i; j < 4 * i + 4; ++j) acc.word[i] += codes.byte[j] * int8_t(inputs.byte[j]);
        return acc;
    }
    static Inputs inputs(const int8_t *p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return all(four);
    }
    template <bool kCentred, int kWord> static I dot_word(I acc, I codes, Inputs inputs) {
        if constexpr (!kCentred) return dot<8>(acc, codes, inputs);
        for (int i = 0; i < 4; ++i)
            for (int j = 4 * i; j < 4 * i + 4; ++j) acc.word[i] += int8_t(codes.byte[j]) * int8_t(inputs.byte[j]);
        return acc;
    }
    static I sub(I a, I b) {
        for (int i = 0; i < 4; ++i) a.word[i] -= b.word[i];
        return a;
    }
    static I sub_bytes(I v, I w) {
        for (int i = 0; i < 16; ++i) v.byte[i] = uint8_t(v.byte[i] - uint8_t(w.word[i / 4]));
        return v;
    }
    static I add_product(I v, I a, I b) {
        for (int i = 0; i < 4; ++i) v.word[i] += a.word[i] * b.word[i];
        return v;
    }

    template <int kBits, int kPlane> static I field(I v) {
        for (int i = 0; i < 16; ++i) v.byte[i] = v.byte[i] >> (kBits * kPlane) & ((1 << kBits) - 1);
        return v;
    }
    template <int kBits> static I shifted(I v, int by) {
        for (int i = 0; i < 4; ++i) v.word[i] = uint32_t(v.word[i]) >> by & ((1 << kBits) - 1);
        return v;
    }

    template <int kBits> static I take(I &v) {
        const I low = shifted<kBits>(v, 0);
        for (int i = 0; i < 4; ++i) v.word[i] = int32_t(uint32_t(v.word[i]) >> kBits);
        return low;
    }

    static F to_float(I v) { return F{{float(v.word[0]), float(v.word[1]), float(v.word[2]), float(v.word[3])}}; }
    static F load_float(const float *p) { return F{{p[0], p[1], p[2], p[3]}}; }
    static void store_float(float *p, F v) { std::memcpy(p, &v, kBytes); }
    static F all_float(float x) { return F{{x, x, x, x}}; }
    static F mul(F a, F b) {
        for (int i = 0; i < 4; ++i) a.at[i] *= b.at[i];
        return a;
    }
    static F add(F a, F b) {
        for (int i = 0; i < 4; ++i) a.at[i] += b.at[i];
        return a;
    }

    static F sub(F a, F b) {
        for (int i = 0; i < 4; ++i) a.at[i] -= b.at[i];
        return a;
    }
    static F larger(F a, F b) {
        for (int i = 0; i < 4; ++i) a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
        return a;
    }
    static F magnitude(F v) {
        for (int i = 0; i < 4; ++i) v.at[i] = __builtin_fabsf(v.at[i]);
        return v;
    }
    static float largest(F v) {
        float most = v.at[0];
        for (int i = 1; i < 4; ++i) most = v.at[i] > most ? v.at[i] : most;
        return most;
    }
    static int32_t sum(I v) { return v.word[0] + v.word[1] + v.word[2] + v.word[3]; }
    static I bits(F v) {
        I out;
        std::memcpy(&out, &v, kBytes);
        return out;
    }
    static void narrow(const I *v, int8_t *out) {
        for (int i = 0; i < 16; ++i) out[i] = int8_t(v[i / 4].word[i % 4]);
    }
    static void bytes_to_float(I v, F *out) {
        for (int i = 0; i < 16; ++i) out[i / 4].at[i % 4] = float(v.byte[i]);
    }

    template <bool kSmall> static I combine(I a, I b, I c, I d) {
        const I rows[4] = {a, b, c, d};
        I out;
        for (int i = 0; i < 4; ++i)
            out.word[i] = rows[i].word[0] + rows[i].word[1] + rows[i].word[2] + rows[i].word[3];
        return out;
    }
    static void combine_halves(I a, I b, I c, I d, I *even, I *odd) {
        const I rows[4] = {a, b, c, d};
        for (int i = 0; i < 4; ++i) {
            even->word[i] = rows[i].word[0] + rows[i].word[1];
            odd->word[i] = rows[i].word[2] + rows[i].word[3];
        }
    }
    template <int kParts> static void spread(const I *d, I *groups) { groups[0] = d[0]; }

    static void transpose(I *v) {
        I out[4];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) out[i].word[j] = v[j].word[i];
        std::memcpy(v, out, sizeof out);
    }

    static I words(const uint8_t *p, ptrdiff_t stride) {
        I v;
        for (int i = 0; i < 4; ++i) std::memcpy(&v.word[i], p + i * stride, 4);
        return v;
    }

    static void halves(const uint8_t *p, ptrdiff_t stride, float *out, int out_stride) {
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 8; ++j) out[j * out_stride + i] = half(p + i * stride + 2 * j);
    }

    static void widen(const uint8_t *p, float *out) {
        for (int i = 0; i < 16; ++i) out[i] = half(p + 2 * i);
    }

  private:
    static float half(const uint8_t *p) {
        uint16_t bits;
        std::memcpy(&bits, p, 2);
        return half_to_float(bits);
    }
};

} // namespace qslm
#endif
