#include "model.h"

#include <algorithm>

#include "vectors.h"

namespace qslm {
namespace {

constexpr int kChunkRows = 258; /* tokens times streams that run through the layers together: bounds the memory */
constexpr int kUnitBytes = 48 * 1024; /* weights that a thread takes at a time */
constexpr int kRowGrain = 4;          /* tokens that a thread takes at a time */
constexpr int kRecurGrain = 512;      /* steps of 16 channels, likewise */
constexpr float kEpsilon = 1e-5f;

void check(bool right, const char *text) {
    if (!right) throw BadArgument(text);
}

void check_matrix(const qslm_matrix &m, int rows, int columns, bool table) {
    check(m.rows == rows && m.columns == columns, "a matrix has another shape than its place in the model");
    check(m.codes != nullptr, "a matrix without weights");
    if (m.bits == 32 || m.bits == 16 || (m.bits == 1 && table && columns % 8 == 0)) return;
    check(m.bits == 8 || m.bits == 4 || m.bits == 2, "a matrix of a width that there is no kernel for");
    check(m.group == 32 || m.group == 64 || m.group == 128, "groups of another size than 32, 64 or 128");
    check(columns % m.group == 0, "groups that do not divide the columns");
    check(m.scale_bits == 16 || m.scale_bits == 32, "scales that are neither float16 nor float32");
    check(m.scales != nullptr, "packed codes without scales");
    check(!m.midrise || (m.bits == 2 && m.zeros == nullptr), "mid-rise levels are of 2 bits, without zero points");
}

} // namespace

struct Model::Chunk {
    State &state;
    const int64_t *tokens;
    int steps, batch;

