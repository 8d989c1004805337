/* The product of a warp: 16 rows of a packed matrix with 8 to 64 inputs, on tensor cores.
 *
 * Codes less their zero point are integers (or halves of them) that float16 holds exactly, so weights lose nothing;
 * inputs are float16; sums are float32, scaled every 32 columns, which lie in one group. No weight passes through
 * shared memory: they lie in the order of the fragments (matrix.cuh).
 */
#pragma once

#include "matrix.cuh"

namespace qslm {

__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The first of a sum: what d holds before does not count. */
__device__ __forceinline__ void mma_first(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
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

/* (value & MASK) | BITS in one instruction; left to itself the compiler takes two. */
template <unsigned MASK, unsigned BITS> __device__ __forceinline__ unsigned mask_or(unsigned value) {
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "n"(MASK), "n"(BITS));
    return result;
}

/* Operand A of product `step` of a chunk: bits of codes become float16 64 + q (or 1024 + q), less the zero point. */
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
            a[reg] = subtract(subtract(mask_or<0x00ff00ffu, 0x64006400u>(w >> bit), 0x64006400u), zero);
        } else {
            constexpr unsigned MASK = BITS == 4 ? 0x00f000f0u : 0x00300030u; // the bits above 1/16 of 64
            a[reg] = subtract(mask_or<MASK, 0x54005400u>(bit < 4 ? w << (4 - bit) : w >> (bit - 4)), zero);
        }
    }
}

template <int NT> __device__ __forceinline__ void clear(float (&acc)[NT][4]) {
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[j][e] = 0.f;
}

/* Writes a warp's sums as [8 NT columns, stride] floats, row fastest. */
template <int NT> __device__ __forceinline__ void spill(const float (&acc)[NT][4], float *out, int stride) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[(8 * j + 2 * t + (e & 1)) * stride + g + 8 * (e >> 1)] = acc[j][e];
}

__host__ __device__ constexpr int spill_stride(int rows) { return rows + 4; } // lanes of a warp meet 32 banks

constexpr int SHARE = WIDEST_CHUNK; // columns that a warp takes at once: whole chunks of every width

/* Shape of a block of a product with many rows: WR warps along units, one tile each; WS along columns, a share each;
 * NT blocks of 8 rows; BLOCKS of them fit a multiprocessor. Inputs pass through shared memory in windows of WS shares,
 * STAGES of them under way.
 */
template <int NT_, int WR_, int WS_, int BLOCKS_ = 1> struct Shape {
    static constexpr int NT = NT_, WR = WR_, WS = WS_, BLOCKS = BLOCKS_, WINDOW = WS * SHARE, STAGES = 3;
    static constexpr int THREADS = 32 * WR * WS, UNITS = TILE_ROWS * WR, ROWS = 8 * NT;
    static constexpr int STRIDE = WINDOW + 32; // lanes of a warp meet different banks
    static constexpr int STAGE = ROWS * STRIDE, SUMS = WS > 1 ? WS * ROWS * spill_stride(UNITS) : 0;
    static constexpr size_t SHARED_BYTES = STAGES * STAGE * sizeof(__half) > SUMS * sizeof(float)
                                               ? STAGES * STAGE * sizeof(__half)
                                               : SUMS * sizeof(float);
    static_assert(ROWS % (THREADS / (WINDOW / 8)) == 0, "a window is copied in whole passes of the block");
};

/* A copy to shared memory that does not wait; copies are counted in groups. */
template <int BYTES = 16> __device__ __forceinline__ void copy_ahead(void *to, const void *from) {
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
                     "l"(from)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))),
                     "l"(from), "n"(BYTES)
                     : "memory");
}
__device__ __forceinline__ void copies_end_here() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int UNDER_WAY> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(UNDER_WAY) : "memory");
}

constexpr int SHARED_ALIGNMENT = 16;

/* Inputs of a product in shared memory: stride that keeps the lanes of a warp in different banks. */
__host__ __device__ constexpr int shared_stride(int columns) { return padded(columns) + 32; }

/* Inputs of a block: rows [row, row + ROWS) of `rows`, at `stride`. */
struct Inputs {
    const __half *from;
    int stride, row, rows;
};

/* acc += a tile times the inputs, share `part` of every window.
 *
 * The whole block calls it with a matrix of one width. Weights are fetched a window ahead, the first before `ready`.
 */
