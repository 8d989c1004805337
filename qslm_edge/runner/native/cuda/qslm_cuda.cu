/* The native backend for NVIDIA GPUs: qslm.h over CUDA. Built as one unit: nvcc -shared qslm_cuda.cu.
 *
 * Prompts and windows go through in chunks. Results go where the caller says: memory of the GPU or pinned memory
 * directly, other memory through pinned buffers.
 */
#include <cstdio>
#include <new>

#include "forward.cuh"

namespace qslm {

/* Runs what may fail; the code and the line of a failure. */
template <class Work> int guarded(char *error, size_t error_bytes, Work work) {
    auto tell = [&](int code, const char *line) {
        if (error && error_bytes) std::snprintf(error, error_bytes, "%s", line);
        return code;
    };
    try {
        work();
        return QSLM_OK;
    } catch (const Failure &failure) {
        return tell(failure.code, failure.line.c_str());
    } catch (const std::bad_alloc &) {
        return tell(QSLM_OUT_OF_MEMORY, "memory of the host is used up");
    } catch (const std::exception &failure) {
        return tell(QSLM_DEVICE_FAILED, failure.what());
    }
}

inline cudaMemoryType kind_of(const void *pointer) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, pointer), "result");
    return attributes.type;
}

/* Hands results out piece by piece: a piece is fetched while the next one is computed. */
class Delivery {
  public:
    Delivery(qslm_model &model, float *out) : m_(model), out_(out), kind_(kind_of(out)) {}

    /* Where a kernel may write the whole result at once: where it is wanted, else `buffer`. */
    float *target(float *buffer) const { return kind_ == cudaMemoryTypeDevice ? out_ : buffer; }

    void fetch(const float *from, size_t floats) {
        if (from == out_) return;
        size_t bytes = floats * sizeof(float);
        cudaStream_t stream = m_.stream.stream;
        if (kind_ != cudaMemoryTypeUnregistered) {
            check(cudaMemcpyAsync(out_ + done_, from, bytes, cudaMemcpyDefault, stream), "result");
            done_ += floats;
            return;
        }
        check(cudaMemcpyAsync(m_.staging.reserve(turn_, bytes), from, bytes, cudaMemcpyDeviceToHost, stream), "result");
        check(cudaEventRecord(m_.staging.ready[turn_].event, stream), "result");
        settle();
        pending_ = floats, turn_ ^= 1;
    }

    void finish() {
        settle();
        check(cudaStreamSynchronize(m_.stream.stream), "computing");
    }

  private:
    void settle() { // the piece before
        if (!pending_) return;
        check(cudaEventSynchronize(m_.staging.ready[turn_ ^ 1].event), "computing");
        std::memcpy(out_ + done_, m_.staging.memory[turn_ ^ 1].as<void>(), pending_ * sizeof(float));
        done_ += pending_, pending_ = 0;
    }
    qslm_model &m_;
    float *out_;
    cudaMemoryType kind_;
    size_t done_ = 0, pending_ = 0;
    int turn_ = 0;
};

/* A step as a graph from the second time on that its logits go to the same place; false where it is not one kernel. */
inline bool step(qslm_model &m, qslm_state &s, float *logits) {
    cudaStream_t stream = m.stream.stream;
    Forward forward(m, s, s.step, 1);
    if (s.logits != logits) { // kernels are loaded when they first run, which a capture cannot do
        if (s.graph) cudaGraphExecDestroy(s.graph);
        s.graph = nullptr;
        if (!forward.step(logits)) return false;
        s.logits = logits;
        return true;
    }
    if (!s.graph) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        try {
            forward.step(logits);
        } catch (const Failure &) {
            cudaStreamEndCapture(stream, &graph);
            if (graph) cudaGraphDestroy(graph);
            cudaGetLastError();
            throw;
        }
        check(cudaStreamEndCapture(stream, &graph), "capture");
        cudaError_t status = cudaGraphInstantiate(&s.graph, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "graph");
    }
    check(cudaGraphLaunch(s.graph, stream), "graph");
    return true;
}

