/* The kernels around the products: what each does with a sum before it leaves the registers.
 *
 * A step of one token takes four kernels a layer: key, value, receptance and WKV; output and LIF; the two matrices in
 * front of the squared ReLU; value, gate and LIF. Each warp takes a share of the columns of a few rows; the shares meet
 * in shared memory. With several tokens the recurrences are kernels of their own (recurrence.cuh).
 */
#pragma once

#include <type_traits>

#include "norm.cuh"
#include "product.cuh"
#include "recurrence.cuh"

namespace qslm {

constexpr float HIDDEN_UNIT = 64.f; // squares are kept in units of it: float16 then reaches 4.1 million
constexpr int SHARED_ALIGNMENT = 16;

enum Outlet { STORE, SIGMOID, SQUARED_RELU, FIRE, GATED, GATED_FIRE };

/* One product of a kernel: rows of a matrix over all inputs, and where they go. */
struct Job {
    Matrix matrix;
    const __half *inputs; // [rows, stride]
    int stride;
    int outlet;
    float *out;         // [rows, matrix rows]; FIRE: the residual stream, which spikes are added to
    __half *half_out;   // SQUARED_RELU: [rows, half_stride]
    int half_stride;
    const float *gate;  // GATED*: [rows, matrix rows]
    float *membrane;    // FIRE*: [rows, matrix rows]
    Carry carry;        // FIRE*; may be empty
};

template <int OUTLET> __device__ __forceinline__ void deliver(const Job &job, int row, int unit, float value) {
    if (OUTLET == SQUARED_RELU) {
        float hidden = fmaxf(value, 0.f);
        job.half_out[size_t(row) * job.half_stride + unit] =
            __float2half_rn(fminf(hidden * hidden * (1.f / HIDDEN_UNIT), 65504.f));
        return;
    }
    const size_t at = size_t(row) * job.matrix.rows + unit;
    if (OUTLET == GATED || OUTLET == GATED_FIRE) value *= HIDDEN_UNIT * job.gate[at];
    if (OUTLET == FIRE || OUTLET == GATED_FIRE) {
        float membrane = job.membrane[at];
        job.out[at] += fire(value, membrane);
        job.membrane[at] = membrane;
        if (job.carry.from) job.carry.to[at] = job.carry.from[at];
    } else {
        job.out[at] = OUTLET == SIGMOID ? sigmoid(value) : value;
    }
}

/* Calls `each` with the outlet as a constant: it is chosen once, not for each value. */
template <class Each> __device__ __forceinline__ void with_outlet(int outlet, Each each) {
    switch (outlet) {
    case STORE: return each(std::integral_constant<int, STORE>());
    case SIGMOID: return each(std::integral_constant<int, SIGMOID>());
    case SQUARED_RELU: return each(std::integral_constant<int, SQUARED_RELU>());
    case FIRE: return each(std::integral_constant<int, FIRE>());
    case GATED: return each(std::integral_constant<int, GATED>());
    default: return each(std::integral_constant<int, GATED_FIRE>());
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

constexpr int FEW_WARPS = 16, FEW_ROWS = 8;

/* One product of up to 8 rows; a block takes one tile, its warps share the columns. */
__global__ void __launch_bounds__(32 * FEW_WARPS) product_few(const __grid_constant__ Jobs jobs) {
    constexpr int STRIDE = spill_stride(TILE_ROWS);
    __shared__ float shares[FEW_WARPS * FEW_ROWS * STRIDE];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x;
    const Job &job = jobs.job[0];
    let_next_start();
    prefetch_part(job.matrix, tile, warp, FEW_WARPS);
    after_previous();
    float acc[1][4];
    clear(acc);
    multiply_few(job.matrix, tile, warp, FEW_WARPS,
                 job.inputs + size_t(min(lane / 4, jobs.rows - 1)) * job.stride + lane % 4 * 8, acc);
    spill(acc, shares + warp * FEW_ROWS * STRIDE, STRIDE);
    __syncthreads();
    if (threadIdx.x >= TILE_ROWS * FEW_ROWS) return;
    int unit = tile * TILE_ROWS + threadIdx.x % TILE_ROWS, row = threadIdx.x / TILE_ROWS;
    if (unit >= job.matrix.rows || row >= jobs.rows) return;
    float sum = 0.f;
#pragma unroll
    for (int s = 0; s < FEW_WARPS; ++s) sum += shares[(s * FEW_ROWS + row) * STRIDE + threadIdx.x % TILE_ROWS];
    with_outlet(job.outlet, [&](auto outlet) { deliver<outlet.value>(job, row, unit, sum); });
}

/* Inputs of a step in shared memory: stride that keeps the lanes of a warp in different banks. */
__host__ __device__ constexpr int shared_stride(int columns) { return padded(columns) + 32; }

constexpr int ATTENTION_SPLIT = 4, ATTENTION_THREADS = 3 * ATTENTION_SPLIT * 32;

/* Key, value and receptance of 16 channels a block, then WKV and gate: one token of few streams. */
struct Attention {
    Matrix matrix[3];
    Norm norm;
    const float *x; // [rows, C]
    int rows, channels;
    Average average;
    __half *gated; // [rows, stride]
    int stride;
};

constexpr int ATTENTION_SHARES = 3 * ATTENTION_SPLIT * FEW_ROWS * spill_stride(TILE_ROWS);

__global__ void __launch_bounds__(ATTENTION_THREADS) attention_few(const __grid_constant__ Attention args) {
    constexpr int STRIDE = spill_stride(TILE_ROWS);
    extern __shared__ __align__(SHARED_ALIGNMENT) float shares[]; // then inputs; before, scratch of the norm
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tile = blockIdx.x, channels = args.channels;
    const int which = warp / ATTENTION_SPLIT, part = warp % ATTENTION_SPLIT, stride = shared_stride(channels);
    const Matrix &matrix = args.matrix[which];
    __half *inputs = reinterpret_cast<__half *>(shares + ATTENTION_SHARES);
    let_next_start();
    prefetch_part(matrix, tile, part, ATTENTION_SPLIT);
    norm_inputs<3>(args.norm, args.x, args.rows, channels, inputs, stride, shares, tile * TILE_ROWS,
                   (tile + 1) * TILE_ROWS);
    const int row = threadIdx.x / TILE_ROWS, unit = threadIdx.x % TILE_ROWS, c = tile * TILE_ROWS + unit;
    const bool owner = row < args.rows && c < channels; // of a channel of a stream; its state is under way
    const size_t at = size_t(row) * channels + c;
    const Average &average = args.average;
    float a = 0.f, b = 0.f, p = 0.f, first = 0.f, decay = 0.f;
    if (owner) {
        a = average.a[at], b = average.b[at], p = average.p[at];
        first = average.first[c], decay = average.decay[c];
    }
    float acc[1][4];
    clear(acc);
    multiply_few(matrix, tile, part, ATTENTION_SPLIT,
                 inputs + (which * args.rows + min(lane / 4, args.rows - 1)) * stride + lane % 4 * 8, acc);
    spill(acc, shares + warp * FEW_ROWS * STRIDE, STRIDE);
    __syncthreads();
    if (!owner) return;
    float sums[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        sums[i] = 0.f;
#pragma unroll
        for (int s = 0; s < ATTENTION_SPLIT; ++s)
            sums[i] += shares[((i * ATTENTION_SPLIT + s) * FEW_ROWS + row) * STRIDE + unit];
    }
    float y = wkv(sums[0], sums[1], first, decay, a, b, p);
    average.a[at] = a, average.b[at] = b, average.p[at] = p;
    args.gated[size_t(row) * args.stride + c] = __float2half_rn(sigmoid(sums[2]) * y);
}

/* Products whose inputs are normed here: the two of the feed-forward part, or the head; one token of few streams. */
struct Normed {
    Norm norm;
    const float *x; // [rows, C]
    int channels;
    Jobs jobs; // job i takes mix i
};

constexpr int NORMED_WARPS = 8, NORMED_THREADS = 32 * NORMED_WARPS;

template <int SPLIT> __host__ __device__ constexpr int normed_shares() {
    return SPLIT > 1 ? NORMED_WARPS * FEW_ROWS * spill_stride(TILE_ROWS) : 0;
}

template <int MIXES, int SPLIT>
__global__ void __launch_bounds__(NORMED_THREADS) normed(const __grid_constant__ Normed args) {
    constexpr int TILES = NORMED_WARPS / SPLIT, STRIDE = spill_stride(16);
    extern __shared__ __align__(SHARED_ALIGNMENT) float shares[]; // then scratch of the norm, then inputs
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % SPLIT, rows = args.jobs.rows;
    int tile = blockIdx.x * TILES + warp / SPLIT, which = 0;
    for (; which + 1 < args.jobs.count && tile >= args.jobs.job[which].matrix.tiles; ++which)
        tile -= args.jobs.job[which].matrix.tiles;
    const Job &job = args.jobs.job[which];
    let_next_start();
    prefetch_part(job.matrix, tile, part, SPLIT);
    float *scratch = shares + normed_shares<SPLIT>();
    __half *inputs = reinterpret_cast<__half *>(scratch + (norm_scratch(rows, NORMED_WARPS) + 3) / 4 * 4);
    const int stride = shared_stride(args.channels);
    const int slice = (args.channels + gridDim.x - 1) / gridDim.x;
    norm_inputs<MIXES>(args.norm, args.x, rows, args.channels, inputs, stride, scratch, blockIdx.x * slice,
                       (blockIdx.x + 1) * slice);
    float acc[1][4];
    clear(acc);
    if (tile < job.matrix.tiles)
        multiply_few(job.matrix, tile, part, SPLIT,
                     inputs + (which * rows + min(lane / 4, rows - 1)) * stride + lane % 4 * 8, acc);
    if (SPLIT == 1) {
        for (int e = 0; e < 4; ++e) {
            int unit = tile * TILE_ROWS + lane / 4 + 8 * (e >> 1), row = lane % 4 * 2 + (e & 1);
            if (unit < job.matrix.rows && row < rows) deliver<STORE>(job, row, unit, acc[0][e]); // the head
        }
        return;
    }
    spill(acc, shares + warp * 8 * STRIDE, STRIDE);
    __syncthreads();
    for (int at = lane + 32 * part; at < 16 * 8; at += 32 * SPLIT) { // by the warps of a tile
        int unit = tile * TILE_ROWS + at % 16, row = at / 16;
        if (unit >= job.matrix.rows || row >= rows) continue;
        float sum = 0.f;
        for (int s = 0; s < SPLIT; ++s) sum += shares[((warp - part + s) * 8 + row) * STRIDE + at % 16];
        with_outlet(job.outlet, [&](auto outlet) { deliver<outlet.value>(job, row, unit, sum); });
    }
}

} // namespace qslm
