/* 4 rows at a time with NEON of 64-bit ARM: with dot products (ARMv8.2, from Cortex-A75 on), or without. */
#ifndef QSLM_LANES_NEON_H
#define QSLM_LANES_NEON_H

#include <arm_neon.h>
#if defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qslm {

struct Isa {
#ifdef __ARM_FEATURE_DOTPROD
    static constexpr const char *kName = "cpu neon-dotprod";
#else
    static constexpr const char *kName = "cpu neon";
#endif
    static constexpr int kRows = 4;
    static constexpr int kBytes = 16;
    static constexpr int kTileVectors = 4;
    static constexpr int kTileTokens = 4;
    static constexpr int kInputWords = 2;
    static constexpr bool kSigned8 = true; /* products are of signed bytes */
    static constexpr bool kRaised = false;
    typedef int32x4_t I;
    typedef float32x4_t F;
    typedef int32x2_t Inputs;

    static bool runs_here() {
#if defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
        return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
        return true;
#endif
    }

    static I zero() { return vdupq_n_s32(0); }
    static I load(const void *p) { return of_bytes(vld1q_u8(static_cast<const uint8_t *>(p))); }
    static I loaded(const void *p) {
        I v = load(p);
        asm("" : "+w"(v));
        return v;
    }
    static I load_part(const void *p, int bytes) {
        uint8_t whole[kBytes] = {};
        std::memcpy(whole, p, bytes);
        return load(whole);
    }
    static void store(void *p, I v) { vst1q_u8(static_cast<uint8_t *>(p), bytes_of(v)); }
    static I all(int32_t x) { return vdupq_n_s32(x); }
    static I add(I a, I b) { return vaddq_s32(a, b); }
    static I sub(I a, I b) { return vsubq_s32(a, b); }
    static I flip_sign(I v) { return of_bytes(veorq_u8(bytes_of(v), vdupq_n_u8(0x80))); }
    template <int kBits> static I dot(I acc, I codes, I inputs) { return dot_signed(acc, codes, inputs); }
    static Inputs inputs(const int8_t *p) { return vreinterpret_s32_s8(vld1_s8(p)); }
    template <bool kCentred, int kWord> static I dot_word(I acc, I codes, Inputs inputs) {
#ifdef __ARM_FEATURE_DOTPROD
        return vdotq_lane_s32(acc, signed_of(codes), vreinterpret_s8_s32(inputs), kWord);
#else
        return dot_signed(acc, codes, vdupq_lane_s32(inputs, kWord));
#endif
    }
    static I sub_bytes(I v, I w) {
        const uint8x16_t lowest = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
        return of_bytes(vsubq_u8(bytes_of(v), vqtbl1q_u8(bytes_of(w), lowest)));
    }
    static I add_product(I v, I a, I b) { return vmlaq_s32(v, a, b); }

