#include "latent.h"

#include "attention_tiles.h"
#include "pool.h"
#include "scratch.h"
#include "transpose.h"

#define ROWS_PER_ITEM 8
#define MIN_ROWS 4
#define GROUPS_AT_ONCE 4 // of values: a row's sums are loaded and stored once for all of them

typedef struct {
    const ds_latent *latent;
    bf16 *nope;           // [heads][rows][nope_dim]
    bf16 *folded;         // [rows][heads][latent_dim]
    bf16 *attended;       // [heads][rows][kv_rank]
    ds_product *products; // [heads]
    int64_t rows_per_tile, num_bytes;
} room;

static inline int64_t latent_dim(const ds_latent_shape *s) { return s->kv_rank + s->rope_dim; }

static room lay_out(const ds_latent_shape *s, int64_t rows, void *scratch) {
    char *next = scratch;
    room r = {0};
    r.nope = ds_take(&next, s->num_heads * rows * s->nope_dim * 2);
    r.folded = ds_take(&next, (rows * s->num_heads + DS_TILE_ROWS) * latent_dim(s) * 2);
    r.attended = ds_take(&next, s->num_heads * rows * s->kv_rank * 2);
    r.products = ds_take(&next, s->num_heads * (int64_t)sizeof(ds_product));
    r.num_bytes = next - (char *)scratch;
    return r;
}

int64_t ds_latent_bytes(const ds_latent_shape *shape, int64_t num_rows) { return lay_out(shape, num_rows, 0).num_bytes; }

static void rotate(const ds_latent *l, const bf16 *from, int64_t position, bf16 *to) {
    const int64_t half = l->shape->rope_dim / 2;
    const float *cos = l->cos_sin + position * 2 * half, *sin = cos + half;
    const int64_t step = l->shape->is_interleaved ? 2 : 1, apart = l->shape->is_interleaved ? 1 : half;
    for (int64_t i = 0; i < half; i++) {
        const float x = bf16_to_float(from[i * step]), y = bf16_to_float(from[i * step + apart]);
        to[i] = float_to_bf16(x * cos[i] - y * sin[i]);
        to[half + i] = float_to_bf16(y * cos[i] + x * sin[i]);
    }
}

static void prepare_row(const room *r, int64_t sequence, int64_t row, int64_t position) {
    const ds_latent *l = r->latent;
    const ds_latent_shape *s = l->shape;
    const bf16 *latent = l->latents + row * l->latent_stride, *query = l->queries + row * l->query_stride;
    const int64_t slot = ds_group_of(l->batch, sequence, position) * GROUP_TOKENS + position % GROUP_TOKENS;
    bf16 *stored = l->cache + slot * latent_dim(s);
    ds_normalise_row(l->latent_norm, latent, s->kv_rank, stored);
    rotate(l, latent + s->kv_rank, position, stored + s->kv_rank);
    for (int64_t head = 0; head < s->num_heads; head++, query += s->nope_dim + s->rope_dim) {
        memcpy(r->nope + (head * l->num_rows + row) * s->nope_dim, query, (size_t)s->nope_dim * sizeof(bf16));
        rotate(l, query + s->nope_dim, position, r->folded + (row * s->num_heads + head) * latent_dim(s) + s->kv_rank);
    }
}

static void prepare_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    const ds_batch *batch = r->latent->batch;
    int64_t row = item * ROWS_PER_ITEM, end = row + ROWS_PER_ITEM, sequence = 0;
    if (end > r->latent->num_rows) end = r->latent->num_rows;
    for (; row < end; row++) {
        while (row >= batch->first_row[sequence + 1]) sequence++;
        prepare_row(r, sequence, row, ds_position(batch, sequence, row));
    }
}

// rows: [heads][num_rows][inputs]; target: a head's outputs are `width` after those of the head before.
static void multiply_heads(const room *r, const ds_matrix *matrices, const bf16 *rows, bf16 *target, int64_t width) {
    const int64_t heads = r->latent->shape->num_heads, num_rows = r->latent->num_rows;
    for (int64_t head = 0; head < heads; head++)
        r->products[head] = (ds_product){
            .matrix = &matrices[head], .rows = rows + head * num_rows * matrices[head].num_inputs, .num_rows = num_rows,
            .epilogue = DS_STORE_BF16, .target = target + head * width, .target_stride = heads * width,
        };
    ds_matmul_many(r->products, heads);
}

typedef struct {
    int64_t sequence, first, count; // rows of the tile, out of new tokens times heads
} tile;

static inline const bf16 *latents_of(const ds_latent *l, int64_t sequence, int64_t group) {
    return l->cache + ds_group_of(l->batch, sequence, group * GROUP_TOKENS) * GROUP_TOKENS * latent_dim(l->shape);
}

