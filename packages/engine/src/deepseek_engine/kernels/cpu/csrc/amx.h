// Products by the tile unit (AMX) of Intel's server processors since Sapphire Rapids: sixteen rows at once.
#pragma once
#include "common.h"

// Rows that one call takes at most, and the outputs that it gives of each: two tiles of rows, two of weights.
#define DS_AMX_ROWS 32
#define DS_AMX_OUTPUTS 32

// Use the unit, if `wanted`, the processor has it and the system lets this process use it; whether it is used now.
// Its bf16 sums are added up in an order of their own, so a model must run with it or without it from start to end.
int ds_set_amx(int wanted);

int ds_has_amx(void);

// A thread uses the tiles between `begin` and `end`, for so many rows a call.
void ds_amx_begin(int64_t rows);
void ds_amx_end(void);

// sums[row][32] of a panel of 32 outputs over all inputs. rows: bf16 [num_rows][size]; weights: [inputs/2][32][2].
void ds_amx_bf16(const bf16 *rows, int64_t num_rows, int64_t size, const bf16 *weights, float *sums);

// ds_amx_bf16 of one row and 1 to 4 panels, sums[panel][32], without tiles: no need to begin.
#define DS_AMX_ROW_PANELS 4
void ds_amx_bf16_row(const bf16 *row, int64_t size, const bf16 *weights, int64_t panels, float *sums);

// ds_amx_bf16 of bytes, exactly: rows [num_rows][size], weights [inputs/4][32][4].
void ds_amx_int8(const uint8_t *rows, int64_t num_rows, int64_t size, const int8_t *weights, int32_t *sums);

// target[row][32], `stride` apart, of queries [num_rows][dim] with two groups of keys, each [dim/2][16 tokens][2].
void ds_amx_scores(const bf16 *queries, int64_t num_rows, int64_t dim, const bf16 *low, const bf16 *high, float *target,
                   int64_t stride);

// Begins, in place of ds_amx_begin, what ds_amx_add_values needs.
void ds_amx_begin_values(int64_t rows);

// Add weighted sums over groups of 16 tokens: weights [num_rows][stride], a group's values [8 pairs][dim][2], sums
// [num_rows][dim]. dim: a multiple of 32.
void ds_amx_add_values(const bf16 *weights, int64_t stride, int64_t num_rows, const bf16 *const *groups, int64_t num_groups,
                       int64_t dim, float *sums);
