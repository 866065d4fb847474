// Products of a few or many rows with a weight matrix that was packed once.
#pragma once
#include "common.h"

// Outputs lie in panels of 32: the weights of a panel are contiguous, in the order in which a product reads them.
#define PANEL 32

enum { DS_BF16 = 0, DS_INT8 = 1, DS_FLOAT = 2 };

// A packed matrix of `num_outputs` x `num_inputs`.
typedef struct {
    const void *data;         // bf16: [panels][inputs/2][32][2]; int8: [panels][inputs/4][32][4];
                              // float, for routers: [panels][inputs][32]
    const float *scale;       // int8: a factor an output, padded to whole panels
    const int32_t *sums;      // int8: the sum of an output's weights, padded to whole panels
    const float *bias;        // padded to whole panels, or null
    int64_t num_inputs;       // even for bf16, a multiple of 4 for int8
    int64_t num_outputs;
    int64_t kind;
} ds_matrix;

// What becomes of a row's products.
enum {
    DS_STORE_BF16 = 0,
    DS_STORE_FLOAT = 1,
    DS_ADD_BF16 = 2,   // added to the target, which is bf16
    DS_SILU_MUL = 3,   // outputs come in groups of 16 gates and 16 values: silu(gate) * value, half as many, bf16
};

// Rows of int8 activations, each of two digits that lie one after the other: value = (128 * high + low) * scale, and a
// byte is its digit + 128. One digit would cost 3 % of perplexity; weights are read once for both.
enum { DS_DIGITS = 2, DS_DIGIT_BASE = 128 };
void ds_quantize_rows(const bf16 *rows, int64_t num_rows, int64_t size, uint8_t *bytes, float *scales);

// target[r] = epilogue(rows[r] W^T + bias). Each result depends on its own row only, whatever the other rows and threads.
// For int8 `bytes` and `row_scales` hold the rows from ds_quantize_rows, else `rows` does.
typedef struct {
    const ds_matrix *matrix;
    const bf16 *rows;
    const uint8_t *bytes;
    const float *row_scales;
    int64_t num_rows;
    int64_t epilogue;
    void *target;          // [num_rows][target_stride]
    int64_t target_stride; // elements
} ds_product;

void ds_matmul(const ds_product *product);

// Several products at once, whose items are shared among the threads together: the experts of a mixture.
void ds_matmul_many(const ds_product *products, int64_t num_products);

void ds_pack_bf16(const bf16 *weights, int64_t num_outputs, int64_t num_inputs, bf16 *packed);
void ds_pack_float(const float *weights, int64_t num_outputs, int64_t num_inputs, float *packed);
// One output's weights, [num_inputs], out of a bf16 matrix.
void ds_unpack_bf16_row(const ds_matrix *matrix, int64_t output, bf16 *row);

void ds_pack_int8(const int8_t *weights, int64_t num_outputs, int64_t num_inputs, int8_t *packed, int32_t *sums);
