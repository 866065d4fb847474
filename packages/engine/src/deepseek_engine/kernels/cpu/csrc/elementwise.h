// Operators on rows.
#pragma once
#include "common.h"

// target = row / sqrt(mean(row^2) + eps) * weight; target may be row.
void ds_rms_norm_row(const bf16 *row, const bf16 *weight, float eps, int64_t size, bf16 *target);

// The same for rows of `size`, one below the other.
void ds_rms_norm(const bf16 *rows, const bf16 *weight, float eps, int64_t num_rows, int64_t size, bf16 *target);

// Rows of 2 * size values, in groups of 16 gates and 16 values: silu(gate) * value. size is a multiple of 16.
void ds_silu_mul(const bf16 *rows, int64_t num_rows, int64_t size, bf16 *target);
