#include "elementwise.h"

#include <math.h>

#include "pool.h"

#define ROWS_PER_ITEM 16

static void rms_norm_row(const ds_norm *norm, const bf16 *row, int64_t size, bf16 *target) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 x = load_bf16_masked(first_lanes(size - i), row + i);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + norm->eps));
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_mul_ps(load_bf16_masked(lanes, row + i), factor);
        store_bf16_masked(target + i, lanes, _mm512_mul_ps(x, load_bf16_masked(lanes, norm->weight + i)));
    }
}

static void layer_norm_row(const ds_norm *norm, const bf16 *row, int64_t size, bf16 *target) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) sum = _mm512_add_ps(sum, load_bf16_masked(first_lanes(size - i), row + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)size);
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_maskz_sub_ps(lanes, load_bf16_masked(lanes, row + i), mean);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + norm->eps));
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_mul_ps(_mm512_sub_ps(load_bf16_masked(lanes, row + i), mean), factor);
        x = _mm512_fmadd_ps(x, load_bf16_masked(lanes, norm->weight + i), load_bf16_masked(lanes, norm->bias + i));
        store_bf16_masked(target + i, lanes, x);
    }
}

void ds_normalise_row(const ds_norm *norm, const bf16 *row, int64_t size, bf16 *target) {
    if (norm->bias) layer_norm_row(norm, row, size, target);
    else rms_norm_row(norm, row, size, target);
}

typedef struct {
    const ds_norm *norm;
    const bf16 *rows;
    int64_t num_rows, row_stride, size;
    bf16 *target;
} normalisation;

static void normalise_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const normalisation *n = argument;
    const int64_t end = (item + 1) * ROWS_PER_ITEM < n->num_rows ? (item + 1) * ROWS_PER_ITEM : n->num_rows;
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        ds_normalise_row(n->norm, n->rows + row * n->row_stride, n->size, n->target + row * n->size);
}

void ds_normalise(const ds_norm *norm, const bf16 *rows, int64_t num_rows, int64_t row_stride, int64_t size, bf16 *target) {
    normalisation n = {norm, rows, num_rows, row_stride, size, target};
    ds_parallel_for((num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, normalise_item, &n);
}

typedef struct {
    const bf16 *rows;
    int64_t num_rows, size;
    bf16 *target;
} gating;

static void gate_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const gating *g = argument;
    const int64_t end = (item + 1) * ROWS_PER_ITEM < g->num_rows ? (item + 1) * ROWS_PER_ITEM : g->num_rows;
    for (int64_t i = item * ROWS_PER_ITEM * g->size; i < end * g->size; i += 16) {
        // As the product's own epilogue does it, from values that it would have rounded.
        __m512 gate = round_bf16(silu_ps(load_bf16(g->rows + 2 * i)));
        store_bf16(g->target + i, _mm512_mul_ps(gate, load_bf16(g->rows + 2 * i + 16)));
    }
}

void ds_silu_mul(const bf16 *rows, int64_t num_rows, int64_t size, bf16 *target) {
    gating g = {rows, num_rows, size, target};
    ds_parallel_for((num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, gate_item, &g);
}
