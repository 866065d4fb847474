#include "attention.h"

#include "attention_tiles.h"
#include "pool.h"

// ---------------------------------------------------------------------------------------------------------------- write

static void rotate(bf16 *head, int64_t head_dim, const float *cos_sin) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        __mmask16 lanes = first_lanes(half - i);
        __m512 cos = _mm512_maskz_loadu_ps(lanes, cos_sin + i), sin = _mm512_maskz_loadu_ps(lanes, cos_sin + half + i);
        __m512 low = load_bf16_masked(lanes, head + i), high = load_bf16_masked(lanes, head + half + i);
        store_bf16_masked(head + i, lanes, _mm512_fnmadd_ps(high, sin, _mm512_mul_ps(low, cos)));
        store_bf16_masked(head + half + i, lanes, _mm512_fmadd_ps(low, sin, _mm512_mul_ps(high, cos)));
    }
}

static void write_row(const ds_attention *a, int64_t sequence, int64_t row, int64_t position) {
    const int64_t dim = a->head_dim;
    bf16 *q = a->qkv + row * a->row_stride, *k = q + a->num_heads * dim, *v = k + a->num_kv_heads * dim;
    for (int64_t head = 0; head < a->num_heads + a->num_kv_heads; head++) {
        bf16 *vector = q + head * dim;
        const ds_norm *norm = head < a->num_heads ? a->q_norm : a->k_norm;
        if (norm) ds_normalise_row(norm, vector, dim, vector);
        if (a->cos_sin) rotate(vector, dim, a->cos_sin + position * dim);
    }
    const int64_t token = position % GROUP_TOKENS, group = ds_group_of(a->batch, sequence, position);
    for (int64_t head = 0; head < a->num_kv_heads; head++, k += dim, v += dim) {
        const int64_t base = (group * a->num_kv_heads + head) * dim * GROUP_TOKENS;
        uint32_t *keys = (uint32_t *)(a->keys + base) + token;
        for (int64_t d = 0; d < dim / 2; d++) memcpy(keys + d * GROUP_TOKENS, k + 2 * d, 4);
        bf16 *values = a->values + base + token / 2 * 2 * dim;
        if (token % 2) {
            for (int64_t d = 0; d < dim; d++) values[2 * d + 1] = v[d];
        } else {
            // The pair's other half may hold whatever was there before: it counts with weight 0, which NaN would survive.
            for (int64_t d = 0; d < dim; d++) {
                uint32_t pair = v[d];
                memcpy(values + 2 * d, &pair, 4);
            }
        }
    }
}

// An item is what one sequence adds to one group, in order: a pair of values must not be written by two threads.
static void write_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const ds_attention *a = argument;
    for (int64_t s = 0; s < a->batch->num_sequences; s++) {
        const int64_t first_row = a->batch->first_row[s], end = a->batch->context_lens[s];
        const int64_t begin = end - (a->batch->first_row[s + 1] - first_row);
        const int64_t first_group = begin / GROUP_TOKENS, groups = ceil_div(end, GROUP_TOKENS) - first_group;
        if (item >= groups) {
            item -= groups;
            continue;
        }
        int64_t from = (first_group + item) * GROUP_TOKENS, to = from + GROUP_TOKENS;
        if (from < begin) from = begin;
        if (to > end) to = end;
        for (int64_t position = from; position < to; position++) write_row(a, s, first_row + position - begin, position);
        return;
    }
}

void ds_attention_write(const ds_attention *a) {
    int64_t items = 0;
    for (int64_t s = 0; s < a->batch->num_sequences; s++) {
        const int64_t end = a->batch->context_lens[s];
        const int64_t begin = end - (a->batch->first_row[s + 1] - a->batch->first_row[s]);
        items += ceil_div(end, GROUP_TOKENS) - begin / GROUP_TOKENS;
    }
    ds_parallel_for(items, write_item, (void *)a);
}

// --------------------------------------------------------------------------------------------------------------- attend

typedef struct {
    int64_t sequence, kv_head, first, count; // rows of the tile, out of new tokens times queries a key head
} tile;

