/* A model on the device: weights, and the buffers that its rows pass through. */
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "head.cuh"
#include "rows.cuh"
#include "step.cuh"

namespace qslm {

struct Layer {
    Memory vectors; // all that is [C], one after the other
    OwnedMatrix matrices[MATRICES];
    LayerView view;

    Layer(const qslm_layer &layer, int channels, int index) {
        LayerVectors &v = view.vectors;
        struct Piece {
            const float *from;
            int count;
            const float **to;
        } pieces[] = {{layer.ln1_weight, 1, &v.norm_weight[0]}, {layer.ln1_bias, 1, &v.norm_bias[0]},
                      {layer.ln2_weight, 1, &v.norm_weight[1]}, {layer.ln2_bias, 1, &v.norm_bias[1]},
                      {layer.att_mix, 3, &v.mix[0]},            {layer.time_first, 1, &v.first},
                      {layer.decay, 1, &v.decay},               {layer.ffn_mix, 2, &v.mix[1]}};
        std::vector<float> host;
        for (const Piece &piece : pieces) host.insert(host.end(), piece.from, piece.from + piece.count * channels);
        vectors = Memory::copy_of(host.data(), host.size() * sizeof(float), "vectors");
        const float *at = vectors.as<float>();
        for (const Piece &piece : pieces) *piece.to = at, at += piece.count * channels;
        const std::string block = "blocks." + std::to_string(index);
        const int hidden = layer.ffn_key.rows;
        const struct {
            const qslm_matrix &matrix;
            const char *name;
            int rows, columns;
        } given[MATRICES] = {{layer.att_key, ".att.key", channels, channels},
                             {layer.att_value, ".att.value", channels, channels},
                             {layer.att_receptance, ".att.receptance", channels, channels},
                             {layer.att_output, ".att.output", channels, channels},
                             {layer.ffn_key, ".ffn.key", hidden, channels},
                             {layer.ffn_receptance, ".ffn.receptance", channels, channels},
                             {layer.ffn_value, ".ffn.value", channels, hidden}};
        for (int i = 0; i < MATRICES; ++i) {
            require(given[i].matrix.rows == given[i].rows && given[i].matrix.columns == given[i].columns,
                    block + given[i].name + ": unexpected shape");
            matrices[i] = OwnedMatrix(given[i].matrix, block + given[i].name);
            view.matrices[i] = matrices[i].view;
        }
    }
};

struct Sizes {
    int layers, channels, hidden, vocabulary; // hidden: of the widest layer
    int groups, hidden_groups;                // at most, of a row of C and of hidden columns
    bool classifier;
    float p_init;
    int stride() const { return padded(channels); }
    int hidden_stride() const { return padded(hidden); }
};

constexpr size_t LOGIT_BYTES = 64 * MIB; // logits that are computed before they are fetched
constexpr int CHUNK_ROWS = 4096;         // rows that a layer takes at once

/* What `rows` rows need on their way through the layers. */
struct Workspace {
    int rows, logit_rows;
    Memory x, carry, k, v, gate, mixed, gated, hidden, logits, mask, tokens;

    Workspace(const Sizes &s, int rows, int batch) : rows(rows) {
        const char *what = "buffers";
        size_t n = rows, floats = n * s.channels * sizeof(float);
        for (Memory *memory : {&x, &k, &v, &gate}) *memory = Memory::device(floats, what);
        carry = Memory::device(size_t(batch) * s.channels * sizeof(float), what);
        mixed = Memory::device(3 * n * s.stride() * sizeof(__half), what);
        gated = Memory::device(n * s.stride() * sizeof(__half), what);
        hidden = Memory::device(n * s.hidden_stride() * sizeof(__half), what);
        tokens = Memory::pinned(n * sizeof(int64_t), what);
        logit_rows = 0;
        if (s.classifier) {
            mask = Memory::device(n * sizeof(float), what);
            logits = Memory::device(size_t(batch) * s.channels * sizeof(float), what); // the sums of features
        } else {
            size_t row = size_t(s.vocabulary) * sizeof(float);
            logit_rows = int(std::min(n, std::max(size_t(1), LOGIT_BYTES / row)));
            logits = Memory::device(logit_rows * row, what);
        }
    }
};

struct Stream {
    cudaStream_t stream = nullptr;
    Stream() { check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream"); }
    Stream(const Stream &) = delete;
    ~Stream() { cudaStreamDestroy(stream); }
};

struct Event {
    cudaEvent_t event = nullptr;
    Event() { check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event"); }
    Event(const Event &) = delete;
    ~Event() { cudaEventDestroy(event); }
};

/* Pinned memory that results pass through on their way to memory which the driver cannot reach by itself. */
struct Staging {
    Memory memory[2];
    Event ready[2];
    void *reserve(int i, size_t bytes) {
        if (memory[i].bytes() < bytes) memory[i] = Memory::pinned(bytes, "buffers");
        return memory[i].as<void>();
    }
};

} // namespace qslm

struct qslm_model {
    qslm::Sizes sizes;
    qslm::Stream stream;
    qslm::Launcher launch;
    int shared_limit, multiprocessors; // bytes of shared memory that a block can have; of the GPU
    qslm::Memory ends; // ln0, ln_out
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
    std::vector<std::unique_ptr<qslm::Layer>> layers;
    qslm::Memory views; // of the layers, on the device
    qslm::Embedding embedding{};
    qslm::Memory embedding_codes, embedding_scales, embedding_zeros;
    qslm::OwnedMatrix head;
    qslm::Staging staging;
    std::unique_ptr<qslm::Workspace> chunk; // of prompts and windows
    int chunk_batch = 0;

