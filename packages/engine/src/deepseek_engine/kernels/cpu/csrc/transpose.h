// Groups of 16 cached rows in the orders that attention reads: keys by pairs of features, values by pairs of tokens.
#pragma once
#include "common.h"

// rows: [16][dim], of which the first num_tokens count, the others become 0. keys: [dim/2 padded to 16][16 tokens][2].
void ds_group_keys(const bf16 *rows, int64_t num_tokens, int64_t dim, bf16 *keys);

// The first `width` features (a multiple of 16) of such rows as values: [8 pairs of tokens][width][2].
void ds_group_values(const bf16 *rows, int64_t num_tokens, int64_t dim, int64_t width, bf16 *values);
