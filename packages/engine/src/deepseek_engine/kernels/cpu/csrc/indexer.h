// DeepSeek Sparse Attention's choice of keys (DeepSeek-V3.2-Exp, equations 1 and 2): a query sees the top_k keys of the
// best sum over index heads of weight * relu(query . key).
#pragma once
#include "attention.h"

typedef struct {
    int64_t num_heads; // 0: the model has none of this
    int64_t dim;       // of a query and of a token's one key; even
    int64_t rope_dim;  // leading features that rotate, in halves
    int64_t top_k;
} ds_indexer_shape;

// The positions that each row sees, ascending.
typedef struct {
    int32_t *positions; // [rows][top_k]
    int32_t *counts;    // [rows]
    int64_t top_k;
} ds_chosen;

typedef struct {
    const ds_indexer_shape *shape;
    const ds_batch *batch;
    int64_t num_rows;
    bf16 *queries;           // [rows][heads][dim], rotated in place
    bf16 *keys;              // [rows][dim], normalised and rotated in place
    const float *weights;    // [rows][heads]
    const ds_norm *key_norm;
    const float *cos_sin;    // [positions][2][rope_dim/2]
    bf16 *cache;             // [slots][dim]
    ds_chosen chosen;
} ds_indexer;

// Write the new index keys to the cache, then choose; where scores are equal the earlier key wins. A row's choice depends
// on its own sequence only.
void ds_indexer_choose(const ds_indexer *indexer);
