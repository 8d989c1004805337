/* Many tokens times packed codes: a tile of rows is unpacked once, four columns of every row side by side. */
#include "packed.h"
#include "vectors.h"

namespace qslm {
namespace packed {
namespace {

constexpr int kTileStep = Isa::kTileVectors * V; /* bytes of four columns of a tile */

/* Zero points likewise. */
template <int kBits> void load_zeros(const Matrix &m, int row, int first, int last, int stride, int32_t *zeros) {
    constexpr int kOffset = kBits == 8 && Isa::kSigned8 ? 128 : 0;
    if (m.zeros == nullptr) { /* as MatMulNBits; what mid-rise values lie above it is added in float */
        for (int g = first; g < last; ++g) Isa::store(zeros + (g - first) * stride, Isa::all((1 << (kBits - 1)) - kOffset));
        return;
    }
    constexpr int kPerWord = 32 / kBits;
    for (int word = first / kPerWord; word * kPerWord < last; ++word) {
        const Piece piece(m.zeros, m.rows, m.zero_bytes, row, 4 * word);
        const I packed = Isa::words(piece.base, piece.stride);
        for (int g = std::max(first, word * kPerWord); g < std::min(last, (word + 1) * kPerWord); ++g) {
            const I zero = Isa::shifted<kBits>(packed, kBits * (g % kPerWord));
            Isa::store(zeros + (g - first) * stride, Isa::add(zero, Isa::all(-kOffset)));
        }
    }
}

/* Four columns of each of L rows side by side, for the columns of a vector: [group][run][word][row][4 codes]. Codes
 * below 8 bits get their zero point taken off, which leaves signed bytes; those of 8 bits would not fit. */
template <int kBits, int kPlane>
void turn_plane(const I *raw, const int32_t *zeros, uint8_t *out, int words, ptrdiff_t group_stride, ptrdiff_t run_stride) {
    I v[L];
    for (int i = 0; i < L; ++i) v[i] = Isa::field<kBits, kPlane>(raw[i]);
    Isa::transpose(v);
    for (int i = 0; i < L; ++i) {
        const int g = i / words;
        if constexpr (kBits < 8) v[i] = Isa::sub_bytes(v[i], Isa::load(zeros + g * kTileRows));
        Isa::store(out + g * group_stride + kPlane * run_stride + i % words * kTileStep, v[i]);
    }
    if constexpr ((kPlane + 1) * kBits < 8)
        turn_plane<kBits, kPlane + 1>(raw, zeros, out, words, group_stride, run_stride);
}

/* The inner loops of many tokens: `runs` runs of `words` times four columns make a group. */
struct Panel {
    int first, groups; /* of the row */
    int runs, words;
    const uint8_t *next; /* codes that are unpacked next, of the first row; none of theirs may be there */
    int next_bytes;      /* a row */
    ptrdiff_t base(int g, int planes) const { /* of the inputs of a group */
        const int bytes = words * 4;
        return bytes < V ? ptrdiff_t(g / (V / bytes)) * planes * V + g % (V / bytes) * bytes : ptrdiff_t(g) * runs * V;
    }
};

/* In place of zero points that were taken off the codes, what inputs above by 128 make too much: 128 times the sum of the
 * codes of a group, negative. (A template: only some instruction sets have the product.) */
template <typename Raising> void count_offsets(const Panel &panel, Scratch &scratch) {
    const uint8_t *w = scratch.codes.data();
    for (int g = 0; g < panel.groups; ++g) {
        I sums[Isa::kTileVectors];
        for (I &sum : sums) sum = Isa::zero();
        for (int word = 0; word < panel.runs * panel.words; ++word, w += kTileStep)
            for (int r = 0; r < Isa::kTileVectors; ++r)
                sums[r] = Raising::dot_centred(sums[r], Isa::load(w + r * V), Isa::all(int32_t(0x80808080)));
        for (int r = 0; r < Isa::kTileVectors; ++r)
            Isa::store(scratch.zeros.data() + g * kTileRows + r * L, Isa::sub(Isa::zero(), sums[r]));
    }
}

/* Words `kWord` and on of the inputs of some tokens, times the codes of a tile that belong to them. */
template <bool kCentred, int kWord = 0, int kTokens, int R>
inline __attribute__((always_inline)) void multiply_words(const uint8_t *w, const Isa::Inputs (&in)[kTokens],
                                                          I (&acc)[kTokens][R]) {
    I codes[R];
    for (int r = 0; r < R; ++r) codes[r] = Isa::load(w + kWord * kTileStep + r * V);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
        for (int r = 0; r < R; ++r) acc[t][r] = Isa::dot_word<kCentred, kWord>(acc[t][r], codes[r], in[t]);
    if constexpr (kWord + 1 < Isa::kInputWords) multiply_words<kCentred, kWord + 1>(w, in, acc);
}

/* A tile times some tokens. kCentred: codes without their zero points, times inputs above by 128 where the instruction set
 * asks for it. Else codes as they are times inputs as they are, and the zero points count at the end of a group. */
template <bool kCentred, bool kMidrise, int kTokens>
void multiply_tile(const Product &p, const Panel &panel, int token, const Scratch &scratch, float *sums) {
    constexpr int R = Isa::kTileVectors;
    constexpr bool kRaised = kCentred && Isa::kRaised;
    const Input &input = *p.input;
    const uint8_t *w = scratch.codes.data();
    const int groups = p.matrix->groups, planes = p.matrix->planes;
    const ptrdiff_t input_stride = codes_stride(*p.matrix);
    const int8_t *tokens = (kRaised ? input.raised : input.codes).data() + token * input_stride;
    F sum[kTokens][R]; /* in registers, as the sums of a group are, which asks for loops that are unrolled */
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
        for (int r = 0; r < R; ++r) sum[t][r] = Isa::load_float(sums + t * kTileRows + r * L);
    for (int g = 0; g < panel.groups; ++g) {
        const float *scales = scratch.scales.data() + g * kTileRows;
        const int32_t *zeros = scratch.zeros.data() + g * kTileRows;
        I acc[kTokens][R];
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t)
            for (int r = 0; r < R; ++r) acc[t][r] = kRaised ? Isa::load(zeros + r * L) : Isa::zero();
        const int8_t *run = tokens + panel.base(panel.first + g, planes);
        for (int i = 0; i < panel.runs; ++i, run += V) {
            const int8_t *at = run;
            for (int word = 0; word < panel.words; word += Isa::kInputWords, at += 4 * Isa::kInputWords) {
                Isa::Inputs in[kTokens];
#pragma GCC unroll 8
                for (int t = 0; t < kTokens; ++t) in[t] = Isa::inputs(at + t * input_stride);
                multiply_words<kCentred>(w, in, acc);
                w += Isa::kInputWords * kTileStep;
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
            const InputGroup of(input, ptrdiff_t(token + t) * groups + panel.first + g, kMidrise);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const I dots = kCentred ? acc[t][r] : Isa::add_product(acc[t][r], Isa::load(zeros + r * L), of.sum);
                sum[t][r] = add_group(sum[t][r], dots, Isa::load_float(scales + r * L), of, kMidrise);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
        for (int r = 0; r < R; ++r) Isa::store_float(sums + t * kTileRows + r * L, sum[t][r]);
}

template <bool kCentred, bool kMidrise> void multiply_panel(const Product &p, const Panel &panel, const Scratch &scratch) {
    float *sums = scratch.sums.data();
    const int blocks = std::max(1, p.tokens / Isa::kTileTokens), rows = (kTileRows + blocks - 1) / blocks;
    int token = 0;
    for (int row = 0; token + Isa::kTileTokens <= p.tokens; token += Isa::kTileTokens, row += rows) {
        /* meanwhile memory brings what is unpacked next */
        for (int i = row; i < std::min(kTileRows, row + rows); ++i)
            for (int at = 0; at < panel.next_bytes; at += kLine)
                __builtin_prefetch(panel.next + ptrdiff_t(i) * p.matrix->row_bytes + at, 0, 2);
        multiply_tile<kCentred, kMidrise, Isa::kTileTokens>(p, panel, token, scratch, sums + token * kTileRows);
    }
    for (; token + 2 <= p.tokens; token += 2)
        multiply_tile<kCentred, kMidrise, 2>(p, panel, token, scratch, sums + token * kTileRows);
    if (token < p.tokens) multiply_tile<kCentred, kMidrise, 1>(p, panel, token, scratch, sums + token * kTileRows);
}

/* Many tokens: a tile of rows at a time. */
template <int kBits> void many_bits(const Product &p, int begin, int end, Scratch &scratch) {
    const Matrix &m = *p.matrix;
    const uint8_t *codes = static_cast<const uint8_t *>(m.codes);
    const int vectors_a_group = std::max(1, m.group_bytes / V), groups_a_vector = std::max(1, V / m.group_bytes);
    Panel panel;
    panel.runs = vectors_a_group * m.planes;
    panel.words = std::min(m.group_bytes, V) / 4;
    /* panels begin at whole vectors */
    const int step = std::max(round_up(kPanelColumns / m.group, groups_a_vector), groups_a_vector);
    const ptrdiff_t run_stride = ptrdiff_t(panel.words) * kTileStep;
    const ptrdiff_t group_stride = run_stride * panel.runs;
    for (int row = begin; row < end; row += kTileRows) {
        std::memset(scratch.sums.data(), 0, sizeof(float) * kTileRows * p.tokens);
        for (panel.first = 0; panel.first < m.groups; panel.first += step) {
            panel.groups = std::min(step, m.groups - panel.first);
            const int vector_begin = panel.first * vectors_a_group / groups_a_vector;
            const int vector_end = std::min(m.vectors, (panel.first + step) * vectors_a_group / groups_a_vector);
            for (int r = 0; r < Isa::kTileVectors; ++r) {
                const int top = row + r * L;
                const int held = std::min(top, m.rows - 1), end_group = panel.first + panel.groups;
                load_scales(m, held, panel.first, end_group, kTileRows, scratch.scales.data() + r * L);
                load_zeros<kBits>(m, held, panel.first, end_group, kTileRows, scratch.zeros.data() + r * L);
                for (int vector = vector_begin; vector < vector_end; ++vector) {
                    I raw[L];
                    const int offset = vector * V;
                    for (int i = 0; i < L; ++i)
                        raw[i] = load_codes<kBits>(
                            codes + ptrdiff_t(std::min(top + i, m.rows - 1)) * m.row_bytes + offset, m.row_bytes - offset);
                    const int local = vector - vector_begin;
                    uint8_t *out = scratch.codes.data() + r * V + local / vectors_a_group * groups_a_vector * group_stride +
                                   local % vectors_a_group * m.planes * run_stride;
                    const int32_t *zeros =
                        scratch.zeros.data() + r * L + local / vectors_a_group * groups_a_vector * kTileRows;
                    turn_plane<kBits, 0>(raw, zeros, out, panel.words, group_stride, run_stride);
                }
            }
            if constexpr (kBits < 8 && Isa::kRaised) count_offsets<Isa>(panel, scratch);
            const bool last = vector_end >= m.vectors; /* then the next rows begin */
            panel.next = codes + ptrdiff_t(last ? row + kTileRows : row) * m.row_bytes + (last ? 0 : vector_end * V);
            panel.next_bytes = std::min(m.row_bytes, (vector_end - vector_begin) * V);
            if (m.midrise)
                multiply_panel<true, true>(p, panel, scratch);
            else
                multiply_panel<(kBits < 8), false>(p, panel, scratch);
        }
        const int rows = std::min(kTileRows, m.rows - row);
        for (int token = 0; token < p.tokens; ++token)
            std::memcpy(p.out + token * p.stride + row, scratch.sums.data() + token * kTileRows, sizeof(float) * rows);
    }
}

} // namespace

void many(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->bits == 4) return many_bits<4>(p, begin, end, scratch);
    if (p.matrix->bits == 8) return many_bits<8>(p, begin, end, scratch);
    many_bits<2>(p, begin, end, scratch);
}

} // namespace packed
} // namespace qslm
