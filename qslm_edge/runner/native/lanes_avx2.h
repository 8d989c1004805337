/* 8 rows at a time with AVX2. Pairs of products are summed in 16 bits, which holds them: 15 x 127 x 2, or 128 x 127 x 2. */
#ifndef QSLM_LANES_AVX2_H
#define QSLM_LANES_AVX2_H

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qslm {

struct Isa {
    static constexpr const char *kName = "cpu avx2";
    static constexpr int kRows = 8;
    static constexpr int kBytes = 32;
    static constexpr int kTileVectors = 2;
    static constexpr int kTileTokens = 4;
    static constexpr int kInputWords = 1;
    static constexpr bool kSigned8 = true; /* 8-bit codes are taken as q - 128: unsigned ones overflow 16 bits */
    static constexpr bool kRaised = true;
    typedef __m256i I;
    typedef __m256 F;
    typedef I Inputs;

    static bool runs_here() { return __builtin_cpu_supports("avx2"); }

    static I zero() { return _mm256_setzero_si256(); }
    static I load(const void *p) { return _mm256_loadu_si256(static_cast<const I *>(p)); }
    static I loaded(const void *p) {
        I v = load(p);
        asm("" : "+x"(v));
        return v;
    }
    static I load_part(const void *p, int bytes) {
        alignas(32) uint8_t whole[kBytes] = {};
        std::memcpy(whole, p, bytes);
        return load(whole);
    }
    static void store(void *p, I v) { _mm256_storeu_si256(static_cast<I *>(p), v); }
    static I all(int32_t x) { return _mm256_set1_epi32(x); }
    static I add(I a, I b) { return _mm256_add_epi32(a, b); }
    static I flip_sign(I v) { return _mm256_xor_si256(v, _mm256_set1_epi8(char(0x80))); }
    template <int kBits> static I dot(I acc, I codes, I inputs) {
        const I pairs = kBits == 8 ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(inputs, codes))
                                   : _mm256_maddubs_epi16(codes, inputs);
        return add(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static I dot_centred(I acc, I codes, I inputs) {
        return add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(inputs, codes), _mm256_set1_epi16(1)));
    }
    static Inputs inputs(const int8_t *p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return all(four);
    }
    template <bool kCentred, int kWord> static I dot_word(I acc, I codes, Inputs inputs) {
        return kCentred ? dot_centred(acc, codes, inputs) : dot<8>(acc, codes, inputs);
    }
    static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
    static I sub_bytes(I v, I w) {
        const __m128i lowest = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        return _mm256_sub_epi8(v, _mm256_shuffle_epi8(w, _mm256_broadcastsi128_si256(lowest)));
    }
    static I add_product(I v, I a, I b) { return _mm256_add_epi32(v, _mm256_mullo_epi32(a, b)); }

    template <int kBits, int kPlane> static I field(I v) {
        if constexpr (kBits == 8) return v;
        if constexpr (kPlane > 0) v = _mm256_srli_epi16(v, kBits * kPlane);
        return _mm256_and_si256(v, _mm256_set1_epi8((1 << kBits) - 1));
    }
    template <int kBits> static I shifted(I v, int by) {
        return _mm256_and_si256(_mm256_srl_epi32(v, _mm_cvtsi32_si128(by)), all((1 << kBits) - 1));
    }

    template <int kBits> static I take(I &v) {
        const I low = _mm256_and_si256(v, all((1 << kBits) - 1));
        v = _mm256_srli_epi32(v, kBits);
        return low;
    }

    static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
    static F load_float(const float *p) { return _mm256_loadu_ps(p); }
    static void store_float(float *p, F v) { _mm256_storeu_ps(p, v); }
    static F all_float(float x) { return _mm256_set1_ps(x); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }

    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F larger(F a, F b) { return _mm256_max_ps(a, b); }
    static F magnitude(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
    static float largest(F v) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static int32_t sum(I v) {
        __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
    }
    static I bits(F v) { return _mm256_castps_si256(v); }
    static void narrow(const I *v, int8_t *out) {
        const I words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v[0], v[1]), 0xd8);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), bytes);
    }
    static void bytes_to_float(I v, F *out) {
        const __m128i halves[2] = {_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)};
        for (int i = 0; i < 2; ++i) {
            out[2 * i] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(halves[i]));
            out[2 * i + 1] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(halves[i], 8)));
        }
    }

    template <bool kSmall> static I combine(I a, I b, I c, I d) {
        if constexpr (kSmall) return small_pair_sums(small_pair_sums(a, b), small_pair_sums(c, d));
        const I ab = add(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        const I cd = add(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        return add(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    }
    static void combine_halves(I a, I b, I c, I d, I *even, I *odd) {
        const I ab = pair_sums(a, b), cd = pair_sums(c, d);
        *even = _mm256_unpacklo_epi64(ab, cd);
        *odd = _mm256_unpackhi_epi64(ab, cd);
    }
    template <int kParts> static void spread(const I *d, I *groups) {
        const I first = _mm256_permute2x128_si256(d[0], d[1], 0x20);
        const I second = _mm256_permute2x128_si256(d[0], d[1], 0x31);
        if constexpr (kParts == 1) {
            groups[0] = first;
            groups[1] = second;
        } else {
            groups[0] = add(first, second);
        }
    }

    static void transpose(I *v) {
        I a[8];
        for (int i = 0; i < 8; i += 4) {
            const I p = _mm256_unpacklo_epi32(v[i], v[i + 1]), q = _mm256_unpackhi_epi32(v[i], v[i + 1]);
            const I r = _mm256_unpacklo_epi32(v[i + 2], v[i + 3]), s = _mm256_unpackhi_epi32(v[i + 2], v[i + 3]);
            a[i] = _mm256_unpacklo_epi64(p, r);
            a[i + 1] = _mm256_unpackhi_epi64(p, r);
            a[i + 2] = _mm256_unpacklo_epi64(q, s);
            a[i + 3] = _mm256_unpackhi_epi64(q, s);
        }
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
            v[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
        }
    }

    static I words(const uint8_t *p, ptrdiff_t stride) {
        __m128i part[2];
        for (int i = 0; i < 2; ++i) {
            const uint8_t *q = p + 4 * i * stride;
            part[i] = _mm_setr_epi32(word(q), word(q + stride), word(q + 2 * stride), word(q + 3 * stride));
        }
        return _mm256_set_m128i(part[1], part[0]);
    }

    static void halves(const uint8_t *p, ptrdiff_t stride, float *out, int out_stride) {
        __m128i a[8], b[8];
        for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p + i * stride));
        for (int i = 0; i < 4; ++i) {
            b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                a[4 * i + 2 * j] = _mm_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
                a[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
            }
        for (int j = 0; j < 4; ++j) {
            store_float(out + out_stride * (2 * j), _mm256_cvtph_ps(_mm_unpacklo_epi64(a[j], a[4 + j])));
            store_float(out + out_stride * (2 * j + 1), _mm256_cvtph_ps(_mm_unpackhi_epi64(a[j], a[4 + j])));
        }
    }

    static void widen(const uint8_t *p, float *out) {
        for (int i = 0; i < 16; i += 8)
            store_float(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p + 2 * i))));
    }

  private:
    static I small_pair_sums(I a, I b) { return _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1)); }
    static I pair_sums(I a, I b) {
        const I low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
        return add(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    }
    static int32_t word(const uint8_t *p) {
        int32_t value;
        std::memcpy(&value, p, 4);
        return value;
    }
};

} // namespace qslm
#endif
