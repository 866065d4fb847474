#include "attention.h"

#include <math.h>
#include <stdlib.h>

#include "pool.h"

#define MAX_TILE_ROWS 12
#define MAX_VALUE_ROWS 6

static inline int64_t group_of(const ds_batch *batch, int64_t sequence, int64_t position) {
    int64_t block = batch->block_tables[sequence * batch->table_stride + position / batch->block_size];
    return (block * batch->block_size + position % batch->block_size) / GROUP_TOKENS;
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
    const int64_t token = position % GROUP_TOKENS, group = group_of(a->batch, sequence, position);
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

// Scores of ROWS queries with two groups of keys.
#define DEFINE_SCORES(ROWS)                                                                                            \
    static void scores_##ROWS(const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float scale,        \
                              float *target, int64_t stride) {                                                         \
        __m512 sums[ROWS][2];                                                                                          \
        for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();                                  \
        for (int64_t d = 0; d < dim; d += 2) {                                                                         \
            __m512bh k0 = (__m512bh)_mm512_loadu_si512(low + d * GROUP_TOKENS);                                        \
            __m512bh k1 = (__m512bh)_mm512_loadu_si512(high + d * GROUP_TOKENS);                                       \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                int32_t pair;                                                                                          \
                memcpy(&pair, queries + r * dim + d, 4);                                                               \
                __m512bh q = (__m512bh)_mm512_set1_epi32(pair);                                                        \
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], q, k0);                                                      \
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], q, k1);                                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < ROWS; r++) {                                                                               \
            _mm512_storeu_ps(target + r * stride, _mm512_mul_ps(sums[r][0], _mm512_set1_ps(scale)));                   \
            _mm512_storeu_ps(target + r * stride + 16, _mm512_mul_ps(sums[r][1], _mm512_set1_ps(scale)));              \
        }                                                                                                              \
    }
DEFINE_SCORES(1)
DEFINE_SCORES(2)
DEFINE_SCORES(3)
DEFINE_SCORES(4)
DEFINE_SCORES(6)
DEFINE_SCORES(8)
DEFINE_SCORES(12)

typedef void (*scores_tile)(const bf16 *, int64_t, const bf16 *, const bf16 *, float, float *, int64_t);
static const scores_tile scores_tiles[MAX_TILE_ROWS + 1] = {0,        scores_1, scores_2, scores_3,  scores_4,  scores_6, scores_6,
                                                            scores_8, scores_8, scores_12, scores_12, scores_12, scores_12};

// Weighted sums of ROWS rows over one group of values, for WIDTH * 16 of the head's numbers.
#define DEFINE_VALUES(ROWS, WIDTH)                                                                                     \
    static void values_##ROWS##x##WIDTH(const bf16 *weights, int64_t stride, const bf16 *values, int64_t dim,          \
                                        int64_t pairs, float *target, int64_t target_stride) {                         \
        __m512 sums[ROWS][WIDTH];                                                                                      \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int i = 0; i < WIDTH; i++) sums[r][i] = _mm512_loadu_ps(target + r * target_stride + i * 16);         \
        for (int64_t p = 0; p < pairs; p++) {                                                                          \
            __m512bh v[WIDTH];                                                                                         \
            for (int i = 0; i < WIDTH; i++) v[i] = (__m512bh)_mm512_loadu_si512(values + p * 2 * dim + i * 32);        \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                int32_t pair;                                                                                          \
                memcpy(&pair, weights + r * stride + 2 * p, 4);                                                        \
                __m512bh w = (__m512bh)_mm512_set1_epi32(pair);                                                        \
                for (int i = 0; i < WIDTH; i++) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], w, v[i]);                    \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int i = 0; i < WIDTH; i++) _mm512_storeu_ps(target + r * target_stride + i * 16, sums[r][i]);         \
    }
#define DEFINE_VALUES_OF_WIDTH(WIDTH)                                                                                  \
    DEFINE_VALUES(1, WIDTH)                                                                                            \
    DEFINE_VALUES(2, WIDTH)                                                                                            \
    DEFINE_VALUES(3, WIDTH)                                                                                            \
    DEFINE_VALUES(4, WIDTH)                                                                                            \
    DEFINE_VALUES(5, WIDTH)                                                                                            \
    DEFINE_VALUES(6, WIDTH)
DEFINE_VALUES_OF_WIDTH(1)
DEFINE_VALUES_OF_WIDTH(2)
DEFINE_VALUES_OF_WIDTH(4)