template <int BITS, class S, class Ready>
__device__ __forceinline__ void multiply(const Matrix &m, int tile, int part, const Inputs &in, __half *stages,
                                         float (&acc)[S::NT][4], Ready ready) {
    constexpr int NT = S::NT, PAIRS = SHARE / PAIR, VECTORS = SHARE / chunk_columns(BITS) * chunk_vectors(BITS);
    constexpr int TOGETHER = NT < 4 ? NT : 4;
    constexpr int STEPS_A_VECTOR = 2 * PAIRS / VECTORS > 0 ? 2 * PAIRS / VECTORS : 1; // products of tensor cores
    const int lane = threadIdx.x % 32, mask = (1 << m.group_shift) - 1;
    const int shares = m.chunks * chunk_columns(BITS) / SHARE, windows = (shares + S::WS - 1) / S::WS;
    const int row = min(tile, m.tiles - 1); // a tile that is not there is computed and dropped
    const uint4 *codes = m.codes + size_t(row) * shares * VECTORS * 32 + lane;
    const uint2 *records = m.scales + size_t(row) * m.groups * 8 + lane / 4;
    uint4 ahead[VECTORS];
    uint2 record_ahead[PAIRS] = {};
    auto fetch = [&](int window) {
        const int share = min(window * S::WS + part, shares - 1);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) ahead[v] = __ldg(codes + (share * VECTORS + v) * 32);
        if (BITS < 16) {
#pragma unroll
            for (int p = 0; p < PAIRS; ++p)
                if (p == 0 || (p & mask) == 0)
                    record_ahead[p] = __ldg(records + ((share * PAIRS + p) >> m.group_shift) * 8);
                else record_ahead[p] = record_ahead[p - 1];
        }
    };
    constexpr int VECTORS_A_ROW = S::WINDOW / 8, ROWS_A_PASS = S::THREADS / VECTORS_A_ROW;
    const int column = threadIdx.x % VECTORS_A_ROW * 8, first_row = threadIdx.x / VECTORS_A_ROW;
    auto copy_window = [&](int window) {
        if (window * S::WINDOW + column < shares * SHARE) {
            __half *to = stages + window % S::STAGES * S::STAGE + first_row * S::STRIDE + column;
            const __half *from = in.from + window * S::WINDOW + column;
#pragma unroll
            for (int pass = 0; pass < S::ROWS / ROWS_A_PASS; ++pass) { // a row that is not there repeats the last one
                int source = min(in.row + first_row + pass * ROWS_A_PASS, in.rows - 1);
                copy_ahead(to + pass * ROWS_A_PASS * S::STRIDE, from + size_t(source) * in.stride);
            }
        }
        copies_end_here();
    };
    fetch(0);
    ready();
#pragma unroll
    for (int window = 0; window < S::STAGES - 1; ++window) copy_window(window);
    for (int window = 0; window < windows; ++window) {
        wait_for_copies<S::STAGES - 2>();
        __syncthreads();
        copy_window(window + S::STAGES - 1);
        uint4 now[VECTORS];
        uint2 record[PAIRS];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) now[v] = ahead[v];
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) record[p] = record_ahead[p];
        if (window + 1 < windows) fetch(window + 1);
        if (window * S::WS + part >= shares) break; // the last window has nothing for this warp
        const __half *x = stages + window % S::STAGES * S::STAGE + lane / 4 * S::STRIDE + lane % 4 * 8 + part * SHARE;
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            unsigned low = 0, high = 0, a[2][4];
            if (BITS < 16) low = zero_point<BITS>(record[p].x), high = zero_point<BITS>(record[p].y);
            const float low_scale = scale_of(record[p].x), high_scale = scale_of(record[p].y);
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const int step = 2 * p + s;
                operand<BITS>(a[s], now + step / STEPS_A_VECTOR, step % STEPS_A_VECTOR, low, high);
            }
#pragma unroll
            for (int from = 0; from < NT; from += TOGETHER) { // as many at once as registers hold
                asm volatile("" ::: "memory");               // and no inputs before their time
                uint4 inputs[TOGETHER];
                float sums[TOGETHER][4]; // of codes; a pair lies within a group
#pragma unroll
                for (int j = 0; j < TOGETHER; ++j)
                    inputs[j] = *reinterpret_cast<const uint4 *>(x + (from + j) * 8 * S::STRIDE + p * PAIR);
#pragma unroll
                for (int j = 0; j < TOGETHER; ++j)
                    if (BITS == 16) mma(acc[from + j], a[0], inputs[j].x, inputs[j].y);
                    else mma_first(sums[j], a[0], inputs[j].x, inputs[j].y);
#pragma unroll
                for (int j = 0; j < TOGETHER; ++j)
                    mma(BITS == 16 ? acc[from + j] : sums[j], a[1], inputs[j].z, inputs[j].w);
                if (BITS < 16) {
#pragma unroll
                    for (int j = 0; j < TOGETHER; ++j)
#pragma unroll
                        for (int e = 0; e < 4; ++e) acc[from + j][e] += sums[j][e] * (e < 2 ? low_scale : high_scale);
                }
            }
        }
    }
}

template <class S, class Ready>
__device__ __forceinline__ void multiply_block(const Matrix &m, int tile, int part, const Inputs &in, __half *stages,
                                               float (&acc)[S::NT][4], Ready ready) {
    switch (m.bits) {
    case 2: return multiply<2, S>(m, tile, part, in, stages, acc, ready);
    case 4: return multiply<4, S>(m, tile, part, in, stages, acc, ready);
    case 8: return multiply<8, S>(m, tile, part, in, stages, acc, ready);
    default: return multiply<16, S>(m, tile, part, in, stages, acc, ready);
    }
}

/* Calls for the share `part` of `parts` of a tile into the L2 cache: what can be done before the inputs are there. */
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

} // namespace qslm
