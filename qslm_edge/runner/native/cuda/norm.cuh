/* Embedding, layer normalisation and time mix: what stands in front of the products.
 *
 * Inputs of a product leave as float16. In a step of few streams every block of the product makes them for itself, in
 * shared memory: cheaper than a kernel more. With many rows they are made once, in global memory.
 */
#pragma once

#include "device.cuh"

namespace qslm {

constexpr float EPSILON = 1e-5f;
constexpr int NORM_THREADS = 256;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

struct Statistics {
    float mean, scale;
};

/* Of a row, from sums of differences to its first element: exact where the mean is large against the spread. */
__device__ __forceinline__ Statistics statistics_of(float sum, float squares, float pivot, int channels) {
    float mean = sum / channels, variance = fmaxf(squares / channels - mean * mean, 0.f);
    return {pivot + mean, rsqrtf(variance + EPSILON)};
}

/* Statistics of `rows` rows by all warps of the block; `stats` receives them, visible to the block on return.
 *
 * scratch: 2 floats a warp and row.
 */
__device__ inline void block_statistics(const float *x, int rows, int channels, float *scratch, Statistics *stats) {
    const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int team = max(1, warps / rows), teams = warps / team; // warps of a row, rows at a time
    for (int row = warp / team; row < rows && warp < teams * team; row += teams) {
        const float *values = x + size_t(row) * channels;
        float pivot = values[0], sum = 0.f, squares = 0.f;
#pragma unroll 4
        for (int c = warp % team * 32 + lane; c < channels; c += team * 32) {
            float d = values[c] - pivot;
            sum += d, squares += d * d;
        }
        sum = warp_sum(sum), squares = warp_sum(squares);
        if (lane == 0) {
            float *mine = scratch + 2 * (row * warps + warp % team);
            mine[0] = sum, mine[1] = squares;
        }
    }
    __syncthreads();
    if (threadIdx.x < rows) {
        float sum = 0.f, squares = 0.f;
        for (int i = 0; i < team; ++i) {
            sum += scratch[2 * (threadIdx.x * warps + i)];
            squares += scratch[2 * (threadIdx.x * warps + i) + 1];
        }
        stats[threadIdx.x] = statistics_of(sum, squares, x[size_t(threadIdx.x) * channels], channels);
    }
    __syncthreads();
}

/* A layer norm and the mixes that follow it; no mixes (MIXES = 0): the norm alone. */
struct Norm {
    const float *weight, *bias;
    const float *mix;      // [MIXES, C]
    const float *previous; // [B, C]: normalised input of the token before
    float *carry;          // [B, C]: receives that of this token
};

__device__ __forceinline__ float mixed(float h, float previous, float m) { return h * m + previous * (1.f - m); }

/* Shared memory that `norm_inputs` takes, in floats. */
__host__ __device__ constexpr int norm_scratch(int rows, int warps) { return 2 * rows * warps + 2 * rows; }

/* Inputs of the products of a step: out [max(MIXES, 1), rows, stride] in shared memory.
 *
 * The block writes the carry of channels [first, last) alone.
 */
template <int MIXES>
__device__ inline void norm_inputs(const Norm &norm, const float *x, int rows, int channels, __half *out, int stride,
                                   float *scratch, int first, int last) {
    Statistics *stats = reinterpret_cast<Statistics *>(scratch + 2 * rows * (blockDim.x / 32));
    block_statistics(x, rows, channels, scratch, stats);
    for (int row = 0; row < rows; ++row) {
        const Statistics s = stats[row];
        for (int c = threadIdx.x; c < stride; c += blockDim.x) {
            if (c >= channels) { // inputs of the columns that fill the last chunk
                for (int i = 0; i < max(MIXES, 1); ++i) out[(i * rows + row) * stride + c] = __half(0.f);
                continue;
            }
            size_t at = size_t(row) * channels + c;
            float h = (x[at] - s.mean) * s.scale * norm.weight[c] + norm.bias[c];
            if (MIXES == 0) {
                out[row * stride + c] = __float2half_rn(h);
                continue;
            }
            float previous = norm.previous[at];
#pragma unroll
            for (int i = 0; i < MIXES; ++i)
                out[(i * rows + row) * stride + c] = __float2half_rn(mixed(h, previous, norm.mix[i * channels + c]));
            if (c >= first && c < last) norm.carry[at] = h;
        }
    }
    __syncthreads();
}

/* The same for many rows [tokens, batch], one block each: out [max(MIXES, 1), rows, stride] in global memory. */
template <int MIXES>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_rows(Norm norm, const float *x, int tokens, int batch, int channels, __half *out, int stride) {
    __shared__ float scratch[2 * 2 * NORM_THREADS / 32];
    __shared__ Statistics stats[2]; // of this row, and of the token before
    let_next_start();
    after_previous();
    const int rows = tokens * batch, row = blockIdx.x, token = row / batch;
    const float *own = x + size_t(row) * channels, *earlier = own - size_t(batch) * channels;
    block_statistics(own, 1, channels, scratch, stats);
    if (MIXES > 0 && token > 0) block_statistics(earlier, 1, channels, scratch, stats + 1);
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        float weight = norm.weight[c], bias = norm.bias[c];
        float h = (own[c] - stats[0].mean) * stats[0].scale * weight + bias;
        if (MIXES == 0) {
            out[size_t(row) * stride + c] = __float2half_rn(h);
            continue;
        }
        size_t stream = size_t(row % batch) * channels + c;
        float previous = token > 0 ? (earlier[c] - stats[1].mean) * stats[1].scale * weight + bias
                                   : norm.previous[stream];
#pragma unroll
        for (int i = 0; i < MIXES; ++i)
            out[(size_t(i) * rows + row) * stride + c] =
                __float2half_rn(mixed(h, previous, norm.mix[i * channels + c]));
        if (token == tokens - 1) norm.carry[stream] = h; // `previous` is still read: copied later
    }
}

