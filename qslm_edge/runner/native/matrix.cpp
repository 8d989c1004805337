/* What the three kernels share: sizes, inputs, rows of the embedding, and which kernel a matrix takes. */
#include "matrix.h"

#include "vectors.h"

namespace qslm {

namespace {

float scale_at(const qslm_matrix &m, ptrdiff_t at) {
    if (m.scale_bits == 32) return static_cast<const float *>(m.scales)[at];
    return half_to_float(static_cast<const uint16_t *>(m.scales)[at]);
}

int twice_zero_at(const qslm_matrix &m, int groups, int64_t row, int g) {
    if (m.zeros == nullptr) return m.midrise ? (1 << m.bits) - 1 : 1 << m.bits;
    const int row_bytes = (groups * m.bits + 7) / 8, at = g * m.bits;
    return 2 * (m.zeros[row * row_bytes + at / 8] >> at % 8 & ((1 << m.bits) - 1));
}

} // namespace

Matrix::Matrix(const qslm_matrix &given) : qslm_matrix(given) {
    if (bits > 8) return;
    kind = float_activations ? kUnpacked : kPacked;
    planes = 8 / bits;
    groups = columns / group;
    group_bytes = group / planes;
    row_bytes = columns / planes;
    zero_bytes = (groups * bits + 7) / 8;
    vectors = packed::vectors(row_bytes);
}

float Matrix::scale(int row, int g) const { return scale_at(*this, ptrdiff_t(row) * groups + g); }
int Matrix::twice_zero(int row, int g) const { return twice_zero_at(*this, groups, row, g); }

void Input::reserve(const Matrix &m, int tokens) {
    const size_t groups = size_t(m.groups) * tokens;
    if (m.kind != Matrix::kPacked) {
        floats.reserve(size_t(round_up(m.columns, kLanes)) * tokens);
        return;
    }
    codes.reserve(size_t(packed::codes_stride(m)) * tokens);
    if (packed::raises(m)) raised.reserve(size_t(packed::codes_stride(m)) * tokens);
    scales.reserve(groups);
    sums.reserve(groups);
    if (m.midrise) halves.reserve(groups);
}

void Input::set(const Matrix &m, int token, const float *x) {
    if (m.kind == Matrix::kPacked) return packed::set(m, *this, token, x);
    if (m.kind == Matrix::kUnpacked) return unpacked::set(m, *this, token, x);
    const int width = round_up(m.columns, kLanes);
    std::memcpy(floats.data() + ptrdiff_t(token) * width, x, sizeof(float) * width);
}

void Scratch::reserve(const Matrix &m, int tokens) {
    if (m.kind == Matrix::kPacked) packed::reserve(m, tokens, *this);
    if (m.kind == Matrix::kUnpacked) unpacked::reserve(m, tokens, *this);
    if (m.kind == Matrix::kColumns) columns::reserve(m, tokens, *this);
}

void multiply(const Product &p, int begin, int end, Scratch &scratch) {
    if (p.matrix->kind == Matrix::kPacked) return packed::multiply(p, begin, end, scratch);
    if (p.matrix->kind == Matrix::kUnpacked) return unpacked::multiply(p, begin, end, scratch);
    columns::multiply(p, begin, end, scratch);
}

void embedding_row(const qslm_matrix &table, bool binary, int64_t token, float *out) {
    const int columns = table.columns;
    if (table.bits == 32) {
        std::memcpy(out, static_cast<const float *>(table.codes) + token * columns, sizeof(float) * columns);
    } else if (table.bits == 16) {
        const uint16_t *row = static_cast<const uint16_t *>(table.codes) + token * columns;
        for (int k = 0; k < columns; ++k) out[k] = half_to_float(row[k]);
    } else { /* planar: field i of byte j is channel i * bytes + j */
        const int bytes = columns * table.bits / 8, groups = table.group ? columns / table.group : 0;
        const uint8_t *row = static_cast<const uint8_t *>(table.codes) + token * bytes;
        for (int k = 0; k < columns; ++k) {
            const int code = row[k % bytes] >> k / bytes * table.bits & ((1 << table.bits) - 1);
            if (table.bits == 1) {
                out[k] = float(code);
                continue;
            }
            const int g = k / table.group;
            out[k] = (float(code) - 0.5f * twice_zero_at(table, groups, token, g)) * scale_at(table, token * groups + g);
        }
    }
    if (binary && table.bits > 8)
        for (int k = 0; k < columns; ++k) out[k] = out[k] >= 0 ? 1.0f : 0.0f;
}

} // namespace qslm
