/* The order of the kernels: tokens through all layers, and what is taken from the end.
 *
 * One token of up to 8 streams takes four kernels a layer: norms are made where they are used, recurrences end a
 * product. With more rows norms and WKV are kernels of their own, with several tokens LIF too.
 */
#pragma once

#include <cstring>

#include "model.cuh"

namespace qslm {

using Narrow = Shape<2, 2, 6>;
using Wide = Shape<4, 4, 3, 2>;
using Large = Shape<8, 8, 1>;
constexpr int SPLIT_ROWS = 256; // from here on a product has rows enough to fill the GPU without sharing its columns

class Forward {
  public:
    Forward(qslm_model &model, qslm_state &state, Workspace &space, int tokens)
        : m_(model), s_(state), w_(space), tokens_(tokens), batch_(state.batch), rows_(tokens * state.batch) {}

    /* Tokens (in space.tokens) through every layer; the residual stream stays in space.x, the state moves on. */
    void layers() {
        const Sizes &z = m_.sizes;
        m_.launch(embed, dim3(rows_), norm_threads(z.channels), z.channels * sizeof(float), m_.embedding,
                  Norm{m_.ln0_weight, m_.ln0_bias, nullptr, nullptr, nullptr}, w_.tokens.as<int64_t>(), z.channels, x());
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
        Job job = plain(m_.head, w_.mixed.as<__half>(), STORE, w_.logits.as<float>());
        if (fits(count, 1, normed_shares<1>())) {
            Normed args{norm, from, z.channels, {{job}, 1, count}};
            m_.launch(normed<0, 1>, dim3(ceil_div(m_.head.view.tiles, NORMED_WARPS)), NORMED_THREADS,
                      shared(count, 1, normed_shares<1>()), args);
            return;
        }
        m_.launch(norm_rows<0>, dim3(count), norm_threads(z.channels), 0, norm, from, 1, count, z.channels,
                  w_.mixed.as<__half>(), z.stride());
        run<Large>({{job}, 1, count});
    }

    /* Masked features of the rows, added to space.logits. */
    void pooled() {
        m_.launch(pool, dim3(batch_), norm_threads(m_.sizes.channels), 0,
                  Norm{m_.ln_out_weight, m_.ln_out_bias, nullptr, nullptr, nullptr}, x(), w_.mask.as<float>(), tokens_,
                  batch_, m_.sizes.channels, w_.logits.as<float>());
    }

  private:
    float *x() const { return w_.x.as<float>(); }
    float *carry() const { return w_.carry.as<float>(); }
    bool few() const {
        return tokens_ == 1 && fits(rows_, 3, ATTENTION_SHARES) && fits(rows_, 2, normed_shares<4>());
    }
    size_t shared(int rows, int mixes, int shares) const {
        size_t floats = shares + (norm_scratch(rows, NORMED_WARPS) + 3) / 4 * 4;
        return floats * sizeof(float) + size_t(mixes) * rows * shared_stride(m_.sizes.channels) * sizeof(__half);
    }
    bool fits(int rows, int mixes, int shares) const {
        return rows <= FEW_ROWS && m_.sizes.channels <= OWN * NORMED_THREADS && shared(rows, mixes, shares) <= size_t(m_.shared_limit);
    }
    Job plain(const OwnedMatrix &matrix, const __half *inputs, Outlet outlet, float *out) const {
        Job job{};
        job.matrix = matrix.view, job.inputs = inputs, job.stride = m_.sizes.stride();
        job.outlet = outlet, job.out = out;
        return job;
    }
    template <class S> void run(const Jobs &jobs) const {
        int blocks = 0;
        for (int i = 0; i < jobs.count; ++i) blocks += ceil_div(jobs.job[i].matrix.tiles, S::UNITS / TILE_ROWS);
        m_.launch(products<S>, dim3(blocks, ceil_div(jobs.rows, S::ROWS)), S::THREADS, S::SHARED_BYTES, jobs);
    }
    /* Products with few units against their columns (output, value), or with many. */
    void narrow(const Jobs &jobs) const {
        if (jobs.rows <= FEW_ROWS)
            m_.launch(product_few, dim3(jobs.job[0].matrix.tiles), 32 * FEW_WARPS, 0, jobs);
        else jobs.rows <= SPLIT_ROWS ? run<Narrow>(jobs) : run<Large>(jobs);
    }
    void wide(const Jobs &jobs) const { jobs.rows <= SPLIT_ROWS ? run<Wide>(jobs) : run<Large>(jobs); }
    template <int MIXES> void norm_apart(const Norm &norm) const {
        m_.launch(norm_rows<MIXES>, dim3(rows_), norm_threads(m_.sizes.channels), 0, norm, x(), tokens_, batch_, m_.sizes.channels,
                  w_.mixed.as<__half>(), m_.sizes.stride());
    }
    __half *mix(int i) const { return w_.mixed.as<__half>() + size_t(i) * rows_ * m_.sizes.stride(); }