typedef void (*values_tile)(const bf16 *, int64_t, const bf16 *, int64_t, int64_t, float *, int64_t);
#define LIST(WIDTH)                                                                                                    \
    {0, values_1x##WIDTH, values_2x##WIDTH, values_3x##WIDTH, values_4x##WIDTH, values_5x##WIDTH, values_6x##WIDTH}
static const values_tile values_tiles[5][MAX_VALUE_ROWS + 1] = {{0}, LIST(1), LIST(2), {0}, LIST(4)};

// Scores to bf16 weights that are not yet divided by their sum, which is returned; zeros from `visible` to `padded`.
static float exponentials(const float *scores, int64_t visible, int64_t padded, bf16 *weights) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < visible; i += 16) {
        __mmask16 lanes = first_lanes(visible - i);
        largest = _mm512_mask_max_ps(largest, lanes, largest, _mm512_maskz_loadu_ps(lanes, scores + i));
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < padded; i += 16) {
        __m512 weight = _mm512_setzero_ps();
        if (i < visible) {
            __m512 exact = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + i), top));
            weight = round_bf16(_mm512_maskz_mov_ps(first_lanes(visible - i), exact));
        }
        sum = _mm512_add_ps(sum, weight);
        store_bf16(weights + i, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

// A thread's room for the scores of one tile; it grows and is kept.
static _Thread_local void *scratch;
static _Thread_local size_t scratch_bytes;

static void *scratch_of(size_t bytes) {
    if (bytes > scratch_bytes) {
        free(scratch);
        scratch_bytes = (bytes + bytes / 2 + 63) / 64 * 64;
        scratch = aligned_alloc(64, scratch_bytes);
        if (!scratch) abort();
    }
    return scratch;
}

typedef struct {
    int64_t sequence, kv_head, first, count; // rows of the tile, out of new tokens times queries a key head
} tile;

static void attend_tile(const ds_attention *a, tile t) {
    const ds_batch *batch = a->batch;
    const int64_t dim = a->head_dim, queries_per_kv = a->num_heads / a->num_kv_heads;
    const int64_t first_row = batch->first_row[t.sequence], context = batch->context_lens[t.sequence];
    const int64_t begin = context - (batch->first_row[t.sequence + 1] - first_row);
    const int64_t prefix = batch->prefix_lens ? batch->prefix_lens[t.sequence] : 0;

    int64_t visible[MAX_TILE_ROWS], extent = 0;
    for (int64_t r = 0; r < t.count; r++) {
        const int64_t position = begin + (t.first + r) / queries_per_kv;
        visible[r] = position < prefix ? prefix : position + 1;
        if (visible[r] > extent) extent = visible[r];
    }
    const int64_t groups = ceil_div(extent, GROUP_TOKENS), padded = (groups + groups % 2) * GROUP_TOKENS;

    float *scores = scratch_of((size_t)MAX_TILE_ROWS * (size_t)(padded * 6 + dim * 6));
    float *sums = scores + MAX_TILE_ROWS * padded;
    bf16 *weights = (bf16 *)(sums + MAX_TILE_ROWS * dim), *queries = weights + MAX_TILE_ROWS * padded;
    memset(sums, 0, (size_t)(MAX_TILE_ROWS * dim) * sizeof(float));
    for (int64_t r = 0; r < MAX_TILE_ROWS; r++) {
        const int64_t row = t.first + (r < t.count ? r : 0);
        const int64_t head = t.kv_head * queries_per_kv + row % queries_per_kv;
        const bf16 *q = a->qkv + (first_row + row / queries_per_kv) * a->row_stride + head * dim;
        memcpy(queries + r * dim, q, (size_t)dim * sizeof(bf16));
    }

    const int64_t group_size = a->num_kv_heads * dim * GROUP_TOKENS, head_offset = t.kv_head * dim * GROUP_TOKENS;
    for (int64_t g = 0; g < groups; g += 2) {
        const bf16 *low = a->keys + group_of(batch, t.sequence, g * GROUP_TOKENS) * group_size + head_offset;
        const bf16 *high = low;
        if (g + 1 < groups) high = a->keys + group_of(batch, t.sequence, (g + 1) * GROUP_TOKENS) * group_size + head_offset;
        scores_tiles[t.count](queries, dim, low, high, a->scale, scores + g * GROUP_TOKENS, padded);
    }

    float totals[MAX_TILE_ROWS];
    for (int64_t r = 0; r < t.count; r++)
        totals[r] = exponentials(scores + r * padded, visible[r], padded, weights + r * padded);

    for (int64_t g = 0; g < groups; g++) {
        const bf16 *values = a->values + group_of(batch, t.sequence, g * GROUP_TOKENS) * group_size + head_offset;
        const int64_t left = extent - g * GROUP_TOKENS, pairs = left >= GROUP_TOKENS ? 8 : (left + 1) / 2;
        for (int64_t r = 0; r < t.count; r += MAX_VALUE_ROWS) {
            const int64_t rows = t.count - r < MAX_VALUE_ROWS ? t.count - r : MAX_VALUE_ROWS;
            for (int64_t d = 0; d < dim;) {
                const int width = dim - d >= 64 ? 4 : dim - d >= 32 ? 2 : 1;
                values_tiles[width][rows](weights + r * padded + g * GROUP_TOKENS, padded, values + 2 * d, dim, pairs,
                                          sums + r * dim + d, dim);
                d += width * 16;
            }
        }
    }

    for (int64_t r = 0; r < t.count; r++) {
        const int64_t row = t.first + r, head = t.kv_head * queries_per_kv + row % queries_per_kv;
        bf16 *target = a->target + ((first_row + row / queries_per_kv) * a->num_heads + head) * dim;
        const __m512 inverse = _mm512_set1_ps(1.0f / totals[r]);
        for (int64_t d = 0; d < dim; d += 16) store_bf16(target + d, _mm512_mul_ps(_mm512_loadu_ps(sums + r * dim + d), inverse));
    }
}

static inline int64_t tiles_of(const ds_attention *a, int64_t sequence) {
    const int64_t new_tokens = a->batch->first_row[sequence + 1] - a->batch->first_row[sequence];
    return ceil_div(new_tokens * (a->num_heads / a->num_kv_heads), MAX_TILE_ROWS);
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
        tile t = {s, item % a->num_kv_heads, (tiles - 1 - item / a->num_kv_heads) * MAX_TILE_ROWS, MAX_TILE_ROWS};
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
