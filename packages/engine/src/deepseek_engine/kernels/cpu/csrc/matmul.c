#include "matmul.h"

#include <math.h>

#include "pool.h"

// Rows in one item at most, so that they stay in a core's cache while a panel's weights pass.
#define ROWS_PER_ITEM 240
#define MAX_TILE_ROWS 12

static inline int64_t num_panels(const ds_matrix *matrix) { return (matrix->num_outputs + PANEL - 1) / PANEL; }

void ds_pack_bf16(const bf16 *weights, int64_t num_outputs, int64_t num_inputs, bf16 *packed) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k += 2)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++, packed += 2) {
                packed[0] = n < num_outputs ? weights[n * num_inputs + k] : 0;
                packed[1] = n < num_outputs ? weights[n * num_inputs + k + 1] : 0;
            }
}

void ds_pack_float(const float *weights, int64_t num_outputs, int64_t num_inputs, float *packed) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k++)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++) *packed++ = n < num_outputs ? weights[n * num_inputs + k] : 0;
}

void ds_unpack_bf16_row(const ds_matrix *matrix, int64_t output, bf16 *row) {
    const bf16 *panel = (const bf16 *)matrix->data + output / PANEL * PANEL * matrix->num_inputs;
    for (int64_t k = 0; k < matrix->num_inputs; k += 2)
        memcpy(row + k, panel + k * PANEL + output % PANEL * 2, 2 * sizeof(bf16));
}

void ds_pack_int8(const int8_t *weights, int64_t num_outputs, int64_t num_inputs, int8_t *packed, int32_t *sums) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    memset(sums, 0, (size_t)(panels * PANEL) * sizeof(int32_t));
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k += 4)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++, packed += 4)
                for (int i = 0; i < 4; i++) {
                    packed[i] = n < num_outputs ? weights[n * num_inputs + k + i] : 0;
                    sums[n] += packed[i];
                }
}

// What a row's largest activation becomes.
#define MAX_VALUE (127 * DS_DIGIT_BASE)

static inline __m128i as_bytes(__m512i digits) {
    return _mm512_cvtepi32_epi8(_mm512_add_epi32(digits, _mm512_set1_epi32(128)));
}

void ds_quantize_rows(const bf16 *rows, int64_t num_rows, int64_t size, uint8_t *bytes, float *scales) {
    const __m512 infinity = _mm512_set1_ps(INFINITY);
    for (int64_t r = 0; r < num_rows; r++, rows += size, bytes += DS_DIGITS * size) {
        __m512 largest = _mm512_setzero_ps();
        __mmask16 broken = 0;
        for (int64_t i = 0; i < size; i += 16) {
            __m512 x = _mm512_abs_ps(load_bf16_masked(first_lanes(size - i), rows + i));
            broken |= _mm512_cmp_ps_mask(x, infinity, _CMP_NLT_UQ);
            largest = _mm512_max_ps(largest, x);
        }
        float absmax = _mm512_reduce_max_ps(largest);
        // Integers cannot carry an infinity or a NaN on: the scale does.
        scales[r] = broken ? NAN : absmax > 0 ? absmax / MAX_VALUE : 1.0f;
        const __m512 scale = _mm512_set1_ps(scales[r]);
        for (int64_t i = 0; i < size; i += 16) {
            __mmask16 mask = first_lanes(size - i);
            __m512i q = _mm512_cvtps_epi32(_mm512_div_ps(load_bf16_masked(mask, rows + i), scale));
            q = _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(MAX_VALUE)), _mm512_set1_epi32(-MAX_VALUE));
            __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(1.0f / DS_DIGIT_BASE)));
            __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
            _mm_mask_storeu_epi8(bytes + i, mask, as_bytes(high));
            _mm_mask_storeu_epi8(bytes + size + i, mask, as_bytes(low));
        }
    }
}

