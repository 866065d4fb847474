// A mixture of experts: each row goes through the experts that the router likes best.
#pragma once
#include "matmul.h"
#include "routing.h"

typedef struct {
    const ds_routing *routing;
    const ds_matrix *router;         // [num_experts] outputs
    const float *choice_bias;        // [num_experts], sigmoid only
    const ds_matrix *gate_up, *down; // [num_experts]
    const bf16 *bias;                // [hidden_size] of the experts' sum, or null
    int64_t hidden_size;
    const bf16 *rows;                // [num_rows][hidden_size]
    int64_t num_rows;
    bf16 *target;                    // [num_rows][hidden_size], added to
    void *scratch;                   // ds_mixture_bytes of it
} ds_mixture;

// For so many rows, and experts of width `inner`.
int64_t ds_mixture_bytes(const ds_routing *routing, int64_t hidden, int64_t inner, int64_t rows);

void ds_mixture_add(const ds_mixture *mixture);
