/* Which instruction set this library is compiled for. Each header defines `Isa`: a vector of `kRows` 32-bit lanes, one
 * a row of the matrix, and the few operations that the packed product needs.
 *
 * The integer sums are exact and the float operations are the same everywhere, so each gives the same bits.
 */
#ifndef QSLM_LANES_H
#define QSLM_LANES_H

#if !defined(QSLM_PORTABLE) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes_avx512.h"
#elif !defined(QSLM_PORTABLE) && defined(__AVX2__) && defined(__F16C__)
#include "lanes_avx2.h"
#elif !defined(QSLM_PORTABLE) && defined(__aarch64__) && defined(__ARM_NEON)
#include "lanes_neon.h"
#else
#include "lanes_portable.h"
#endif

#endif
