/* The kernel of products of many rows: prompts, windows, the head. What it does with a sum before that leaves it.
 *
 * The recurrences that follow are kernels of their own (recurrence.cuh). Steps of one token have none of this (step.cuh).
 */
#pragma once

#include <type_traits>

#include "norm.cuh"
#include "product.cuh"
#include "recurrence.cuh"

namespace qslm {


enum Outlet { STORE, SIGMOID, SQUARED_RELU, GATED };

/* One product of a kernel: rows of a matrix over all inputs, and where they go. */
struct Job {
    Matrix matrix;
    const __half *inputs; // [rows, stride]
    int stride;
    int outlet;
    float *out;        // [rows, matrix rows]
    __half *half_out;  // SQUARED_RELU: [rows, half_stride]
    int half_stride;
    const float *gate; // GATED: [rows, matrix rows]
};

template <int OUTLET> __device__ __forceinline__ void deliver(const Job &job, int row, int unit, float value) {
    if (OUTLET == SQUARED_RELU) {
        job.half_out[size_t(row) * job.half_stride + unit] = squared_relu(value);
        return;
    }
    const size_t at = size_t(row) * job.matrix.rows + unit;
    if (OUTLET == GATED) value *= HIDDEN_UNIT * job.gate[at];
    job.out[at] = OUTLET == SIGMOID ? sigmoid(value) : value;
}

/* Calls `each` with the outlet as a constant: it is chosen once, not for each value. */
template <class Each> __device__ __forceinline__ void with_outlet(int outlet, Each each) {
    switch (outlet) {
    case STORE: return each(std::integral_constant<int, STORE>());
    case SIGMOID: return each(std::integral_constant<int, SIGMOID>());
    case SQUARED_RELU: return each(std::integral_constant<int, SQUARED_RELU>());
    default: return each(std::integral_constant<int, GATED>());
    }
}

/* Up to three products over the same rows. */
struct Jobs {
    Job job[3];
    int count, rows;
};

/* Where a block stands among the jobs: `block` becomes its number within the one that is returned. */
__device__ __forceinline__ const Job &job_of(const Jobs &jobs, int tiles_a_block, int &block) {
    int which = 0;
    for (; which + 1 < jobs.count; ++which) {
        int blocks = (jobs.job[which].matrix.tiles + tiles_a_block - 1) / tiles_a_block;
        if (block < blocks) break;
        block -= blocks;
    }
    return jobs.job[which];
}

/* Products of many rows; grid: blocks of units of all jobs, blocks of rows. */
template <class S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) products(const __grid_constant__ Jobs jobs) {
    constexpr int STRIDE = spill_stride(S::UNITS);
    extern __shared__ __align__(SHARED_ALIGNMENT) float shares[]; // windows of inputs before
    const int warp = threadIdx.x / 32, part = warp % S::WS, along_units = warp / S::WS;
    int block = blockIdx.x;
    const Job &job = job_of(jobs, S::UNITS / TILE_ROWS, block);
    const int tile = block * S::WR + along_units, row0 = blockIdx.y * S::ROWS;
    let_next_start();
    if (blockIdx.y == 0) prefetch_part(job.matrix, tile, part, S::WS);
    float acc[S::NT][4];
    clear(acc);
    multiply_block<S>(job.matrix, tile, part, {job.inputs, job.stride, row0, jobs.rows},
                      reinterpret_cast<__half *>(shares), acc, [] { after_previous(); });
    if (S::WS == 1) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        with_outlet(job.outlet, [&](auto outlet) {
#pragma unroll
            for (int j = 0; j < S::NT; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    int unit = tile * TILE_ROWS + g + 8 * (e >> 1), row = row0 + 8 * j + 2 * t + (e & 1);
                    if (unit < job.matrix.rows && row < jobs.rows) deliver<outlet.value>(job, row, unit, acc[j][e]);
                }
        });
        return;
    }
    __syncthreads(); // the last window is still read
    spill(acc, shares + part * S::ROWS * STRIDE + along_units * TILE_ROWS, STRIDE);
    __syncthreads();
    with_outlet(job.outlet, [&](auto outlet) {
        for (int at = threadIdx.x; at < S::UNITS * S::ROWS; at += S::THREADS) {
            int unit = block * S::UNITS + at % S::UNITS, row = row0 + at / S::UNITS;
            if (unit >= job.matrix.rows || row >= jobs.rows) continue;
            const float *from = shares + at / S::UNITS * STRIDE + at % S::UNITS;
            float sum = 0.f;
#pragma unroll
            for (int s = 0; s < S::WS; ++s) sum += from[s * S::ROWS * STRIDE];
            deliver<outlet.value>(job, row, unit, sum);
        }
    });
}

} // namespace qslm
