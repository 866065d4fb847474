// Operators on rows.
#pragma once
#include "common.h"

// A norm's weights, [size]. With a bias it is by mean and variance (LayerNorm), without by the root of the mean square.
typedef struct {
    const bf16 *weight, *bias;
    float eps;
} ds_norm;

// One row; target may be row.
void ds_normalise_row(const ds_norm *norm, const bf16 *row, int64_t size, bf16 *target);

// Rows of `size`, row_stride apart, to rows one below the other.
void ds_normalise(const ds_norm *norm, const bf16 *rows, int64_t num_rows, int64_t row_stride, int64_t size, bf16 *target);

// Rows of 2 * size values, in groups of 16 gates and 16 values: silu(gate) * value. size is a multiple of 16.
void ds_silu_mul(const bf16 *rows, int64_t num_rows, int64_t size, bf16 *target);
