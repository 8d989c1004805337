/* What the blocks of a step have to do, and where it lies in their shared memory. */
#pragma once

#include "norm.cuh"
#include "strip.cuh"

namespace qslm {

enum Part { ATT_X, FFN_X, WKV_A, WKV_B, WKV_P, MEMBRANE_1, MEMBRANE_2, PARTS };
enum MatrixOf { KEY, VALUE, RECEPTANCE, OUTPUT, FFN_KEY, FFN_RECEPTANCE, FFN_VALUE, MATRICES };
/* What a layer is cut into, each with products: from norm to WKV, to spikes, from norm to hidden units, to spikes. */
enum Phase { AVERAGE, FIRST_SPIKES, HIDDEN, SECOND_SPIKES, PHASES };

struct LayerVectors {
    const float *norm_weight[2], *norm_bias[2], *mix[2]; // of time mix and channel mix
    const float *first, *decay;
};

/* What a step needs of a layer. */
struct LayerView {
    LayerVectors vectors;
    Matrix matrices[MATRICES];
};

/* A block's work in a layer. */
struct alignas(16) Task {
    LayerVectors vectors;
    Slice slices[MATRICES];
    Share shares[PHASES][STEP_WARPS];
    int hidden; // first of its hidden units
};

/* All that a step is given. */
struct Step {
    const Task *tasks; // [n_layers, blocks]
    int n_layers, streams, channels;
    int blocks;                // of a group
    int stride, hidden_stride; // of the inputs of products in global memory
    Embedding embedding;
    const int64_t *tokens; // in memory of the host
    const float *ln0_weight, *ln0_bias, *ln_weight, *ln_bias;
    float *x, *state;               // [streams, C]; [PARTS n_layers, streams, C]
    __half *mixed, *gated, *hidden; // [3, streams, stride], [streams, stride], [streams, hidden_stride]
    unsigned *arrived;              // [groups, 2], zero before and after
};

__host__ __device__ constexpr int first_slice(int phase) {
    return phase == AVERAGE ? KEY : phase == FIRST_SPIKES ? OUTPUT : phase == HIDDEN ? FFN_KEY : FFN_VALUE;
}
__host__ __device__ constexpr int slices_of(int phase) { return phase == AVERAGE ? 3 : phase == HIDDEN ? 2 : 1; }

/* What lies in the shared memory of a block, in this order, in bytes; all multiples of 16. */
struct StepLayout {
    int rows, channels, strips;                  // of a group; of the model; at most, between two meetings
    int stride, hidden_stride;                   // of inputs
    int inputs, sums, ring, records, slice, all; // slice: of one of three [rows, units] of floats

    StepLayout() = default;
    /* tiles, hidden_tiles: of a block; record_groups: scales that it needs at once, of 16 rows each. */
    StepLayout(int rows, int channels, int hidden, int tiles, int hidden_tiles, int record_groups)
        : rows(rows), channels(channels), stride(shared_stride(channels)), hidden_stride(shared_stride(hidden)) {
        strips = 3 > 1 + Slice::strips_of(hidden_tiles) ? 3 : 1 + Slice::strips_of(hidden_tiles);
        inputs = rows * (3 * stride > hidden_stride ? 3 * stride : hidden_stride) * int(sizeof(__half));
        const int floats = (STEP_WARPS + strips - 1) * PART_STRIDE; // before, rows of x lie there
        sums = rows * (floats > channels ? floats : channels) * int(sizeof(float));
        ring = STEP_WARPS * Product<1>::STAGES * STAGE * int(sizeof(uint4));
        records = record_groups * 8 * int(sizeof(uint2));
        slice = rows * tiles * TILE_ROWS * int(sizeof(float));
        all = inputs + sums + ring + records + 3 * slice + 2 * int(sizeof(Task)) + rows * int(sizeof(Statistics)) +
              2 * strips * int(sizeof(int));
    }
};

/* Tasks of a step, [n_layers, blocks]: one block each, made once. */
__global__ void plan_step(const LayerView *layers, StepLayout layout, Task *tasks) {
    const LayerView &view = layers[blockIdx.x];
    const int block = blockIdx.y, blocks = gridDim.y, i = threadIdx.x;
    Task &task = tasks[blockIdx.x * blocks + block];
    if (i < MATRICES) {
        const int before = i <= RECEPTANCE ? i : i == FFN_RECEPTANCE; // slices of the phase
        int records = 0;
        for (int j = i - before; j < i; ++j)
            records += Slice::tiles_of(view.matrices[j], block, blocks) * view.matrices[j].groups * 8;
        task.slices[i] = Slice(view.matrices[i], block, blocks, before * layout.rows * layout.stride,
                               i == FFN_VALUE ? layout.hidden_stride : layout.stride, records);
    }
    if (i == 0) {
        task.vectors = view.vectors;
        task.hidden = view.matrices[FFN_KEY].tiles * block / blocks * TILE_ROWS;
    }
    __syncthreads();
    const int phase = i / STEP_WARPS, warp = i % STEP_WARPS;
    if (phase < PHASES) task.shares[phase][warp] = Share(task.slices + first_slice(phase), slices_of(phase), warp);
}

} // namespace qslm
