/* Small random models run through the C interface, a digest of all bits of each: what the engine is held against where
 * Python does not run, as under emulation. The first line names the instruction set, then one line a model.
 */
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "qslm.h"

namespace {

constexpr int kChannels = 128, kVocabulary = 37, kTokens = 7, kStreams = 3;

struct Level {
    int bits, group, scale_bits;
    bool midrise, float_activations;
};

void check(int code, const char *error) {
    if (code == QSLM_OK) return;
    std::printf("error %d: %s\n", code, error);
    std::exit(1);
}

/* Numbers that are the same everywhere: splitmix64, and floats that are exact. */
class Draws {
  public:
    explicit Draws(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    /* Within -size ... size. */
    float symmetric(float size) { return (float(int64_t(next() >> 40)) * 0x1p-23f - 1.0f) * size; }

  private:
    uint64_t state_;
};

/* A model and the memory that it lies in. */
class Random {
  public:
    Random(const Level &level, uint64_t seed) : level_(level), draws_(seed) {
        qslm_layer &l = layer_;
        const int hidden = level.group ? 3 * level.group : 72; /* vectors of codes and of rows that are partly filled */
        for (const float **v : {&l.ln1_weight, &l.ln2_weight}) *v = floats(kChannels, 0.5f, 1.0f);
        for (const float **v : {&l.ln1_bias, &l.ln2_bias, &l.time_first}) *v = floats(kChannels, 0.5f, 0.0f);
        l.decay = floats(kChannels, 0.4f, -0.5f);
        l.att_mix = floats(3 * kChannels, 0.5f, 0.5f);
        l.ffn_mix = floats(2 * kChannels, 0.5f, 0.5f);
        for (qslm_matrix *m : {&l.att_key, &l.att_value, &l.att_receptance, &l.att_output, &l.ffn_receptance})
            *m = matrix(kChannels, kChannels);
        l.ffn_key = matrix(hidden, kChannels);
        l.ffn_value = matrix(kChannels, hidden);
        spec.abi = QSLM_ABI;
        spec.n_layer = 1;
        spec.n_embd = kChannels;
        spec.vocab_size = kVocabulary;
        spec.kind = QSLM_LANGUAGE_MODEL;
        spec.p_init = -1e38f;
        spec.embedding.rows = kVocabulary;
        spec.embedding.columns = kChannels;
        spec.embedding.bits = 32;
        spec.embedding.codes = floats(kVocabulary * kChannels, 1.0f, 0.0f);
        spec.head = matrix(kVocabulary, kChannels);
        spec.ln0_weight = spec.ln_out_weight = floats(kChannels, 0.5f, 1.0f);
        spec.ln0_bias = spec.ln_out_bias = floats(kChannels, 0.5f, 0.0f);
        spec.layers = &layer_;
    }

    qslm_spec spec{};

  private:
    const float *floats(int count, float size, float centre) {
        auto *out = static_cast<float *>(room(sizeof(float) * count));
        for (int i = 0; i < count; ++i) out[i] = centre + draws_.symmetric(size);
        return out;
    }
    /* Of any size, from those that only a subnormal holds. */
    uint16_t half() {
        const uint64_t x = draws_.next();
        const int exponent = x >> 32 & 1 ? 8 : x >> 33 & 3;
        return uint16_t(exponent << 10 | (x & 0x3ff));
    }
    qslm_matrix matrix(int rows, int columns) {
        qslm_matrix m{};
        m.rows = rows;
        m.columns = columns;
        m.bits = level_.bits;
        if (level_.bits == 32) {
            m.codes = floats(rows * columns, 0.2f, 0.0f);
            return m;
        }
        if (level_.bits == 16) {
            auto *out = static_cast<uint16_t *>(room(2 * rows * columns));
            for (int i = 0; i < rows * columns; ++i) out[i] = half() | uint16_t(draws_.next() & 0x8000);
            m.codes = out;
            return m;
        }
        const int groups = columns / level_.group;
        m.group = level_.group;
        m.scale_bits = level_.scale_bits;
        m.midrise = level_.midrise;
        m.float_activations = level_.float_activations;
        m.codes = bytes(rows * columns * level_.bits / 8);
        if (level_.scale_bits == 32) {
            m.scales = floats(rows * groups, 0.01f, 0.01f);
        } else {
            auto *out = static_cast<uint16_t *>(room(2 * rows * groups));
            for (int i = 0; i < rows * groups; ++i) out[i] = half();
            m.scales = out;
        }
        if (!level_.midrise) m.zeros = bytes(rows * ((groups * level_.bits + 7) / 8));
        return m;
    }
    const uint8_t *bytes(int count) {
        auto *out = static_cast<uint8_t *>(room(count));
        for (int i = 0; i < count; ++i) out[i] = uint8_t(draws_.next());
        return out;
    }
    void *room(size_t size) { return kept_.emplace_back(size + 8).data(); }

    Level level_;
    Draws draws_;
    qslm_layer layer_{};
    std::deque<std::vector<uint8_t>> kept_;
};

/* FNV-1a over the bits of finite floats. */
uint64_t digest(const std::vector<float> &values) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (float value : values) {
        if (!std::isfinite(value)) check(1, "a value that is not finite");
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        hash = (hash ^ bits) * 0x100000001b3u;
    }
    return hash;
}

/* Logits of all tokens and the state behind them, fed `size` tokens at a time. */
std::vector<float> run(const qslm_spec &spec, int streams, int size) {
    char error[256] = "";
    qslm_model *model = nullptr;
    qslm_state *state = nullptr;
    check(qslm_open(&spec, &model, error, sizeof error), error);
    check(qslm_state_new(model, streams, &state, error, sizeof error), error);
    std::vector<int64_t> tokens;
    for (int i = 0; i < kTokens * streams; ++i) tokens.push_back((i * 29 + 5) % kVocabulary);
    const size_t logits = size_t(streams) * kVocabulary;
    std::vector<float> out(kTokens * logits + size_t(7) * streams * kChannels);
    for (int begin = 0; begin < kTokens; begin += size) {
        const int count = begin + size > kTokens ? kTokens - begin : size;
        check(qslm_run(model, state, tokens.data() + begin * streams, count, nullptr, count, out.data() + begin * logits,
                       error, sizeof error),
              error);
    }
    check(qslm_state_read(state, out.data() + kTokens * logits, error, sizeof error), error);
    qslm_state_free(state);
    qslm_close(model);
    return out;
}

} // namespace

int main() {
    std::printf("%s\n", qslm_describe());
    std::vector<Level> levels{{32, 0, 0, false, true}, {16, 0, 0, false, true}};
    for (int bits : {8, 4, 2})
        for (int group : {32, 64, 128})
            for (bool float_activations : {false, true})
                levels.push_back({bits, group, group == 64 ? 32 : 16, false, float_activations});
    levels.push_back({2, 64, 16, true, false});
    for (size_t i = 0; i < levels.size(); ++i) {
        Random random(levels[i], i);
        std::printf("%dg%d%s%s", levels[i].bits, levels[i].group, levels[i].midrise ? "m" : "",
                    levels[i].float_activations ? "f" : "");
        for (int size : {1, kTokens})
            for (int streams : {1, kStreams}) {
                random.spec.threads = streams;
                std::printf(" %016llx", static_cast<unsigned long long>(digest(run(random.spec, streams, size))));
            }
        std::printf("\n");
    }
}
