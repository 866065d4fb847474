// Causal attention over a paged cache of keys and values in bf16.
//
// The cache of a layer holds groups of 16 tokens. A group's keys of one head lie as [head_dim/2][16 tokens][2], so that
// 16 scores are summed at once; its values as [8 pairs of tokens][head_dim][2]. Slot s is token s % 16 of group s / 16.
#pragma once
#include "elementwise.h"

#define GROUP_TOKENS 16

// The sequences of a step; their new tokens are consecutive rows.
typedef struct {
    int64_t num_sequences;
    const int32_t *first_row;    // [num_sequences + 1]
    const int32_t *context_lens; // [num_sequences], tokens with the new ones
    const int32_t *prefix_lens;  // [num_sequences], tokens that see each other in both directions; or null
    const int32_t *block_tables; // [num_sequences][table_stride]
    int64_t table_stride;
    int64_t block_size;          // tokens a block, a multiple of 16
} ds_batch;

typedef struct {
    const ds_batch *batch;
    bf16 *qkv;              // [rows][row_stride]: queries, then keys, then values; queries and keys are rotated in place
    int64_t row_stride;
    int64_t num_heads, num_kv_heads, head_dim; // head_dim: a multiple of 16
    const float *cos_sin;   // [positions][2][head_dim/2]: cosines, then sines; null when nothing is to be rotated
    const ds_norm *q_norm;  // over each head before the rotation, or null
    const ds_norm *k_norm;
    float scale;            // of the scores
    bf16 *keys, *values;    // the layer's cache
    bf16 *target;           // [rows][num_heads * head_dim]
} ds_attention;

// Rotate queries and keys, write keys and values to the cache.
void ds_attention_write(const ds_attention *attention);

// Attend. A row's result depends on its own sequence only, however the sequence was split into steps.
void ds_attention_attend(const ds_attention *attention);
