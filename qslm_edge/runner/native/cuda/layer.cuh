/* The kernels around the products: what each does with a sum before it leaves the registers.
 *
 * A step of one token takes four kernels a layer: key, value, receptance and WKV; output and LIF; the two matrices in
 * front of the squared ReLU; value, gate and LIF. Each warp takes a share of the columns of a few rows; the shares meet
 * in shared memory. With several tokens the recurrences are kernels of their own (recurrence.cuh).
 */
#pragma once

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
    Carry carry;        // FIRE*
};

__device__ __forceinline__ void deliver(const Job &job, int row, int unit, float value) {
    size_t at = size_t(row) * job.matrix.rows + unit;
    switch (job.outlet) {
    case STORE: job.out[at] = value; break;
    case SIGMOID: job.out[at] = sigmoid(value); break;
    case SQUARED_RELU: {
        float hidden = fmaxf(value, 0.f);
        job.half_out[size_t(row) * job.half_stride + unit] =
            __float2half_rn(fminf(hidden * hidden * (1.f / HIDDEN_UNIT), 65504.f));
        break;
    }
    case GATED: job.out[at] = value * HIDDEN_UNIT * job.gate[at]; break;
    default: {
        if (job.outlet == GATED_FIRE) value *= HIDDEN_UNIT * job.gate[at];
        float membrane = job.membrane[at];
        job.out[at] += fire(value, membrane);
        job.membrane[at] = membrane;
        job.carry.to[at] = job.carry.from[at];
    }
    }
}

/* Up to three products over the same rows. */
struct Jobs {
    Job job[3];
    int count, rows;
};

/* Shape of a block: warps along units (WR), rows (WC) and columns (WS) of the product; MI, NT: tiles of a warp. */
template <int MI, int NT, int WR, int WC, int WS> struct Shape {
    static constexpr int THREADS = 32 * WR * WC * WS, UNITS = 16 * MI * WR, ROWS = 8 * NT * WC;
    static constexpr int STRIDE = spill_stride(UNITS);
    static constexpr size_t SHARED_BYTES = WS > 1 ? size_t(WS) * ROWS * STRIDE * sizeof(float) : 0;
};

template <int MI, int NT, int WR, int WC, int WS>
__global__ void __launch_bounds__(32 * WR *WC *WS, 32 * WR *WC *WS <= 256 ? 2 : 1) products(const __grid_constant__ Jobs jobs) {
    using S = Shape<MI, NT, WR, WC, WS>;
    extern __shared__ float shares[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int part = warp % WS, along_rows = warp / WS % WC, along_units = warp / (WS * WC);
    int block = blockIdx.x, which = 0;
    for (; which + 1 < jobs.count; ++which) {
        int blocks = (jobs.job[which].matrix.tiles + WR * MI - 1) / (WR * MI);
        if (block < blocks) break;
        block -= blocks;
    }
    const Job &job = jobs.job[which];
    const int tile = (block * WR + along_units) * MI, row0 = blockIdx.y * S::ROWS + along_rows * 8 * NT;
    let_next_start();
    if (blockIdx.y == 0)
        for (int i = 0; i < MI; ++i) prefetch_part(job.matrix, tile + i, part, WS);
    after_previous();
    const __half *x[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j) // a row that is not there is computed and dropped
        x[j] = job.inputs + size_t(min(row0 + 8 * j + lane / 4, jobs.rows - 1)) * job.stride + lane % 4 * 8;
    float acc[MI][NT][4];
    clear(acc);
    multiply_part(job.matrix, tile, part, WS, x, acc);
    if (WS == 1) {
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int j = 0; j < NT; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    int unit = (tile + i) * TILE_ROWS + g + 8 * (e >> 1), row = row0 + 8 * j + 2 * t + (e & 1);
                    if (unit < job.matrix.rows && row < jobs.rows) deliver(job, row, unit, acc[i][j][e]);
                }
        return;
    }
    spill(acc, shares + (part * S::ROWS + along_rows * 8 * NT) * S::STRIDE + along_units * 16 * MI, S::STRIDE);
    __syncthreads();
    for (int at = threadIdx.x; at < S::UNITS * S::ROWS; at += S::THREADS) {
        int local_unit = at % S::UNITS, local_row = at / S::UNITS;
        int unit = block * S::UNITS + local_unit, row = blockIdx.y * S::ROWS + local_row;
        if (unit >= job.matrix.rows || row >= jobs.rows) continue;
        float sum = 0.f;
        for (int s = 0; s < WS; ++s) sum += shares[(s * S::ROWS + local_row) * S::STRIDE + local_unit];
        deliver(job, row, unit, sum);
    }
}

/* Inputs of a step in shared memory: stride that keeps the lanes of a warp in different banks. */
__host__ __device__ constexpr int shared_stride(int columns) { return padded(columns) + 32; }

constexpr int ATTENTION_SPLIT = 4, ATTENTION_THREADS = 3 * ATTENTION_SPLIT * 32;

/* Key, value and receptance of some channels, then WKV and gate: one token of `rows` streams. */
struct Attention {
    Matrix matrix[3];
    Norm norm;            // NORMED: inputs are made here
    const float *x;       // NORMED: [rows, C]
    const __half *inputs; // else [3, rows, stride]
    int rows, channels, stride;
    Average average;
    __half *gated; // [rows, stride]
};

