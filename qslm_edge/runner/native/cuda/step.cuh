/* A step of one token as one kernel, for as many streams as the GPU has room for.
 *
 * Streams do not wait for each other, so they are dealt to groups of blocks, 8 or 16 to a group, and a group takes its own
 * through every layer: each block has a share of the units of every matrix, and the group alone meets between them.
 * Against a kernel for each product that spares the ends and beginnings of kernels, which cost more than the products of
 * so few inputs; codes of the next product are on their way before the group meets. What blocks tell each other passes
 * through the L2 cache. All blocks must run at once: it is a cooperative launch.
 */
#pragma once

#include "plan.cuh"
#include "recurrence.cuh"

namespace qslm {

template <int NT> class StepBlock {
  public:
    static constexpr int ROWS = 8 * NT;

    __device__ __forceinline__ StepBlock(const Step &step, const StepLayout &layout, char *shared)
        : s(step), groups(gridDim.x / step.blocks), group(blockIdx.x / step.blocks), block(blockIdx.x % step.blocks),
          stride(layout.stride), hidden_stride(layout.hidden_stride) {
        auto take = [&](int bytes) {
            char *taken = shared;
            shared += bytes;
            return taken;
        };
        inputs = reinterpret_cast<__half *>(take(layout.inputs));
        parts.sums = reinterpret_cast<float *>(take(layout.sums));
        ring = reinterpret_cast<uint4 *>(take(layout.ring));
        ring += threadIdx.x / 32 * Product<NT>::STAGES * STAGE;
        records = reinterpret_cast<uint2 *>(take(layout.records));
        x = reinterpret_cast<float *>(take(layout.slice));
        carry = reinterpret_cast<float *>(take(layout.slice));
        gate = reinterpret_cast<float *>(take(layout.slice));
        tasks = reinterpret_cast<Task *>(take(2 * sizeof(Task)));
        statistics = reinterpret_cast<Statistics *>(take(ROWS * sizeof(Statistics)));
        parts.first_warp = reinterpret_cast<int *>(take(layout.strips * sizeof(int)));
        parts.last_warp = reinterpret_cast<int *>(shared);
        // columns that fill the last chunk are never written, and must not be NaN
        for (int at = threadIdx.x; at < layout.inputs / int(sizeof(uint4)); at += STEP_THREADS)
            reinterpret_cast<uint4 *>(inputs)[at] = make_uint4(0, 0, 0, 0);
        const int tiles = (s.channels + TILE_ROWS - 1) / TILE_ROWS, from = tiles * block / s.blocks;
        begin = from * TILE_ROWS, units = tiles * (block + 1) / s.blocks * TILE_ROWS - begin;
    }

    /* The streams of this group, and those that are its turn after them. */
    __device__ __forceinline__ void run() {
        for (first = group * ROWS; first < s.streams; first += groups * ROWS) {
            rows = min(ROWS, s.streams - first);
            load_task(0);
            embed_rows();
            arrive();
            meet();
            for_slice([&](int row, int unit, int c) {
                *pair_at(x, row, unit) = __ldcg(reinterpret_cast<const float2 *>(s.x + (first + row) * s.channels + c));
            });
#pragma unroll 1
            for (int step = 0; step < s.n_layers * PHASES; ++step) run_phase(step);
            norm_out();
            __syncthreads();
        }
        leave();
    }

  private:
    const Step &s;
    const int groups, group, block, stride, hidden_stride;
    int first, rows;  // streams that are under way
    int begin, units; // this block's slice of [C]
    __half *inputs;   // [MIXES, ROWS, stride] or [ROWS, hidden_stride]
    Parts parts;
    Product<NT> product;
    uint4 *ring;
    uint2 *records;
    float *x, *carry, *gate; // [ROWS, units]: the residual stream, the norm that this block keeps, receptance
    Task *tasks;             // [2]
    Statistics *statistics;  // [ROWS]
    unsigned arrivals = 0;

    __device__ __forceinline__ void run_phase(int step) {
        const int layer = step / PHASES, phase = step % PHASES;
        const Task &task = tasks[layer % 2];
        const bool is_first = phase <= FIRST_SPIKES, last = layer + 1 == s.n_layers;
        begin_product(task, phase);
        if (phase == AVERAGE) norm<3>(task.vectors, 0, part(layer, ATT_X));
        else if (phase == HIDDEN) norm<2>(task.vectors, 1, part(layer, FFN_X));
        else gather(1, is_first ? s.gated : s.hidden, is_first ? stride : hidden_stride);
        wait_for_copies<0>();
        __syncthreads();
        product.multiply(inputs, records, parts);
        __syncthreads();
        if (phase == AVERAGE) average(task, layer);
        else if (phase == HIDDEN) hide(task);
        else spike(layer, is_first);
        arrive();
        if (last) return;
        if (phase == AVERAGE) load_task(layer + 1);
        else if (phase == HIDDEN) call_for(layer + 1);
    }

    /* Tells the group that this block has written what it was to write. */
    __device__ __forceinline__ void arrive() {
        __syncthreads();
        ++arrivals;
        if (threadIdx.x == 0)
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(s.arrived + 2 * group) : "memory");
    }
    /* Waits until all blocks of the group have arrived as often as this one. */
    __device__ __forceinline__ void meet() {
        if (threadIdx.x == 0) {
            unsigned seen;
            do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(s.arrived + 2 * group) : "memory");
            while (seen < arrivals * s.blocks);
        }
        __syncthreads();
    }

    /* The last one to leave resets the counter: nobody waits for it any more. */
    __device__ __forceinline__ void leave() {
        if (threadIdx.x) return;
        unsigned *arrived = s.arrived + 2 * group;
        if (atomicInc(arrived + 1, s.blocks - 1) == unsigned(s.blocks - 1)) *arrived = 0;
    }

    /* There when copies have been waited for. */
    __device__ __forceinline__ void load_task(int layer) {
        const uint4 *from = reinterpret_cast<const uint4 *>(s.tasks + layer * s.blocks + block);
        for (int at = threadIdx.x; at < int(sizeof(Task) / sizeof(uint4)); at += STEP_THREADS)
            copy_ahead(reinterpret_cast<uint4 *>(tasks + layer % 2) + at, from + at);
        copies_end_here();
    }

    /* Calls for the weights of a phase. */
    __device__ __forceinline__ void begin_product(const Task &task, int phase) {
        const Slice *slices = task.slices + first_slice(phase);
        for (int i = 0; i < slices_of(phase); ++i)
            for (int at = 2 * threadIdx.x; at < slices[i].tiles * slices[i].groups * 8; at += 2 * STEP_THREADS)
                copy_ahead(records + slices[i].records + at, slices[i].scales + at);
        product.begin(slices, task.shares[phase][threadIdx.x / 32], ring);
    }

    /* Calls for this block's weights and state of a layer into the L2 cache; groups share out the weights. */
    __device__ __forceinline__ void call_for(int layer) const {
        const int worker = group * STEP_THREADS + threadIdx.x;
        auto line = [](const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); };
