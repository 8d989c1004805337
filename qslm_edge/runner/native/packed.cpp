/* Packed codes times inputs rounded to int8: y = sum over groups of s_w s_a (sum of q_a (q_w - z)).
 *
 * The inner sum is exact in 32 bits; the outer one runs over the groups in order, in float32, whether for few tokens
 * (packed_few.cpp) or for many (packed_many.cpp). Here: how inputs are rounded and laid out, and work space.
 */
#include "packed.h"

#include <type_traits>

#include "vectors.h"

namespace qslm {
namespace packed {
namespace {

constexpr int kFewTokens = 4; /* from here on unpacking pays */

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

} // namespace

int vectors(int row_bytes) { return (row_bytes + V - 1) / V; }
ptrdiff_t codes_stride(const Matrix &m) { return ptrdiff_t(m.vectors) * m.planes * V; }
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
    p.tokens < kFewTokens ? few(p, begin, end, scratch) : many(p, begin, end, scratch);
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
