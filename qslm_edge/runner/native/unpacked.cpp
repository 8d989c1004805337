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
constexpr int kParts = kLanes / Isa::kRows; /* vectors of sixteen sums */
constexpr int kTokens = 4 / kParts;        /* with 4 rows sums take 16 registers */

/* (codes - zero) scale of `bytes` bytes, plane by plane. A plane writes up to a vector more, where the next one follows. */
template <int kBits, int kPlane = 0>
void restore_planes(Isa::I codes, int bytes, Isa::F zero, Isa::F scale, float *out, int stride) {
    Isa::F values[4];
    Isa::bytes_to_float(Isa::field<kBits, kPlane>(codes), values);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        if (i * Isa::kRows < bytes)
            Isa::store_float(out + i * Isa::kRows, Isa::mul(Isa::sub(values[i], zero), scale));
    if constexpr ((kPlane + 1) * kBits < 8)
        restore_planes<kBits, kPlane + 1>(codes, bytes, zero, scale, out + stride, stride);
}

template <int kBits> void restore(const Matrix &m, int row, float *out) {
    const uint8_t *codes = static_cast<const uint8_t *>(m.codes) + ptrdiff_t(row) * m.row_bytes;
    for (int g = 0; g < m.groups; ++g, codes += m.group_bytes, out += m.group) {
        const Isa::F scale = Isa::all_float(m.scale(row, g)), zero = Isa::all_float(0.5f * m.twice_zero(row, g));
        for (int at = 0; at < m.group_bytes; at += Isa::kBytes) {
            const int bytes = std::min(Isa::kBytes, m.group_bytes - at);
            const Isa::I packed = bytes == Isa::kBytes ? Isa::load(codes + at) : Isa::load_part(codes + at, bytes);
            restore_planes<kBits>(packed, bytes, zero, scale, out + at, m.group_bytes);
        }
    }
}

void restore(const Matrix &m, int row, float *out) {
    if (m.bits == 4) return restore<4>(m, row, out);
    if (m.bits == 8) return restore<8>(m, row, out);
    restore<2>(m, row, out);
}

template <int kT> void dot(const Product &p, int row, int rows, int token, const float *weights) {
    const int columns = p.matrix->columns, width = round_up(columns, kLanes);
    const float *x = p.input->floats.data() + ptrdiff_t(token) * width;
    Isa::F sums[kRows][kT][kParts]; /* in registers, which asks for loops that are unrolled */
    for (auto &row_sums : sums)
        for (auto &token_sums : row_sums)
            for (Isa::F &sum : token_sums) sum = Isa::all_float(0);
    for (int k = 0; k < columns; k += kLanes) {
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
            const int at = k + part * Isa::kRows;
#pragma GCC unroll 4
            for (int t = 0; t < kT; ++t) {
                const Isa::F in = Isa::load_float(x + t * width + at);
#pragma GCC unroll 4
                for (int r = 0; r < kRows; ++r) {
                    const Isa::F w = Isa::load_float(weights + r * columns + at);
                    sums[r][t][part] = Isa::add(sums[r][t][part], Isa::mul(w, in));
                }
            }
        }
    }
    for (int t = 0; t < kT; ++t)
        for (int r = 0; r < rows; ++r) {
            alignas(64) float lanes[kLanes];
            for (int part = 0; part < kParts; ++part) Isa::store_float(lanes + part * Isa::kRows, sums[r][t][part]);
            p.out[(token + t) * p.stride + row + r] = sum(load(lanes));
        }
}

} // namespace

void reserve(const Matrix &m, int, Scratch &scratch) { scratch.weights.reserve(size_t(kRows) * m.columns + Isa::kRows); }

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