    int rows() const { return steps * batch; }
};

Model::Model(const qslm_spec &spec)
    : spec_(spec), channels_(spec.n_embd), width_(round_up(spec.n_embd, kLanes)), hidden_width_(0),
      pool_(std::max(1, spec.threads)), scratch_(std::max(1, spec.threads)) {
    const int c = channels_;
    check(spec.abi == QSLM_ABI, "built for another version of the interface");
    check(c > 0 && spec.n_layer > 0 && spec.vocab_size > 0, "sizes below 1");
    check_matrix(spec.embedding, spec.vocab_size, c, true);
    std::vector<const Matrix *> all;
    for (int i = 0; i < spec.n_layer; ++i) {
        const qslm_layer &l = spec.layers[i];
        for (const qslm_matrix *m : {&l.att_key, &l.att_value, &l.att_receptance, &l.att_output, &l.ffn_receptance})
            check_matrix(*m, c, c, false);
        check(l.ffn_key.rows > 0, "a layer without hidden units");
        check_matrix(l.ffn_key, l.ffn_key.rows, c, false);
        check_matrix(l.ffn_value, c, l.ffn_key.rows, false);
        hidden_width_ = std::max(hidden_width_, round_up(l.ffn_key.rows, kLanes));
        layers_.push_back(Layer{l, Matrix(l.att_key), Matrix(l.att_value), Matrix(l.att_receptance), Matrix(l.att_output),
                                Matrix(l.ffn_key), Matrix(l.ffn_receptance), Matrix(l.ffn_value)});
    }
    if (spec.kind == QSLM_LANGUAGE_MODEL) {
        check_matrix(spec.head, spec.vocab_size, c, false);
        head_ = Matrix(spec.head);
    }
}

void Model::start(State &state, int batch) const {
    check(batch >= 1, "a batch without streams");
    state.layers = spec_.n_layer;
    state.batch = batch;
    state.channels = channels_;
    state.width = width_;
    const size_t part = size_t(batch) * width_;
    std::fill_n(state.values.reserve(part * kParts * spec_.n_layer), part * kParts * spec_.n_layer, 0.0f);
    for (int layer = 0; layer < spec_.n_layer; ++layer) std::fill_n(state.part(layer, kP), part, spec_.p_init);
}

void Model::reserve(int rows) {
    const size_t narrow = size_t(rows) * width_;
    for (Buffer<float> *buffer : {&x_, &h_, &key_, &value_, &receptance_}) buffer->reserve(narrow);
    hidden_.reserve(size_t(rows) * hidden_width_);
    rows_.reserve(size_t(pool_.threads()) * std::max(width_, hidden_width_));
    const auto room = [&](const Matrix &matrix, int input) {
        inputs_[input].reserve(matrix, rows);
        for (Scratch &scratch : scratch_) scratch.reserve(matrix, rows);
    };
    for (const Layer &l : layers_) {
        room(l.att_key, 0);
        room(l.att_value, 1);
        room(l.att_receptance, 2);
        room(l.att_output, 0);
        room(l.ffn_key, 0);
        room(l.ffn_receptance, 1);
        room(l.ffn_value, 0);
    }
    if (spec_.kind == QSLM_LANGUAGE_MODEL) room(head_, 0);
}

/* body(i, thread) for i below `count`, `grain` of them at a time. */
template <typename Body> void Model::each(int count, int grain, const Body &body) {
    pool_.run((count + grain - 1) / grain, [&](int step, int thread) {
        for (int i = step * grain; i < std::min(count, (step + 1) * grain); ++i) body(i, thread);
    });
}

void Model::multiply(const Product *products, int count) {
    constexpr int kMost = 3;
    int units[kMost], steps[kMost], total = 0;
    for (int i = 0; i < count; ++i) {
        const Matrix &m = *products[i].matrix;
        const int row_bytes = m.bits > 8 ? m.columns * m.bits / 8 : m.row_bytes;
        /* with many tokens a tile is work enough; with one thread there is nothing to share out */
        const int rows = pool_.threads() == 1 ? m.rows : products[i].tokens > 16 ? kUnitRows : kUnitBytes / row_bytes;
        units[i] = round_up(std::max(rows, 1), kUnitRows);
        steps[i] = (m.rows + units[i] - 1) / units[i];
        total += steps[i];
    }
    pool_.run(total, [&](int step, int thread) {
        int i = 0;
        for (; step >= steps[i]; ++i) step -= steps[i];
        const int rows = products[i].matrix->rows;
        qslm::multiply(products[i], step * units[i], std::min(rows, (step + 1) * units[i]), scratch_[thread]);
    });
}

void Model::embed(const Chunk &chunk) {
    each(chunk.rows(), kRowGrain, [&](int row, int) {
        float *x = h_.data() + ptrdiff_t(row) * width_;
        std::fill(x + channels_, x + width_, 0.0f);
        embedding_row(spec_.embedding, spec_.binary_embedding, chunk.tokens[row], x);
    });
    std::swap(x_, h_);
    norm(chunk, 0, spec_.ln0_weight, spec_.ln0_bias);
    std::swap(x_, h_);
}

/* h = LN(x), from row `first` on. */
void Model::norm(const Chunk &chunk, int first, const float *weight, const float *bias) {
    each(chunk.rows() - first, kRowGrain, [&](int i, int) {
        const float *x = x_.data() + ptrdiff_t(first + i) * width_;
        float *h = h_.data() + ptrdiff_t(first + i) * width_;
        Floats total{}, squares{};
        for (int k = 0; k < channels_; k += kLanes) total += load(x + k, channels_ - k);
        const float mean = sum(total) / channels_;
        for (int k = 0; k < channels_; k += kLanes) {
            const Floats d = first_lanes(load(x + k) - mean, channels_ - k);
            squares += d * d;
        }
        const float factor = 1.0f / __builtin_sqrtf(sum(squares) / channels_ + kEpsilon);
        for (int k = 0; k < channels_; k += kLanes) {
            const int n = channels_ - k;
            store(h + k, (load(x + k) - mean) * factor * load(weight + k, n) + load(bias + k, n));
        }
    });
}

/* The inputs of up to three matrices: h m + earlier (1 - m), `before` being earlier than the first token. */
void Model::mix(const Chunk &chunk, const float *mixes, int count, const Matrix *const *matrices, const float *before) {
    each(chunk.rows(), kRowGrain, [&](int row, int thread) {
        const float *h = h_.data() + ptrdiff_t(row) * width_;
        const float *earlier = row < chunk.batch ? before + ptrdiff_t(row) * width_ : h - ptrdiff_t(chunk.batch) * width_;
        float *mixed = rows_.data() + ptrdiff_t(thread) * std::max(width_, hidden_width_);
        for (int i = 0; i < count; ++i) {
            const float *m = mixes + ptrdiff_t(i) * channels_;
            for (int k = 0; k < channels_; k += kLanes) {
                const Floats part = load(m + k, channels_ - k);
                store(mixed + k, load(h + k) * part + load(earlier + k) * (1.0f - part));
            }
            inputs_[i].set(*matrices[i], row, mixed);
        }
    });
}

void Model::attention(int layer, const Chunk &chunk) {
    const Layer &l = layers_[layer];
    State &state = chunk.state;
    const int rows = chunk.rows(), batch = chunk.batch;
    norm(chunk, 0, l.vectors.ln1_weight, l.vectors.ln1_bias);
    const Matrix *const matrices[3] = {&l.att_key, &l.att_value, &l.att_receptance};
    float *att_x = state.part(layer, kAttX);
    mix(chunk, l.vectors.att_mix, 3, matrices, att_x);
    std::copy_n(h_.data() + ptrdiff_t(rows - batch) * width_, ptrdiff_t(batch) * width_, att_x);
    const Product products[3] = {{matrices[0], &inputs_[0], rows, key_.data(), width_},
                                 {matrices[1], &inputs_[1], rows, value_.data(), width_},
                                 {matrices[2], &inputs_[2], rows, receptance_.data(), width_}};
    multiply(products, 3);

    /* WKV in the a, b, p form; h takes sigmoid(r) y */
    const int blocks = width_ / kLanes;
    const auto recur = [&](int job, int) {
        const int stream = job / blocks, k = job % blocks * kLanes, n = channels_ - k;
        const ptrdiff_t at = ptrdiff_t(stream) * width_ + k;
        float *pa = state.part(layer, kA) + at, *pb = state.part(layer, kB) + at, *pp = state.part(layer, kP) + at;
        Floats a = load(pa), b = load(pb), p = load(pp);
        const Floats first = load(l.vectors.time_first + k, n), decay = load(l.vectors.decay + k, n);
        for (int row = stream; row < rows; row += batch) {
            const ptrdiff_t here = ptrdiff_t(row) * width_ + k;
            const Floats key = load(key_.data() + here, n), value = load(value_.data() + here, n);
            /* of the two exponentials of a maximum one is exactly 1 */
            const Floats now = key + first, e = exp(-magnitude(p - now));
            const Floats e1 = p >= now ? all(1.0f) : e, e2 = p >= now ? e : all(1.0f);
            const Floats y = (e1 * a + e2 * value) / (e1 * b + e2);
            const Floats gate = sigmoid(load(receptance_.data() + here, n));
            store(h_.data() + here, gate * y);
            const Floats decayed = p + decay, f = exp(-magnitude(decayed - key));
            const Floats f1 = decayed >= key ? all(1.0f) : f, f2 = decayed >= key ? f : all(1.0f);
            p = larger(decayed, key);
            a = f1 * a + f2 * value;
            b = f1 * b + f2;
        }
        store(pa, a);
        store(pb, b);
        store(pp, p);
    };
    each(blocks * batch, std::max(1, kRecurGrain / chunk.steps), recur);

    each(rows, kRowGrain, [&](int row, int) { inputs_[0].set(l.att_output, row, h_.data() + ptrdiff_t(row) * width_); });
    const Product output{&l.att_output, &inputs_[0], rows, key_.data(), width_};
    multiply(&output, 1);
    fire(chunk, key_.data(), nullptr, state.part(layer, kV1));
}

/* LIF over the tokens: u = v + (x - v) / 2, a spike where u >= 1, which sets v back to 0; spikes enter the stream. */
void Model::fire(const Chunk &chunk, const float *current, const float *gate, float *membranes) {
    const int blocks = width_ / kLanes, rows = chunk.rows();
    const auto recur = [&](int job, int) {
        const int stream = job / blocks, k = job % blocks * kLanes, n = channels_ - k;
        float *membrane = membranes + ptrdiff_t(stream) * width_ + k;
        Floats v = load(membrane);
        for (int row = stream; row < rows; row += chunk.batch) {
            const ptrdiff_t here = ptrdiff_t(row) * width_ + k;
            Floats in = load(current + here, n);
            if (gate != nullptr) in = sigmoid(load(gate + here, n)) * in;
            const Floats u = (in - v) * 0.5f + v;
            v = u >= 1.0f ? Floats{} : u;
            store(x_.data() + here, load(x_.data() + here) + (u >= 1.0f ? all(1.0f) : Floats{}));
        }
        store(membrane, v);
    };
    each(blocks * chunk.batch, std::max(1, kRecurGrain / chunk.steps), recur);
}

void Model::feed_forward(int layer, const Chunk &chunk) {
    const Layer &l = layers_[layer];
    const int rows = chunk.rows(), units = l.ffn_key.rows;
    norm(chunk, 0, l.vectors.ln2_weight, l.vectors.ln2_bias);
    const Matrix *const matrices[2] = {&l.ffn_key, &l.ffn_receptance};
    float *ffn_x = chunk.state.part(layer, kFfnX);
    mix(chunk, l.vectors.ffn_mix, 2, matrices, ffn_x);
    std::copy_n(h_.data() + ptrdiff_t(rows - chunk.batch) * width_, ptrdiff_t(chunk.batch) * width_, ffn_x);
    const Product products[2] = {{matrices[0], &inputs_[0], rows, hidden_.data(), hidden_width_},
                                 {matrices[1], &inputs_[1], rows, receptance_.data(), width_}};
    multiply(products, 2);
    each(rows, kRowGrain, [&](int row, int) {
        float *hidden = hidden_.data() + ptrdiff_t(row) * hidden_width_;
        std::fill(hidden + units, hidden + hidden_width_, 0.0f);
        for (int k = 0; k < units; k += kLanes) {
            const Floats positive = larger(load(hidden + k), Floats{});
            store(hidden + k, positive * positive);
        }
        inputs_[0].set(l.ffn_value, row, hidden);
    });
    const Product output{&l.ffn_value, &inputs_[0], rows, value_.data(), width_};
    multiply(&output, 1);
    fire(chunk, value_.data(), receptance_.data(), chunk.state.part(layer, kV2));
}

void Model::head(const Chunk &chunk, int first, float *out) {
    const int rows = chunk.rows() - first;
    norm(chunk, first, spec_.ln_out_weight, spec_.ln_out_bias);
    each(rows, kRowGrain, [&](int row, int) { inputs_[0].set(head_, row, h_.data() + ptrdiff_t(first + row) * width_); });
    const Product product{&head_, &inputs_[0], rows, out, spec_.vocab_size};
    multiply(&product, 1);
}

void Model::pool_features(const Chunk &chunk, const float *mask, float *out) {
    norm(chunk, 0, spec_.ln_out_weight, spec_.ln_out_bias);
    for (int row = 0; row < chunk.rows(); ++row) {
        const float *h = h_.data() + ptrdiff_t(row) * width_;
        float *sums = out + ptrdiff_t(row % chunk.batch) * channels_;
        for (int k = 0; k < channels_; ++k) sums[k] += mask[row] * h[k];
    }
}

void Model::run(State &state, const int64_t *tokens, int n_tokens, const float *mask, int last, float *out) {
    const int batch = state.batch;
    check(n_tokens >= 1, "no tokens to run");
    check(state.layers == spec_.n_layer && state.channels == channels_, "the state of another model");
    for (ptrdiff_t i = 0; i < ptrdiff_t(n_tokens) * batch; ++i)
        if (tokens[i] < 0 || tokens[i] >= spec_.vocab_size)
            throw BadArgument("a token id that the vocabulary does not hold: " + std::to_string(tokens[i]));
    const bool language_model = spec_.kind == QSLM_LANGUAGE_MODEL;
    if (language_model)
        check(last >= 1 && last <= n_tokens, "logits are of 1 to all of the tokens");
    else
        std::fill_n(out, ptrdiff_t(batch) * channels_, 0.0f);
    const int steps = std::min(n_tokens, std::max(1, kChunkRows / batch));
    reserve(steps * batch);
    for (int begin = 0; begin < n_tokens; begin += steps) {
        const Chunk chunk{state, tokens + ptrdiff_t(begin) * batch, std::min(steps, n_tokens - begin), batch};
        embed(chunk);
        for (int layer = 0; layer < spec_.n_layer; ++layer) {
            attention(layer, chunk);
            feed_forward(layer, chunk);
        }
        if (!language_model) {
            pool_features(chunk, mask + ptrdiff_t(begin) * batch, out);
            continue;
        }
        const int wanted = n_tokens - last; /* first token whose logits are asked for */
        if (begin + chunk.steps <= wanted) continue;
        const int first = std::max(0, wanted - begin);
        head(chunk, first * batch, out + ptrdiff_t(begin + first - wanted) * batch * spec_.vocab_size);
    }
}

} // namespace qslm