static void attend_tile(const ds_attention *a, tile t) {
    const ds_batch *batch = a->batch;
    const int64_t dim = a->head_dim, queries_per_kv = a->num_heads / a->num_kv_heads;
    const int64_t first_row = batch->first_row[t.sequence], context = batch->context_lens[t.sequence];
    const int64_t begin = context - (batch->first_row[t.sequence + 1] - first_row);

    int64_t visible[DS_TILE_ROWS], extent = 0;
    for (int64_t r = 0; r < t.count; r++) {
        visible[r] = ds_visible(batch, t.sequence, begin + (t.first + r) / queries_per_kv);
        if (visible[r] > extent) extent = visible[r];
    }
    const int64_t groups = ceil_div(extent, GROUP_TOKENS), padded = (groups + groups % 2) * GROUP_TOKENS;

    const size_t floats = (size_t)(DS_TILE_ROWS * (padded + dim)), halves = floats + (size_t)(GROUP_TOKENS * dim);
    float *scores = ds_thread_scratch(floats * sizeof(float) + halves * sizeof(bf16) + (size_t)groups * sizeof(bf16 *));
    float *sums = scores + DS_TILE_ROWS * padded;
    const bf16 **values = (const bf16 **)(sums + DS_TILE_ROWS * dim);
    bf16 *weights = (bf16 *)(values + groups), *queries = weights + DS_TILE_ROWS * padded, *last = queries + DS_TILE_ROWS * dim;
    memset(sums, 0, (size_t)(t.count * dim) * sizeof(float));
    for (int64_t r = 0; r < ceil_div(t.count, DS_SCORE_ROWS) * DS_SCORE_ROWS && r < DS_TILE_ROWS; r++) {
        const int64_t row = t.first + (r < t.count ? r : 0);
        const int64_t head = t.kv_head * queries_per_kv + row % queries_per_kv;
        const bf16 *q = a->qkv + (first_row + row / queries_per_kv) * a->row_stride + head * dim;
        memcpy(queries + r * dim, q, (size_t)dim * sizeof(bf16));
    }

    ds_tile_begin(t.count);
    const int64_t group_size = a->num_kv_heads * dim * GROUP_TOKENS, head_offset = t.kv_head * dim * GROUP_TOKENS;
    for (int64_t g = 0; g < groups; g += 2) {
        const int64_t low = ds_group_of(batch, t.sequence, g * GROUP_TOKENS) * group_size + head_offset;
        int64_t high = low;
        if (g + 1 < groups) high = ds_group_of(batch, t.sequence, (g + 1) * GROUP_TOKENS) * group_size + head_offset;
        ds_tile_scores(t.count, queries, dim, a->keys + low, a->keys + high, scores + g * GROUP_TOKENS, padded);
        values[g] = a->values + low;
        if (g + 1 < groups) values[g + 1] = a->values + high;
    }

    float totals[DS_TILE_ROWS];
    for (int64_t r = 0; r < t.count; r++)
        totals[r] = ds_exponentials(scores + r * padded, a->scale, visible[r], padded, weights + r * padded);

    // Slots behind the last token hold whatever was there before, and a weight of 0 does not make up for a NaN.
    const int64_t left = extent - (groups - 1) * GROUP_TOKENS, used = (left + 1) / 2 * 2 * dim;
    memcpy(last, values[groups - 1], (size_t)used * sizeof(bf16));
    memset(last + used, 0, (size_t)(GROUP_TOKENS * dim - used) * sizeof(bf16));
    values[groups - 1] = last;
    ds_tile_begin_values(t.count);
    ds_tile_values(t.count, weights, padded, values, groups, dim, sums);
    ds_tile_end();

    for (int64_t r = 0; r < t.count; r++) {
        const int64_t row = t.first + r, head = t.kv_head * queries_per_kv + row % queries_per_kv;
        bf16 *target = a->target + ((first_row + row / queries_per_kv) * a->num_heads + head) * dim;
        const __m512 inverse = _mm512_set1_ps(1.0f / totals[r]);
        for (int64_t d = 0; d < dim; d += 16) store_bf16(target + d, _mm512_mul_ps(_mm512_loadu_ps(sums + r * dim + d), inverse));
    }
}

static inline int64_t tiles_of(const ds_attention *a, int64_t sequence) {
    const int64_t new_tokens = a->batch->first_row[sequence + 1] - a->batch->first_row[sequence];
    return ceil_div(new_tokens * (a->num_heads / a->num_kv_heads), ds_tile_rows());
}

static void attend_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const ds_attention *a = argument;
    for (int64_t s = 0; s < a->batch->num_sequences; s++) {
        const int64_t tiles = tiles_of(a, s), items = tiles * a->num_kv_heads;
        if (item >= items) {
            item -= items;
            continue;
        }
        const int64_t new_tokens = a->batch->first_row[s + 1] - a->batch->first_row[s];
        const int64_t rows = new_tokens * (a->num_heads / a->num_kv_heads);
        // Last tiles first: they see the most keys, and the threads should end together.
        const int64_t height = ds_tile_rows();
        tile t = {s, item % a->num_kv_heads, (tiles - 1 - item / a->num_kv_heads) * height, height};
        if (t.count > rows - t.first) t.count = rows - t.first;
        attend_tile(a, t);
        return;
    }
}

void ds_attention_attend(const ds_attention *a) {
    int64_t items = 0;
    for (int64_t s = 0; s < a->batch->num_sequences; s++) items += tiles_of(a, s) * a->num_kv_heads;
    ds_parallel_for(items, attend_item, (void *)a);
}