// The 16 latents of a group of what a row sees; chosen ones are gathered.
static const bf16 *seen_latents(const ds_latent *l, int64_t sequence, int64_t row, int64_t group, bf16 *gathered) {
    if (!l->chosen) return latents_of(l, sequence, group);
    const int64_t dim = latent_dim(l->shape);
    const int32_t *positions = l->chosen->positions + row * l->chosen->top_k + group * GROUP_TOKENS;
    for (int64_t t = 0; t < GROUP_TOKENS && group * GROUP_TOKENS + t < l->chosen->counts[row]; t++) {
        const bf16 *latents = latents_of(l, sequence, positions[t] / GROUP_TOKENS);
        memcpy(gathered + t * dim, latents + positions[t] % GROUP_TOKENS * dim, (size_t)dim * sizeof(bf16));
    }
    return gathered;
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void attend_tile(const room *r, tile t) {
    const ds_latent *l = r->latent;
    const int64_t heads = l->shape->num_heads, dim = latent_dim(l->shape), rank = l->shape->kv_rank;
    const int64_t first_row = l->batch->first_row[t.sequence];
    const int64_t tile_row = first_row + t.first / heads; // the only one where keys are chosen

    int64_t visible[DS_TILE_ROWS], extent = 0;
    for (int64_t i = 0; i < t.count; i++) {
        const int64_t row = first_row + (t.first + i) / heads;
        visible[i] = l->chosen ? l->chosen->counts[row] : ds_visible(l->batch, t.sequence, ds_position(l->batch, t.sequence, row));
        if (visible[i] > extent) extent = visible[i];
    }
    const int64_t groups = ceil_div(extent, GROUP_TOKENS), padded = (groups + groups % 2) * GROUP_TOKENS;
    const int64_t keys_size = (dim + 31) / 32 * 32 * GROUP_TOKENS;
    float *scores = ds_thread_scratch((size_t)(DS_TILE_ROWS * (padded * 6 + rank * 4) + 2 * (GROUPS_AT_ONCE + 1) * keys_size));
    float *sums = scores + DS_TILE_ROWS * padded;
    bf16 *weights = (bf16 *)(sums + DS_TILE_ROWS * rank), *ordered = weights + DS_TILE_ROWS * padded;
    bf16 *gathered = ordered + GROUPS_AT_ONCE * keys_size;
    const bf16 *queries = r->folded + (first_row * heads + t.first) * dim;

    ds_tile_begin(t.count);
    for (int64_t g = 0; g < groups; g += 2) {
        for (int64_t i = g; i < smaller(g + 2, groups); i++)
            ds_group_keys(seen_latents(l, t.sequence, tile_row, i, gathered), extent - i * GROUP_TOKENS, dim,
                          ordered + (i - g) * keys_size);
        const bf16 *high = ordered + (g + 1 < groups ? keys_size : 0);
        ds_tile_scores(t.count, queries, dim, ordered, high, scores + g * GROUP_TOKENS, padded);
    }

    float totals[DS_TILE_ROWS];
    for (int64_t i = 0; i < t.count; i++)
        totals[i] = ds_exponentials(scores + i * padded, l->shape->scale, visible[i], padded, weights + i * padded);
    memset(sums, 0, (size_t)(t.count * rank) * sizeof(float));
    ds_tile_begin_values(t.count);
    for (int64_t g = 0; g < groups; g += GROUPS_AT_ONCE) {
        const int64_t end = smaller(g + GROUPS_AT_ONCE, groups);
        const bf16 *values[GROUPS_AT_ONCE];
        for (int64_t i = g; i < end; i++) {
            bf16 *group = ordered + (i - g) * GROUP_TOKENS * rank;
            ds_group_values(seen_latents(l, t.sequence, tile_row, i, gathered), extent - i * GROUP_TOKENS, dim, rank, group);
            values[i - g] = group;
        }
        ds_tile_values(t.count, weights + g * GROUP_TOKENS, padded, values, end - g, rank, sums);
    }
    ds_tile_end();

    for (int64_t i = 0; i < t.count; i++) {
        const int64_t row = first_row + (t.first + i) / heads, head = (t.first + i) % heads;
        bf16 *target = r->attended + (head * l->num_rows + row) * rank;
        const __m512 inverse = _mm512_set1_ps(1.0f / totals[i]);
        for (int64_t d = 0; d < rank; d += 16) store_bf16(target + d, _mm512_mul_ps(_mm512_loadu_ps(sums + i * rank + d), inverse));
    }
}

// Rows that a tile may be cut from: all of a sequence, or where keys are chosen one token's.
static inline int64_t rows_of(const room *r, int64_t sequence) {
    const ds_batch *batch = r->latent->batch;
    const int64_t tokens = r->latent->chosen ? 1 : batch->first_row[sequence + 1] - batch->first_row[sequence];
    return tokens * r->latent->shape->num_heads;
}

static inline int64_t tiles_of(const room *r, int64_t sequence) {
    const ds_batch *batch = r->latent->batch;
    const int64_t parts = r->latent->chosen ? batch->first_row[sequence + 1] - batch->first_row[sequence] : 1;
    return parts * ceil_div(rows_of(r, sequence), r->rows_per_tile);
}

static void attend_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    for (int64_t s = 0; s < r->latent->batch->num_sequences; s++) {
        const int64_t tiles = tiles_of(r, s), rows = rows_of(r, s), tiles_per_part = ceil_div(rows, r->rows_per_tile);
        if (item >= tiles) {
            item -= tiles;
            continue;
        }
        // Last tiles first: they see the most keys, and the threads should end together.
        const int64_t part = (tiles - 1 - item) / tiles_per_part, first = (tiles - 1 - item) % tiles_per_part * r->rows_per_tile;
        attend_tile(r, (tile){s, part * rows + first, smaller(rows - first, r->rows_per_tile)});
        return;
    }
}

static void attend(room *r) {
    const int64_t share = ceil_div(r->latent->num_rows * r->latent->shape->num_heads, ds_num_threads());
    r->rows_per_tile = share < MIN_ROWS ? MIN_ROWS : smaller(share, ds_tile_rows());
    int64_t items = 0;
    for (int64_t s = 0; s < r->latent->batch->num_sequences; s++) items += tiles_of(r, s);
    ds_parallel_for(items, attend_item, r);
}

void ds_latent_attention(const ds_latent *l) {
    room r = lay_out(l->shape, l->num_rows, l->scratch);
    r.latent = l;
    ds_parallel_for(ceil_div(l->num_rows, ROWS_PER_ITEM), prepare_item, &r);
    multiply_heads(&r, l->fold_keys, r.nope, r.folded, latent_dim(l->shape));
    attend(&r);
    multiply_heads(&r, l->fold_values, r.attended, l->target, l->shape->value_dim);
}