    explicit qslm_model(const qslm_spec &spec);
    qslm::Workspace &workspace(int rows, int batch) {
        if (!chunk || chunk->rows < rows || chunk_batch < batch) {
            chunk.reset();
            chunk = std::make_unique<qslm::Workspace>(sizes, rows, batch);
            chunk_batch = batch;
        }
        return *chunk;
    }
};

struct qslm_state {
    qslm_model *model;
    int batch;
    qslm::Memory parts; // [7 L, batch, C]
    qslm::Workspace step;
    qslm::Memory arrived, tasks;     // of the groups and the blocks of a step
    const float *logits = nullptr;   // where the last step left them
    cudaGraphExec_t graph = nullptr; // a step that leaves them there

    qslm_state(qslm_model *model, int batch)
        : model(model), batch(batch),
          parts(qslm::Memory::device(size_t(qslm::PARTS) * model->sizes.layers * batch * model->sizes.channels *
                                         sizeof(float),
                                     "state")),
          step(model->sizes, batch, batch), arrived(qslm::Memory::device(2 * batch * sizeof(unsigned), "state")) {}
    qslm_state(const qslm_state &) = delete;
    ~qslm_state() {
        if (graph) cudaGraphExecDestroy(graph);
    }
    size_t row() const { return size_t(batch) * model->sizes.channels; }
    float *part(int layer, qslm::Part i) const { return parts.as<float>() + (layer * qslm::PARTS + i) * row(); }
};

inline qslm_model::qslm_model(const qslm_spec &spec) {
    using namespace qslm;
    require(spec.abi == QSLM_ABI, "interface " + std::to_string(spec.abi) + " of the caller, " +
                                      std::to_string(QSLM_ABI) + " of the library");
    require(spec.n_layer > 0 && spec.n_embd > 0 && spec.vocab_size > 0 && spec.layers, "empty model");
    const int channels = spec.n_embd;
    require(channels <= CHANNELS_AT_MOST, std::to_string(channels) + " channels; this backend takes up to " +
                                              std::to_string(CHANNELS_AT_MOST));
    sizes = {spec.n_layer, channels, 0, spec.vocab_size, 0, 0, spec.kind == QSLM_CLASSIFIER, spec.p_init};
    launch.stream = stream.stream;
    int device = 0, major = 0, driver = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    check(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "device");
    check(cudaDriverGetVersion(&driver), "driver");
    launch.overlap = major >= 9 && driver >= PROGRAMMATIC_LAUNCH && CUDART_VERSION >= PROGRAMMATIC_LAUNCH;

    std::vector<float> host;
    for (const float *vector : {spec.ln0_weight, spec.ln0_bias, spec.ln_out_weight, spec.ln_out_bias})
        host.insert(host.end(), vector, vector + channels);
    ends = Memory::copy_of(host.data(), host.size() * sizeof(float), "vectors");
    ln0_weight = ends.as<float>(), ln0_bias = ln0_weight + channels;
    ln_out_weight = ln0_bias + channels, ln_out_bias = ln_out_weight + channels;

    const qslm_matrix &e = spec.embedding;
    require(e.rows == spec.vocab_size && e.columns == channels, "embedding: unexpected shape");
    require(e.bits == 1 || e.bits == 2 || e.bits == 4 || e.bits == 8 || e.bits == 16 || e.bits == 32,
            "embedding: no table of " + std::to_string(e.bits) + " bits");
    require(e.bits >= 16 || channels % (8 / std::min(e.bits, 8)) == 0, "embedding: rows must fill whole bytes");
    embedding_codes = Memory::copy_of(e.codes, size_t(e.rows) * channels * e.bits / 8, "embedding");
    embedding = {embedding_codes.as<void>(), nullptr,   nullptr, e.bits, e.group, e.scale_bits, e.midrise,
                 spec.binary_embedding,      e.rows};
    if (e.bits > 1 && e.bits < 16) {
        require(e.group > 0 && channels % e.group == 0 && e.scales, "embedding: groups must divide the row");
        size_t groups = channels / e.group;
        embedding_scales = Memory::copy_of(e.scales, e.rows * groups * e.scale_bits / 8, "embedding");
        embedding.scales = embedding_scales.as<void>();
        if (e.zeros) {
            embedding_zeros = Memory::copy_of(e.zeros, e.rows * ((groups * e.bits + 7) / 8), "embedding");
            embedding.zeros = embedding_zeros.as<uint8_t>();
        }
    }
    for (int i = 0; i < spec.n_layer; ++i) {
        layers.push_back(std::make_unique<Layer>(spec.layers[i], channels, i));
        sizes.hidden = std::max(sizes.hidden, spec.layers[i].ffn_key.rows);
        for (int j = 0; j < MATRICES; ++j) {
            int &most = j == FFN_VALUE ? sizes.hidden_groups : sizes.groups;
            most = std::max(most, layers.back()->view.matrices[j].groups);
        }
    }
    std::vector<LayerView> seen;
    for (const auto &layer : layers) seen.push_back(layer->view);
    views = Memory::copy_of(seen.data(), seen.size() * sizeof(LayerView), "vectors");
    if (!sizes.classifier) {
        require(spec.head.rows == spec.vocab_size && spec.head.columns == channels, "head: unexpected shape");
        head = OwnedMatrix(spec.head, "head");
    }
}
