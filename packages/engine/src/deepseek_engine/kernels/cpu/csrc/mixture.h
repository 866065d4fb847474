// A mixture of experts: each row goes through the experts that the router likes best.
#pragma once
#include "matmul.h"

typedef struct {
    const ds_matrix *router;
    const ds_matrix *gate_up, *down; // [num_experts]
    int64_t num_experts, experts_per_token, hidden_size, intermediate_size;
    const bf16 *rows;                // [num_rows][hidden_size]
    int64_t num_rows;
    bf16 *target;                    // [num_rows][hidden_size], added to
    void *scratch;                   // ds_mixture_bytes of it
} ds_mixture;

int64_t ds_mixture_bytes(int64_t hidden, int64_t inner, int64_t experts, int64_t per_token, int64_t rows);

// Softmax over all experts, the best `experts_per_token` renormalised to 1 (Mixtral).
void ds_mixture_add(const ds_mixture *mixture);
