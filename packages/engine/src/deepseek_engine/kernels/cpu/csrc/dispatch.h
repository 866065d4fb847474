// Rows sent to experts and back: a pair is one expert of one row, and pairs are sorted by expert, so that each expert's
// weights are read once.
#pragma once
#include "matmul.h"
#include "routing.h"

typedef struct {
    const ds_routing *routing;
    int64_t num_rows, num_pairs;
    float *logits;        // [rows][experts]
    float *scores, *keys; // [rows][experts], what the rule makes of them
    int32_t *expert;      // [rows][per_token]
    float *weight;        // [rows][per_token]
    int32_t *place;       // [rows][per_token], a pair's index among the sorted
    int32_t *first;       // [experts + 1], an expert's first sorted pair
    uint8_t *bytes;       // [pairs][digits][widest]
    float *scales;        // [pairs]
    ds_product *products; // [experts]
} ds_dispatch;

// Arrays for so many rows whose products take up to `widest` inputs, from *next on.
ds_dispatch ds_dispatch_lay_out(const ds_routing *routing, int64_t widest, int64_t num_rows, char **next);

// Choose each row's experts. choice_bias: [experts], sigmoid only.
void ds_dispatch_route(const ds_dispatch *dispatch, const ds_matrix *router, const float *choice_bias, const bf16 *rows);

// Rows of `size` to the places of their pairs.
void ds_dispatch_gather(const ds_dispatch *dispatch, const bf16 *rows, int64_t size, bf16 *pairs);

// Each pair times its expert's matrix.
void ds_dispatch_multiply(const ds_dispatch *dispatch, const ds_matrix *matrices, const bf16 *pairs, int64_t epilogue,
                          bf16 *target, int64_t stride);

// Add to each row its pairs' weighted sum, and the bias if it is not null.
void ds_dispatch_combine(const ds_dispatch *dispatch, const bf16 *pairs, const bf16 *bias, int64_t size, bf16 *target);
