/* A matrix of the model, its inputs, and the product of both, by any of three kernels:
 *
 *   packed.cpp    packed codes times inputs rounded to int8, in packed_few.cpp and packed_many.cpp
 *   unpacked.cpp  packed codes times float inputs
 *   columns.cpp   float weights, stored column by column
 *
 * Each has one form for few tokens, bound by reading the weights, and one for many, bound by arithmetic. Both sum in
 * the same order: a token's result does not depend on how many run beside it.
 */
#ifndef QSLM_MATRIX_H
#define QSLM_MATRIX_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "qslm.h"

namespace qslm {

/* Memory at 64-byte offsets that only grows, its content undefined after growing. */
template <typename T> class Buffer {
  public:
    T *data() const { return data_.get(); }
    T *reserve(size_t count) {
        if (count > count_) {
            data_.reset();
            count_ = 0;
            data_.reset(static_cast<T *>(::operator new(count * sizeof(T), std::align_val_t{64})));
            count_ = count;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(T *p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t count_ = 0;
};

struct Matrix : qslm_matrix {
    enum Kind { kPacked, kUnpacked, kColumns };

    explicit Matrix(const qslm_matrix &given);
    Matrix() : qslm_matrix{} {}

    Kind kind = kColumns;
    int planes = 0;      /* codes a byte */
    int groups = 0;      /* a row */
    int group_bytes = 0; /* of codes */
    int row_bytes = 0;
    int zero_bytes = 0;  /* a row */
    int vectors = 0;     /* of codes a row, the last one partly filled */

    /* Scale of a row and group. */
    float scale(int row, int g) const;
    /* Zero point, twice: of mid-rise levels it is no whole number. */
    int twice_zero(int row, int g) const;
};

/* Inputs of one matrix for some tokens, as its kernel wants them. */
struct Input {
    Buffer<int8_t> codes;  /* packed: [token][vector][plane][byte], zeros at the end */
    Buffer<int8_t> raised; /* packed, where it raises: the same plus 128, unsigned */
    Buffer<float> scales;  /* packed: [token][group] */
    Buffer<int32_t> sums;  /* packed: of the codes of a group */
    Buffer<float> halves;  /* mid-rise: half the sum of the inputs of a group */
    Buffer<float> floats;  /* else: [token][column], within a group by planes where weights are packed */

    /* Make room for inputs of `matrix`. */
    void reserve(const Matrix &matrix, int tokens);
    /* Bring in x [columns] of one token; floats behind them up to a multiple of 16 are zeros. */
    void set(const Matrix &matrix, int token, const float *x);
};

/* Work space of one thread. */
struct Scratch {
    Buffer<float> scales;
    Buffer<int32_t> zeros;
    Buffer<uint8_t> codes;
    Buffer<float> sums;
    Buffer<float> weights;

    void reserve(const Matrix &matrix, int tokens);
};

/* One product: out[token * stride + row] for the rows of the matrix. */
struct Product {
    const Matrix *matrix;
    const Input *input;
    int tokens;
    float *out;
    ptrdiff_t stride;
};

constexpr int kUnitRows = 64; /* rows of a product are shared out in multiples of it */

/* Rows `begin` to `end` (kUnitRows divides `begin`). */
void multiply(const Product &product, int begin, int end, Scratch &scratch);

/* Row of the embedding, as floats. */
void embedding_row(const qslm_matrix &table, bool binary, int64_t token, float *out);

namespace packed {
void reserve(const Matrix &matrix, int tokens, Scratch &scratch);
void multiply(const Product &product, int begin, int end, Scratch &scratch);
int vectors(int row_bytes);
void set(const Matrix &matrix, Input &input, int token, const float *x);
ptrdiff_t codes_stride(const Matrix &matrix);
/* Whether products of this matrix take raised inputs. */
bool raises(const Matrix &matrix);
/* Whether this processor has the instructions that the products are compiled to. */
bool runs_here();
const char *name();
} // namespace packed

namespace unpacked {
void reserve(const Matrix &matrix, int tokens, Scratch &scratch);
void multiply(const Product &product, int begin, int end, Scratch &scratch);
void set(const Matrix &matrix, Input &input, int token, const float *x);
} // namespace unpacked

namespace columns {
void reserve(const Matrix &matrix, int tokens, Scratch &scratch);
void multiply(const Product &product, int begin, int end, Scratch &scratch);
} // namespace columns

} // namespace qslm
#endif
