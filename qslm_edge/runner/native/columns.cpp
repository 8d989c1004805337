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

inline Floats weights_at(const Matrix &m, int column, int row, int count) {
    const ptrdiff_t at = ptrdiff_t(column) * m.rows + row;
    if (m.bits == 32) return load(static_cast<const float *>(m.codes) + at, count);
    const uint8_t *halves = static_cast<const uint8_t *>(m.codes) + 2 * at;
    alignas(64) float out[kLanes];
    if (count >= kLanes) {
        Isa::widen(halves, out);
    } else {
        uint8_t part[2 * kLanes] = {};
        std::memcpy(part, halves, 2 * count);
        Isa::widen(part, out);
    }
    return load(out);
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
            for (int k = 0; k < m.columns; k += 4) {
                const int count = std::min(4, m.columns - k);
                for (int row = 0; row < rows; row += kLanes) {
                    Floats sum = load(sums + row);
                    for (int i = 0; i < count; ++i) sum += weights_at(m, k + i, top + row, rows - row) * x[k + i];
                    store(sums + row, sum);
                }
            }
            std::memcpy(p.out + token * p.stride + top, sums, sizeof(float) * rows);
        }
    }
}

template <int kT> void multiply_tile(const Product &p, int first, int count, int token, const float *weights, float *sums) {
    const int width = round_up(p.matrix->columns, kLanes);
    const float *x = p.input->floats.data() + ptrdiff_t(token) * width + first;
    Floats acc[kT][kVectors];
    for (int t = 0; t < kT; ++t)
        for (int v = 0; v < kVectors; ++v) acc[t][v] = load(sums + t * kTileRows + v * kLanes);
    for (int k = 0; k < count; ++k)
        for (int v = 0; v < kVectors; ++v) {
            const Floats w = load(weights + k * kTileRows + v * kLanes);
            for (int t = 0; t < kT; ++t) acc[t][v] += w * x[t * width + k];
        }
    for (int t = 0; t < kT; ++t)
        for (int v = 0; v < kVectors; ++v) store(sums + t * kTileRows + v * kLanes, acc[t][v]);
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
                    store(weights + k * kTileRows + v, v < rows ? weights_at(m, first + k, row + v, rows - v) : Floats{});
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