// Sums of PANELS panels for ROWS rows. Every sum runs over the inputs in order in one register, so that it is the same
// in each of these functions.
#define DEFINE_TILES(ROWS, PANELS)                                                                                     \
    static void tile_bf16_##ROWS##x##PANELS(const bf16 *rows, int64_t size, const bf16 *weights, __m512 *out) {        \
        __m512 sums[ROWS][2 * PANELS];                                                                                 \
        const int64_t panel = size * PANEL;                                                                            \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_setzero_ps();                                     \
        for (int64_t k = 0; k < size; k += 2) {                                                                        \
            __m512bh w[2 * PANELS];                                                                                    \
            for (int n = 0; n < 2 * PANELS; n++)                                                                       \
                w[n] = (__m512bh)_mm512_loadu_si512(weights + (n / 2) * panel + k * PANEL + (n % 2) * 32);             \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                int32_t pair;                                                                                          \
                memcpy(&pair, rows + r * size + k, 4);                                                                 \
                __m512bh x = (__m512bh)_mm512_set1_epi32(pair);                                                        \
                for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, w[n]);               \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) out[r * 2 * PANELS + n] = sums[r][n];                                 \
    }                                                                                                                  \
    static void tile_float_##ROWS##x##PANELS(const bf16 *rows, int64_t size, const float *weights, __m512 *out) {      \
        __m512 sums[ROWS][2 * PANELS];                                                                                 \
        const int64_t panel = size * PANEL;                                                                            \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_setzero_ps();                                     \
        for (int64_t k = 0; k < size; k++) {                                                                           \
            __m512 w[2 * PANELS];                                                                                      \
            for (int n = 0; n < 2 * PANELS; n++)                                                                       \
                w[n] = _mm512_loadu_ps(weights + (n / 2) * panel + k * PANEL + (n % 2) * 16);                          \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                __m512 x = _mm512_set1_ps(bf16_to_float(rows[r * size + k]));                                          \
                for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_fmadd_ps(x, w[n], sums[r][n]);                \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) out[r * 2 * PANELS + n] = sums[r][n];                                 \
    }                                                                                                                  \
    static void tile_int8_##ROWS##x##PANELS(const uint8_t *rows, int64_t size, const int8_t *weights, __m512i *out) {  \
        __m512i sums[ROWS][2 * PANELS];                                                                                \
        const int64_t panel = size * PANEL;                                                                            \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_setzero_si512();                                  \
        for (int64_t k = 0; k < size; k += 4) {                                                                        \
            __m512i w[2 * PANELS];                                                                                     \
            for (int n = 0; n < 2 * PANELS; n++)                                                                       \
                w[n] = _mm512_loadu_si512(weights + (n / 2) * panel + k * PANEL + (n % 2) * 64);                       \
            for (int r = 0; r < ROWS; r++) {                                                                           \
                int32_t four;                                                                                          \
                memcpy(&four, rows + r * size + k, 4);                                                                 \
                __m512i x = _mm512_set1_epi32(four);                                                                   \
                for (int n = 0; n < 2 * PANELS; n++) sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], x, w[n]);            \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < ROWS; r++)                                                                                 \
            for (int n = 0; n < 2 * PANELS; n++) out[r * 2 * PANELS + n] = sums[r][n];                                 \
    }

// As many panels as the registers allow: 24 sums and their weights.
DEFINE_TILES(1, 4)
DEFINE_TILES(2, 4)
DEFINE_TILES(3, 3)
DEFINE_TILES(4, 2)
DEFINE_TILES(5, 2)
DEFINE_TILES(6, 2)
DEFINE_TILES(1, 1)
DEFINE_TILES(2, 1)
DEFINE_TILES(3, 1)
DEFINE_TILES(4, 1)
DEFINE_TILES(5, 1)
DEFINE_TILES(6, 1)
DEFINE_TILES(7, 1)
DEFINE_TILES(8, 1)
DEFINE_TILES(9, 1)
DEFINE_TILES(10, 1)
DEFINE_TILES(11, 1)
DEFINE_TILES(12, 1)

typedef void (*bf16_tile)(const bf16 *, int64_t, const bf16 *, __m512 *);
typedef void (*float_tile)(const bf16 *, int64_t, const float *, __m512 *);
typedef void (*int8_tile)(const uint8_t *, int64_t, const int8_t *, __m512i *);