    /* A product whose currents drive LIF neurons: in the product for one token, in a scan for several. */
    void spikes(Job job, Outlet several, Outlet one, float *membrane, const Carry &carry) {
        const int streams = batch_ * m_.sizes.channels;
        if (tokens_ == 1) {
            job.outlet = one, job.out = x(), job.membrane = membrane, job.carry = carry;
            return narrow({{job}, 1, rows_});
        }
        job.outlet = several, job.out = w_.k.as<float>();
        narrow({{job}, 1, rows_});
        m_.launch(scan_lif, dim3(ceil_div(streams, SCAN_THREADS)), SCAN_THREADS, 0, membrane, carry,
                  w_.k.as<float>(), tokens_, streams, x());
    }

    void time_mix(int i) {
        const Sizes &z = m_.sizes;
        const Layer &l = *m_.layers[i];
        float *att_x = s_.part(i, ATT_X);
        Norm norm{l.ln1_weight, l.ln1_bias, l.att_mix, att_x, carry()};
        Average average{s_.part(i, WKV_A), s_.part(i, WKV_B), s_.part(i, WKV_P), l.first, l.decay};
        __half *gated = w_.gated.as<__half>();
        Carry moved{carry(), att_x}, copied{nullptr, nullptr};
        if (few()) {
            Attention args{{l.key.view, l.value.view, l.receptance.view}, norm, x(), rows_, z.channels, average, gated,
                           z.stride()};
            m_.launch(attention_few, dim3(l.key.view.tiles), ATTENTION_THREADS, shared(rows_, 3, ATTENTION_SHARES),
                      args);
            copied = moved;
        } else {
            float *k = w_.k.as<float>(), *v = w_.v.as<float>(), *gate = w_.gate.as<float>();
            norm_apart<3>(norm);
            wide({{plain(l.key, mix(0), STORE, k), plain(l.value, mix(1), STORE, v),
                   plain(l.receptance, mix(2), SIGMOID, gate)},
                  3,
                  rows_});
            m_.launch(scan_wkv, dim3(ceil_div(batch_ * z.channels, SCAN_THREADS)), SCAN_THREADS, 0, average, moved, k,
                      v, gate, tokens_, batch_, z.channels, gated, z.stride());
        }
        spikes(plain(l.output, gated, STORE, nullptr), STORE, FIRE, s_.part(i, MEMBRANE_1), copied);
    }

    void channel_mix(int i) {
        const Sizes &z = m_.sizes;
        const Layer &l = *m_.layers[i];
        float *ffn_x = s_.part(i, FFN_X), *gate = w_.gate.as<float>();
        __half *hidden = w_.hidden.as<__half>();
        Norm norm{l.ln2_weight, l.ln2_bias, l.ffn_mix, ffn_x, carry()};
        Job key = plain(l.ffn_key, mix(0), SQUARED_RELU, nullptr);
        key.half_out = hidden, key.half_stride = z.hidden_stride();
        Jobs jobs{{key, plain(l.ffn_receptance, mix(1), SIGMOID, gate)}, 2, rows_};
        if (few()) {
            constexpr int SPLIT = 4;
            int tiles = l.ffn_key.view.tiles + l.ffn_receptance.view.tiles;
            Normed args{norm, x(), z.channels, jobs};
            m_.launch(normed<2, SPLIT>, dim3(ceil_div(tiles, NORMED_WARPS / SPLIT)), NORMED_THREADS,
                      shared(rows_, 2, normed_shares<SPLIT>()), args);
        } else {
            norm_apart<2>(norm);
            wide(jobs);
        }
        Job value = plain(l.ffn_value, hidden, STORE, nullptr);
        value.stride = z.hidden_stride(), value.gate = gate;
        spikes(value, GATED, GATED_FIRE, s_.part(i, MEMBRANE_2), {carry(), ffn_x});
    }

    qslm_model &m_;
    qslm_state &s_;
    Workspace &w_;
    int tokens_, batch_, rows_;
};

} // namespace qslm
