/* What the runner calls of a native backend: one SpikeGPT model over packed weights, any number of streams.
 *
 * The runner owns the weights (model.bin, mapped read-only) and passes pointers into them; a backend reads them where
 * they lie (CPU) or copies them to its device. Arithmetic: docs/native.md. Everything is time-major.
 * Functions return 0, or an error code with one line of text in `error`.
 */
#ifndef QSLM_H
#define QSLM_H

#include <stddef.h>
#include <stdint.h>

#define QSLM_ABI 1

#ifdef __cplusplus
extern "C" {
#endif

enum { QSLM_OK = 0, QSLM_BAD_ARGUMENT = 1, QSLM_OUT_OF_MEMORY = 2, QSLM_NO_DEVICE = 3, QSLM_DEVICE_FAILED = 4 };
enum { QSLM_LANGUAGE_MODEL = 0, QSLM_CLASSIFIER = 1 };

/* A matrix [rows, columns] (outputs, inputs), as docs/bundle.md lays it out.
 * bits 8, 4, 2: codes [rows, groups, group bits / 8], scales [rows, groups], zeros [rows, ceil(groups bits / 8)].
 * bits 32, 16: codes are floats, [columns, rows] for a matrix and [rows, columns] for the embedding.
 * The embedding is planar where packed; bits 1 is a binary one. */
typedef struct {
    int32_t rows, columns;
    int32_t bits;
    int32_t group;             /* columns a scale; 0 where there is none */
    int32_t scale_bits;        /* 16 or 32; 0 where there is none */
    int32_t midrise;           /* 1: w = (q - (2^bits - 1) / 2) s, no zero points */
    int32_t float_activations; /* 1: inputs stay float32; 0: rounded to int8 for each row and group */
    int32_t reserved;
    const void *codes;
    const void *scales;
    const uint8_t *zeros;      /* NULL: none */
} qslm_matrix;

typedef struct {
    const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias; /* [C] */
    const float *att_mix;    /* [3, C]: key, value, receptance */
    const float *time_first; /* [C]: u */
    const float *decay;      /* [C]: w = -exp(time_decay) */
    const float *ffn_mix;    /* [2, C]: key, receptance */
    qslm_matrix att_key, att_value, att_receptance, att_output;
    qslm_matrix ffn_key, ffn_receptance, ffn_value; /* hidden units: rows of ffn_key, which may differ by layer */
} qslm_layer;

typedef struct {
    int32_t abi; /* QSLM_ABI */
    int32_t n_layer, n_embd, vocab_size;
    int32_t kind;             /* QSLM_LANGUAGE_MODEL or QSLM_CLASSIFIER */
    int32_t binary_embedding; /* 1: a float embedding is used as [x >= 0] */
    int32_t threads;          /* CPU backend: threads that compute, the caller among them */
    float p_init;             /* start of the running exponent p */
    qslm_matrix embedding, head; /* head: language model only, else all zero */
    const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias; /* [C] */
    const qslm_layer *layers;
} qslm_spec;

typedef struct qslm_model qslm_model;
typedef struct qslm_state qslm_state;

int qslm_abi(void);

/* What the backend is and computes with, as one line, e.g. "cpu avx512-vnni" or the name of the GPU. Static. */
const char *qslm_describe(void);

int qslm_open(const qslm_spec *spec, qslm_model **model, char *error, size_t error_bytes);
void qslm_close(qslm_model *model);

/* State of `batch` streams that have seen nothing. */
int qslm_state_new(qslm_model *model, int32_t batch, qslm_state **state, char *error, size_t error_bytes);
void qslm_state_free(qslm_state *state);
/* Copy as [7 L, batch, C] float32: per layer att_x, ffn_x, a, b, p, v1, v2. */
int qslm_state_read(const qslm_state *state, float *out, char *error, size_t error_bytes);
int qslm_state_write(qslm_state *state, const float *in, char *error, size_t error_bytes);

/* Run tokens [n_tokens, batch]; the state is moved on in place.
 * Language model: logits [last, batch, vocab_size] of the last `last` tokens (last >= 1); mask is NULL.
 * Classifier: mask [n_tokens, batch]; pooled [batch, C] is the masked sum of features. */
int qslm_run(qslm_model *model, qslm_state *state, const int64_t *tokens, int32_t n_tokens, const float *mask,
             int32_t last, float *out, char *error, size_t error_bytes);

#ifdef __cplusplus
}
#endif
#endif
