#include "matmul.h"

#include "amx.h"
#include "pool.h"

// Rows in one item at most, so that they stay in a core's cache while a panel's weights pass.
#define ROWS_PER_ITEM 240
#define MAX_TILE_ROWS 12
#define AMX_GROUP DS_AMX_ROW_PANELS // panels that take turns on the same rows, which stay in the core's nearest cache
#define ITEMS_PER_THREAD 4 // at least, where there are panels enough

static inline int64_t num_panels(const ds_matrix *matrix) { return (matrix->num_outputs + PANEL - 1) / PANEL; }

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

// A row's 16 results from the sums of its two digits.
static inline __m512 scaled(const ds_product *product, int64_t row, int64_t output, __m512i high, __m512i low) {
    const ds_matrix *matrix = product->matrix;
    // The digits' bytes are 128 too high.
    const __m512i excess = _mm512_slli_epi32(_mm512_loadu_si512(matrix->sums + output), 7);
    const __m512 upper = _mm512_cvtepi32_ps(_mm512_sub_epi32(high, excess));
    const __m512 lower = _mm512_cvtepi32_ps(_mm512_sub_epi32(low, excess));
    const __m512 sum = _mm512_fmadd_ps(upper, _mm512_set1_ps(DS_DIGIT_BASE), lower);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(product->row_scales[row]), _mm512_loadu_ps(matrix->scale + output));
    return _mm512_mul_ps(sum, scale);
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
        for (int64_t r = 0; r < rows; r++)
            for (int64_t n = 0; n < width; n++) {
                const __m512i *digits = counts + DS_DIGITS * r * width + n;
                sums[r * width + n] = scaled(product, row + r, panel * PANEL + n * 16, digits[0], digits[width]);
            }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            finish_panel(product, row + r, (panel + p) * PANEL, sums[r * width + 2 * p], sums[r * width + 2 * p + 1]);
}

static void row_amx(const ds_product *product, int64_t panel, int64_t panels) {
    const int64_t size = product->matrix->num_inputs;
    float sums[DS_AMX_ROW_PANELS][PANEL];
    ds_amx_bf16_row(product->rows, size, (const bf16 *)product->matrix->data + panel * size * PANEL, panels, sums[0]);
    for (int64_t i = 0; i < panels; i++)
        finish_panel(product, 0, (panel + i) * PANEL, _mm512_loadu_ps(sums[i]), _mm512_loadu_ps(sums[i] + 16));
}

static void tile_amx(const ds_product *product, int64_t row, int64_t rows, int64_t panel) {
    const ds_matrix *matrix = product->matrix;
    const int64_t size = matrix->num_inputs, first = panel * size * PANEL;
    if (matrix->kind == DS_BF16) {
        _Alignas(64) float sums[DS_AMX_ROWS][PANEL];
        ds_amx_bf16(product->rows + row * size, rows, size, (const bf16 *)matrix->data + first, sums[0]);
        for (int64_t r = 0; r < rows; r++)
            finish_panel(product, row + r, panel * PANEL, _mm512_load_ps(sums[r]), _mm512_load_ps(sums[r] + 16));
    } else {
        _Alignas(64) int32_t counts[DS_AMX_ROWS][PANEL];
        ds_amx_int8(product->bytes + DS_DIGITS * row * size, DS_DIGITS * rows, size, (const int8_t *)matrix->data + first,
                    counts[0]);
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *high = counts[DS_DIGITS * r], *low = counts[DS_DIGITS * r + 1];
            __m512 sums[2];
            for (int n = 0; n < 2; n++)
                sums[n] = scaled(product, row + r, panel * PANEL + n * 16, _mm512_load_si512(high + n * 16),
                                 _mm512_load_si512(low + n * 16));
            finish_panel(product, row + r, panel * PANEL, sums[0], sums[1]);
        }
    }
}

// A product's rows and panels, cut into items.
typedef struct {
    int is_amx;
    int64_t panels, group; // panels in all, and of an item, all for the same rows
    int64_t tile_rows;     // at most
} plan;

static inline int64_t digits_per_row(const ds_product *product) {
    return product->matrix->kind == DS_INT8 ? DS_DIGITS : 1;
}

static plan plan_of(const ds_product *product) {
    const int64_t panels = num_panels(product->matrix), digits = digits_per_row(product), rows = product->num_rows;
    plan p = {.panels = panels, .group = 1};
    // A row alone is read faster by vector instructions; bf16 has to be added up as the tiles do, integers are exact.
    const int is_exact_row = product->matrix->kind == DS_INT8 && rows == 1;
    p.is_amx = ds_has_amx() && product->matrix->kind != DS_FLOAT && !is_exact_row;
    p.tile_rows = (p.is_amx ? DS_AMX_ROWS : MAX_TILE_ROWS) / digits;
    if (p.is_amx) {
        const int64_t shares = panels / (ITEMS_PER_THREAD * ds_num_threads());
        p.group = rows > p.tile_rows || shares > AMX_GROUP || rows == 1 ? AMX_GROUP : shares > 1 ? shares : 1;
    } else if (rows <= p.tile_rows) {
        p.group = wide_panels[digits * rows];
    }
    return p;
}

static inline int64_t num_groups(const plan *p) { return (p->panels + p->group - 1) / p->group; }

static inline int64_t num_items(const ds_product *product) {
    const plan p = plan_of(product);
    return (product->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM * num_groups(&p);
}

static void run_item_amx(const ds_product *product, const plan *p, int64_t row, int64_t end, int64_t panel, int64_t last) {
    int64_t shape = 0;
    for (; row < end; row += p->tile_rows) {
        const int64_t rows = end - row < p->tile_rows ? end - row : p->tile_rows;
        if (rows != shape) ds_amx_begin(rows * digits_per_row(product));
        shape = rows;
        for (int64_t i = panel; i < last; i++) tile_amx(product, row, rows, i);
    }
    ds_amx_end();
}

static void run_item(const ds_product *product, int64_t item) {
    const plan p = plan_of(product);
    const int64_t first_row = item / num_groups(&p) * ROWS_PER_ITEM, panel = item % num_groups(&p) * p.group;
    const int64_t last = panel + p.group < p.panels ? panel + p.group : p.panels;
    int64_t rows = product->num_rows - first_row;
    if (rows > ROWS_PER_ITEM) rows = ROWS_PER_ITEM;
    if (p.is_amx && product->num_rows == 1) {
        row_amx(product, panel, last - panel);
        return;
    }
    if (p.is_amx) {
        run_item_amx(product, &p, first_row, first_row + rows, panel, last);
        return;
    }
    const int64_t tiles = (rows + p.tile_rows - 1) / p.tile_rows;
    const int64_t base = rows / tiles, longer = rows % tiles; // tiles of equal height, the first ones a row higher
    for (int64_t t = 0, row = first_row; t < tiles; t++) {
        const int64_t height = base + (t < longer);
        if (last - panel == p.group) {
            tile(product, row, height, panel, (int)p.group);
        } else {
            for (int64_t i = panel; i < last; i++) tile(product, row, height, i, 1);
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
