/* 16 rows at a time with AVX-512 VNNI. */
#ifndef QSLM_LANES_AVX512_H
#define QSLM_LANES_AVX512_H

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qslm {

struct Isa {
    static constexpr const char *kName = "cpu avx512-vnni";
    static constexpr int kRows = 16;       /* lanes */
    static constexpr int kBytes = 64;      /* of a vector of codes */
    static constexpr int kTileVectors = 2; /* a tile of the integer GEMM: 2 x 16 rows */
    static constexpr int kTileTokens = 6;
    static constexpr int kInputWords = 1;   /* of four inputs of a token, that the tile reads at once */
    static constexpr bool kSigned8 = false; /* 8-bit codes are multiplied as they are, unsigned */
    static constexpr bool kRaised = true;   /* signed codes are multiplied with inputs above by 128, unsigned */
    typedef __m512i I;
    typedef __m512 F;
    typedef I Inputs;

    static bool runs_here() {
        return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl");
    }

    static I zero() { return _mm512_setzero_si512(); }
    static I load(const void *p) { return _mm512_loadu_si512(p); }
    /* in a register, not read anew by each instruction that takes it: reads are what a step is short of */
    static I loaded(const void *p) {
        I v = load(p);
        asm("" : "+v"(v));
        return v;
    }
    static I load_part(const void *p, int bytes) {
        return _mm512_maskz_loadu_epi8((__mmask64(1) << bytes) - 1, p);
    }
    static void store(void *p, I v) { _mm512_storeu_si512(p, v); }
    static I all(int32_t x) { return _mm512_set1_epi32(x); }
    static I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static I flip_sign(I v) { return _mm512_xor_si512(v, _mm512_set1_epi8(char(0x80))); }
    /* acc + products of unsigned codes and signed inputs, four bytes a lane */
    template <int kBits> static I dot(I acc, I codes, I inputs) { return _mm512_dpbusd_epi32(acc, codes, inputs); }
    /* acc + products of signed codes and raised inputs, for codes within -15 ... 15 */
    static I dot_centred(I acc, I codes, I inputs) { return _mm512_dpbusd_epi32(acc, inputs, codes); }
    /* The same with word `kWord` of inputs in every lane: codes as they are, or centred ones. */
    static Inputs inputs(const int8_t *p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return all(four);
    }
    template <bool kCentred, int kWord> static I dot_word(I acc, I codes, Inputs inputs) {
        return kCentred ? dot_centred(acc, codes, inputs) : dot<8>(acc, codes, inputs);
    }
    static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
    /* bytes of v, less the lowest byte of each lane of w */
    static I sub_bytes(I v, I w) {
        const __m128i lowest = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        return _mm512_sub_epi8(v, _mm512_shuffle_epi8(w, _mm512_broadcast_i32x4(lowest)));
    }
    /* v + a * b for a within 0 ... 255 and b within 16 bits */
    static I add_product(I v, I a, I b) { return _mm512_dpwssd_epi32(v, a, b); }

    /* Field `plane` of every byte. */
    template <int kBits, int kPlane> static I field(I v) {
        if constexpr (kBits == 8) return v;
        if constexpr (kPlane > 0) v = _mm512_srli_epi16(v, kBits * kPlane);
        return _mm512_and_si512(v, _mm512_set1_epi8((1 << kBits) - 1));
    }
    template <int kBits> static I shifted(I v, int by) {
        return _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(by)), all((1 << kBits) - 1));
    }

    /* The lowest field of each lane, which is taken out of it. */
    template <int kBits> static I take(I &v) {
        const I low = _mm512_and_si512(v, all((1 << kBits) - 1));
        v = _mm512_srli_epi32(v, kBits);
        return low;
    }

    static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
    static F load_float(const float *p) { return _mm512_loadu_ps(p); }
    static void store_float(float *p, F v) { _mm512_storeu_ps(p, v); }
    static F all_float(float x) { return _mm512_set1_ps(x); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }

    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F larger(F a, F b) { return _mm512_max_ps(a, b); }
    static F magnitude(F v) { return _mm512_abs_ps(v); }
    static float largest(F v) { return _mm512_reduce_max_ps(v); }
    static int32_t sum(I v) { return _mm512_reduce_add_epi32(v); }
    static I bits(F v) { return _mm512_castps_si512(v); }
    /* Sixteen lanes, which bytes hold, as bytes. */
    static void narrow(const I *v, int8_t *out) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(out), _mm512_cvtepi32_epi8(v[0]));
    }
    /* Unsigned bytes as floats: four vectors of them. */
    static void bytes_to_float(I v, F *out) {
        out[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(v)));
        out[1] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 1)));
        out[2] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 2)));
        out[3] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 3)));
    }

    /* Sums within 128-bit parts: of rows a, b, c, d, part by part [a, b, c, d]. kSmall: sums of two fit into 16 bits. */
    template <bool kSmall> static I combine(I a, I b, I c, I d) {
        if constexpr (kSmall) return small_pair_sums(small_pair_sums(a, b), small_pair_sums(c, d));
        const I ab = add(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        const I cd = add(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        return add(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    /* The same over 64-bit halves of the parts: `even` gets the first halves, `odd` the second. */
    static void combine_halves(I a, I b, I c, I d, I *even, I *odd) {
        const I ab = pair_sums(a, b), cd = pair_sums(c, d);
        *even = _mm512_unpacklo_epi64(ab, cd);
        *odd = _mm512_unpackhi_epi64(ab, cd);
    }
    /* From four such vectors (rows 0-3, 4-7, ...) to one a group of `kParts` 128-bit parts, lanes = rows. */
    template <int kParts> static void spread(const I *d, I *groups) {
        if constexpr (kParts == 1) {
            const I t0 = _mm512_shuffle_i32x4(d[0], d[1], 0x44), t1 = _mm512_shuffle_i32x4(d[0], d[1], 0xee);
            const I t2 = _mm512_shuffle_i32x4(d[2], d[3], 0x44), t3 = _mm512_shuffle_i32x4(d[2], d[3], 0xee);
            groups[0] = _mm512_shuffle_i32x4(t0, t2, 0x88);
            groups[1] = _mm512_shuffle_i32x4(t0, t2, 0xdd);
            groups[2] = _mm512_shuffle_i32x4(t1, t3, 0x88);
            groups[3] = _mm512_shuffle_i32x4(t1, t3, 0xdd);
        } else {
            const I u = add(_mm512_shuffle_i32x4(d[0], d[1], 0x88), _mm512_shuffle_i32x4(d[0], d[1], 0xdd));
            const I w = add(_mm512_shuffle_i32x4(d[2], d[3], 0x88), _mm512_shuffle_i32x4(d[2], d[3], 0xdd));
            const I first = _mm512_shuffle_i32x4(u, w, 0x88), second = _mm512_shuffle_i32x4(u, w, 0xdd);
            if constexpr (kParts == 2) {
                groups[0] = first;
                groups[1] = second;
            } else {
                groups[0] = add(first, second);
            }
        }
    }

    /* 16 x 16 words: out[j] holds word j of every row. */
    static void transpose(I *v) {
        I a[16];
        for (int i = 0; i < 16; i += 4) {
            const I p = _mm512_unpacklo_epi32(v[i], v[i + 1]), q = _mm512_unpackhi_epi32(v[i], v[i + 1]);
            const I r = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]), s = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
            a[i] = _mm512_unpacklo_epi64(p, r);
            a[i + 1] = _mm512_unpackhi_epi64(p, r);
            a[i + 2] = _mm512_unpacklo_epi64(q, s);
            a[i + 3] = _mm512_unpackhi_epi64(q, s);
        }
        for (int i = 0; i < 4; ++i) {
            const I d[4] = {a[i], a[i + 4], a[i + 8], a[i + 12]};
            I out[4];
            spread<1>(d, out);
            for (int part = 0; part < 4; ++part) v[4 * part + i] = out[part];
        }
    }

    /* One 32-bit word of every row. */
    static I words(const uint8_t *p, ptrdiff_t stride) {
        __m128i part[4];
        for (int i = 0; i < 4; ++i) {
            const uint8_t *q = p + 4 * i * stride;
            part[i] = _mm_insert_epi32(_mm_loadu_si32(q), word(q + stride), 1);
            part[i] = _mm_insert_epi32(part[i], word(q + 2 * stride), 2);
            part[i] = _mm_insert_epi32(part[i], word(q + 3 * stride), 3);
        }
        const __m256i low = _mm256_set_m128i(part[1], part[0]), high = _mm256_set_m128i(part[3], part[2]);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }

    /* Eight float16 of every row, as floats: number j of every row at out + j * out_stride. */
    static void halves(const uint8_t *p, ptrdiff_t stride, float *out, int out_stride) {
        __m256i a[8], b[8];
        for (int i = 0; i < 8; ++i)
            a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(p + i * stride)), eight(p + (i + 8) * stride), 1);
        for (int i = 0; i < 4; ++i) {
            b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                a[4 * i + 2 * j] = _mm256_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
                a[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
            }
        for (int j = 0; j < 4; ++j) {
            store_float(out + out_stride * (2 * j), _mm512_cvtph_ps(_mm256_unpacklo_epi64(a[j], a[4 + j])));
            store_float(out + out_stride * (2 * j + 1), _mm512_cvtph_ps(_mm256_unpackhi_epi64(a[j], a[4 + j])));
        }
    }

    /* Sixteen float16 in a row. */
    static void widen(const uint8_t *p, float *out) {
        store_float(out, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
    }

  private:
    static I small_pair_sums(I a, I b) { return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1)); }
    static I pair_sums(I a, I b) {
        const I low = _mm512_unpacklo_epi32(a, b), high = _mm512_unpackhi_epi32(a, b);
        return add(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    static __m128i eight(const uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
    static int32_t word(const uint8_t *p) {
        int32_t value;
        std::memcpy(&value, p, 4);
        return value;
    }
};

} // namespace qslm
#endif
