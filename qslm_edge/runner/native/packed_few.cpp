/* Few tokens times packed codes: L rows at a time, where they lie. The sums of a group are turned so that a lane holds a row. */
#include "packed.h"

namespace qslm {
namespace packed {
namespace {

constexpr int kAhead = 6144; /* bytes of codes that memory is asked for in advance */

/* Zero points as they are packed, so many to a word: [word][lane]. */
inline void load_zero_words(const Matrix &m, int row, int32_t *words) {
    for (int at = 0; at < m.zero_bytes; at += 4, words += L) {
        const Piece piece(m.zeros, m.rows, m.zero_bytes, row, at);
        Isa::store(words, Isa::words(piece.base, piece.stride));
    }
}

/* Ask for L rows of a table in advance. */
inline void fetch(const void *table, int row, int row_bytes) {
    const uint8_t *p = static_cast<const uint8_t *>(table) + ptrdiff_t(row) * row_bytes;
    for (int at = 0; at < L * row_bytes; at += kLine) __builtin_prefetch(p + at, 0, 2);
}

template <int kBits, int kPlane = 0> I dot_planes(I acc, I codes, const I *inputs) {
    acc = Isa::dot<kBits>(acc, Isa::field<kBits, kPlane>(codes), inputs[kPlane]);
    if constexpr ((kPlane + 1) * kBits < 8) acc = dot_planes<kBits, kPlane + 1>(acc, codes, inputs);
    return acc;
}

inline void store_rows(float *out, F sum, int rows) {
    if (rows >= L) return Isa::store_float(out, sum);
    alignas(64) float values[L];
    Isa::store_float(values, sum);
    std::memcpy(out, values, sizeof(float) * rows);
}

/* Lines of codes that memory is asked for in advance, for four rows and a step: most of them beside the dot products, the
 * rest while the groups are added up, so that memory does not rest meanwhile. */
template <int kVectors> struct Lines {
    static constexpr int kAll = 4 * kVectors * V / kLine, kLater = kAll / 4, kNow = kAll - kLater;
};

/* Sums of `kVectors` vectors of codes of four rows, at `offset` in each, where they have `bytes` more. */
template <int kBits, int kVectors, bool kHalf>
inline __attribute__((always_inline)) void dot_rows(const uint8_t *const *rows, int offset, int bytes, const int8_t *inputs,
                                                    const uint8_t *ahead, I *out) {
    constexpr int kPlanes = 8 / kBits;
    constexpr bool kSmall = 8 * kVectors * kPlanes * ((1 << kBits) - 1) * 127 < 1 << 15; /* two lanes fit into 16 bits */
    I in[kVectors * kPlanes];
    for (int i = 0; i < kVectors * kPlanes; ++i) in[i] = Isa::loaded(inputs + i * V);
    const auto row_sum = [&](int i) {
        I sum = Isa::zero();
        for (int j = 0; j < kVectors; ++j) {
            const int at = (i * kVectors + j) * V;
            if (at % kLine == 0 && at / kLine < Lines<kVectors>::kNow) __builtin_prefetch(ahead + at, 0, 2);
            const I codes = load_codes<kBits>(rows[i] + offset + j * V, bytes - j * V);
            sum = dot_planes<kBits>(sum, codes, in + j * kPlanes);
        }
        return sum;
    };
    const I a = row_sum(0), b = row_sum(1), c = row_sum(2), d = row_sum(3);
    if constexpr (kHalf)
        Isa::combine_halves(a, b, c, d, out, out + L / 4);
    else
        *out = Isa::combine<kSmall>(a, b, c, d);
}

/* Few tokens: rows `begin` to `end`, L at a time. */
template <int kBits, int kGroup> void few_groups(const Product &p, int begin, int end, Scratch &scratch) {
    constexpr int kPlanes = 8 / kBits, kBytes = kGroup * kBits / 8;
    constexpr int kVectors = kBytes > V ? kBytes / V : 1; /* a group */
    constexpr int kGroups = kBytes < V ? V / kBytes : 1;  /* a vector */
    constexpr bool kHalf = kBytes == 8;                   /* two groups in 128 bits */
    constexpr int kParts = kHalf ? 1 : std::min(kBytes, V) / 16;
    constexpr int kPerWord = 32 / kBits, kOffset = kBits == 8 && Isa::kSigned8 ? 128 : 0; /* of zero points */
    constexpr int kTurned = (kHalf ? 2 : 1) * L / 4, kSpan = kVectors * kPlanes * V;
    typedef Lines<kVectors> Ahead;
    const Matrix &m = *p.matrix;
    const Input &input = *p.input;
    const uint8_t *codes = static_cast<const uint8_t *>(m.codes);
    const ptrdiff_t input_stride = codes_stride(m);
    const int whole = m.row_bytes / (kVectors * V) * (kVectors * V);
    float *scales = scratch.scales.data();
    int32_t *zeros = scratch.zeros.data();
    I *turned = reinterpret_cast<I *>(scratch.codes.data());
    for (int row = begin; row < end; row += L) {
        load_scales(m, row, 0, m.groups, L, scales);
        if (m.zeros != nullptr) load_zero_words(m, row, zeros);
        const auto at_row = [&](int i) { return codes + ptrdiff_t(std::min(row + i, m.rows - 1)) * m.row_bytes; };
        fetch(m.scales, row + 2 * L, m.groups * m.scale_bits / 8);
        if (m.zeros != nullptr) fetch(m.zeros, row + 2 * L, m.zero_bytes);
        for (int token = 0; token < p.tokens; ++token) {
            const int8_t *inputs = input.codes.data() + token * input_stride;
            const uint8_t *ahead = at_row(0) + kAhead + ptrdiff_t(L) * m.row_bytes * Ahead::kLater / Ahead::kAll;
            /* four rows at a time from end to end, so that memory is read in order */
            for (int quad = 0; quad < L / 4; ++quad) {
                const uint8_t *const from[4] = {at_row(4 * quad), at_row(4 * quad + 1), at_row(4 * quad + 2),
                                                at_row(4 * quad + 3)};
                I *out = turned + quad;
                const int8_t *in = inputs;
                for (int offset = 0; offset < whole; offset += kVectors * V, in += kSpan, out += kTurned) {
                    dot_rows<kBits, kVectors, kHalf>(from, offset, kVectors * V, in, ahead, out);
                    ahead += Ahead::kNow * kLine;
                }
                if constexpr (kGroups > 1) /* else groups fill whole vectors */
                    if (whole < m.row_bytes)
                        dot_rows<kBits, kVectors, kHalf>(from, whole, m.row_bytes - whole, in, ahead, out);
            }
            F sum = Isa::all_float(0);
            const I *in = turned;
            I zero = Isa::all((1 << (kBits - 1)) - kOffset), packed = Isa::zero();
            for (int g = 0; g < m.groups; g += kGroups, in += kTurned) {
                for (int i = 0; i < L / 4 * Ahead::kLater; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
                I groups[2][kHalf ? kGroups / 2 : kGroups];
                Isa::spread<kParts>(in, groups[0]);
                if constexpr (kHalf) Isa::spread<kParts>(in + L / 4, groups[1]);
                for (int j = 0; j < kGroups && g + j < m.groups; ++j) {
                    const I dots = kHalf ? groups[j % 2][j / 2] : groups[0][j];
                    const InputGroup of(input, ptrdiff_t(token) * m.groups + g + j, m.midrise);
                    if (m.zeros != nullptr) {
                        if ((g + j) % kPerWord == 0) packed = Isa::load(zeros + (g + j) / kPerWord * L);
                        zero = Isa::take<kBits>(packed);
                        if constexpr (kOffset != 0) zero = Isa::sub(zero, Isa::all(kOffset));
                    }
                    const I centred = Isa::add_product(dots, zero, of.sum);
                    sum = add_group(sum, centred, Isa::load_float(scales + (g + j) * L), of, m.midrise);
                }
            }
            store_rows(p.out + token * p.stride + row, sum, m.rows - row);
        }
    }
}

template <int kBits> void few_bits(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->group == 32) return few_groups<kBits, 32>(p, begin, end, scratch);
    if (p.matrix->group == 64) return few_groups<kBits, 64>(p, begin, end, scratch);
    few_groups<kBits, 128>(p, begin, end, scratch);
}

} // namespace

void few(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->bits == 4) return few_bits<4>(p, begin, end, scratch);
    if (p.matrix->bits == 8) return few_bits<8>(p, begin, end, scratch);
    few_bits<2>(p, begin, end, scratch);
}

} // namespace packed
} // namespace qslm
