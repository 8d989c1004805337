/* The order of the kernels: tokens through all layers, and what is taken from the end.
 *
 * One token of few streams takes four kernels a layer: norms are made where they are used, recurrences end a
 * product. With more rows norms and WKV are kernels of their own, with several tokens LIF too.
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
constexpr int FEW_STREAMS = 4; // every block norms them all: with more that costs more than a kernel
constexpr int MANY_ROWS = 65;
constexpr int SPLIT_ROWS = 256; // from here on a product has rows enough to fill the GPU without sharing its columns

class Forward {
  public:
    /* tokens: of each stream. Streams [first, first + count) of the state; all of them for several tokens. */
    Forward(qslm_model &model, qslm_state &state, Workspace &space, const Launcher &launch, int tokens, int first,
            int count)
        : m_(model), s_(state), w_(space), launch_(launch), tokens_(tokens), first_(first), batch_(count),
          rows_(tokens * count) {}

    /* Tokens (in space.tokens) through every layer; the residual stream stays in space.x, the state moves on. */
    void layers() {
        const Sizes &z = m_.sizes;
        launch_(embed, dim3(rows_), norm_threads(z.channels), z.channels * sizeof(float), m_.embedding,
                Norm{m_.ln0_weight, m_.ln0_bias, nullptr, nullptr, nullptr}, w_.tokens.as<int64_t>() + first_,
                z.channels, x());
        for (int i = 0; i < z.layers; ++i) {
            time_mix(i);
            channel_mix(i);
        }
    }

    /* Logits of `count` rows from row `first` of the residual stream on, into space.logits. */
    void head(int first, int count) {
        const Sizes &z = m_.sizes;
        Norm norm{m_.ln_out_weight, m_.ln_out_bias, nullptr, nullptr, nullptr};
        const float *from = x() + size_t(first) * z.channels;
        Job job = plain(m_.head, mix(0), STORE, w_.logits.as<float>() + size_t(first_) * z.vocabulary);
        if (fits(count, 1, normed_shares<1>())) {
            Normed args{norm, from, z.channels, {{job}, 1, count}};
            launch_(normed<0, 1>, dim3(ceil_div(m_.head.view.tiles, NORMED_WARPS)), NORMED_THREADS,
                      shared(count, 1, normed_shares<1>()), args);
            return;
        }
        launch_(norm_rows<0>, dim3(count), norm_threads(z.channels), 0, norm, from, 1, count, z.channels, mix(0),
                z.stride());
        run<Large>({{job}, 1, count});
    }

    /* Masked features of the rows, added to space.logits. */
    void pooled() {
        launch_(pool, dim3(batch_), norm_threads(m_.sizes.channels), 0,
                  Norm{m_.ln_out_weight, m_.ln_out_bias, nullptr, nullptr, nullptr}, x(), w_.mask.as<float>(), tokens_,
                  batch_, m_.sizes.channels, w_.logits.as<float>());
    }

  private:
    float *of(const Memory &rows) const { return rows.as<float>() + size_t(first_) * m_.sizes.channels; }
    float *x() const { return of(w_.x); }
    float *carry() const { return of(w_.carry); }
    float *part(int layer, Part i) const { return s_.part(layer, i) + size_t(first_) * m_.sizes.channels; }
    bool few() const {
        return tokens_ == 1 && fits(rows_, 3, ATTENTION_SHARES) && fits(rows_, 2, normed_shares<4>());
    }
    size_t shared(int rows, int mixes, int shares) const {
        size_t floats = shares + (norm_scratch(rows, NORMED_WARPS) + 3) / 4 * 4;
        return floats * sizeof(float) + size_t(mixes) * rows * shared_stride(m_.sizes.channels) * sizeof(__half);
    }
    bool fits(int rows, int mixes, int shares) const {
        return rows <= FEW_STREAMS && m_.sizes.channels <= OWN * NORMED_THREADS &&
               shared(rows, mixes, shares) <= size_t(m_.shared_limit);
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
        if (jobs.rows <= FEW_ROWS) launch_(product_few, dim3(jobs.job[0].matrix.tiles), 32 * FEW_WARPS, 0, jobs);
        else if (jobs.rows < MANY_ROWS) run<Narrow>(jobs);
        else jobs.rows <= SPLIT_ROWS ? run<NarrowMany>(jobs) : run<Large>(jobs);
    }
    void wide(const Jobs &jobs) const {
        if (jobs.rows < MANY_ROWS) run<Wide>(jobs);
        else jobs.rows <= SPLIT_ROWS ? run<WideMany>(jobs) : run<Large>(jobs);
    }
    template <int MIXES> void norm_apart(const Norm &norm) const {
        launch_(norm_rows<MIXES>, dim3(rows_), norm_threads(m_.sizes.channels), 0, norm, x(), tokens_, batch_,
                m_.sizes.channels, mix(0), m_.sizes.stride());
    }
    __half *mix(int i) const {
        return w_.mixed.as<__half>() + (size_t(3) * first_ + size_t(i) * rows_) * m_.sizes.stride();
    }

    /* A product whose currents drive LIF neurons: in the product for one token, in a scan for several. */
    void spikes(Job job, Outlet several, Outlet one, float *membrane, const Carry &carry) {
        const int streams = batch_ * m_.sizes.channels;
        if (tokens_ == 1) {
            job.outlet = one, job.out = x(), job.membrane = membrane, job.carry = carry;
            return narrow({{job}, 1, rows_});
        }
        job.outlet = several, job.out = of(w_.k);
        narrow({{job}, 1, rows_});
        launch_(scan_lif, dim3(ceil_div(streams, SCAN_THREADS)), SCAN_THREADS, 0, membrane, carry,
                  of(w_.k), tokens_, streams, x());
    }

    void time_mix(int i) {
        const Sizes &z = m_.sizes;
        const Layer &l = *m_.layers[i];
        float *att_x = part(i, ATT_X);
        Norm norm{l.ln1_weight, l.ln1_bias, l.att_mix, att_x, carry()};
        Average average{part(i, WKV_A), part(i, WKV_B), part(i, WKV_P), l.first, l.decay};
        __half *gated = w_.gated.as<__half>() + size_t(first_) * z.stride();
        Carry moved{carry(), att_x}, copied{nullptr, nullptr};
        if (few()) {
            Attention args{{l.key.view, l.value.view, l.receptance.view}, norm, x(), rows_, z.channels, average, gated,
                           z.stride()};
            launch_(attention_few, dim3(l.key.view.tiles), ATTENTION_THREADS, shared(rows_, 3, ATTENTION_SHARES),
                      args);
            copied = moved;
        } else {
            float *k = of(w_.k), *v = of(w_.v), *gate = of(w_.gate);
            norm_apart<3>(norm);
            wide({{plain(l.key, mix(0), STORE, k), plain(l.value, mix(1), STORE, v),
                   plain(l.receptance, mix(2), SIGMOID, gate)},
                  3,
                  rows_});
            launch_(scan_wkv, dim3(ceil_div(batch_ * z.channels, SCAN_THREADS)), SCAN_THREADS, 0, average, moved, k,
                      v, gate, tokens_, batch_, z.channels, gated, z.stride());
        }
        spikes(plain(l.output, gated, STORE, nullptr), STORE, FIRE, part(i, MEMBRANE_1), copied);
    }

    void channel_mix(int i) {
        const Sizes &z = m_.sizes;
        const Layer &l = *m_.layers[i];
        float *ffn_x = part(i, FFN_X), *gate = of(w_.gate);
        __half *hidden = w_.hidden.as<__half>() + size_t(first_) * z.hidden_stride();
        Norm norm{l.ln2_weight, l.ln2_bias, l.ffn_mix, ffn_x, carry()};
        Job key = plain(l.ffn_key, mix(0), SQUARED_RELU, nullptr);
        key.half_out = hidden, key.half_stride = z.hidden_stride();
        Jobs jobs{{key, plain(l.ffn_receptance, mix(1), SIGMOID, gate)}, 2, rows_};
        if (few()) {
            constexpr int SPLIT = 4;
            int tiles = l.ffn_key.view.tiles + l.ffn_receptance.view.tiles;
            Normed args{norm, x(), z.channels, jobs};
            launch_(normed<2, SPLIT>, dim3(ceil_div(tiles, NORMED_WARPS / SPLIT)), NORMED_THREADS,
                      shared(rows_, 2, normed_shares<SPLIT>()), args);
        } else {
            norm_apart<2>(norm);
            wide(jobs);
        }
        Job value = plain(l.ffn_value, hidden, STORE, nullptr);
        value.stride = z.hidden_stride(), value.gate = gate;
        spikes(value, GATED, GATED_FIRE, part(i, MEMBRANE_2), {carry(), ffn_x});
    }

    qslm_model &m_;
    qslm_state &s_;
    Workspace &w_;
    const Launcher &launch_;
    int tokens_, first_, batch_, rows_;
};

} // namespace qslm
