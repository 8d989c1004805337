/* Logits: a matrix of very many rows, times inputs that stay in shared memory.
 *
 * A warp takes tile after tile with all its columns and up to 128 inputs, so that a code becomes an operand once, and no
 * warp waits for another. Codes come some vectors ahead, each lane its own (a vector as in strip.cuh).
 */
#pragma once

#include <type_traits>

#include "product.cuh"

namespace qslm {

constexpr int HEAD_WARPS = 8, HEAD_THREADS = 32 * HEAD_WARPS;

/* A vector of a tile and its scales, of 32 lanes. */
struct HeadStage {
    uint4 codes[32];
    uint2 records[2][32]; // of the first pair of columns and of the middle one
};

__host__ __device__ constexpr int head_stages(int nt) { return nt < 16 ? 6 : 3; }

inline size_t head_bytes(int nt, int columns) {
    return size_t(8 * nt) * shared_stride(columns) * sizeof(__half) +
           size_t(HEAD_WARPS) * head_stages(nt) * sizeof(HeadStage);
}

template <int BITS, int NT> class HeadWarp {
  public:
    static constexpr int PAIRS = BITS < 16 ? 8 / BITS : 1, STAGES = head_stages(NT), TOGETHER = NT < 4 ? NT : 4;

    __device__ __forceinline__ HeadWarp(const Matrix &matrix, HeadStage *ring)
        : m(matrix), ring(ring), lane(threadIdx.x % 32), vectors(m.chunks * chunk_vectors(BITS)),
          first(blockIdx.x * HEAD_WARPS + threadIdx.x / 32), apart(gridDim.x * HEAD_WARPS), tile(first) {
#pragma unroll
        for (int i = 0; i < STAGES; ++i) fetch(i);
    }

    /* out [rows, matrix rows]; inputs [8 NT, stride]. */
    __device__ __forceinline__ void run(const __half *inputs, int stride, int rows, float *out) {
        const __half *x = inputs + lane / 4 * stride + lane % 4 * 8;
        int stage = 0;
        for (int at = first; at < m.tiles; at += apart) {
            float acc[NT][4];
            clear(acc);
#pragma unroll 1
            for (int v = 0; v < vectors; ++v) {
                wait_for_copies<STAGES - 1>();
                const uint4 codes = ring[stage].codes[lane];
                const uint2 records[2] = {ring[stage].records[0][lane], ring[stage].records[1][lane]};
                fetch(stage);
                stage = stage + 1 < STAGES ? stage + 1 : 0;
                if constexpr (BITS == 16) { // half a pair of columns
                    const __half *from = x + v / 2 * PAIR + v % 2 * 4;
                    const unsigned a[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
                    for (int j = 0; j < NT; ++j) {
                        const uint2 input = *reinterpret_cast<const uint2 *>(from + 8 * j * stride);
                        mma(acc[j], a, input.x, input.y);
                    }
                } else {
#pragma unroll
                    for (int p = 0; p < PAIRS; ++p)
                        add_pair(codes, record_of(records, at, v, p), p, x + (v * PAIRS + p) * PAIR, stride, acc);
                }
            }
            deliver(acc, at, rows, out);
        }
    }

  private:
    const Matrix &m;
    HeadStage *ring;
    const int lane, vectors, first, apart;
    int tile, vector = 0; // that are fetched next

    __device__ __forceinline__ const uint2 *records_of(int of_tile, int pair) const {
        return m.scales + (of_tile * m.groups + (pair >> m.group_shift)) * 8 + lane / 4;
    }

    __device__ __forceinline__ void fetch(int stage) {
        if (tile < m.tiles) {
            copy_ahead(ring[stage].codes + lane, m.codes + (size_t(tile) * vectors + vector) * 32 + lane);
            if (BITS < 16) {
                copy_ahead<8>(ring[stage].records[0] + lane, records_of(tile, vector * PAIRS));
                copy_ahead<8>(ring[stage].records[1] + lane, records_of(tile, vector * PAIRS + PAIRS / 2));
            }
            if (++vector == vectors) vector = 0, tile += apart;
        }
        copies_end_here();
    }

    __device__ __forceinline__ uint2 record_of(const uint2 (&records)[2], int of_tile, int v, int p) const {
        if (PAIRS == 4 && p % 2 && m.group_shift == 0) return __ldg(records_of(of_tile, v * PAIRS + p)); // groups of 32
        return records[2 * p / PAIRS];
    }

    static __device__ __forceinline__ void add_pair(const uint4 &codes, uint2 record, int p, const __half *x, int stride,
                                                    float (&acc)[NT][4]) {
        const unsigned low = zero_point<BITS>(record.x), high = zero_point<BITS>(record.y);
        const float scales[2] = {scale_of(record.x), scale_of(record.y)};
        unsigned a[2][4];
        operand<BITS>(a[0], &codes, 2 * p, low, high);
        operand<BITS>(a[1], &codes, 2 * p + 1, low, high);
#pragma unroll
        for (int from = 0; from < NT; from += TOGETHER) { // as many at once as registers hold
            uint4 inputs[TOGETHER];
            float sums[TOGETHER][4]; // of codes; a pair lies within a group
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)
                inputs[j] = *reinterpret_cast<const uint4 *>(x + (from + j) * 8 * stride);
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) mma_first(sums[j], a[0], inputs[j].x, inputs[j].y);
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j) mma(sums[j], a[1], inputs[j].z, inputs[j].w);
#pragma unroll
            for (int j = 0; j < TOGETHER; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[from + j][e] += sums[j][e] * scales[e / 2];
        }
    }

    __device__ __forceinline__ void deliver(const float (&acc)[NT][4], int of_tile, int rows, float *out) const {
        const int unit = of_tile * TILE_ROWS + lane / 4, row = lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int r = 8 * j + row + (e & 1), u = unit + 8 * (e >> 1);
                if (r < rows && u < m.rows) out[size_t(r) * m.rows + u] = acc[j][e];
            }
    }
};

/* out [rows, matrix rows] = matrix times inputs [rows, stride]; grid: blocks that share out the tiles, blocks of rows. */
template <int NT>
__global__ void __launch_bounds__(HEAD_THREADS, 1)
    head_rows(const __grid_constant__ Matrix m, const __half *inputs, int stride, int rows, float *out) {
    extern __shared__ __align__(SHARED_ALIGNMENT) char shared[];
    const int shared_columns = shared_stride(m.columns), first = blockIdx.y * 8 * NT;
    __half *held = reinterpret_cast<__half *>(shared);
    HeadStage *ring = reinterpret_cast<HeadStage *>(held + 8 * NT * shared_columns);
    ring += threadIdx.x / 32 * head_stages(NT);
    auto run = [&](auto bits) {
        HeadWarp<bits.value, NT> warp(m, ring);
        after_previous();
        const int vectors = padded(m.columns) / 8;
        for (int at = threadIdx.x; at < 8 * NT * vectors; at += HEAD_THREADS) { // rows that are not there repeat the last
            const int row = at / vectors, c = at % vectors * 8;
            copy_ahead(held + row * shared_columns + c, inputs + size_t(min(first + row, rows - 1)) * stride + c);
        }
        copies_end_here();
        wait_for_copies<0>();
        __syncthreads();
        warp.run(held, shared_columns, rows - first, out + size_t(first) * m.rows);
    };
    let_next_start();
    switch (m.bits) {
    case 2: return run(std::integral_constant<int, 2>());
    case 4: return run(std::integral_constant<int, 4>());
    case 8: return run(std::integral_constant<int, 8>());
    default: return run(std::integral_constant<int, 16>());
    }
}

} // namespace qslm
