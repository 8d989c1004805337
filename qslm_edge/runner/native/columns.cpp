/* Float weights stored column by column, [columns, rows], in 32 or 16 bits: a lane holds a row, and the sum runs over
 * the columns in order.
 */
#include <algorithm>

#include "lanes.h"
#include "matrix.h"
#include "vectors.h"

namespace qslm {
namespace columns {
namespace {

constexpr int kFewTokens = 3;
constexpr int kStrip = 1024; /* rows of a strip of sums that stays in the first cache */
constexpr int kPanelColumns = 128;
constexpr int kVectors = Isa::kRows == 16 ? 4 : 1; /* a tile: 16 rows each */
constexpr int kTokens = Isa::kTileTokens;
constexpr int kTileRows = kVectors * kLanes;

/* Sixteen floats in vectors of the instruction set, which stay in registers where those of vectors.h may not. */
struct Sixteen {
    static constexpr int kParts = kLanes / Isa::kRows;
    Isa::F part[kParts];

    static Sixteen at(const float *p) {
        Sixteen out;
        for (int i = 0; i < kParts; ++i) out.part[i] = Isa::load_float(p + i * Isa::kRows);
        return out;
    }
    void store(float *p) const {
        for (int i = 0; i < kParts; ++i) Isa::store_float(p + i * Isa::kRows, part[i]);
    }
    void add_product(const Sixteen &w, Isa::F x) {
        for (int i = 0; i < kParts; ++i) part[i] = Isa::add(part[i], Isa::mul(w.part[i], x));
    }
};

/* Sixteen weights of a column, of which the matrix has `count` more; zeros behind them. */
inline Sixteen weights_at(const Matrix &m, int column, int row, int count) {
    const ptrdiff_t at = ptrdiff_t(column) * m.rows + row;
    alignas(64) float copy[kLanes];
    if (m.bits == 32) {
        const float *weights = static_cast<const float *>(m.codes) + at;
        if (count >= kLanes) return Sixteen::at(weights);
        std::memset(copy, 0, sizeof copy);
        std::memcpy(copy, weights, sizeof(float) * count);
        return Sixteen::at(copy);
    }
    const uint8_t *halves = static_cast<const uint8_t *>(m.codes) + 2 * at;
    if (count >= kLanes) {
        Isa::widen(halves, copy);
    } else {
        uint8_t part[2 * kLanes] = {};
        std::memcpy(part, halves, 2 * count);
        Isa::widen(part, copy);
    }
    return Sixteen::at(copy);
}

/* Columns `k` and on, `kCount` of them, times their inputs, added to the sums of a strip of rows. */
template <int kCount> void add_columns(const Matrix &m, int k, int top, int rows, const float *x, float *sums) {
    for (int row = 0; row < rows; row += kLanes) {
        Sixteen sum = Sixteen::at(sums + row);
#pragma GCC unroll 4
        for (int i = 0; i < kCount; ++i)
            sum.add_product(weights_at(m, k + i, top + row, rows - row), Isa::all_float(x[k + i]));
        sum.store(sums + row);
    }
}

/* One token at a time: four columns of a strip of rows, so that memory is read in long pieces. */
void few(const Product &p, int begin, int end, Scratch &scratch) {
    const Matrix &m = *p.matrix;
    float *sums = scratch.sums.data();
    for (int token = 0; token < p.tokens; ++token) {
        const float *x = p.input->floats.data() + ptrdiff_t(token) * round_up(m.columns, kLanes);
        for (int top = begin; top < end; top += kStrip) {
            const int rows = std::min(kStrip, end - top);
            std::memset(sums, 0, sizeof(float) * kStrip);
            int k = 0;
            for (; k + 4 <= m.columns; k += 4) add_columns<4>(m, k, top, rows, x, sums);
            for (; k < m.columns; ++k) add_columns<1>(m, k, top, rows, x, sums);
            std::memcpy(p.out + token * p.stride + top, sums, sizeof(float) * rows);
        }
    }
}

template <int kT> void multiply_tile(const Product &p, int first, int count, int token, const float *weights, float *sums) {
    const int width = round_up(p.matrix->columns, kLanes);
    const float *x = p.input->floats.data() + ptrdiff_t(token) * width + first;
    Sixteen acc[kT][kVectors];
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t)
        for (int v = 0; v < kVectors; ++v) acc[t][v] = Sixteen::at(sums + t * kTileRows + v * kLanes);
    for (int k = 0; k < count; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const Sixteen w = Sixteen::at(weights + k * kTileRows + v * kLanes);
#pragma GCC unroll 8
            for (int t = 0; t < kT; ++t) acc[t][v].add_product(w, Isa::all_float(x[t * width + k]));
        }
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t)
        for (int v = 0; v < kVectors; ++v) acc[t][v].store(sums + t * kTileRows + v * kLanes);
}

void many(const Product &p, int begin, int end, Scratch &scratch) {
    const Matrix &m = *p.matrix;
    float *sums = scratch.sums.data(), *weights = scratch.weights.data();
    for (int row = begin; row < end; row += kTileRows) {
        const int rows = std::min(kTileRows, m.rows - row);
        std::memset(sums, 0, sizeof(float) * kTileRows * p.tokens);
        for (int first = 0; first < m.columns; first += kPanelColumns) {
            const int count = std::min(kPanelColumns, m.columns - first);
            for (int k = 0; k < count; ++k)
                for (int v = 0; v < kTileRows; v += kLanes)
                    (v < rows ? weights_at(m, first + k, row + v, rows - v) : Sixteen{}).store(weights + k * kTileRows + v);
            int token = 0;
            for (; token + kTokens <= p.tokens; token += kTokens)
                multiply_tile<kTokens>(p, first, count, token, weights, sums + token * kTileRows);
            for (; token < p.tokens; ++token) multiply_tile<1>(p, first, count, token, weights, sums + token * kTileRows);
        }
        for (int token = 0; token < p.tokens; ++token)
            std::memcpy(p.out + token * p.stride + row, sums + token * kTileRows, sizeof(float) * rows);
    }
}

} // namespace

void reserve(const Matrix &, int tokens, Scratch &scratch) {
    scratch.sums.reserve(std::max<size_t>(kStrip, size_t(kTileRows) * tokens));
    scratch.weights.reserve(size_t(kPanelColumns) * kTileRows);
}

void multiply(const Product &p, int begin, int end, Scratch &scratch) {
    p.tokens < kFewTokens ? few(p, begin, end, scratch) : many(p, begin, end, scratch);
}

} // namespace columns
} // namespace qslm