#pragma unroll 1
        for (const Slice &slice : tasks[layer % 2].slices)
            for (int at = worker * 8; at < slice.tiles * slice.vectors * 32; at += groups * STEP_THREADS * 8)
                line(slice.codes + at);
        for (int at = threadIdx.x; at < PARTS * ROWS * 2; at += STEP_THREADS) { // both ends of a slice of a row
            const int row = at / 2 % ROWS;
            if (row < rows) line(part(layer, at / (2 * ROWS)) + row * s.channels + begin + at % 2 * (units - 1));
        }
    }

    __device__ __forceinline__ float *part(int layer, int i) const {
        return s.state + (size_t(layer * PARTS + i) * s.streams + first) * s.channels;
    }
    __device__ __forceinline__ float2 *pair_at(float *slice, int row, int unit) const {
        return reinterpret_cast<float2 *>(slice + row * units + unit);
    }

    /* Calls `each` with the row and the first unit of runs of WIDTH units of a slice, those of this thread. */
    template <int WIDTH, class Each> __device__ __forceinline__ void for_units(int units, Each each) const {
        if (units == 0) return;
        const int in_row = units / WIDTH, rows_on = STEP_THREADS / in_row, on = STEP_THREADS % in_row;
        int row = threadIdx.x / in_row, run = threadIdx.x % in_row;
#pragma unroll 1
        while (row < rows) {
            each(row, run * WIDTH);
            row += rows_on, run += on;
            if (run >= in_row) run -= in_row, ++row;
        }
    }
    template <class Each> __device__ __forceinline__ void for_slice(Each each) const {
        for_units<2>(units, [&](int row, int unit) {
            if (begin + unit < s.channels) each(row, unit, begin + unit);
        });
    }

    /* Statistics of rows in place of the sums: every `apart`th from `from` on. */
    __device__ __forceinline__ void measure_rows(int from, int apart) {
        const int vectors = s.channels / 4, lane = threadIdx.x % 32;
        __syncthreads();
        for (int row = from + threadIdx.x / 32 * apart; row < rows; row += STEP_WARPS * apart) {
            const float *values = parts.sums + row * s.channels, pivot = values[0];
            float sum = 0.f, squares = 0.f;
#pragma unroll 4
            for (int i = lane; i < vectors; i += 32) {
                const float4 v = *reinterpret_cast<const float4 *>(values + 4 * i);
                const float a = v.x - pivot, b = v.y - pivot, c = v.z - pivot, d = v.w - pivot;
                sum += (a + b) + (c + d);
                squares += (a * a + b * b) + (c * c + d * d);
            }
            const Statistics found = statistics_of(warp_sum(sum), warp_sum(squares), pivot, s.channels);
            if (lane == 0) statistics[row] = found;
        }
        __syncthreads();
    }
    __device__ __forceinline__ float normed(int row, int c, const float *weight, const float *bias) const {
        return (parts.sums[row * s.channels + c] - statistics[row].mean) * statistics[row].scale * __ldg(weight + c) +
               __ldg(bias + c);
    }

    /* x of the tokens; the blocks of a group share out its rows. */
    __device__ __forceinline__ void embed_rows() {
        for (int row = block; row < rows; row += s.blocks) {
            const int64_t token = s.tokens[first + row];
            for (int c = threadIdx.x; c < s.channels; c += STEP_THREADS)
                parts.sums[row * s.channels + c] = embedded(s.embedding, token, c, s.channels);
        }
        wait_for_copies<0>(); // of the task
        measure_rows(block, s.blocks);
        for (int row = block; row < rows; row += s.blocks)
            for (int c = threadIdx.x; c < s.channels; c += STEP_THREADS)
                s.x[(first + row) * s.channels + c] = normed(row, c, s.ln0_weight, s.ln0_bias);
    }

    /* Rows of x as the group left them, in place of the sums. */
    __device__ __forceinline__ void fetch_rows() {
        const float *from = s.x + first * s.channels;
        meet();
#pragma unroll 8
        for (int at = threadIdx.x * 4; at < rows * s.channels; at += STEP_THREADS * 4)
            copy_ahead(parts.sums + at, from + at);
        copies_end_here();
        wait_for_copies<0>();
        measure_rows(0, 1);
    }

    /* Inputs of products, [MIXES, ROWS, stride].
     *
     * A norm needs whole rows. With few of them a meeting costs more than the work, and each block does it for itself;
     * else the blocks share out the rows and meet once more.
     */
    template <int MIXES>
    __device__ __forceinline__ void norm(const LayerVectors &v, int which, float *previous) {
        if constexpr (NT == 1) norm_all_rows<MIXES>(v, which, previous);
        else norm_own_rows<MIXES>({v.norm_weight[which], v.norm_bias[which], v.mix[which], previous, previous});
    }

    template <int MIXES> __device__ __forceinline__ void norm_own_rows(const Norm &norm) {
        float2 *scratch = reinterpret_cast<float2 *>(parts.sums);
        const OwnNorm<MIXES> own(norm, s.channels);
        meet();
#pragma unroll 1
        for (int row = block; row < rows; row += s.blocks) {
            const float *values = s.x + (first + row) * s.channels;
            OwnRow mine([=](int c) { return __ldcg(values + c); }, s.channels); // other multiprocessors wrote it
            float before[OWN];
#pragma unroll
            for (int i = 0; i < OWN; ++i)
                before[i] = norm.previous[row * s.channels + min(int(threadIdx.x) + i * STEP_THREADS, s.channels - 1)];
            const Statistics found = block_statistics(mine.sum, mine.squares, mine.pivot, s.channels, scratch);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int c = threadIdx.x + i * STEP_THREADS;
                if (c >= s.channels) continue;
                const float h = own.normed(i, mine.x[i], found);
#pragma unroll
                for (int m = 0; m < MIXES; ++m)
                    s.mixed[(m * s.streams + first + row) * s.stride + c] = own.mixed(m, i, h, before[i]);
                norm.carry[row * s.channels + c] = h;
            }
            __syncthreads(); // the scratch is still read
        }
        arrive();
        gather(MIXES, s.mixed, stride);
    }

    /* A thread has two channels of all rows; what does not depend on x is on its way before the group meets. This block's
     * slice of the norm stays in `carry`: others still read the state.
     */
    template <int MIXES>
    __device__ __forceinline__ void norm_all_rows(const LayerVectors &v, int which, const float *previous) {
        const int pairs = s.channels / 2;
#pragma unroll 1
        for (int from = 0; from < pairs; from += STEP_THREADS) {
            const int c = 2 * min(from + int(threadIdx.x), pairs - 1);
            auto pair_of = [c](const float *vector) { return __ldg(reinterpret_cast<const float2 *>(vector + c)); };
            const float2 weight = pair_of(v.norm_weight[which]), bias = pair_of(v.norm_bias[which]);
            float2 mix[MIXES], before[ROWS];
#pragma unroll
            for (int m = 0; m < MIXES; ++m) mix[m] = pair_of(v.mix[which] + m * s.channels);
#pragma unroll
            for (int row = 0; row < ROWS; ++row)
                before[row] = __ldcg(reinterpret_cast<const float2 *>(previous + min(row, rows - 1) * s.channels + c));
            if (from == 0) fetch_rows();
            const bool mine = from + int(threadIdx.x) < pairs, kept = mine && c >= begin && c < begin + units;
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                if (row >= rows || !mine) break;
                const Statistics found = statistics[row];
                const float2 value = *reinterpret_cast<const float2 *>(parts.sums + row * s.channels + c);
                const float2 h = {(value.x - found.mean) * found.scale * weight.x + bias.x,
                                  (value.y - found.mean) * found.scale * weight.y + bias.y};
                if (kept) *pair_at(carry, row, c - begin) = h;
                const float2 p = before[row], d = {h.x - p.x, h.y - p.y};
#pragma unroll
                for (int m = 0; m < MIXES; ++m)
                    *reinterpret_cast<__half2 *>(inputs + (m * ROWS + row) * stride + c) =
                        __floats2half2_rn(p.x + d.x * mix[m].x, p.y + d.y * mix[m].y);
            }
        }
    }

    /* Inputs of products that the whole group has written: [count, streams, columns]. */
    __device__ __forceinline__ void gather(int count, const __half *from, int to_stride) {
        const int columns = to_stride - shared_stride(0), across = min(columns / 8, STEP_THREADS);
        const int rows_on = STEP_THREADS / across, row0 = threadIdx.x / across;
        from += first * columns;
        meet();
        for (int i = 0; i < count; ++i)
            for (int at = threadIdx.x % across * 8; at < columns; at += across * 8)
#pragma unroll 4
                for (int row = row0; row < rows && row0 < rows_on; row += rows_on)
                    copy_ahead(inputs + (i * ROWS + row) * to_stride + at,
                               from + (i * s.streams + row) * columns + at);
        copies_end_here();
    }

    __device__ __forceinline__ void average(const Task &task, int layer) {
        float *as = part(layer, WKV_A), *bs = part(layer, WKV_B), *ps = part(layer, WKV_P);
        const int strips = task.slices[KEY].strips;
        for_slice([&](int row, int unit, int c) {
            const int at = row * s.channels + c;
            float2 &to_a = *reinterpret_cast<float2 *>(as + at), &to_b = *reinterpret_cast<float2 *>(bs + at);
            float2 &to_p = *reinterpret_cast<float2 *>(ps + at);
            float2 a = to_a, b = to_b, p = to_p;
            const float2 first = __ldg(reinterpret_cast<const float2 *>(task.vectors.first + c));
            const float2 decay = __ldg(reinterpret_cast<const float2 *>(task.vectors.decay + c));
            const float2 k = sums_of<NT, float2>(parts, 0, row, unit);
            const float2 v = sums_of<NT, float2>(parts, strips, row, unit);
            const float2 r = sums_of<NT, float2>(parts, 2 * strips, row, unit);
            const float low = sigmoid(r.x) * wkv(k.x, v.x, first.x, decay.x, a.x, b.x, p.x);
            const float high = sigmoid(r.y) * wkv(k.y, v.y, first.y, decay.y, a.y, b.y, p.y);
            to_a = a, to_b = b, to_p = p;
            *reinterpret_cast<__half2 *>(s.gated + (this->first + row) * s.stride + c) = __floats2half2_rn(low, high);
        });
    }

    __device__ __forceinline__ void hide(const Task &task) {
        const Slice &key = task.slices[FFN_KEY];
        for_units<4>(key.tiles * TILE_ROWS, [&](int row, int unit) { // units that are not there have zero weights
            const float4 sums = sums_of<NT, float4>(parts, 0, row, unit);
            __half2 low = __halves2half2(squared_relu(sums.x), squared_relu(sums.y));
            __half2 high = __halves2half2(squared_relu(sums.z), squared_relu(sums.w));
            *reinterpret_cast<uint2 *>(s.hidden + (first + row) * s.hidden_stride + task.hidden + unit) =
                make_uint2(*reinterpret_cast<unsigned *>(&low), *reinterpret_cast<unsigned *>(&high));
        });
        for_units<2>(units, [&](int row, int unit) {
            const float2 r = sums_of<NT, float2>(parts, key.strips, row, unit);
            *pair_at(gate, row, unit) = make_float2(HIDDEN_UNIT * sigmoid(r.x), HIDDEN_UNIT * sigmoid(r.y));
        });
    }

    /* Spikes of LIF neurons onto x, and the norm that this block keeps into the state. */
    __device__ __forceinline__ void spike(int layer, bool is_first) {
        float *membranes = part(layer, is_first ? MEMBRANE_1 : MEMBRANE_2);
        float *previous = part(layer, is_first ? ATT_X : FFN_X);
        for_slice([&](int row, int unit, int c) {
            const int at = row * s.channels + c;
            float2 &to_membrane = *reinterpret_cast<float2 *>(membranes + at);
            float2 membrane = to_membrane, current = sums_of<NT, float2>(parts, 0, row, unit);
            if (!is_first) {
                const float2 by = *pair_at(gate, row, unit);
                current.x *= by.x, current.y *= by.y;
            }
            float2 value = *pair_at(x, row, unit);
            value.x += fire(current.x, membrane.x), value.y += fire(current.y, membrane.y);
            to_membrane = membrane;
            *pair_at(x, row, unit) = value;
            *reinterpret_cast<float2 *>(s.x + first * s.channels + at) = value;
            if (NT == 1) // nobody in the group reads the old value any more
                *reinterpret_cast<float2 *>(previous + at) = *pair_at(carry, row, unit);
        });
    }

    /* Inputs of the head; the blocks of a group share out its rows. */
    __device__ __forceinline__ void norm_out() {
        fetch_rows();
        for (int row = block; row < rows; row += s.blocks)
            for (int c = threadIdx.x; c < s.channels; c += STEP_THREADS)
                s.mixed[(first + row) * s.stride + c] = __float2half_rn(normed(row, c, s.ln_weight, s.ln_bias));
    }
};

template <int NT>
__global__ void __launch_bounds__(STEP_THREADS, 1)
    step_kernel(const __grid_constant__ Step step, const __grid_constant__ StepLayout layout) {
    extern __shared__ __align__(SHARED_ALIGNMENT) char shared[];
    StepBlock<NT>(step, layout, shared).run();
}

} // namespace qslm
