/* Packed weights in the order in which tensor cores take them.
 *
 * A matrix is cut into tiles of 16 rows and chunks of 32 to 128 columns; a chunk of a tile is 32 (at 16 bits 64)
 * vectors of 16 bytes, one a lane, so that a warp reads 512 bytes in a row. Which code a lane holds follows the
 * operand A of mma.m16n8k16; columns are permuted within 32 so that a lane needs eight neighbouring inputs. The number
 * of bits is that of the bundle: this is a permutation, made once on the device.
 *
 * Scale and zero point of a group share 32 bits, bfloat16 above float16; both are exact (docs/bundle.md).
 */
#pragma once

#include "device.cuh"

namespace qslm {

constexpr int TILE_ROWS = 16;
constexpr int PAIR = 32; // columns of two products of tensor cores
constexpr int WIDEST_CHUNK = 128;

/* On the device; passed to kernels by value. */
struct Matrix {
    const uint4 *codes;  // [tiles, chunks, 1 or 2, 32]
    const uint2 *scales; // [tiles, groups, 8]: rows g and g + 8
    int rows, columns;
    int bits; // 2, 4, 8 or 16
    int tiles, chunks, groups; // chunks fill a multiple of 128 columns
    int group_shift; // log2 of the pairs of a group
};

__host__ __device__ constexpr int chunk_columns(int bits) { return bits == 2 ? 128 : bits == 4 ? 64 : 32; }
__host__ __device__ constexpr int chunk_vectors(int bits) { return bits == 16 ? 2 : 1; }
__host__ __device__ constexpr int padded(int columns) {
    return (columns + WIDEST_CHUNK - 1) / WIDEST_CHUNK * WIDEST_CHUNK;
}

/* A matrix as the bundle holds it, copied to the device. */
struct Source {
    const void *codes, *scales;
    const uint8_t *zeros;
    int rows, columns, bits, group, scale_bits, midrise;
};

__device__ inline unsigned source_code(const Source &s, int row, int column) {
    if (row >= s.rows || column >= s.columns) return 0;
    if (s.bits >= 16) { // transposed floats; float32 is rounded once, as inputs are
        size_t at = size_t(column) * s.rows + row;
        if (s.bits == 16) return static_cast<const uint16_t *>(s.codes)[at];
        return __half_as_ushort(__float2half_rn(static_cast<const float *>(s.codes)[at]));
    }
    size_t bit = (size_t(row) * s.columns + column) * s.bits;
    return (static_cast<const uint8_t *>(s.codes)[bit / 8] >> (bit % 8)) & ((1u << s.bits) - 1);
}

__global__ void pack_codes(Source s, int bits, int chunks, size_t vectors, uint4 *out) {
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= vectors) return;
    int per_chunk = chunk_vectors(bits), fields = 16 / bits;
    int lane = int(at % 32), vector = int(at / 32 % per_chunk);
    int chunk = int(at / (32 * per_chunk) % chunks), tile = int(at / (size_t(32) * per_chunk * chunks));
    unsigned words[4] = {0, 0, 0, 0};
    for (int word = 0; word < 4; ++word)
        for (int field = 0; field < fields; ++field) {
            int index = (vector * 4 + word) * fields + field, step = index / 4, reg = index % 4;
            int row = tile * TILE_ROWS + lane / 4 + 8 * (reg & 1);
            int column = chunk * chunk_columns(bits) + step / 2 * PAIR + lane % 4 * 8 + step % 2 * 4 + reg / 2 * 2;
            for (int half = 0; half < 2; ++half)
                words[word] |= source_code(s, row, column + half) << (half * 16 + field * bits);
        }
    out[at] = make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void pack_scales(Source s, int groups, int group_columns, size_t records, unsigned *out, int *inexact) {
    size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x; // [tiles, groups, 8, 2]
    if (at >= records) return;
    int row = int(at / (16 * size_t(groups))) * TILE_ROWS + int(at / 2 % 8) + int(at % 2) * 8;
    int group = int(at / 16 % groups) * group_columns / s.group, per_row = s.columns / s.group;
    if (row >= s.rows || group >= per_row) return; // stays zero
    size_t index = size_t(row) * per_row + group;
    float scale = s.scale_bits == 16 ? __half2float(static_cast<const __half *>(s.scales)[index])
                                     : static_cast<const float *>(s.scales)[index];
    float zero = s.midrise ? ((1 << s.bits) - 1) * 0.5f : float(1 << (s.bits - 1));
    if (s.zeros) {
        size_t row_bytes = (size_t(per_row) * s.bits + 7) / 8;
        unsigned byte = s.zeros[row * row_bytes + group * s.bits / 8];
        zero = float((byte >> (group * s.bits % 8)) & ((1u << s.bits) - 1));
    }
    unsigned bits = __float_as_uint(scale);
    if (bits & 0xffffu) *inexact = 1;
    out[at] = (bits & 0xffff0000u) | __half_as_ushort(__float2half_rn(zero));
}

/* A matrix on the device, and what it lies in. */
struct OwnedMatrix {
    Matrix view{};
    Memory codes, scales;