static const int wide_panels[MAX_TILE_ROWS + 1] = {0, 4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1};

#define LIST(KIND)                                                                                                     \
    {0, tile_##KIND##_1x1, tile_##KIND##_2x1, tile_##KIND##_3x1, tile_##KIND##_4x1, tile_##KIND##_5x1,                 \
     tile_##KIND##_6x1, tile_##KIND##_7x1, tile_##KIND##_8x1, tile_##KIND##_9x1, tile_##KIND##_10x1,                   \
     tile_##KIND##_11x1, tile_##KIND##_12x1}
#define LIST_WIDE(KIND)                                                                                                \
    {0, tile_##KIND##_1x4, tile_##KIND##_2x4, tile_##KIND##_3x3, tile_##KIND##_4x2, tile_##KIND##_5x2,                 \
     tile_##KIND##_6x2, tile_##KIND##_7x1, tile_##KIND##_8x1, tile_##KIND##_9x1, tile_##KIND##_10x1,                   \
     tile_##KIND##_11x1, tile_##KIND##_12x1}

static const bf16_tile bf16_tiles[2][MAX_TILE_ROWS + 1] = {LIST(bf16), LIST_WIDE(bf16)};
static const float_tile float_tiles[2][MAX_TILE_ROWS + 1] = {LIST(float), LIST_WIDE(float)};
static const int8_tile int8_tiles[2][MAX_TILE_ROWS + 1] = {LIST(int8), LIST_WIDE(int8)};

static void finish_panel(const ds_product *product, int64_t row, int64_t output, __m512 low, __m512 high) {
    const ds_matrix *matrix = product->matrix;
    if (matrix->bias) {
        low = _mm512_add_ps(low, _mm512_loadu_ps(matrix->bias + output));
        high = _mm512_add_ps(high, _mm512_loadu_ps(matrix->bias + output + 16));
    }
    int64_t left = matrix->num_outputs - output;
    __mmask16 low_lanes = first_lanes(left), high_lanes = first_lanes(left > 16 ? left - 16 : 0);
    if (product->epilogue == DS_STORE_FLOAT) {
        float *target = (float *)product->target + row * product->target_stride + output;
        _mm512_mask_storeu_ps(target, low_lanes, low);
        _mm512_mask_storeu_ps(target + 16, high_lanes, high);
        return;
    }
    bf16 *target = (bf16 *)product->target + row * product->target_stride;
    if (product->epilogue == DS_SILU_MUL) {
        // Rounded where a sequence of bf16 operators rounds.
        __m512 gate = round_bf16(silu_ps(round_bf16(low)));
        store_bf16(target + output / 2, _mm512_mul_ps(gate, round_bf16(high)));
        return;
    }
    target += output;
    if (product->epilogue == DS_ADD_BF16) {
        low = _mm512_add_ps(round_bf16(low), load_bf16_masked(low_lanes, target));
        high = _mm512_add_ps(round_bf16(high), load_bf16_masked(high_lanes, target + 16));
    }
    store_bf16_masked(target, low_lanes, low);
    store_bf16_masked(target + 16, high_lanes, high);
}

static void tile(const ds_product *product, int64_t row, int64_t rows, int64_t panel, int panels) {
    const ds_matrix *matrix = product->matrix;
    const int64_t size = matrix->num_inputs, width = 2 * panels;
    __m512 sums[2 * MAX_TILE_ROWS];
    if (matrix->kind == DS_BF16) {
        const bf16 *weights = (const bf16 *)matrix->data + panel * size * PANEL;
        bf16_tiles[panels > 1][rows](product->rows + row * size, size, weights, sums);
    } else if (matrix->kind == DS_FLOAT) {
        const float *weights = (const float *)matrix->data + panel * size * PANEL;
        float_tiles[panels > 1][rows](product->rows + row * size, size, weights, sums);
    } else {
        __m512i counts[2 * MAX_TILE_ROWS];
        const int8_t *weights = (const int8_t *)matrix->data + panel * size * PANEL;
        int8_tiles[panels > 1][DS_DIGITS * rows](product->bytes + DS_DIGITS * row * size, size, weights, counts);
        for (int64_t r = 0; r < rows; r++) {
            const __m512 row_scale = _mm512_set1_ps(product->row_scales[row + r]);
            for (int64_t n = 0; n < width; n++) {
                const int64_t output = panel * PANEL + n * 16;
                // The digits' bytes are 128 too high.
                const __m512i excess = _mm512_slli_epi32(_mm512_loadu_si512(matrix->sums + output), 7);
                const __m512i *digits = counts + DS_DIGITS * r * width + n;
                __m512 high = _mm512_cvtepi32_ps(_mm512_sub_epi32(digits[0], excess));
                __m512 low = _mm512_cvtepi32_ps(_mm512_sub_epi32(digits[width], excess));
                __m512 sum = _mm512_fmadd_ps(high, _mm512_set1_ps(DS_DIGIT_BASE), low);
                __m512 scale = _mm512_mul_ps(row_scale, _mm512_loadu_ps(matrix->scale + output));
                sums[r * width + n] = _mm512_mul_ps(sum, scale);
            }
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            finish_panel(product, row + r, (panel + p) * PANEL, sums[r * width + 2 * p], sums[r * width + 2 * p + 1]);
}

// Rows that a tile holds at most, and the registers' rows that each of them takes.
static inline int64_t digits_per_row(const ds_product *product) {
    return product->matrix->kind == DS_INT8 ? DS_DIGITS : 1;
}

static inline int64_t max_tile_rows(const ds_product *product) { return MAX_TILE_ROWS / digits_per_row(product); }

// Panels that one item covers, all for the same rows.
static inline int64_t panels_per_item(const ds_product *product) {
    return product->num_rows <= max_tile_rows(product) ? wide_panels[digits_per_row(product) * product->num_rows] : 1;
}

static inline int64_t num_items(const ds_product *product) {
    const int64_t groups = panels_per_item(product);
    const int64_t row_groups = (product->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM;
    return row_groups * ((num_panels(product->matrix) + groups - 1) / groups);
}

static void run_item(const ds_product *product, int64_t item) {
    const int64_t panels = num_panels(product->matrix), group = panels_per_item(product);
    const int64_t groups = (panels + group - 1) / group;
    const int64_t first_row = item / groups * ROWS_PER_ITEM, first_panel = item % groups * group;
    int64_t rows = product->num_rows - first_row;
    if (rows > ROWS_PER_ITEM) rows = ROWS_PER_ITEM;
    const int64_t tiles = (rows + max_tile_rows(product) - 1) / max_tile_rows(product);
    const int64_t base = rows / tiles, longer = rows % tiles; // tiles of equal height, the first ones a row higher
    for (int64_t t = 0, row = first_row; t < tiles; t++) {
        const int64_t height = base + (t < longer);
        if (first_panel + group <= panels) {
            tile(product, row, height, first_panel, (int)group);
        } else {
            for (int64_t panel = first_panel; panel < panels; panel++) tile(product, row, height, panel, 1);
        }
        row += height;
    }
}

static void run_single(void *argument, int64_t item, int thread) {
    (void)thread;
    run_item(argument, item);
}

void ds_matmul(const ds_product *product) {
    if (product->num_rows > 0) ds_parallel_for(num_items(product), run_single, (void *)product);
}

typedef struct {
    const ds_product *products;
    int64_t count;
} many;

static void run_one_of_many(void *argument, int64_t item, int thread) {
    (void)thread;
    const many *all = argument;
    for (int64_t i = 0; i < all->count; i++) {
        if (all->products[i].num_rows == 0) continue;
        const int64_t items = num_items(&all->products[i]);
        if (item < items) {
            run_item(&all->products[i], item);
            return;
        }
        item -= items;
    }
}

void ds_matmul_many(const ds_product *products, int64_t num_products) {
    many all = {products, num_products};
    int64_t items = 0;
    for (int64_t i = 0; i < num_products; i++)
        if (products[i].num_rows > 0) items += num_items(&products[i]);
    ds_parallel_for(items, run_one_of_many, &all);
}
