/* Packed codes times float inputs: rows are restored to floats, w = (q - z) s, a few at a time.
 *
 * Within a group the columns stand by planes, as the fields of the bytes give them; inputs are put in the same order.
 * Sixteen partial sums run over the columns and are added in a fixed order.
 */
#include <algorithm>

#include "lanes.h"
#include "matrix.h"
#include "vectors.h"

namespace qslm {
namespace unpacked {
namespace {

constexpr int kRows = 4;
constexpr int kTokens = Isa::kRows == 16 ? 4 : 2;

void restore(const Matrix &m, int row, float *out) {
    const uint8_t *codes = static_cast<const uint8_t *>(m.codes) + ptrdiff_t(row) * m.row_bytes;
    const int mask = (1 << m.bits) - 1;
    for (int g = 0; g < m.groups; ++g, codes += m.group_bytes) {
        const float scale = m.scale(row, g), zero = 0.5f * m.twice_zero(row, g);
        for (int plane = 0; plane < m.planes; ++plane, out += m.group_bytes)
            for (int i = 0; i < m.group_bytes; ++i)
                out[i] = (float(codes[i] >> plane * m.bits & mask) - zero) * scale;
    }
}

template <int kT> void dot(const Product &p, int row, int rows, int token, const float *weights) {
    const int columns = p.matrix->columns, width = round_up(columns, kLanes);
    const float *x = p.input->floats.data() + ptrdiff_t(token) * width;
    Floats sums[kRows][kT] = {};
    for (int k = 0; k < columns; k += kLanes) {
        Floats w[kRows];
        for (int r = 0; r < kRows; ++r) w[r] = load(weights + r * columns + k);
        for (int t = 0; t < kT; ++t) {
            const Floats in = load(x + t * width + k);
            for (int r = 0; r < kRows; ++r) sums[r][t] += w[r] * in;
        }
    }
    for (int t = 0; t < kT; ++t)
        for (int r = 0; r < rows; ++r) p.out[(token + t) * p.stride + row + r] = sum(sums[r][t]);
}

} // namespace

void reserve(const Matrix &m, int, Scratch &scratch) { scratch.weights.reserve(size_t(kRows) * m.columns); }

void set(const Matrix &m, Input &input, int token, const float *x) {
    float *out = input.floats.data() + ptrdiff_t(token) * round_up(m.columns, kLanes);
    for (int g = 0; g < m.groups; ++g, x += m.group)
        for (int plane = 0; plane < m.planes; ++plane, out += m.group_bytes)
            for (int i = 0; i < m.group_bytes; ++i) out[i] = x[i * m.planes + plane];
}

void multiply(const Product &p, int begin, int end, Scratch &scratch) {
    float *weights = scratch.weights.data();
    for (int row = begin; row < end; row += kRows) {
        const int rows = std::min(kRows, p.matrix->rows - row);
        for (int r = 0; r < kRows; ++r) restore(*p.matrix, row + std::min(r, rows - 1), weights + r * p.matrix->columns);
        int token = 0;
        for (; token + kTokens <= p.tokens; token += kTokens) dot<kTokens>(p, row, rows, token, weights);
        for (; token < p.tokens; ++token) dot<1>(p, row, rows, token, weights);
    }
}

} // namespace unpacked
} // namespace qslm
