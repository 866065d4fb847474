#include "elementwise.h"

#include <math.h>

#include "pool.h"

#define ROWS_PER_ITEM 16

void ds_rms_norm_row(const bf16 *row, const bf16 *weight, float eps, int64_t size, bf16 *target) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 x = load_bf16_masked(first_lanes(size - i), row + i);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps));
    for (int64_t i = 0; i < size; i += 16) {
        const __mmask16 lanes = first_lanes(size - i);
        __m512 x = _mm512_mul_ps(load_bf16_masked(lanes, row + i), factor);
        store_bf16_masked(target + i, lanes, _mm512_mul_ps(x, load_bf16_masked(lanes, weight + i)));
    }
}

typedef struct {
    const bf16 *rows, *weight;
    float eps;
    int64_t num_rows, size;
    bf16 *target;
} norm;

static void norm_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const norm *n = argument;
    const int64_t end = (item + 1) * ROWS_PER_ITEM < n->num_rows ? (item + 1) * ROWS_PER_ITEM : n->num_rows;
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        ds_rms_norm_row(n->rows + row * n->size, n->weight, n->eps, n->size, n->target + row * n->size);
}

void ds_rms_norm(const bf16 *rows, const bf16 *weight, float eps, int64_t num_rows, int64_t size, bf16 *target) {
    norm n = {rows, weight, eps, num_rows, size, target};
    ds_parallel_for((num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, norm_item, &n);
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
