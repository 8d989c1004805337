/* SpikeGPT over packed weights: the layers, their state, and a run over tokens. */
#ifndef QSLM_MODEL_H
#define QSLM_MODEL_H

#include <stdexcept>
#include <string>
#include <vector>

#include "matrix.h"
#include "pool.h"

namespace qslm {

/* What the caller gave is wrong. */
struct BadArgument : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum Part { kAttX, kFfnX, kA, kB, kP, kV1, kV2, kParts };

struct State {
    int layers = 0, batch = 0, channels = 0;
    int width = 0;        /* floats between rows: a multiple of 16 */
    Buffer<float> values; /* [7 L, batch, width] */

    float *part(int layer, int which) const {
        return values.data() + ptrdiff_t(layer * kParts + which) * batch * width;
    }
};

struct Layer {
    qslm_layer vectors;
    Matrix att_key, att_value, att_receptance, att_output, ffn_key, ffn_receptance, ffn_value;
};

class Model {
  public:
    explicit Model(const qslm_spec &spec);

    /* Streams that have seen nothing. */
    void start(State &state, int batch) const;
    void run(State &state, const int64_t *tokens, int n_tokens, const float *mask, int last, float *out);

  private:
    struct Chunk; /* tokens that run through the layers together */

    void reserve(int rows);
    void embed(const Chunk &chunk);
    void attention(int layer, const Chunk &chunk);
    void feed_forward(int layer, const Chunk &chunk);
    void head(const Chunk &chunk, int first, float *out);
    void pool_features(const Chunk &chunk, const float *mask, float *out);
    void norm(const Chunk &chunk, int first, const float *weight, const float *bias);
    void mix(const Chunk &chunk, const float *mixes, int count, const Matrix *const *matrices, const float *before);
    void fire(const Chunk &chunk, const float *current, const float *gate, float *membranes);
    void multiply(const Product *products, int count);
    template <typename Body> void each(int count, int grain, const Body &body);

    qslm_spec spec_;
    int channels_, width_, hidden_width_;
    std::vector<Layer> layers_;
    Matrix head_;
    Pool pool_;
    std::vector<Scratch> scratch_;
    Input inputs_[3];
    Buffer<float> x_, h_, key_, value_, receptance_, hidden_, rows_;
};

} // namespace qslm
#endif
