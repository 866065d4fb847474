// Multi-head latent attention, absorbed, over a paged cache of latents in bf16 (DeepSeek-V2, arXiv 2405.04434, 2.1).
//
// A token's latent is a row of the cache: kv_rank numbers that are key and value of all heads, then the one rotated key.
// Queries are brought into the latents' space, and what was attended to is brought out of it, by a matrix for each head.
#pragma once
#include "indexer.h"
#include "matmul.h"

typedef struct {
    int64_t num_heads;          // 0: the model has none of this
    int64_t query_rank;         // width of the compressed query; 0: queries are projected straight
    int64_t kv_rank;            // a multiple of 16
    int64_t nope_dim, rope_dim; // of a head's query: without position, and rotated; both even
    int64_t value_dim;
    int64_t is_interleaved;     // whether rotary pairs are neighbours, or halves apart
    float scale;                // of the scores
} ds_latent_shape;

typedef struct {
    const ds_latent_shape *shape;
    const ds_batch *batch;
    int64_t num_rows;
    const bf16 *queries;          // rows of [heads][nope_dim + rope_dim], query_stride apart
    int64_t query_stride;
    const bf16 *latents;          // rows of [kv_rank + rope_dim], latent_stride apart: neither normalised nor rotated
    int64_t latent_stride;
    const ds_norm *latent_norm;   // over kv_rank
    const float *cos_sin;         // [positions][2][rope_dim/2]
    const ds_matrix *fold_keys;   // [heads], nope_dim inputs, kv_rank outputs
    const ds_matrix *fold_values; // [heads], kv_rank inputs, value_dim outputs
    const ds_chosen *chosen;      // what each row sees; null: all before it
    bf16 *cache;                  // [slots][kv_rank + rope_dim]
    bf16 *target;                 // [rows][heads * value_dim]
    void *scratch;                // ds_latent_bytes of it
} ds_latent;

int64_t ds_latent_bytes(const ds_latent_shape *shape, int64_t num_rows);

// Write the new latents to the cache, then attend. A row's result depends on its own sequence only.
void ds_latent_attention(const ds_latent *latent);
