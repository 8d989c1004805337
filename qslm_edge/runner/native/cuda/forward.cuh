/* The order of the kernels: tokens through all layers, and what is taken from the end.
 *
 * A step of one token is one kernel where the GPU can hold it. Else, and with several tokens, norms, products and
 * recurrences are kernels of their own.
 */
#pragma once

#include <cstring>

#include "model.cuh"

namespace qslm {

// The best of some twenty shapes on an H100, 216M at 4 bits, at 32 and at 128 rows.
using Narrow = Shape<2, 2, 6>;
using Wide = Shape<4, 4, 2, 2>;
using NarrowMany = Shape<4, 2, 6>;
using WideMany = Shape<8, 4, 3>;
using Large = Shape<8, 8, 1, 2>;
constexpr int MANY_ROWS = 65;
constexpr int SPLIT_ROWS = 256; // from here on a product has rows enough to fill the GPU without sharing its columns

/* How a step shares out its streams and the GPU; no groups where the GPU cannot hold it. */
struct StepPlan {
    int nt = 0, blocks = 0, groups = 0; // of the kernel; of a group; that run at once
    StepLayout layout{};

    StepPlan(const qslm_model &m, int streams) {
        const Sizes &z = m.sizes;
        if (z.channels % 4 || z.channels > OWN * STEP_THREADS) return; // rows are read in vectors, by one block
        const int tiles = ceil_div(z.channels, TILE_ROWS);
        for (int wanted : {2, 1}) {
            if (wanted == 2 && streams <= 8) continue;
            const int needed = ceil_div(streams, 8 * wanted), room = m.multiprocessors / needed;
            const int slice = room ? std::min(ceil_div(tiles, room), STRIP) : STRIP; // tiles of a block
            const int of_group = ceil_div(tiles, slice), hidden = ceil_div(ceil_div(z.hidden, TILE_ROWS), of_group);
            layout = StepLayout(8 * wanted, z.channels, z.hidden, slice, hidden,
                                std::max({3 * slice * z.groups, (hidden + slice) * z.groups, slice * z.hidden_groups}));
            if (layout.all > m.shared_limit || of_group > m.multiprocessors) continue;
            nt = wanted, blocks = of_group, groups = std::min(needed, m.multiprocessors / of_group);
            return;
        }
    }
};

class Forward {
  public:
    /* tokens: of each stream of the state; they lie in space.tokens. */
    Forward(qslm_model &model, qslm_state &state, Workspace &space, int tokens)
        : m_(model), s_(state), w_(space), launch_(model.launch), tokens_(tokens), batch_(state.batch),
          rows_(tokens * state.batch) {}

    /* The next token of every stream: logits into `logits`. False, and nothing done, where that is not one kernel. */
    bool step(float *logits) {
        const Sizes &z = m_.sizes;
        const StepPlan plan(m_, batch_);
        if (!plan.groups) return false;
        if (!s_.tasks.bytes()) {
            s_.tasks = Memory::device(size_t(z.layers) * plan.blocks * sizeof(Task), "state");
            launch_(plan_step, dim3(z.layers, plan.blocks), 32 * ceil_div(PHASES * STEP_WARPS, 32), 0,
                    m_.views.as<LayerView>(), plan.layout, s_.tasks.as<Task>());
        }
        Step step{s_.tasks.as<Task>(),
                  z.layers,
                  batch_,
                  z.channels,
                  plan.blocks,
                  z.stride(),
                  z.hidden_stride(),
                  m_.embedding,
                  w_.tokens.as<int64_t>(),
                  m_.ln0_weight,
                  m_.ln0_bias,
                  m_.ln_out_weight,
                  m_.ln_out_bias,
                  x(),
                  s_.parts.as<float>(),
                  mix(0),
                  w_.gated.as<__half>(),
                  w_.hidden.as<__half>(),
                  s_.arrived.as<unsigned>()};
        auto kernel = plan.nt == 2 ? step_kernel<2> : step_kernel<1>;
        launch_.together(kernel, dim3(plan.blocks * plan.groups), STEP_THREADS, size_t(plan.layout.all), step, plan.layout);
        logits_of(batch_, logits);
        return true;
    }

    /* Tokens through every layer; the residual stream stays in space.x, the state moves on. */
    void layers() {
        const int channels = m_.sizes.channels;
        launch_(embed, dim3(rows_), norm_threads(channels), channels * sizeof(float), m_.embedding,
                Norm{m_.ln0_weight, m_.ln0_bias, nullptr, nullptr, nullptr}, w_.tokens.as<int64_t>(), channels, x());
        for (int i = 0; i < m_.sizes.layers; ++i) {
            time_mix(i);
            channel_mix(i);
        }
    }

    /* Logits of `count` rows from row `first` of the residual stream on, into space.logits. */
    void head(int first, int count) {
        const Sizes &z = m_.sizes;
        Norm norm{m_.ln_out_weight, m_.ln_out_bias, nullptr, nullptr, nullptr};
        launch_(norm_rows<0>, dim3(count), norm_threads(z.channels), 0, norm, x() + size_t(first) * z.channels, 1,
                count, z.channels, mix(0), z.stride());
        logits_of(count, w_.logits.as<float>());
    }

    /* Masked features of the rows, added to space.logits. */
    void pooled() {
        launch_(pool, dim3(batch_), norm_threads(m_.sizes.channels), 0,
                Norm{m_.ln_out_weight, m_.ln_out_bias, nullptr, nullptr, nullptr}, x(), w_.mask.as<float>(), tokens_,
                batch_, m_.sizes.channels, w_.logits.as<float>());
    }

  private:
    float *x() const { return w_.x.as<float>(); }
    float *carry() const { return w_.carry.as<float>(); }
    __half *mix(int i) const { return w_.mixed.as<__half>() + size_t(i) * rows_ * m_.sizes.stride(); }

