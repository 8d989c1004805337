/* Products of a step: the warps of a block share out slices of a few matrices, whose inputs lie in shared memory.
 *
 * A strip is up to three tiles, so that an input which is read serves three products. The vectors of all strips are put in
 * a row and cut into equal shares, one a warp; where a strip is cut, its parts meet in shared memory. Codes are copied to
 * shared memory some vectors ahead, each lane its own, so that a share is on its way long before its inputs are there.
 */
#pragma once

#include "product.cuh"

namespace qslm {

constexpr int STRIP = 3; // tiles
constexpr int STEP_WARPS = 12, STEP_THREADS = 32 * STEP_WARPS;
constexpr int PART_STRIDE = spill_stride(STRIP * TILE_ROWS);
constexpr int STAGE = STRIP * 32; // vectors of 16 bytes that a warp takes at once

/* Some tiles of a matrix. A vector is 16 bytes a lane: of a tile, 128 columns at 2 bits, 64 at 4, 32 at 8, 16 at 16. */
struct Slice {
    const uint4 *codes;
    const uint2 *scales;
    int bits, vectors, groups, group_shift; // vectors and groups of a tile
    int tiles, strips;                      // the last strip may have fewer tiles
    int inputs, stride;                     // place of [rows, stride] among the inputs of the block
    int records;                            // place of [tiles, groups, 8] among its scales

    __host__ __device__ static constexpr int strips_of(int tiles) { return (tiles + STRIP - 1) / STRIP; }
    __device__ static int tiles_of(const Matrix &m, int share, int shares) {
        return m.tiles * (share + 1) / shares - m.tiles * share / shares;
    }

    Slice() = default;
    __device__ Slice(const Matrix &m, int share, int shares, int inputs, int stride, int records)
        : bits(m.bits), vectors(m.chunks * chunk_vectors(m.bits)), groups(m.bits == 16 ? 0 : m.groups),
          group_shift(m.group_shift), inputs(inputs), stride(stride), records(records) {
        const int first = m.tiles * share / shares;
        tiles = tiles_of(m, share, shares), strips = strips_of(tiles);
        codes = m.codes + size_t(first) * vectors * 32;
        scales = m.scales + size_t(first) * groups * 8;
    }
};

/* A vector of a strip of some slices. */
struct Place {
    int slice, strip, vector;

    __device__ __forceinline__ void to_next_strip(const Slice *slices) {
        vector = 0;
        if (++strip == slices[slice].strips) strip = 0, ++slice;
    }
};

/* The share of a warp in the products of some slices. */
struct Share {
    Place place;
    int part, left; // strips before, of all slices; vectors

    Share() = default;
    __device__ Share(const Slice *slices, int count, int warp) : place{0, 0, 0}, part(0), left(0) {
        int total = 0;
        for (int i = 0; i < count; ++i) total += slices[i].strips * slices[i].vectors;
        const int warps = min(STEP_WARPS, total); // so that each has something
        if (warp >= warps) return;
        place.vector = total * warp / warps, left = total * (warp + 1) / warps - place.vector;
        while (place.vector >= slices[place.slice].strips * slices[place.slice].vectors) {
            const Slice &passed = slices[place.slice++];
            place.vector -= passed.strips * passed.vectors, part += passed.strips;
        }
        while (place.vector >= slices[place.slice].vectors)
            place.vector -= slices[place.slice].vectors, ++place.strip, ++part;
    }
};

/* Sums of parts of strips in shared memory: part w + s is that of warp w in strip s. */
struct Parts {
    float *sums;                 // [STEP_WARPS + strips - 1, 8 NT, PART_STRIDE]
    int *first_warp, *last_warp; // [strips]
};

/* A warp's products: `begin` calls for its first vectors, `multiply` takes them when the inputs are there. */
template <int NT> class Product {
  public:
    static constexpr int STAGES = 3; // vectors under way

    /* ring: [STAGES, STAGE] of this warp. */
    __device__ __forceinline__ void begin(const Slice *slices, const Share &share, uint4 *ring) {
        slices_ = slices, share_ = share, ring_ = ring + threadIdx.x % 32, ahead_ = share.place, missing_ = share.left;
        if (missing_) find_ahead();
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) fetch(stage);
    }

