#include "attention_tiles.h"

#include <math.h>
#include <stdlib.h>

#include "amx.h"

#define MAX_VALUE_ROWS 6

// Scores of ROWS queries with two groups of keys.
#define DEFINE_SCORES(ROWS)                                                                                            \
    static void scores_##ROWS(const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high,                     \
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
            _mm512_storeu_ps(target + r * stride, sums[r][0]);                                                         \
            _mm512_storeu_ps(target + r * stride + 16, sums[r][1]);                                                    \
        }                                                                                                              \
    }
DEFINE_SCORES(1)
DEFINE_SCORES(2)
DEFINE_SCORES(3)
DEFINE_SCORES(4)
DEFINE_SCORES(6)
DEFINE_SCORES(8)
DEFINE_SCORES(12)

typedef void (*scores_tile)(const bf16 *, int64_t, const bf16 *, const bf16 *, float *, int64_t);
static const scores_tile scores_tiles[DS_SCORE_ROWS + 1] = {
    0,        scores_1, scores_2, scores_3,  scores_4,  scores_6,  scores_6,
    scores_8, scores_8, scores_12, scores_12, scores_12, scores_12,
};

void ds_scores(int64_t num_rows, const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float *target,
               int64_t stride) {
    scores_tiles[num_rows](queries, dim, low, high, target, stride);
}

// Weighted sums of ROWS rows over one group of values, for WIDTH * 16 of the head's numbers.
#define DEFINE_VALUES(ROWS, WIDTH)                                                                                     \
    static void values_##ROWS##x##WIDTH(const bf16 *weights, int64_t stride, const bf16 *values, int64_t dim,          \
                                        float *target) {                                                               \
        __m512 sums[ROWS][WIDTH];                                                                                      \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int i = 0; i < WIDTH; i++) sums[r][i] = _mm512_loadu_ps(target + r * dim + i * 16);                   \
        for (int64_t p = 0; p < GROUP_TOKENS / 2; p++) {                                                               \
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
            for (int i = 0; i < WIDTH; i++) _mm512_storeu_ps(target + r * dim + i * 16, sums[r][i]);                   \
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

typedef void (*values_tile)(const bf16 *, int64_t, const bf16 *, int64_t, float *);
#define LIST(WIDTH)                                                                                                    \
    {0, values_1x##WIDTH, values_2x##WIDTH, values_3x##WIDTH, values_4x##WIDTH, values_5x##WIDTH, values_6x##WIDTH}
static const values_tile values_tiles[5][MAX_VALUE_ROWS + 1] = {{0}, LIST(1), LIST(2), {0}, LIST(4)};

int64_t ds_tile_rows(void) { return ds_has_amx() ? DS_AMX_ROWS : 2 * DS_SCORE_ROWS; }

void ds_tile_begin(int64_t num_rows) {
    if (ds_has_amx()) ds_amx_begin(num_rows);
}

void ds_tile_begin_values(int64_t num_rows) {
    if (ds_has_amx()) ds_amx_begin_values(num_rows);
}

void ds_tile_end(void) {
    if (ds_has_amx()) ds_amx_end();
}

static inline int fits_amx(int64_t dim) { return ds_has_amx() && dim % 32 == 0; }

void ds_tile_scores(int64_t num_rows, const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float *target,
                    int64_t stride) {
    if (fits_amx(dim)) {
        ds_amx_scores(queries, num_rows, dim, low, high, target, stride);
        return;
    }
    for (int64_t r = 0; r < num_rows; r += DS_SCORE_ROWS) {
        const int64_t rows = num_rows - r < DS_SCORE_ROWS ? num_rows - r : DS_SCORE_ROWS;
        ds_scores(rows, queries + r * dim, dim, low, high, target + r * stride, stride);
    }
}

static void add_group(int64_t num_rows, const bf16 *weights, int64_t stride, const bf16 *values, int64_t dim, float *sums) {
    for (int64_t r = 0; r < num_rows; r += MAX_VALUE_ROWS) {
        const int64_t rows = num_rows - r < MAX_VALUE_ROWS ? num_rows - r : MAX_VALUE_ROWS;
        for (int64_t d = 0; d < dim;) {
            const int width = dim - d >= 64 ? 4 : dim - d >= 32 ? 2 : 1;
            values_tiles[width][rows](weights + r * stride, stride, values + 2 * d, dim, sums + r * dim + d);
            d += width * 16;
        }
    }
}

void ds_tile_values(int64_t num_rows, const bf16 *weights, int64_t stride, const bf16 *const *groups, int64_t num_groups,
                    int64_t dim, float *sums) {
    if (fits_amx(dim)) {
        ds_amx_add_values(weights, stride, num_rows, groups, num_groups, dim, sums);
        return;
    }
    for (int64_t g = 0; g < num_groups; g++) add_group(num_rows, weights + g * GROUP_TOKENS, stride, groups[g], dim, sums);
}

float ds_exponentials(const float *scores, float scale, int64_t visible, int64_t padded, bf16 *weights) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < visible; i += 16) {
        __mmask16 lanes = first_lanes(visible - i);
        __m512 score = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, scores + i), factor);
        largest = _mm512_mask_max_ps(largest, lanes, largest, score);
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < padded; i += 16) {
        __m512 weight = _mm512_setzero_ps();
        if (i < visible) {
            __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + i), factor);
            __m512 exact = exp_ps(_mm512_sub_ps(score, top));
            weight = round_bf16(_mm512_maskz_mov_ps(first_lanes(visible - i), exact));
        }
        sum = _mm512_add_ps(sum, weight);
        store_bf16(weights + i, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

static _Thread_local void *scratch;
static _Thread_local size_t scratch_bytes;

void *ds_thread_scratch(size_t bytes) {
    if (bytes > scratch_bytes) {
        free(scratch);
        scratch_bytes = (bytes + bytes / 2 + 63) / 64 * 64;
        scratch = aligned_alloc(64, scratch_bytes);
        if (!scratch) abort();
    }
    return scratch;
}
