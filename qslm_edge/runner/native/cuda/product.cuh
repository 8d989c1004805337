/* The product of a warp: 16 or 32 rows of a packed matrix with 8 to 32 inputs, on tensor cores.
 *
 * Codes less their zero point are integers (or halves of them) that float16 holds exactly, so weights lose nothing;
 * inputs are float16; sums are float32, one for each group, scaled when the group ends. No weight passes through
 * shared memory: they lie in the order of the fragments (matrix.cuh).
 */
#pragma once

#include "matrix.cuh"

namespace qslm {

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned subtract(unsigned a, unsigned b) {
    __half2 c = __hsub2(*reinterpret_cast<__half2 *>(&a), *reinterpret_cast<__half2 *>(&b));
    return *reinterpret_cast<unsigned *>(&c);
}

__device__ __forceinline__ unsigned word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Twice the zero point of a record, in the form that `operand` subtracts: 64 + z below 8 bits. */
template <int BITS> __device__ __forceinline__ unsigned zero_point(unsigned record) {
    unsigned both = __byte_perm(record, 0, 0x1010);
    if (BITS == 8) return both;
    const unsigned offset = 0x54005400u; // 64, 64
    __half2 sum = __hadd2(*reinterpret_cast<__half2 *>(&both), *reinterpret_cast<const __half2 *>(&offset));
    return *reinterpret_cast<unsigned *>(&sum);
}

__device__ __forceinline__ float scale_of(unsigned record) { return __uint_as_float(record & 0xffff0000u); }

/* Operand A of product `step` of a chunk: bits of the codes become float16 64 + q (or 1024 + q), less the zero point. */
template <int BITS>
__device__ __forceinline__ void operand(unsigned (&a)[4], const uint4 *codes, int step, unsigned zero_low,
                                        unsigned zero_high) {
    constexpr int FIELDS = 16 / BITS;
#pragma unroll
    for (int reg = 0; reg < 4; ++reg) {
        int index = 4 * step + reg, word = index / FIELDS, bit = index % FIELDS * BITS;
        unsigned w = word_of(codes[word / 4], word % 4), zero = reg & 1 ? zero_high : zero_low;
        if (BITS == 16) {
            a[reg] = w;
        } else if (BITS == 8) {
            a[reg] = subtract(subtract((w >> bit & 0x00ff00ffu) | 0x64006400u, 0x64006400u), zero);
        } else {
            constexpr unsigned MASK = BITS == 4 ? 0x00f000f0u : 0x00300030u; // the bits above 1/16 of 64
            a[reg] = subtract(((bit < 4 ? w << (4 - bit) : w >> (bit - 4)) & MASK) | 0x54005400u, zero);
        }
    }
}

template <int MI, int NT> __device__ __forceinline__ void clear(float (&acc)[MI][NT][4]) {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.f;
}

/* acc[i][j] += rows (tile + i) of chunks [first, last) times inputs j.
 *
 * x[j]: this lane's place in its input of column block j, i.e. row (8 j + lane / 4), column 8 (lane % 4).
 * Codes are fetched a chunk ahead, inputs and scales a pair ahead.
 */
template <int BITS, int MI, int NT>
__device__ __forceinline__ void multiply(const Matrix &m, int tile, int first, int last, const __half *const (&x)[NT],
                                         float (&acc)[MI][NT][4]) {
    constexpr int PAIRS = chunk_columns(BITS) / PAIR, VECTORS = chunk_vectors(BITS);
    if (first >= last) return;
    const int lane = threadIdx.x % 32, mask = (1 << m.group_shift) - 1, end = last * PAIRS;
    const uint4 *codes[MI];
    const uint2 *records[MI];
#pragma unroll
    for (int i = 0; i < MI; ++i) {
        int row = min(tile + i, m.tiles - 1); // a tile that is not there is computed and dropped
        codes[i] = m.codes + size_t(row) * m.chunks * VECTORS * 32 + lane;
        records[i] = m.scales + size_t(row) * m.groups * 8 + lane / 4;
    }
    uint4 ahead[MI][VECTORS], inputs_ahead[NT];
    uint2 record_ahead[MI] = {};
    auto fetch = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) ahead[i][v] = __ldg(codes[i] + (chunk * VECTORS + v) * 32);
    };
    auto fetch_pair = [&](int pair, bool new_group) {
#pragma unroll
        for (int j = 0; j < NT; ++j) inputs_ahead[j] = *reinterpret_cast<const uint4 *>(x[j] + pair * PAIR);
        if (BITS < 16 && new_group) {
#pragma unroll
            for (int i = 0; i < MI; ++i) record_ahead[i] = __ldg(records[i] + (pair >> m.group_shift) * 8);
        }
    };
    fetch(first);
    fetch_pair(first * PAIRS, true);
    float sums[MI][NT][4];
    clear(sums);
    for (int chunk = first; chunk < last; ++chunk) {
        uint4 now[MI][VECTORS];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) now[i][v] = ahead[i][v];
        if (chunk + 1 < last) fetch(chunk + 1);
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            const int pair = chunk * PAIRS + p;
            uint4 inputs[NT];
            uint2 record[MI];
#pragma unroll
            for (int j = 0; j < NT; ++j) inputs[j] = inputs_ahead[j];
#pragma unroll
            for (int i = 0; i < MI; ++i) record[i] = record_ahead[i];
            const bool group_ends = (pair & mask) == mask || pair + 1 == end;
            if (pair + 1 < end) fetch_pair(pair + 1, group_ends);
