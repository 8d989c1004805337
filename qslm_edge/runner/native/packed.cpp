/* Packed codes times inputs rounded to int8: y = sum over groups of s_w s_a (sum of q_a (q_w - z)).
 *
 * The inner sum is exact in 32 bits; the outer one runs over the groups in order, in float32. A few tokens read the
 * codes where they lie, 4, 8 or 16 rows at a time, and turn the sums of a group so that a lane holds a row. Many tokens
 * unpack a tile of rows once, four columns of every row side by side.
 */
#include <algorithm>
#include <type_traits>

#include "lanes.h"
#include "matrix.h"
#include "vectors.h"

namespace qslm {
namespace packed {

ptrdiff_t codes_stride(const Matrix &m) { return ptrdiff_t(m.vectors) * m.planes * Isa::kBytes; }

namespace {

constexpr int L = Isa::kRows, V = Isa::kBytes;
constexpr int kTileRows = Isa::kTileVectors * L;
constexpr int kTileStep = Isa::kTileVectors * V; /* bytes of four columns of a tile */
constexpr int kFewTokens = 4;     /* from here on unpacking pays */
constexpr int kPanelColumns = 512; /* of a tile that is unpacked at a time: it stays in the first cache */
constexpr int kAhead = 6144;       /* bytes of codes that memory is asked for in advance */
constexpr int kLine = 64;          /* of the caches */
typedef Isa::I I;
typedef Isa::F F;

/* Sixteen bytes of each of L rows of a table, which may not be read beyond its end: copied where that could be. */
struct Piece {
    alignas(16) uint8_t copy[L][16];
    const uint8_t *base;
    ptrdiff_t stride;

    Piece(const void *table, int rows, int row_bytes, int row, int offset) {
        const uint8_t *bytes = static_cast<const uint8_t *>(table);
        const ptrdiff_t total = ptrdiff_t(rows) * row_bytes;
        base = bytes + ptrdiff_t(row) * row_bytes + offset;
        stride = row_bytes;
        if (row + L <= rows && ptrdiff_t(row + L - 1) * row_bytes + offset + 16 <= total) return;
        for (int i = 0; i < L; ++i) {
            const ptrdiff_t at = ptrdiff_t(std::min(row + i, rows - 1)) * row_bytes + offset;
            std::memset(copy[i], 0, 16);
            std::memcpy(copy[i], bytes + at, std::min<ptrdiff_t>(16, total - at));
        }
        base = copy[0];
        stride = 16;
    }
};

/* Scales of rows `row` ... and groups `first` to `last`: [group][lane] with `stride` lanes a group. */
inline void load_scales(const Matrix &m, int row, int first, int last, int stride, float *scales) {
    if (m.scale_bits == 16) {
        for (int g = first; g < last; g += 8) { /* up to seven more than asked for: there is room */
            const Piece piece(m.scales, m.rows, 2 * m.groups, row, 2 * g);
            Isa::halves(piece.base, piece.stride, scales + (g - first) * stride, stride);
        }
    } else {
        for (int g = first; g < last; g += 4) {
            const Piece piece(m.scales, m.rows, 4 * m.groups, row, 4 * g);
            for (int j = 0; j < std::min(4, last - g); ++j)
                Isa::store(scales + (g - first + j) * stride, Isa::words(piece.base + 4 * j, piece.stride));
        }
    }
}

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

template <int kBits> I load_codes(const uint8_t *p, int bytes) {
    const I codes = bytes >= V ? Isa::loaded(p) : Isa::load_part(p, bytes);
    return kBits == 8 && Isa::kSigned8 ? Isa::flip_sign(codes) : codes;
}

/* What a group of inputs has besides its codes, in every lane; of the sum the negative, which zero points multiply. */
struct InputGroup {
    I sum;
    F scale, half;