    OwnedMatrix() = default;
    OwnedMatrix(const qslm_matrix &m, const std::string &name) {
        bool packed = m.bits == 2 || m.bits == 4 || m.bits == 8;
        require(packed || m.bits == 16 || m.bits == 32, name + ": no matrix of " + std::to_string(m.bits) + " bits");
        require(m.rows > 0 && m.columns > 0 && m.codes, name + ": empty matrix");
        require(!packed || (m.group > 0 && m.group % PAIR == 0 && m.columns % m.group == 0 && m.scales),
                name + ": groups must be multiples of 32 columns that divide the row");
        view.rows = m.rows, view.columns = m.columns, view.bits = packed ? m.bits : 16;
        view.tiles = ceil_div(m.rows, TILE_ROWS);
        view.chunks = padded(m.columns) / chunk_columns(view.bits);
        const char *what = "weights";
        size_t weights = size_t(m.rows) * m.columns;
        Memory raw = Memory::copy_of(m.codes, weights * m.bits / 8, what), raw_scales, raw_zeros;
        Source source{raw.as<void>(), nullptr, nullptr, m.rows, m.columns, m.bits, m.group, m.scale_bits, m.midrise};
        size_t vectors = size_t(view.tiles) * view.chunks * chunk_vectors(view.bits) * 32;
        codes = Memory::device(vectors * sizeof(uint4), what);
        pack_codes<<<unsigned((vectors + 255) / 256), 256>>>(source, view.bits, view.chunks, vectors,
                                                             codes.as<uint4>());
        check(cudaGetLastError(), what);
        if (packed) {
            size_t per_row = m.columns / m.group;
            raw_scales = Memory::copy_of(m.scales, m.rows * per_row * m.scale_bits / 8, what);
            source.scales = raw_scales.as<void>();
            if (m.zeros) {
                raw_zeros = Memory::copy_of(m.zeros, m.rows * ((per_row * m.bits + 7) / 8), what);
                source.zeros = raw_zeros.as<uint8_t>();
            }
            int pairs = m.group / PAIR;
            while (!(pairs >> view.group_shift & 1)) ++view.group_shift; // largest power of two in it
            int group_columns = PAIR << view.group_shift;
            view.groups = ceil_div(view.chunks * chunk_columns(view.bits), group_columns);
            size_t records = size_t(view.tiles) * view.groups * 16;
            scales = Memory::device(records * sizeof(unsigned), what);
            Memory flag = Memory::device(sizeof(int), what);
            pack_scales<<<unsigned((records + 255) / 256), 256>>>(source, view.groups, group_columns, records,
                                                                  scales.as<unsigned>(), flag.as<int>());
            check(cudaGetLastError(), what);
            int inexact = 0;
            check(cudaMemcpy(&inexact, flag.as<int>(), sizeof inexact, cudaMemcpyDeviceToHost), what);
            require(!inexact, name + ": scales of more than eight significant bits");
        }
        check(cudaDeviceSynchronize(), what);
        view.codes = codes.as<uint4>(), view.scales = scales.as<uint2>();
    }
};

} // namespace qslm