template <int MI, int NT> __host__ __device__ constexpr int attention_shares() {
    return 3 * ATTENTION_SPLIT * 8 * NT * spill_stride(16 * MI);
}

template <int MI, int NT, bool NORMED>
__global__ void __launch_bounds__(ATTENTION_THREADS) attention(const __grid_constant__ Attention args) {
    constexpr int UNITS = 16 * MI, ROWS = 8 * NT, STRIDE = spill_stride(UNITS);
    extern __shared__ __align__(SHARED_ALIGNMENT) float shares[]; // then inputs
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int which = warp / ATTENTION_SPLIT, part = warp % ATTENTION_SPLIT;
    const Matrix &matrix = args.matrix[which];
    const int tile = blockIdx.x * MI, row0 = blockIdx.y * ROWS, channels = args.channels;
    let_next_start();
    if (blockIdx.y == 0)
        for (int i = 0; i < MI; ++i) prefetch_part(matrix, tile + i, part, ATTENTION_SPLIT);
    after_previous();
    const __half *inputs = args.inputs;
    int stride = args.stride;
    if (NORMED) {
        __half *made = reinterpret_cast<__half *>(shares + attention_shares<MI, NT>());
        stride = shared_stride(channels);
        norm_inputs<3>(args.norm, args.x, args.rows, channels, made, stride, shares, tile * TILE_ROWS,
                       tile * TILE_ROWS + UNITS);
        inputs = made;
    }
    const __half *x[NT];
#pragma unroll
    for (int j = 0; j < NT; ++j)
        x[j] = inputs + size_t(which * args.rows + min(row0 + 8 * j + lane / 4, args.rows - 1)) * stride + lane % 4 * 8;
    float acc[MI][NT][4];
    clear(acc);
    multiply_part(matrix, tile, part, ATTENTION_SPLIT, x, acc);
    spill(acc, shares + warp * ROWS * STRIDE, STRIDE);
    __syncthreads();
    for (int at = threadIdx.x; at < UNITS * ROWS; at += ATTENTION_THREADS) {
        int unit = at % UNITS, row = row0 + at / UNITS, c = tile * TILE_ROWS + unit;
        if (c >= channels || row >= args.rows) continue;
        float sums[3];
        for (int i = 0; i < 3; ++i) {
            sums[i] = 0.f;
            for (int s = 0; s < ATTENTION_SPLIT; ++s)
                sums[i] += shares[((i * ATTENTION_SPLIT + s) * ROWS + at / UNITS) * STRIDE + unit];
        }
        size_t index = size_t(row) * channels + c;
        const Average &average = args.average;
        float a = average.a[index], b = average.b[index], p = average.p[index];
        float y = wkv(sums[0], sums[1], average.first[c], average.decay[c], a, b, p);
        average.a[index] = a, average.b[index] = b, average.p[index] = p;
        args.gated[size_t(row) * args.stride + c] = __float2half_rn(sigmoid(sums[2]) * y);
    }
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
    return SPLIT > 1 ? NORMED_WARPS * 8 * spill_stride(16) : 0;
}

template <int MIXES, int SPLIT> __global__ void __launch_bounds__(NORMED_THREADS) normed(const __grid_constant__ Normed args) {
    constexpr int TILES = NORMED_WARPS / SPLIT, STRIDE = spill_stride(16);
    extern __shared__ __align__(SHARED_ALIGNMENT) float shares[]; // then scratch of the norm, then inputs
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % SPLIT, rows = args.jobs.rows;
    int tile = blockIdx.x * TILES + warp / SPLIT, which = 0;
    for (; which + 1 < args.jobs.count && tile >= args.jobs.job[which].matrix.tiles; ++which)
        tile -= args.jobs.job[which].matrix.tiles;
    const Job &job = args.jobs.job[which];
    let_next_start();
    prefetch_part(job.matrix, tile, part, SPLIT);
    after_previous();
    float *scratch = shares + normed_shares<SPLIT>();
    __half *inputs = reinterpret_cast<__half *>(scratch + (norm_scratch(rows, NORMED_WARPS) + 3) / 4 * 4);
    const int stride = shared_stride(args.channels);
    const int slice = (args.channels + gridDim.x - 1) / gridDim.x;
    norm_inputs<MIXES>(args.norm, args.x, rows, args.channels, inputs, stride, scratch, blockIdx.x * slice,
                       (blockIdx.x + 1) * slice);
    const __half *x[1] = {inputs + (which * rows + min(lane / 4, rows - 1)) * stride + lane % 4 * 8};
    float acc[1][1][4];
    clear(acc);
    if (tile < job.matrix.tiles) multiply_part(job.matrix, tile, part, SPLIT, x, acc);
    if (SPLIT == 1) {
        for (int e = 0; e < 4; ++e) {
            int unit = tile * TILE_ROWS + lane / 4 + 8 * (e >> 1), row = lane % 4 * 2 + (e & 1);
            if (unit < job.matrix.rows && row < rows) deliver(job, row, unit, acc[0][0][e]);
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
        deliver(job, row, unit, sum);
    }
}

} // namespace qslm