#pragma unroll
            for (int i = 0; i < MI; ++i) {
                unsigned low = 0, high = 0;
                if (BITS < 16) low = zero_point<BITS>(record[i].x), high = zero_point<BITS>(record[i].y);
#pragma unroll
                for (int s = 0; s < 2; ++s) {
                    unsigned a[4];
                    operand<BITS>(a, now[i], 2 * p + s, low, high);
#pragma unroll
                    for (int j = 0; j < NT; ++j)
                        mma(BITS == 16 ? acc[i][j] : sums[i][j], a, s ? inputs[j].z : inputs[j].x,
                            s ? inputs[j].w : inputs[j].y);
                }
            }
            if (BITS < 16 && group_ends) {
#pragma unroll
            for (int i = 0; i < MI; ++i) {
                float low = scale_of(record[i].x), high = scale_of(record[i].y);
#pragma unroll
                for (int j = 0; j < NT; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) acc[i][j][e] += sums[i][j][e] * (e < 2 ? low : high);
                }
            }
            clear(sums);
            }
        }
    }
}

/* The same for one tile and one block of inputs, where waiting is all: several chunks are under way at once. */
template <int BITS>
__device__ __forceinline__ void multiply(const Matrix &m, int tile, int first, int last, const __half *const (&x)[1],
                                         float (&acc)[1][1][4]) {
    constexpr int PAIRS = chunk_columns(BITS) / PAIR, VECTORS = chunk_vectors(BITS), DEPTH = BITS == 2 ? 2 : 4;
    const int lane = threadIdx.x % 32;
    const uint4 *codes = m.codes + size_t(tile) * m.chunks * VECTORS * 32 + lane;
    const uint2 *records = m.scales + size_t(tile) * m.groups * 8 + lane / 4;
    for (int begin = first; begin < last; begin += DEPTH) {
        uint4 now[DEPTH][VECTORS], inputs[DEPTH][PAIRS];
        uint2 record[DEPTH][PAIRS];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const int chunk = min(begin + d, last - 1);
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) now[d][v] = __ldg(codes + (chunk * VECTORS + v) * 32);
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                const int pair = chunk * PAIRS + p;
                inputs[d][p] = *reinterpret_cast<const uint4 *>(x[0] + pair * PAIR);
                if (BITS < 16) record[d][p] = __ldg(records + (pair >> m.group_shift) * 8);
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            if (begin + d >= last) break;
#pragma unroll
            for (int p = 0; p < PAIRS; ++p) {
                float sums[4] = {0.f, 0.f, 0.f, 0.f};
                unsigned low = 0, high = 0, a[4];
                if (BITS < 16) low = zero_point<BITS>(record[d][p].x), high = zero_point<BITS>(record[d][p].y);
                operand<BITS>(a, now[d], 2 * p, low, high);
                mma(sums, a, inputs[d][p].x, inputs[d][p].y);
                operand<BITS>(a, now[d], 2 * p + 1, low, high);
                mma(sums, a, inputs[d][p].z, inputs[d][p].w);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    unsigned half = e < 2 ? record[d][p].x : record[d][p].y;
                    acc[0][0][e] += BITS < 16 ? sums[e] * scale_of(half) : sums[e];
                }
            }
        }
    }
}

template <int BITS, int MI, int NT>
__device__ __forceinline__ void share(const Matrix &m, int tile, int first, int last, const __half *const (&x)[NT],
                                      float (&acc)[MI][NT][4]) {
    if constexpr (MI == 1 && NT == 1) multiply<BITS>(m, tile, first, last, x, acc);
    else multiply<BITS, MI, NT>(m, tile, first, last, x, acc);
}

/* The share `part` of `parts` of a product's chunks, whatever the width of the matrix. */
template <int MI, int NT>
__device__ __forceinline__ void multiply_part(const Matrix &m, int tile, int part, int parts,
                                              const __half *const (&x)[NT], float (&acc)[MI][NT][4]) {
    int first = m.chunks * part / parts, last = m.chunks * (part + 1) / parts;
    switch (m.bits) {
    case 2: return share<2>(m, tile, first, last, x, acc);
    case 4: return share<4>(m, tile, first, last, x, acc);
    case 8: return share<8>(m, tile, first, last, x, acc);
    default: return share<16>(m, tile, first, last, x, acc);
    }
}

/* Calls for that share into the L2 cache: what can be done before the inputs are there. */
__device__ __forceinline__ void prefetch_part(const Matrix &m, int tile, int part, int parts) {
    if (tile >= m.tiles) return;
    const int lane = threadIdx.x % 32, vectors = chunk_vectors(m.bits) * 32;
    int first = m.chunks * part / parts, last = m.chunks * (part + 1) / parts;
    auto lines = [lane](const void *from, size_t bytes) {
        for (size_t at = size_t(lane) * 128; at < bytes; at += 32 * 128)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char *>(from) + at));
    };
    lines(m.codes + (size_t(tile) * m.chunks + first) * vectors, size_t(last - first) * vectors * sizeof(uint4));
    if (m.bits == 16) return;
    int pairs = chunk_columns(m.bits) / PAIR;
    int from = first * pairs >> m.group_shift, to = ((last * pairs - 1) >> m.group_shift) + 1;
    lines(m.scales + (size_t(tile) * m.groups + from) * 8, size_t(to - from) * 8 * sizeof(uint2));
}

/* Writes a warp's sums as [8 NT columns, stride] floats, row fastest. */
template <int MI, int NT>
__device__ __forceinline__ void spill(const float (&acc)[MI][NT][4], float *out, int stride) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                out[(8 * j + 2 * t + (e & 1)) * stride + 16 * i + g + 8 * (e >> 1)] = acc[i][j][e];
}

__host__ __device__ constexpr int spill_stride(int rows) { return rows + 4; } // lanes of a warp meet 32 banks

} // namespace qslm
