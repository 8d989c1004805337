/* What the two forms of the packed product share: sizes, and how scales, codes and groups are read. */
#ifndef QSLM_PACKED_H
#define QSLM_PACKED_H

#include <algorithm>

#include "lanes.h"
#include "matrix.h"

namespace qslm {
namespace packed {

constexpr int L = Isa::kRows, V = Isa::kBytes;
constexpr int kTileRows = Isa::kTileVectors * L;
constexpr int kPanelColumns = 768; /* of a tile that is unpacked at a time: it stays in the first cache */
constexpr int kLine = 64;          /* of the caches */
typedef Isa::I I;
typedef Isa::F F;

/* Rows `begin` to `end` for few tokens, bound by memory, and for many, bound by arithmetic. */
void few(const Product &p, int begin, int end, Scratch &scratch);
void many(const Product &p, int begin, int end, Scratch &scratch);

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

} // namespace packed
} // namespace qslm
#endif
