// Activations to two INT8 digits a value.
#include <math.h>

#include "matmul.h"
#include "pool.h"

#define ROWS_PER_ITEM 8

// What a row's largest activation becomes.
#define MAX_VALUE (127 * DS_DIGIT_BASE)

static inline __m128i as_bytes(__m512i digits) {
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(digits, _mm512_set1_epi32(128)));
}

static void quantize_row(const bf16 *row, int64_t size, uint8_t *bytes, float *row_scale) {
    const __m512 infinity = _mm512_set1_ps(INFINITY);
    __m512 largest = _mm512_setzero_ps();
    __mmask16 broken = 0;
    for (int64_t i = 0; i < size; i += 16) {
        __m512 x = _mm512_abs_ps(load_bf16_masked(first_lanes(size - i), row + i));
        broken |= _mm512_cmp_ps_mask(x, infinity, _CMP_NLT_UQ);
        largest = _mm512_max_ps(largest, x);
    }
    float absmax = _mm512_reduce_max_ps(largest);
    // Integers cannot carry an infinity or a NaN on: the scale does.
    *row_scale = broken ? NAN : absmax > 0 ? absmax / MAX_VALUE : 1.0f;
    const __m512 scale = _mm512_set1_ps(*row_scale);
    for (int64_t i = 0; i < size; i += 16) {
        __mmask16 mask = first_lanes(size - i);
        __m512i q = _mm512_cvtps_epi32(_mm512_div_ps(load_bf16_masked(mask, row + i), scale));
        q = _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(MAX_VALUE)), _mm512_set1_epi32(-MAX_VALUE));
        __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(1.0f / DS_DIGIT_BASE)));
        __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
        _mm_mask_storeu_epi8(bytes + i, mask, as_bytes(high));
        _mm_mask_storeu_epi8(bytes + size + i, mask, as_bytes(low));
    }
}

typedef struct {
    const bf16 *rows;
    int64_t num_rows, size;
    uint8_t *bytes;
    float *scales;
} quantization;

static void quantize_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const quantization *q = argument;
    const int64_t end = (item + 1) * ROWS_PER_ITEM < q->num_rows ? (item + 1) * ROWS_PER_ITEM : q->num_rows;
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        quantize_row(q->rows + row * q->size, q->size, q->bytes + DS_DIGITS * row * q->size, q->scales + row);
}

void ds_quantize_rows(const bf16 *rows, int64_t num_rows, int64_t size, uint8_t *bytes, float *scales) {
    quantization q = {rows, num_rows, size, bytes, scales};
    ds_parallel_for((num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, quantize_item, &q);
}
