/* The C interface of qslm.h: exceptions become error codes with one line of text. */
#include <cstring>
#include <exception>
#include <system_error>

#pragma GCC visibility push(default)
#include "qslm.h"
#pragma GCC visibility pop

#include "model.h"

struct qslm_model {
    qslm::Model model;
};
struct qslm_state : qslm::State {};

namespace {

int fail(int code, const char *text, char *error, size_t error_bytes) {
    if (error_bytes > 0) {
        std::strncpy(error, text, error_bytes - 1);
        error[error_bytes - 1] = '\0';
    }
    return code;
}

template <typename Body> int guarded(char *error, size_t error_bytes, const Body &body) {
    try {
        body();
        return QSLM_OK;
    } catch (const qslm::BadArgument &problem) {
        return fail(QSLM_BAD_ARGUMENT, problem.what(), error, error_bytes);
    } catch (const std::bad_alloc &) {
        return fail(QSLM_OUT_OF_MEMORY, "memory does not suffice", error, error_bytes);
    } catch (const std::system_error &) {
        return fail(QSLM_DEVICE_FAILED, "threads cannot be started", error, error_bytes);
    } catch (const std::exception &problem) {
        return fail(QSLM_DEVICE_FAILED, problem.what(), error, error_bytes);
    }
}

template <typename Copy> void each_row(const qslm::State &state, const Copy &copy) {
    for (ptrdiff_t row = 0; row < ptrdiff_t(state.layers) * qslm::kParts * state.batch; ++row)
        copy(state.values.data() + row * state.width, row * state.channels);
}

} // namespace

extern "C" {

int qslm_abi(void) { return QSLM_ABI; }

const char *qslm_describe(void) { return qslm::packed::name(); }

int qslm_open(const qslm_spec *spec, qslm_model **model, char *error, size_t error_bytes) {
    if (!qslm::packed::runs_here()) /* before anything that was compiled to them */
        return fail(QSLM_NO_DEVICE, "this processor lacks instructions that the library was compiled to", error, error_bytes);
    return guarded(error, error_bytes, [&] { *model = new qslm_model{qslm::Model(*spec)}; });
}

void qslm_close(qslm_model *model) { delete model; }

int qslm_state_new(qslm_model *model, int32_t batch, qslm_state **state, char *error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        std::unique_ptr<qslm_state> started(new qslm_state);
        model->model.start(*started, batch);
        *state = started.release();
    });
}

void qslm_state_free(qslm_state *state) { delete state; }

int qslm_state_read(const qslm_state *state, float *out, char *error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        each_row(*state, [&](const float *row, ptrdiff_t at) { std::memcpy(out + at, row, sizeof(float) * state->channels); });
    });
}

int qslm_state_write(qslm_state *state, const float *in, char *error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        each_row(*state, [&](float *row, ptrdiff_t at) { std::memcpy(row, in + at, sizeof(float) * state->channels); });
    });
}

int qslm_run(qslm_model *model, qslm_state *state, const int64_t *tokens, int32_t n_tokens, const float *mask,
             int32_t last, float *out, char *error, size_t error_bytes) {
    return guarded(error, error_bytes, [&] {
        model->model.run(*state, tokens, n_tokens, mask, last, out);
    });
}

} // extern "C"