    template <int kBits, int kPlane> static I field(I v) {
        uint8x16_t bytes = bytes_of(v);
        if constexpr (kPlane > 0) bytes = vshrq_n_u8(bytes, kBits * kPlane);
        if constexpr ((kPlane + 1) * kBits < 8) bytes = vandq_u8(bytes, vdupq_n_u8((1 << kBits) - 1));
        return of_bytes(bytes);
    }
    template <int kBits> static I shifted(I v, int by) {
        const uint32x4_t low = vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-by));
        return vandq_s32(vreinterpretq_s32_u32(low), all((1 << kBits) - 1));
    }
    template <int kBits> static I take(I &v) {
        const I low = vandq_s32(v, all((1 << kBits) - 1));
        v = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), kBits));
        return low;
    }

    static F to_float(I v) { return vcvtq_f32_s32(v); }
    static F load_float(const float *p) { return vld1q_f32(p); }
    static void store_float(float *p, F v) { vst1q_f32(p, v); }
    static F all_float(float x) { return vdupq_n_f32(x); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F add(F a, F b) { return vaddq_f32(a, b); }

    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F larger(F a, F b) { return vmaxq_f32(a, b); }
    static F magnitude(F v) { return vabsq_f32(v); }
    static float largest(F v) { return vmaxvq_f32(v); }
    static int32_t sum(I v) { return vaddvq_s32(v); }
    static I bits(F v) { return vreinterpretq_s32_f32(v); }
    static void narrow(const I *v, int8_t *out) {
        const int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
        vst1q_s8(out, vcombine_s8(vmovn_s16(low), vmovn_s16(vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3])))));
    }
    static void bytes_to_float(I v, F *out) {
        const uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(bytes_of(v))), vmovl_high_u8(bytes_of(v))};
        for (int i = 0; i < 2; ++i) {
            out[2 * i] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(halves[i])));
            out[2 * i + 1] = vcvtq_f32_u32(vmovl_high_u16(halves[i]));
        }
    }

    template <bool kSmall> static I combine(I a, I b, I c, I d) {
        return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
    }
    static void combine_halves(I a, I b, I c, I d, I *even, I *odd) {
        const I ab = vpaddq_s32(a, b), cd = vpaddq_s32(c, d);
        *even = vuzp1q_s32(ab, cd);
        *odd = vuzp2q_s32(ab, cd);
    }
    template <int kParts> static void spread(const I *d, I *groups) { groups[0] = d[0]; }

    static void transpose(I *v) {
        const I a = vzip1q_s32(v[0], v[2]), b = vzip2q_s32(v[0], v[2]);
        const I c = vzip1q_s32(v[1], v[3]), d = vzip2q_s32(v[1], v[3]);
        v[0] = vzip1q_s32(a, c);
        v[1] = vzip2q_s32(a, c);
        v[2] = vzip1q_s32(b, d);
        v[3] = vzip2q_s32(b, d);
    }

    static I words(const uint8_t *p, ptrdiff_t stride) {
        int32_t word[kRows];
        for (int i = 0; i < kRows; ++i) std::memcpy(word + i, p + i * stride, 4);
        return vld1q_s32(word);
    }

    static void halves(const uint8_t *p, ptrdiff_t stride, float *out, int out_stride) {
        uint16x8_t row[4];
        for (int i = 0; i < 4; ++i) row[i] = vreinterpretq_u16_u8(vld1q_u8(p + i * stride));
        const uint16x8_t pairs[4] = {vzip1q_u16(row[0], row[1]), vzip1q_u16(row[2], row[3]), vzip2q_u16(row[0], row[1]),
                                     vzip2q_u16(row[2], row[3])};
        for (int i = 0; i < 2; ++i) {
            const uint32x4_t a = vreinterpretq_u32_u16(pairs[2 * i]), b = vreinterpretq_u32_u16(pairs[2 * i + 1]);
            widen_eight(vreinterpretq_u16_u32(vzip1q_u32(a, b)), out + 4 * i * out_stride, out_stride);
            widen_eight(vreinterpretq_u16_u32(vzip2q_u32(a, b)), out + (4 * i + 2) * out_stride, out_stride);
        }
    }

    static void widen(const uint8_t *p, float *out) {
        for (int i = 0; i < 16; i += 8) widen_eight(vreinterpretq_u16_u8(vld1q_u8(p + 2 * i)), out + i, 4);
    }

  private:
    static uint8x16_t bytes_of(I v) { return vreinterpretq_u8_s32(v); }
    static int8x16_t signed_of(I v) { return vreinterpretq_s8_s32(v); }
    static I of_bytes(uint8x16_t v) { return vreinterpretq_s32_u8(v); }

    static I dot_signed(I acc, I codes, I inputs) {
        const int8x16_t a = signed_of(codes), b = signed_of(inputs);
#ifdef __ARM_FEATURE_DOTPROD
        return vdotq_s32(acc, a, b);
#else /* 16 bits hold the sum of two products: 128 x 127 x 2 */
        const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
        return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
    }

    /* Four float16 and four more behind them, as floats `stride` apart. */
    static void widen_eight(uint16x8_t v, float *out, int stride) {
        const float16x8_t halves = vreinterpretq_f16_u16(v);
        store_float(out, vcvt_f32_f16(vget_low_f16(halves)));
        store_float(out + stride, vcvt_high_f32_f16(halves));
    }
};

} // namespace qslm
#endif