    /* Of rows of normed inputs. */
    void logits_of(int rows, float *logits) const {
        if (rows > 64 && logits_by<16>(rows, logits)) return;
        if (rows > 32 && logits_by<8>(rows, logits)) return;
        if (rows > 16 && logits_by<4>(rows, logits)) return;
        if (rows > 8 && logits_by<2>(rows, logits)) return;
        if (!logits_by<1>(rows, logits)) run<Large>({{plain(m_.head, mix(0), STORE, logits)}, 1, rows});
    }
    template <int NT> bool logits_by(int rows, float *logits) const {
        const Matrix &head = m_.head.view;
        const size_t bytes = head_bytes(NT, head.columns);
        if (bytes > size_t(m_.shared_limit)) return false;
        const int blocks = std::min(m_.multiprocessors, ceil_div(head.tiles, HEAD_WARPS));
        launch_(head_rows<NT>, dim3(blocks, ceil_div(rows, 8 * NT)), HEAD_THREADS, bytes, head, mix(0),
                m_.sizes.stride(), rows, logits);
        return true;
    }
    Job plain(const OwnedMatrix &matrix, const __half *inputs, Outlet outlet, float *out) const {
        Job job{};
        job.matrix = matrix.view, job.inputs = inputs, job.stride = m_.sizes.stride();
        job.outlet = outlet, job.out = out;
        return job;
    }
    template <class S> void run(const Jobs &jobs) const {
        if constexpr (!std::is_same_v<S, Large>)
            if (S::SHARED_BYTES > size_t(m_.shared_limit)) return run<Large>(jobs); // a GPU with less than an A100
        int blocks = 0;
        for (int i = 0; i < jobs.count; ++i) blocks += ceil_div(jobs.job[i].matrix.tiles, S::UNITS / TILE_ROWS);
        launch_(products<S>, dim3(blocks, ceil_div(jobs.rows, S::ROWS)), S::THREADS, S::SHARED_BYTES, jobs);
    }
    /* Products with few units against their columns (output, value), or with many. */
    void narrow(const Jobs &jobs) const {
        if (jobs.rows < MANY_ROWS) run<Narrow>(jobs);
        else jobs.rows <= SPLIT_ROWS ? run<NarrowMany>(jobs) : run<Large>(jobs);
    }
    void wide(const Jobs &jobs) const {
        if (jobs.rows < MANY_ROWS) run<Wide>(jobs);
        else jobs.rows <= SPLIT_ROWS ? run<WideMany>(jobs) : run<Large>(jobs);
    }
    template <int MIXES> void norm(const Norm &norm) const {
        launch_(norm_rows<MIXES>, dim3(rows_), norm_threads(m_.sizes.channels), 0, norm, x(), tokens_, batch_,
                m_.sizes.channels, mix(0), m_.sizes.stride());
    }

    /* A product whose currents drive LIF neurons. */
    void spikes(Job job, float *membrane, float *previous) {
        const int streams = batch_ * m_.sizes.channels;
        job.out = w_.k.as<float>();
        narrow({{job}, 1, rows_});
        launch_(scan_lif, dim3(ceil_div(streams, SCAN_THREADS)), SCAN_THREADS, 0, membrane, Carry{carry(), previous},
                job.out, tokens_, streams, x());
    }

    void time_mix(int i) {
        const Sizes &z = m_.sizes;
        const auto &matrices = m_.layers[i]->matrices;
        const LayerVectors &v = m_.layers[i]->view.vectors;
        float *key = w_.k.as<float>(), *value = w_.v.as<float>(), *gate = w_.gate.as<float>();
        __half *gated = w_.gated.as<__half>();
        norm<3>({v.norm_weight[0], v.norm_bias[0], v.mix[0], s_.part(i, ATT_X), carry()});
        wide({{plain(matrices[KEY], mix(0), STORE, key), plain(matrices[VALUE], mix(1), STORE, value),
               plain(matrices[RECEPTANCE], mix(2), SIGMOID, gate)},
              3,
              rows_});
        Average average{s_.part(i, WKV_A), s_.part(i, WKV_B), s_.part(i, WKV_P), v.first, v.decay};
        launch_(scan_wkv, dim3(ceil_div(batch_ * z.channels, SCAN_THREADS)), SCAN_THREADS, 0, average, key, value, gate,
                tokens_, batch_, z.channels, gated, z.stride());
        spikes(plain(matrices[OUTPUT], gated, STORE, nullptr), s_.part(i, MEMBRANE_1), s_.part(i, ATT_X));
    }

    void channel_mix(int i) {
        const auto &matrices = m_.layers[i]->matrices;
        const LayerVectors &v = m_.layers[i]->view.vectors;
        float *gate = w_.gate.as<float>();
        __half *hidden = w_.hidden.as<__half>();
        norm<2>({v.norm_weight[1], v.norm_bias[1], v.mix[1], s_.part(i, FFN_X), carry()});
        Job key = plain(matrices[FFN_KEY], mix(0), SQUARED_RELU, nullptr);
        key.half_out = hidden, key.half_stride = m_.sizes.hidden_stride();
        wide({{key, plain(matrices[FFN_RECEPTANCE], mix(1), SIGMOID, gate)}, 2, rows_});
        Job value = plain(matrices[FFN_VALUE], hidden, GATED, nullptr);
        value.stride = m_.sizes.hidden_stride(), value.gate = gate;
        spikes(value, s_.part(i, MEMBRANE_2), s_.part(i, FFN_X));
    }

    qslm_model &m_;
    qslm_state &s_;
    Workspace &w_;
    const Launcher &launch_;
    int tokens_, batch_, rows_;
};

} // namespace qslm
