/* What stands between the products: activations, SRWKV's weighted average and the LIF neuron, operation by operation as
 * the torch model has them.
 *
 * In a scan a thread owns a channel of a stream, so state is read and written in place.
 */
#pragma once

#include "device.cuh"

namespace qslm {

constexpr int SCAN_THREADS = 64;
constexpr int SCAN_AHEAD = 8; // tokens whose inputs are under way

constexpr float HIDDEN_UNIT = 64.f; // squares are kept in units of it: float16 then reaches 4.1 million

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

__device__ __forceinline__ __half squared_relu(float x) {
    const float hidden = fmaxf(x, 0.f);
    return __float2half_rn(fminf(hidden * hidden * (1.f / HIDDEN_UNIT), 65504.f));
}

/* One token of WKV; (a, b, p) move on. */
__device__ __forceinline__ float wkv(float k, float v, float first, float decay, float &a, float &b, float &p) {
    float uk = k + first, q = fmaxf(p, uk), e1 = expf(p - q), e2 = expf(uk - q);
    float y = (e1 * a + e2 * v) / (e1 * b + e2);
    p += decay;
    q = fmaxf(p, k), e1 = expf(p - q), e2 = expf(k - q);
    a = e1 * a + e2 * v;
    b = e1 * b + e2;
    p = q;
    return y;
}

/* One token of LIF: the spike, 0 or 1; the membrane moves on. */
__device__ __forceinline__ float fire(float current, float &membrane) {
    float u = (current - membrane) * 0.5f + membrane;
    bool fired = u >= 1.f;
    membrane = fired ? 0.f : u;
    return fired ? 1.f : 0.f;
}

/* State of one attention layer's average, [B, C] each, and its constants [C]. */
struct Average {
    float *a, *b, *p;
    const float *first, *decay;
};

/* What a layer norm left for the next call, copied once nobody reads the old value any more. */
struct Carry {
    const float *from;
    float *to;
};

/* gated [tokens, batch, stride] = gate * wkv(k, v); k, v, gate [tokens, batch, C]. */
__global__ void __launch_bounds__(SCAN_THREADS)
    scan_wkv(Average average, const float *__restrict__ k, const float *__restrict__ v,
             const float *__restrict__ gate, int tokens, int batch, int channels, __half *__restrict__ gated,
             int stride) {
    let_next_start();
    after_previous();
    const int at = blockIdx.x * blockDim.x + threadIdx.x, streams = batch * channels;
    if (at >= streams) return;
    const int c = at % channels, stream = at / channels;
    float a = average.a[at], b = average.b[at], p = average.p[at];
    const float first = average.first[c], decay = average.decay[c];
    for (int begin = 0; begin < tokens; begin += SCAN_AHEAD) {
        float ks[SCAN_AHEAD], vs[SCAN_AHEAD], gates[SCAN_AHEAD];
#pragma unroll
        for (int i = 0; i < SCAN_AHEAD; ++i) {
            size_t from = size_t(min(begin + i, tokens - 1)) * streams + at;
            ks[i] = k[from], vs[i] = v[from], gates[i] = gate[from];
        }
#pragma unroll
        for (int i = 0; i < SCAN_AHEAD; ++i)
            if (begin + i < tokens) {
                float y = wkv(ks[i], vs[i], first, decay, a, b, p);
                gated[(size_t(begin + i) * batch + stream) * stride + c] = __float2half_rn(gates[i] * y);
            }
    }
    average.a[at] = a, average.b[at] = b, average.p[at] = p;
}

/* x [tokens, batch, C] += spikes of the currents; what the norm left is moved to the state. */
__global__ void __launch_bounds__(SCAN_THREADS)
    scan_lif(float *__restrict__ membrane, Carry carry, const float *__restrict__ current, int tokens, int streams,
             float *__restrict__ x) {
    let_next_start();
    after_previous();
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= streams) return;
    float v = membrane[at];
    for (int begin = 0; begin < tokens; begin += SCAN_AHEAD) {
        float currents[SCAN_AHEAD], residual[SCAN_AHEAD];
#pragma unroll
        for (int i = 0; i < SCAN_AHEAD; ++i) {
            size_t from = size_t(min(begin + i, tokens - 1)) * streams + at;
            currents[i] = current[from], residual[i] = x[from];
        }
#pragma unroll
        for (int i = 0; i < SCAN_AHEAD; ++i)
            if (begin + i < tokens) x[size_t(begin + i) * streams + at] = residual[i] + fire(currents[i], v);
    }
    membrane[at] = v;
    carry.to[at] = carry.from[at];
}

} // namespace qslm