    __device__ __forceinline__ void multiply(const __half *inputs, const uint2 *records, const Parts &parts) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        Place place = share_.place;
        int part = share_.part, stage = 0;
#pragma unroll 1
        for (int left = share_.left; left > 0; place.to_next_strip(slices_), ++part) {
            const Slice &s = slices_[place.slice];
            const int first = place.strip * STRIP, tiles = s.tiles - first, count = min(left, s.vectors - place.vector);
            const Segment segment{place.vector, count, s.stride, s.groups * 8, s.group_shift,
                                  inputs + s.inputs + lane / 4 * s.stride + lane % 4 * 8,
                                  records + s.records + first * s.groups * 8 + lane / 4,
                                  parts.sums + (warp + part) * 8 * NT * PART_STRIDE};
            switch (s.bits) {
            case 2: add<2>(segment, tiles, stage); break;
            case 4: add<4>(segment, tiles, stage); break;
            case 8: add<8>(segment, tiles, stage); break;
            default: add<16>(segment, tiles, stage); break;
            }
            if (place.vector == 0) parts.first_warp[part] = warp;
            if (place.vector + count == s.vectors) parts.last_warp[part] = warp;
            left -= count;
        }
    }

  private:
    const Slice *slices_;
    Share share_;
    uint4 *ring_; // this lane's
    // What is fetched next: missing vectors of the share, those left in the strip, its tiles, how far apart they are.
    Place ahead_;
    const uint4 *codes_;
    int missing_, strip_missing_, tiles_, apart_;

    /* Consecutive vectors of a strip, and what goes with them for this lane. */
    struct Segment {
        int vector, count, stride, record_stride, group_shift;
        const __half *inputs;
        const uint2 *records;
        float *out;
    };

    __device__ __forceinline__ void find_ahead() {
        const Slice &s = slices_[ahead_.slice];
        const int first = ahead_.strip * STRIP;
        tiles_ = s.tiles - first, apart_ = s.vectors * 32, strip_missing_ = s.vectors - ahead_.vector;
        codes_ = s.codes + first * apart_ + ahead_.vector * 32 + threadIdx.x % 32;
    }

    /* The next vector, if there is one, into a stage; a group of copies in any case. */
    __device__ __forceinline__ void fetch(int stage) {
        if (missing_ > 0) {
#pragma unroll
            for (int t = 0; t < STRIP; ++t)
                if (t < tiles_) copy_ahead(ring_ + stage * STAGE + t * 32, codes_ + t * apart_);
            codes_ += 32;
            if (--missing_ && --strip_missing_ == 0) ahead_.to_next_strip(slices_), find_ahead();
        }
        copies_end_here();
    }

    template <int BITS> __device__ __forceinline__ void add(const Segment &segment, int tiles, int &stage) {
        if (tiles >= 3) add<BITS, 3>(segment, stage);
        else if (tiles == 2) add<BITS, 2>(segment, stage);
        else add<BITS, 1>(segment, stage);
    }
    template <int BITS, int TILES> __device__ __forceinline__ void add(const Segment &segment, int &stage) {
        constexpr int PAIRS = BITS < 16 ? 8 / BITS : 1; // of a vector
        if (PAIRS > 1 && (1 << segment.group_shift) >= PAIRS) add<BITS, TILES, PAIRS>(segment, stage);
        else add<BITS, TILES, 1>(segment, stage);
    }

    /* Sums are scaled every SCALED pairs of columns, which lie in one group. */
    template <int BITS, int TILES, int SCALED> __device__ __forceinline__ void add(const Segment &segment, int &stage) {
        constexpr int PAIRS = BITS < 16 ? 8 / BITS : 1;
        float acc[TILES][NT][4];
#pragma unroll
        for (int t = 0; t < TILES; ++t) clear(acc[t]);
#pragma unroll 1
        for (int vector = segment.vector; vector < segment.vector + segment.count; ++vector) {
            wait_for_copies<STAGES - 1>();
            uint4 codes[TILES];
#pragma unroll
            for (int t = 0; t < TILES; ++t) codes[t] = ring_[stage * STAGE + t * 32];
            fetch(stage);
            stage = stage + 1 < STAGES ? stage + 1 : 0;
            if constexpr (BITS == 16) { // half a pair of columns
                const __half *x = segment.inputs + vector / 2 * PAIR + vector % 2 * 4;
#pragma unroll
                for (int j = 0; j < NT; ++j) {
                    const uint2 inputs = *reinterpret_cast<const uint2 *>(x + 8 * j * segment.stride);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
                        const unsigned a[4] = {codes[t].x, codes[t].y, codes[t].z, codes[t].w};
                        mma(acc[t][j], a, inputs.x, inputs.y);
                    }
                }
            } else {
#pragma unroll
                for (int first = 0; first < PAIRS; first += SCALED) {
                    const uint2 *records = segment.records + ((vector * PAIRS + first) >> segment.group_shift) * 8;
                    const __half *x = segment.inputs + (vector * PAIRS + first) * PAIR;
                    uint4 inputs[SCALED][NT];
#pragma unroll
                    for (int p = 0; p < SCALED; ++p)
#pragma unroll
                        for (int j = 0; j < NT; ++j)
                            inputs[p][j] = *reinterpret_cast<const uint4 *>(x + 8 * j * segment.stride + p * PAIR);
#pragma unroll
                    for (int t = 0; t < TILES; ++t) {
                        const uint2 record = records[t * segment.record_stride];
                        const unsigned low = zero_point<BITS>(record.x), high = zero_point<BITS>(record.y);
                        float sums[NT][4]; // of codes
#pragma unroll
                        for (int p = 0; p < SCALED; ++p) {
                            unsigned a[2][4];
                            operand<BITS>(a[0], codes + t, 2 * (first + p), low, high);
                            operand<BITS>(a[1], codes + t, 2 * (first + p) + 1, low, high);
#pragma unroll
                            for (int j = 0; j < NT; ++j)
                                if (p == 0) mma_first(sums[j], a[0], inputs[p][j].x, inputs[p][j].y);
                                else mma(sums[j], a[0], inputs[p][j].x, inputs[p][j].y);
#pragma unroll
                            for (int j = 0; j < NT; ++j) mma(sums[j], a[1], inputs[p][j].z, inputs[p][j].w);
                        }
                        const float scales[2] = {scale_of(record.x), scale_of(record.y)};
#pragma unroll
                        for (int j = 0; j < NT; ++j)
#pragma unroll
                            for (int e = 0; e < 4; ++e) acc[t][j][e] += sums[j][e] * scales[e / 2];
                    }
                }
            }
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) spill(acc[t], segment.out + t * TILE_ROWS, PART_STRIDE);
    }
};

/* Results of neighbouring units of a slice, V a float2 or float4; `before`: strips of the slices in front of it. */
template <int NT, class V> __device__ __forceinline__ V sums_of(const Parts &parts, int before, int row, int unit) {
    const int s = unit / (STRIP * TILE_ROWS), strip = before + s, last = parts.last_warp[strip];
    const float *from = parts.sums + row * PART_STRIDE + unit - s * STRIP * TILE_ROWS;
    V sum{};
#pragma unroll 4
    for (int warp = parts.first_warp[strip]; warp <= last; ++warp) {
        const V part = *reinterpret_cast<const V *>(from + (warp + strip) * 8 * NT * PART_STRIDE);
        sum.x += part.x, sum.y += part.y;
        if constexpr (sizeof(V) == sizeof(float4)) sum.z += part.z, sum.w += part.w;
    }
    return sum;
}

} // namespace qslm
