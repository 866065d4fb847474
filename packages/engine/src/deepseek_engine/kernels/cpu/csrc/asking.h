// A mixture of attention heads (JetMoE, arXiv 2404.07413): experts have queries and outputs of their own, and all of them
// ask the same keys and values. With K experts a token, query head n * K + k is the k-th expert's of key head n.
#pragma once
#include "dispatch.h"

typedef struct {
    const ds_routing *routing;
    const ds_matrix *router;
    const ds_matrix *queries; // [experts], hidden_size inputs, num_kv_heads * head_dim outputs
    const ds_matrix *outputs; // [experts], the other way round
    const bf16 *bias;         // [hidden_size], of the sum of outputs
    int64_t hidden_size, num_kv_heads, head_dim;
    int64_t num_rows;
    void *scratch;            // ds_asking_bytes of it, the same in both functions
} ds_asking;

// width: num_kv_heads * head_dim.
int64_t ds_asking_bytes(const ds_routing *routing, int64_t hidden, int64_t width, int64_t num_rows);

// Route rows of hidden_size; each row's queries, [num_kv_heads][K][head_dim], to rows target_stride apart.
void ds_ask(const ds_asking *asking, const bf16 *rows, bf16 *target, int64_t target_stride);

// What the queries found, [rows][num_kv_heads][K][head_dim], through the experts' outputs; added to target.
void ds_answer(const ds_asking *asking, const bf16 *attended, bf16 *target);