    InputGroup(const Input &input, ptrdiff_t at, bool midrise)
        : sum(Isa::all(-input.sums.data()[at])), scale(Isa::all_float(input.scales.data()[at])),
          half(Isa::all_float(midrise ? input.halves.data()[at] : 0.0f)) {}
};

/* sum + dots s_w s_a, the zero point being taken off in `dots`, with what mid-rise values add. */
inline F add_group(F sum, I dots, F scales, const InputGroup &in, bool midrise) {
    F term = Isa::mul(Isa::mul(Isa::to_float(dots), scales), in.scale);
    if (midrise) term = Isa::add(term, Isa::mul(scales, in.half));
    return Isa::add(sum, term);
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
template <int kBits, int kGroup> void few(const Product &p, int begin, int end, Scratch &scratch) {
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
template <int kBits> void many(const Product &p, int begin, int end, Scratch &scratch) {
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

/* Every kPlanes-th code to each plane; groups give multiples of eight to a plane. A word holds one code of each. */
template <int kPlanes> inline void deal(const int8_t *codes, int count, int8_t *to) {
    typedef std::conditional_t<kPlanes == 2, uint16_t, uint32_t> Word;
    typedef Word Words __attribute__((vector_size(8 * kPlanes)));
    typedef int8_t Bytes __attribute__((vector_size(8)));
    for (int i = 0; i < count; i += 8) {
        Words words;
        std::memcpy(&words, codes + i * kPlanes, sizeof words);
        for (int plane = 0; plane < kPlanes; ++plane) {
            const Bytes bytes = __builtin_convertvector(words >> 8 * plane, Bytes);
            std::memcpy(to + plane * V + i, &bytes, sizeof bytes);
        }
    }
}

template <int kBits> void few(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->group == 32) return few<kBits, 32>(p, begin, end, scratch);
    if (p.matrix->group == 64) return few<kBits, 64>(p, begin, end, scratch);
    few<kBits, 128>(p, begin, end, scratch);
}

template <int kBits> void any(const Product &p, int begin, int end, Scratch &scratch) {
    p.tokens < kFewTokens ? few<kBits>(p, begin, end, scratch) : many<kBits>(p, begin, end, scratch);
}

} // namespace

int vectors(int row_bytes) { return (row_bytes + V - 1) / V; }
bool raises(const Matrix &m) { return Isa::kRaised && m.bits < 8; }
bool runs_here() { return Isa::runs_here(); }
const char *name() { return Isa::kName; }

void reserve(const Matrix &m, int tokens, Scratch &scratch) {
    const size_t few_words = size_t(m.groups + 7) * L, tile_words = size_t(V / 8 + kPanelColumns / 32 + 8) * kTileRows;
    scratch.scales.reserve(std::max(few_words, tile_words));
    scratch.zeros.reserve(std::max(few_words, tile_words));
    scratch.codes.reserve(std::max(size_t(kTileRows) * 2 * kPanelColumns, size_t(m.vectors) * V * L / 2));
    scratch.sums.reserve(size_t(kTileRows) * tokens);
}

void multiply(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->bits == 4) return any<4>(p, begin, end, scratch);
    if (p.matrix->bits == 8) return any<8>(p, begin, end, scratch);
    any<2>(p, begin, end, scratch);
}

void set(const Matrix &m, Input &input, int token, const float *x) {
    constexpr float kSmallest = 128 / 3.4028234663852886e38f; /* below it 127 / peak is no float */
    const ptrdiff_t stride = codes_stride(m);
    int8_t *out = input.codes.data() + token * stride;
    int8_t in_order[128];
    const int span = V * m.planes; /* columns of a vector of codes */
    for (int g = 0; g < m.groups; ++g) {
        const float *from = x + g * m.group;
        F peaks = Isa::all_float(0);
        for (int k = 0; k < m.group; k += L) peaks = Isa::larger(peaks, Isa::magnitude(Isa::load_float(from + k)));
        const float peak = Isa::largest(peaks);
        const F factor = Isa::all_float(peak > kSmallest ? 127.0f / peak : 0.0f), rounder = Isa::all_float(kRounder);
        I counted = Isa::zero();
        for (int k = 0; k < m.group; k += kLanes) {
            I q[kLanes / L];
            for (int i = 0; i < kLanes / L; ++i) {
                const F rounded = Isa::add(Isa::mul(Isa::load_float(from + k + i * L), factor), rounder);
                q[i] = Isa::sub(Isa::bits(rounded), Isa::bits(rounder));
                counted = Isa::add(counted, q[i]);
            }
            Isa::narrow(q, in_order + k);
        }
        const ptrdiff_t at = ptrdiff_t(token) * m.groups + g;
        input.scales.data()[at] = peak / 127.0f;
        input.sums.data()[at] = Isa::sum(counted);
        if (m.midrise) {
            Floats total{};
            for (int k = 0; k < m.group; k += kLanes) total += load(from + k);
            input.halves.data()[at] = 0.5f * sum(total);
        }
        /* code k of a vector lies in byte k / planes of plane k % planes */
        for (int done = 0; done < m.group;) {
            const int column = g * m.group + done, vector = column / span, byte = column % span / m.planes;
            const int count = std::min(m.group - done, span - column % span) / m.planes;
            int8_t *to = out + ptrdiff_t(vector) * span + byte;
            const int8_t *codes = in_order + done;
            if (m.planes == 1) std::memcpy(to, codes, count);
            if (m.planes == 2) deal<2>(codes, count, to);
            if (m.planes == 4) deal<4>(codes, count, to);
            done += count * m.planes;
        }
    }
    for (int column = m.columns; column < m.vectors * span; column += m.planes) { /* what the last vector does not use */
        int8_t *to = out + ptrdiff_t(column / span) * span + column % span / m.planes;
        for (int plane = 0; plane < m.planes; ++plane) to[plane * V] = 0;
    }
    if (raises(m)) {
        int8_t *raised = input.raised.data() + token * stride;
        for (ptrdiff_t i = 0; i < stride; i += V) Isa::store(raised + i, Isa::flip_sign(Isa::load(out + i)));
    }
}

} // namespace packed
} // namespace qslm
