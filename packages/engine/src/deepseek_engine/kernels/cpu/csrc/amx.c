// A tile is 16 rows of 64 bytes. One instruction adds, to a tile of 16 x 16 sums, the products of 16 rows of 32 bf16
// (or 64 bytes) with 16 outputs' weights, which lie in pairs (or fours) of inputs as the panels do. Each sum runs over the
// inputs in steps of 64 bytes, whatever the number of rows, so that a row has the same bits alone and among others.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and TDPBUSD.
#include "amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILE_ROWS 16
#define TILE_BYTES 64

#if defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#define CAN_COMPILE
#endif
#endif

static int is_used;

int ds_has_amx(void) { return is_used; }

#ifdef CAN_COMPILE
#define WITH_TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))

static int is_there(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, ALL = AMX_BF16 | AMX_TILE | AMX_INT8 };
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & ALL) != ALL) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

int ds_set_amx(int wanted) {
    is_used = wanted && is_there();
    return is_used;
}

// Have everything that was written in memory: GCC's tile instructions do not say what they read.
static inline void settle(const void *written) { __asm__ volatile("" : : "r"(written) : "memory"); }

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

// Tiles 0 to 3 are sums, [tile of rows][tile of outputs]; 4 and 5 are rows; 6 and 7 weights, `depth` rows of them.
WITH_TILES static void shape_tiles(int64_t rows, int64_t row_bytes, int64_t depth) {
    tile_shapes shapes = {.palette = 1};
    const int64_t upper = rows < TILE_ROWS ? rows : TILE_ROWS, lower = rows > TILE_ROWS ? rows - TILE_ROWS : 1;
    const int64_t heights[8] = {upper, upper, lower, lower, upper, lower, depth, depth};
    for (int t = 0; t < 8; t++) {
        shapes.row_bytes[t] = (uint16_t)(t == 4 || t == 5 ? row_bytes : TILE_BYTES);
        shapes.rows[t] = (uint8_t)heights[t];
    }
    settle(&shapes);
    _tile_loadconfig(&shapes);
}

void ds_amx_begin(int64_t rows) { shape_tiles(rows, TILE_BYTES, TILE_ROWS); }

void ds_amx_begin_values(int64_t rows) { shape_tiles(rows, TILE_BYTES / 2, TILE_ROWS / 2); }

WITH_TILES void ds_amx_end(void) { _tile_release(); }

WITH_TILES static void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

WITH_TILES static void store_sums(int64_t num_rows, float *sums, int64_t stride) {
    const int64_t apart = stride * (int64_t)sizeof(float);
    _tile_stored(0, sums, apart);
    _tile_stored(1, sums + 16, apart);
    if (num_rows > TILE_ROWS) {
        _tile_stored(2, sums + TILE_ROWS * stride, apart);
        _tile_stored(3, sums + TILE_ROWS * stride + 16, apart);
    }
}

// Two tiles of weights, whose rows are `apart` bytes apart.
typedef struct {
    const char *low, *high;
    int64_t apart, is_stream; // a stream is read once from memory: the processor guesses what comes next too late
} weight_tiles;

#define AHEAD 4096

static inline void fetch_ahead(const char *weights) {
    for (int64_t i = 0; i < 2 * TILE_ROWS; i++) _mm_prefetch(weights + AHEAD + i * TILE_BYTES, _MM_HINT_T0);
}

// What the whole steps leave over, brought to a whole step with zeros.
typedef struct {
    char rows[DS_AMX_ROWS][TILE_BYTES], low[TILE_ROWS][TILE_BYTES], high[TILE_ROWS][TILE_BYTES];
} rest;

static void fill_rest(rest *r, const char *rows, int64_t stride, int64_t num_rows, int64_t bytes, weight_tiles w) {
    memset(r, 0, sizeof(*r));
    for (int64_t row = 0; row < num_rows; row++) memcpy(r->rows[row], rows + row * stride, (size_t)bytes);
    for (int64_t k = 0; k < bytes / 4; k++) {
        memcpy(r->low[k], w.low + k * w.apart, TILE_BYTES);
        memcpy(r->high[k], w.high + k * w.apart, TILE_BYTES);
    }
    settle(r);
}

#define DEFINE_SUMS(NAME, MULTIPLY)                                                                                    \
    WITH_TILES static void NAME(const char *rows, int64_t stride, int64_t num_rows, int64_t bytes, weight_tiles w) {   \
        const int64_t whole = bytes / TILE_BYTES * TILE_BYTES, step = TILE_ROWS * w.apart;                             \
        rest left;                                                                                                     \
        zero_sums();                                                                                                   \
        for (int64_t k = 0; k < bytes; k += TILE_BYTES, rows += TILE_BYTES, w.low += step, w.high += step) {           \
            if (k == whole) {                                                                                          \
                fill_rest(&left, rows, stride, num_rows, bytes - whole, w);                                            \
                rows = left.rows[0];                                                                                   \
                stride = TILE_BYTES;                                                                                   \
                w = (weight_tiles){left.low[0], left.high[0], TILE_BYTES, 0};                                          \
            }                                                                                                          \
            if (w.is_stream) fetch_ahead(w.low);                                                                       \
            _tile_loadd(4, rows, stride);                                                                              \
            _tile_loadd(6, w.low, w.apart);                                                                            \
            _tile_loadd(7, w.high, w.apart);                                                                           \
            MULTIPLY(0, 4, 6);                                                                                         \
            MULTIPLY(1, 4, 7);                                                                                         \
            if (num_rows <= TILE_ROWS) continue;                                                                       \
            _tile_loadd(5, rows + TILE_ROWS * stride, stride);                                                         \
            MULTIPLY(2, 5, 6);                                                                                         \
            MULTIPLY(3, 5, 7);                                                                                         \
        }                                                                                                              \
    }

