// What attention consists of: scores of a few queries, their exponentials, sums of weighted values.
#pragma once
#include "attention.h"

#define DS_SCORE_ROWS 12
#define DS_TILE_ROWS 32 // at most

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Which group of the cache holds a position of a sequence.
static inline int64_t ds_group_of(const ds_batch *batch, int64_t sequence, int64_t position) {
    int64_t block = batch->block_tables[sequence * batch->table_stride + position / batch->block_size];
    return (block * batch->block_size + position % batch->block_size) / GROUP_TOKENS;
}

// The position of a row, which is one of the sequence's.
static inline int64_t ds_position(const ds_batch *batch, int64_t sequence, int64_t row) {
    return batch->context_lens[sequence] - (batch->first_row[sequence + 1] - row);
}

// How many tokens of its sequence a position sees.
static inline int64_t ds_visible(const ds_batch *batch, int64_t sequence, int64_t position) {
    const int64_t prefix = batch->prefix_lens ? batch->prefix_lens[sequence] : 0;
    return position < prefix ? prefix : position + 1;
}

// Scores, not yet scaled, of num_rows (1 to DS_SCORE_ROWS) queries with two groups of keys, each [dim/2][16 tokens][2],
// to target[row][32]. It may read and write a few rows more, up to DS_SCORE_ROWS; they must be there.
void ds_scores(int64_t num_rows, const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float *target,
               int64_t stride);

// A tile of 1 to ds_tile_rows() rows gets its scores with all keys, then weights, then sums of values: between
// ds_tile_begin and ds_tile_end, with ds_tile_begin_values in the middle.
int64_t ds_tile_rows(void);
void ds_tile_begin(int64_t num_rows);
void ds_tile_begin_values(int64_t num_rows);
void ds_tile_end(void);

// As ds_scores, of a tile.
void ds_tile_scores(int64_t num_rows, const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float *target,
                    int64_t stride);

// Scores, times `scale`, to bf16 weights that are not yet divided by their sum, which is returned; zeros from `visible`
// to `padded`.
float ds_exponentials(const float *scores, float scale, int64_t visible, int64_t padded, bf16 *weights);

// Add a tile's weighted sums over groups of 16 tokens: weights [rows][stride], a group's values [8 pairs][dim][2], sums
// [rows][dim].
void ds_tile_values(int64_t num_rows, const bf16 *weights, int64_t stride, const bf16 *const *groups, int64_t num_groups,
                    int64_t dim, float *sums);

// A thread's room; it grows and is kept, and what was in it is lost at the next call.
void *ds_thread_scratch(size_t bytes);