/* Tokens [n_tokens, batch] in chunks of rows, each through all layers. */
inline void run(qslm_model &m, qslm_state &s, const int64_t *tokens, int n_tokens, const float *mask, int last,
                float *out) {
    const Sizes &z = m.sizes;
    const int batch = s.batch;
    cudaStream_t stream = m.stream.stream;
    Delivery delivery(m, out);
    if (n_tokens == 1 && !z.classifier && batch <= s.step.logit_rows) {
        std::memcpy(s.step.tokens.as<void>(), tokens, size_t(batch) * sizeof *tokens);
        float *logits = delivery.target(s.step.logits.as<float>());
        if (step(m, s, logits)) {
            delivery.fetch(logits, size_t(batch) * z.vocabulary);
            return delivery.finish();
        }
    }
    const int at_once = std::min(n_tokens, std::max(1, CHUNK_ROWS / batch));
    Workspace &w = at_once == 1 ? s.step : m.workspace(at_once * batch, batch);
    if (z.classifier)
        check(cudaMemsetAsync(w.logits.as<void>(), 0, size_t(batch) * z.channels * sizeof(float), stream), "buffers");
    for (int begin = 0; begin < n_tokens; begin += at_once) {
        const int count = std::min(at_once, n_tokens - begin), rows = count * batch;
        if (begin > 0) check(cudaStreamSynchronize(stream), "computing"); // the token buffer is still read
        std::memcpy(w.tokens.as<void>(), tokens + size_t(begin) * batch, size_t(rows) * sizeof *tokens);
        if (z.classifier)
            check(cudaMemcpyAsync(w.mask.as<void>(), mask + size_t(begin) * batch, rows * sizeof(float),
                                  cudaMemcpyDefault, stream),
                  "mask");
        Forward forward(m, s, w, count);
        forward.layers();
        if (z.classifier) {
            forward.pooled();
            continue;
        }
        const int skipped = std::max(0, n_tokens - last - begin) * batch; // rows whose logits nobody wants
        for (int row = skipped; row < rows; row += w.logit_rows) {
            int piece = std::min(w.logit_rows, rows - row);
            forward.head(row, piece);
            delivery.fetch(w.logits.as<float>(), size_t(piece) * z.vocabulary);
        }
    }
    if (z.classifier) delivery.fetch(w.logits.as<float>(), size_t(batch) * z.channels);
    delivery.finish();
}

} // namespace qslm

extern "C" {

int qslm_abi(void) { return QSLM_ABI; }

const char *qslm_describe(void) {
    static char text[400];
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
        cudaGetLastError();
        return "cuda without a device";
    }
    std::snprintf(text, sizeof text, "cuda %s (sm_%d%d), inputs float16, weights exact, sums float32", properties.name,
                  properties.major, properties.minor);
    return text;
}

int qslm_open(const qslm_spec *spec, qslm_model **model, char *error, size_t error_bytes) {
    return qslm::guarded(error, error_bytes, [&] {
        qslm::require(spec && model, "no model");
        int devices = 0;
        qslm::check(cudaGetDeviceCount(&devices), "no NVIDIA GPU");
        *model = new qslm_model(*spec);
    });
}

void qslm_close(qslm_model *model) { delete model; }

int qslm_state_new(qslm_model *model, int32_t batch, qslm_state **state, char *error, size_t error_bytes) {
    return qslm::guarded(error, error_bytes, [&] {
        qslm::require(model && state && batch > 0, "a state needs a model and at least one stream");
        auto made = std::make_unique<qslm_state>(model, batch);
        std::vector<float> start(made->row(), model->sizes.p_init);
        for (int i = 0; i < model->sizes.layers; ++i)
            qslm::check(cudaMemcpy(made->part(i, qslm::WKV_P), start.data(), start.size() * sizeof(float),
                                   cudaMemcpyHostToDevice),
                        "state");
        qslm::settle("state");
        *state = made.release();
    });
}

void qslm_state_free(qslm_state *state) { delete state; }

int qslm_state_read(const qslm_state *state, float *out, char *error, size_t error_bytes) {
    return qslm::guarded(error, error_bytes, [&] {
        qslm::require(state && out, "no state");
        qslm::check(cudaMemcpy(out, state->parts.as<void>(), state->parts.bytes(), cudaMemcpyDefault), "state");
        qslm::settle("state");
    });
}

int qslm_state_write(qslm_state *state, const float *in, char *error, size_t error_bytes) {
    return qslm::guarded(error, error_bytes, [&] {
        qslm::require(state && in, "no state");
        qslm::check(cudaMemcpy(state->parts.as<void>(), in, state->parts.bytes(), cudaMemcpyDefault), "state");
        qslm::settle("state");
    });
}

int qslm_run(qslm_model *model, qslm_state *state, const int64_t *tokens, int32_t n_tokens, const float *mask,
             int32_t last, float *out, char *error, size_t error_bytes) {
    return qslm::guarded(error, error_bytes, [&] {
        using qslm::require;
        require(model && state && tokens && out && n_tokens > 0, "a run needs a model, a state, tokens and a result");
        require(state->model == model, "the state is of another model");
        const qslm::Sizes &sizes = model->sizes;
        require(sizes.classifier ? mask != nullptr : last >= 1 && last <= n_tokens,
                sizes.classifier ? "a classifier needs a mask" : "logits are of 1 to n_tokens last tokens");
        for (size_t i = 0; i < size_t(n_tokens) * state->batch; ++i)
            require(tokens[i] >= 0 && tokens[i] < sizes.vocabulary,
                    "a token id that the vocabulary does not hold: " + std::to_string(tokens[i]));
        qslm::run(*model, *state, tokens, n_tokens, mask, last, out);
    });
}

} // extern "C"
