/* Embedding, layer normalisation and time mix: what stands in front of the products.
 *
 * Inputs of a product leave as float16. A step makes them for itself (step.cuh).
 */
#pragma once

#include "device.cuh"

namespace qslm {

constexpr float EPSILON = 1e-5f;

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

/* Sums of a row over all warps of the block; scratch: 2 floats a warp. Visible to every thread on return. */
__device__ __forceinline__ Statistics block_statistics(float sum, float squares, float pivot, int channels,
                                                       float2 *scratch) {
    sum = warp_sum(sum), squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = make_float2(sum, squares);
    __syncthreads();
    float2 all = {0.f, 0.f};
    for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) all.x += scratch[warp].x, all.y += scratch[warp].y;
    return statistics_of(all.x, all.y, pivot, channels);
}

constexpr int OWN = 4;             // channels of a thread, blockDim.x apart
constexpr int WARPS_AT_MOST = 32;
constexpr int CHANNELS_AT_MOST = OWN * 32 * WARPS_AT_MOST;

/* Threads of a block that norms rows of so many channels. */
inline int norm_threads(int channels) { return ceil_div(ceil_div(channels, OWN), 32) * 32; }

/* A layer norm and the mixes that follow it; no mixes (MIXES = 0): the norm alone. */
struct Norm {
    const float *weight, *bias;
    const float *mix;      // [MIXES, C]
    const float *previous; // [B, C]: normalised input of the token before
    float *carry;          // [B, C]: receives that of this token
};

/* What a thread holds of it, fetched before the inputs are there. */
template <int MIXES> struct OwnNorm {
    float weight[OWN], bias[OWN], mix[MIXES > 0 ? MIXES : 1][OWN];

    __device__ __forceinline__ OwnNorm(const Norm &norm, int channels) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int c = min(int(threadIdx.x + i * blockDim.x), channels - 1);
            weight[i] = __ldg(norm.weight + c), bias[i] = __ldg(norm.bias + c);
#pragma unroll
            for (int m = 0; m < MIXES; ++m) mix[m][i] = __ldg(norm.mix + m * channels + c);
        }
    }
    __device__ __forceinline__ float normed(int i, float x, const Statistics &s) const {
        return (x - s.mean) * s.scale * weight[i] + bias[i];
    }
    __device__ __forceinline__ __half mixed(int m, int i, float h, float previous) const {
        return __float2half_rn(previous + (h - previous) * mix[m][i]);
    }
};

/* A thread's channels of a row, and sums of their differences to the first channel. */
struct OwnRow {
    float x[OWN], pivot, sum = 0.f, squares = 0.f;

    /* load: of a channel's value. */
    template <class Load> __device__ __forceinline__ OwnRow(Load load, int channels) {
        pivot = load(0);
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int c = threadIdx.x + i * blockDim.x;
            x[i] = c < channels ? load(c) : pivot;
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            float d = x[i] - pivot;
            sum += d, squares += d * d;
        }
    }
};

/* Inputs of products, out [max(MIXES, 1), rows, stride], for rows [tokens, batch], one block each. */
template <int MIXES>
__global__ void norm_rows(Norm norm, const float *x, int tokens, int batch, int channels, __half *out, int stride) {
    __shared__ float2 scratch[2][WARPS_AT_MOST]; // of this row, and of the token before
    let_next_start();
    const OwnNorm<MIXES> own(norm, channels);
    after_previous();
    const int rows = tokens * batch, row = blockIdx.x, token = row / batch;
    const float *values = x + size_t(row) * channels;
    const size_t stream = size_t(row % batch) * channels;
    float previous[OWN];
    if (MIXES > 0 && token == 0) {
#pragma unroll
        for (int i = 0; i < OWN; ++i)
            previous[i] = norm.previous[stream + min(int(threadIdx.x + i * blockDim.x), channels - 1)];
    }
    OwnRow mine([=](int c) { return values[c]; }, channels);
    if (MIXES > 0 && token > 0) {
        const float *before = values - size_t(batch) * channels;
        OwnRow earlier([=](int c) { return before[c]; }, channels);
        const Statistics s = block_statistics(earlier.sum, earlier.squares, earlier.pivot, channels, scratch[1]);
#pragma unroll
        for (int i = 0; i < OWN; ++i) previous[i] = own.normed(i, earlier.x[i], s);
    }
    const Statistics s = block_statistics(mine.sum, mine.squares, mine.pivot, channels, scratch[0]);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c >= channels) continue;
        const float h = own.normed(i, mine.x[i], s);
        if (MIXES == 0) out[size_t(row) * stride + c] = __float2half_rn(h);
#pragma unroll
        for (int m = 0; m < MIXES; ++m)
            out[(size_t(m) * rows + row) * stride + c] = own.mixed(m, i, h, previous[i]);
        if (MIXES > 0 && token == tokens - 1) norm.carry[stream + c] = h; // `previous` is still read: copied later
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
__global__ void embed(Embedding table, Norm norm, const int64_t *tokens, int channels, float *x) {
    extern __shared__ float values[]; // [C]
    __shared__ float2 scratch[WARPS_AT_MOST];
    let_next_start();
    const OwnNorm<0> own(norm, channels);
    after_previous();
    const int64_t token = tokens[blockIdx.x];
    for (int c = threadIdx.x; c < channels; c += blockDim.x) values[c] = embedded(table, token, c, channels);
    __syncthreads();
    OwnRow mine([=](int c) { return values[c]; }, channels);
    const Statistics s = block_statistics(mine.sum, mine.squares, mine.pivot, channels, scratch);
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c < channels) x[size_t(blockIdx.x) * channels + c] = own.normed(i, mine.x[i], s);
    }
}

/* pooled [batch, C] += masked features of the classifier, token after token; one block a stream. */
__global__ void pool(Norm norm, const float *x, const float *mask, int tokens, int batch, int channels,
                     float *pooled) {
    __shared__ float2 scratch[WARPS_AT_MOST];
    let_next_start();
    const OwnNorm<0> own(norm, channels);
    after_previous();
    const int stream = blockIdx.x;
    for (int token = 0; token < tokens; ++token) {
        const size_t row = size_t(token) * batch + stream;
        const float kept = mask[row];
        OwnRow mine([=](int c) { return x[row * channels + c]; }, channels);
        __syncthreads(); // the sums of the token before are still read
        const Statistics s = block_statistics(mine.sum, mine.squares, mine.pivot, channels, scratch);
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            const int c = threadIdx.x + i * blockDim.x;
            if (c < channels) pooled[size_t(stream) * channels + c] += own.normed(i, mine.x[i], s) * kept;
        }
    }
}

} // namespace qslm