DEFINE_SUMS(sum_bf16, _tile_dpbf16ps)
DEFINE_SUMS(sum_int8, _tile_dpbusd)

static inline weight_tiles of_panel(const void *panel, int64_t num_rows) {
    return (weight_tiles){panel, (const char *)panel + TILE_BYTES, 2 * TILE_BYTES, num_rows <= TILE_ROWS};
}

void ds_amx_bf16(const bf16 *rows, int64_t num_rows, int64_t size, const bf16 *weights, float *sums) {
    sum_bf16((const char *)rows, size * 2, num_rows, size * 2, of_panel(weights, num_rows));
    store_sums(num_rows, sums, DS_AMX_OUTPUTS);
}

void ds_amx_int8(const uint8_t *rows, int64_t num_rows, int64_t size, const int8_t *weights, int32_t *sums) {
    sum_int8((const char *)rows, size, num_rows, size, of_panel(weights, num_rows));
    store_sums(num_rows, (float *)sums, DS_AMX_OUTPUTS);
}

void ds_amx_scores(const bf16 *queries, int64_t num_rows, int64_t dim, const bf16 *low, const bf16 *high, float *target,
                   int64_t stride) {
    const weight_tiles keys = {(const char *)low, (const char *)high, TILE_BYTES, 0};
    sum_bf16((const char *)queries, dim * 2, num_rows, dim * 2, keys);
    store_sums(num_rows, target, stride);
}

WITH_TILES static void add_values(const bf16 *weights, int64_t stride, int64_t num_rows, const bf16 *const *groups,
                                  int64_t num_groups, int64_t dim, int64_t first, float *sums) {
    const int64_t apart = dim * (int64_t)sizeof(float);
    _tile_loadd(0, sums, apart);
    _tile_loadd(1, sums + 16, apart);
    if (num_rows > TILE_ROWS) {
        _tile_loadd(2, sums + TILE_ROWS * dim, apart);
        _tile_loadd(3, sums + TILE_ROWS * dim + 16, apart);
    }
    for (int64_t g = 0; g < num_groups; g++, weights += 16) {
        _tile_loadd(4, weights, stride * 2);
        _tile_loadd(6, groups[g] + 2 * first, dim * 4);
        _tile_loadd(7, groups[g] + 2 * first + 32, dim * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (num_rows <= TILE_ROWS) continue;
        _tile_loadd(5, weights + TILE_ROWS * stride, stride * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    store_sums(num_rows, sums, dim);
}

void ds_amx_add_values(const bf16 *weights, int64_t stride, int64_t num_rows, const bf16 *const *groups, int64_t num_groups,
                       int64_t dim, float *sums) {
    settle(weights);
    for (int64_t d = 0; d < dim; d += 32) add_values(weights, stride, num_rows, groups, num_groups, dim, d, sums + d);
}

#else // a compiler from before the instructions: ds_has_amx() says 0, so that nobody calls what follows

int ds_set_amx(int wanted) {
    (void)wanted;
    return 0;
}
void ds_amx_begin(int64_t rows) { (void)rows; }
void ds_amx_begin_values(int64_t rows) { (void)rows; }
void ds_amx_end(void) {}
void ds_amx_bf16(const bf16 *rows, int64_t num_rows, int64_t size, const bf16 *weights, float *sums) {
    (void)rows, (void)num_rows, (void)size, (void)weights, (void)sums;
}
void ds_amx_int8(const uint8_t *rows, int64_t num_rows, int64_t size, const int8_t *weights, int32_t *sums) {
    (void)rows, (void)num_rows, (void)size, (void)weights, (void)sums;
}
void ds_amx_scores(const bf16 *queries, int64_t num_rows, int64_t dim, const bf16 *low, const bf16 *high, float *target,
                   int64_t stride) {
    (void)queries, (void)num_rows, (void)dim, (void)low, (void)high, (void)target, (void)stride;
}
void ds_amx_add_values(const bf16 *weights, int64_t stride, int64_t num_rows, const bf16 *const *groups, int64_t num_groups,
                       int64_t dim, float *sums) {
    (void)weights, (void)stride, (void)num_rows, (void)groups, (void)num_groups, (void)dim, (void)sums;
}

#endif