/* The table as the bundle holds it, on the device. */
struct Embedding {
    const void *codes, *scales;
    const uint8_t *zeros;
    int bits, group, scale_bits, midrise, binary;
    int vocabulary;
};

__device__ inline float embedded(const Embedding &e, int64_t token, int c, int channels) {
    size_t at = size_t(token) * channels + c;
    if (e.bits >= 16) {
        float value = e.bits == 16 ? __half2float(static_cast<const __half *>(e.codes)[at])
                                   : static_cast<const float *>(e.codes)[at];
        return e.binary ? float(value >= 0.f) : value;
    }
    int row_bytes = channels * e.bits / 8; // planar: fields of a byte lie row_bytes channels apart
    unsigned byte = static_cast<const uint8_t *>(e.codes)[size_t(token) * row_bytes + c % row_bytes];
    float q = float(byte >> (c / row_bytes * e.bits) & ((1u << e.bits) - 1));
    if (e.bits == 1) return q;
    int groups = channels / e.group, group = c / e.group;
    size_t index = size_t(token) * groups + group;
    float scale = e.scale_bits == 16 ? __half2float(static_cast<const __half *>(e.scales)[index])
                                     : static_cast<const float *>(e.scales)[index];
    float zero = e.midrise ? ((1 << e.bits) - 1) * 0.5f : float(1 << (e.bits - 1));
    if (e.zeros) {
        size_t zero_bytes = (size_t(groups) * e.bits + 7) / 8;
        zero = float(e.zeros[token * zero_bytes + group * e.bits / 8] >> (group * e.bits % 8) & ((1u << e.bits) - 1));
    }
    return (q - zero) * scale;
}

/* x [rows, C] = ln0 of the rows of the tokens; tokens lie in pinned memory of the host. */
__global__ void __launch_bounds__(NORM_THREADS)
    embed(Embedding table, const float *weight, const float *bias, const int64_t *tokens, int channels, float *x) {
    extern __shared__ float values[]; // [C]
    __shared__ float scratch[2 * NORM_THREADS / 32];
    __shared__ Statistics stats;
    let_next_start();
    after_previous();
    const int64_t token = tokens[blockIdx.x];
    for (int c = threadIdx.x; c < channels; c += blockDim.x) values[c] = embedded(table, token, c, channels);
    __syncthreads();
    block_statistics(values, 1, channels, scratch, &stats);
    for (int c = threadIdx.x; c < channels; c += blockDim.x)
        x[size_t(blockIdx.x) * channels + c] = (values[c] - stats.mean) * stats.scale * weight[c] + bias[c];
}

/* pooled [batch, C] += masked features of the classifier, token after token; one block a stream. */
__global__ void __launch_bounds__(NORM_THREADS)
    pool(const float *weight, const float *bias, const float *x, const float *mask, int tokens, int batch,
         int channels, float *pooled) {
    __shared__ float scratch[2 * NORM_THREADS / 32];
    __shared__ Statistics stats;
    let_next_start();
    after_previous();
    const int stream = blockIdx.x;
    for (int token = 0; token < tokens; ++token) {
        const int row = token * batch + stream;
        const float *values = x + size_t(row) * channels;
        const float kept = mask[row];
        __syncthreads();
        block_statistics(values, 1, channels, scratch, &stats);
        for (int c = threadIdx.x; c < channels; c += blockDim.x)
            pooled[size_t(stream) * channels + c] +=
                ((values[c] - stats.mean) * stats.scale * weight[c] + bias[c]) * kept;
    }
}

} // namespace qslm
