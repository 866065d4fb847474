// What attention consists of: scores of a few queries, their exponentials, sums of weighted values.
#pragma once
#include "attention.h"

#define DS_TILE_ROWS 12

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

// Scores of num_rows (1 to DS_TILE_ROWS) queries with two groups of keys, each [dim/2][16 tokens][2], to
// target[row][32]. It may read and write a few rows more, up to DS_TILE_ROWS; they must be there.
void ds_scores(int64_t num_rows, const bf16 *queries, int64_t dim, const bf16 *low, const bf16 *high, float scale,
               float *target, int64_t stride);

// Scores to bf16 weights that are not yet divided by their sum, which is returned; zeros from `visible` to `padded`.
float ds_exponentials(const float *scores, int64_t visible, int64_t padded, bf16 *weights);

// Add rows' weighted sums over the pairs of tokens of a group: values [pairs][dim][2], sums [rows][dim].
void ds_add_values(int64_t num_rows, const bf16 *weights, int64_t stride, const bf16 *values, int64_t dim, int64_t pairs,
                   float *sums);

// A thread's room; it grows and is kept, and what was in it is lost at the next call.
void *ds_thread_scratch(size_t bytes);
