#include "indexer.h"

#include <math.h>

#include "attention_tiles.h"
#include "pool.h"
#include "transpose.h"

#define ROWS_PER_ITEM 8

static void rotate(bf16 *vector, const float *cos_sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float x = bf16_to_float(vector[i]), y = bf16_to_float(vector[half + i]);
        vector[i] = float_to_bf16(x * cos_sin[i] - y * cos_sin[half + i]);
        vector[half + i] = float_to_bf16(y * cos_sin[i] + x * cos_sin[half + i]);
    }
}

static void prepare_row(const ds_indexer *x, int64_t sequence, int64_t row, int64_t position) {
    const ds_indexer_shape *s = x->shape;
    const float *cos_sin = x->cos_sin + position * s->rope_dim;
    bf16 *key = x->keys + row * s->dim, *query = x->queries + row * s->num_heads * s->dim;
    ds_normalise_row(x->key_norm, key, s->dim, key);
    rotate(key, cos_sin, s->rope_dim / 2);
    for (int64_t head = 0; head < s->num_heads; head++) rotate(query + head * s->dim, cos_sin, s->rope_dim / 2);
    const int64_t slot = ds_group_of(x->batch, sequence, position) * GROUP_TOKENS + position % GROUP_TOKENS;
    memcpy(x->cache + slot * s->dim, key, (size_t)s->dim * sizeof(bf16));
}

static void prepare_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const ds_indexer *x = argument;
    int64_t row = item * ROWS_PER_ITEM, end = row + ROWS_PER_ITEM, sequence = 0;
    if (end > x->num_rows) end = x->num_rows;
    for (; row < end; row++) {
        while (row >= x->batch->first_row[sequence + 1]) sequence++;
        prepare_row(x, sequence, row, ds_position(x->batch, sequence, row));
    }
}

// Scores of one row with two groups of keys.
static void score_pair(const ds_indexer *x, int64_t row, const bf16 *low, const bf16 *high, const bf16 *queries, float *heads,
                       float *target) {
    const ds_indexer_shape *s = x->shape;
    const float *weights = x->weights + row * s->num_heads;
    const float scale = 1.0f / sqrtf((float)(s->num_heads * s->dim));
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t head = 0; head < s->num_heads; head += DS_SCORE_ROWS) {
        const int64_t count = s->num_heads - head < DS_SCORE_ROWS ? s->num_heads - head : DS_SCORE_ROWS;
        ds_scores(count, queries + head * s->dim, s->dim, low, high, heads, 2 * GROUP_TOKENS);
        for (int64_t i = 0; i < count; i++)
            for (int half = 0; half < 2; half++) {
                __m512 score = _mm512_mul_ps(_mm512_loadu_ps(heads + (2 * i + half) * GROUP_TOKENS), _mm512_set1_ps(scale));
                score = _mm512_max_ps(score, _mm512_setzero_ps());
                sums[half] = _mm512_fmadd_ps(_mm512_set1_ps(weights[head + i]), score, sums[half]);
            }
    }
    _mm512_storeu_ps(target, sums[0]);
    _mm512_storeu_ps(target + GROUP_TOKENS, sums[1]);
}

// The rank-th largest of the values, which change places (quickselect; the middle of three is the pivot).
static float largest_at(float *values, int64_t count, int64_t rank) {
    int64_t first = 0, last = count - 1;
    while (first < last) {
        const float a = values[first], b = values[(first + last) / 2], c = values[last];
        const float pivot = fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
        int64_t i = first, j = last;
        while (i <= j) {
            while (values[i] > pivot) i++;
            while (values[j] < pivot) j--;
            if (i > j) break;
            const float swapped = values[i];
            values[i++] = values[j];
            values[j--] = swapped;
        }
        if (rank <= j) last = j;
        else if (rank >= i) first = i;
        else break;
    }
    return values[rank];
}

static void keep_best(const float *scores, float *copy, int64_t count, int64_t top_k, int32_t *positions) {
    for (int64_t i = 0; i < count; i++) copy[i] = scores[i];
    const float least = largest_at(copy, count, top_k - 1);
    int64_t num_equal = top_k;
    for (int64_t i = 0; i < count; i++) num_equal -= scores[i] > least;
    for (int64_t i = 0, found = 0; i < count && found < top_k; i++)
        if (scores[i] > least || (scores[i] == least && num_equal-- > 0)) positions[found++] = (int32_t)i;
}

static void choose(const ds_indexer *x, int64_t sequence, int64_t row) {
    const ds_indexer_shape *s = x->shape;
    const int64_t visible = ds_visible(x->batch, sequence, ds_position(x->batch, sequence, row));
    int32_t *positions = x->chosen.positions + row * s->top_k;
    x->chosen.counts[row] = (int32_t)(visible < s->top_k ? visible : s->top_k);
    for (int64_t i = 0; i < x->chosen.counts[row]; i++) positions[i] = (int32_t)i;
    if (visible <= s->top_k) return;

    const int64_t padded = ceil_div(visible, 2 * GROUP_TOKENS) * 2 * GROUP_TOKENS;
    const int64_t keys_size = ceil_div(s->dim, 32) * 32 * GROUP_TOKENS, query_rows = s->num_heads + DS_SCORE_ROWS;
    float *scores = ds_thread_scratch((size_t)(2 * padded + DS_SCORE_ROWS * 2 * GROUP_TOKENS) * 4 +
                                      (size_t)(2 * keys_size + query_rows * s->dim) * 2);
    float *copy = scores + padded, *heads = copy + padded;
    bf16 *ordered = (bf16 *)(heads + DS_SCORE_ROWS * 2 * GROUP_TOKENS), *queries = ordered + 2 * keys_size;
    memcpy(queries, x->queries + row * s->num_heads * s->dim, (size_t)(s->num_heads * s->dim) * sizeof(bf16));
    for (int64_t begin = 0; begin < visible; begin += 2 * GROUP_TOKENS) {
        for (int64_t i = 0; i < 2; i++) {
            const int64_t from = begin + i * GROUP_TOKENS;
            const bf16 *rows = from < visible ? x->cache + ds_group_of(x->batch, sequence, from) * GROUP_TOKENS * s->dim : 0;
            ds_group_keys(rows, visible - from, s->dim, ordered + i * keys_size);
        }
        score_pair(x, row, ordered, ordered + keys_size, queries, heads, scores + begin);
    }
    keep_best(scores, copy, visible, s->top_k, positions);
}

static void choose_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const ds_indexer *x = argument;
    int64_t sequence = 0;
    while (item >= x->batch->first_row[sequence + 1]) sequence++;
    choose(x, sequence, item);
}

void ds_indexer_choose(const ds_indexer *x) {
    ds_parallel_for(ceil_div(x->num_rows, ROWS_PER_ITEM), prepare_item, (void *)x);
    ds_parallel_for(x->num_rows, choose_item, (void *)x);
}
