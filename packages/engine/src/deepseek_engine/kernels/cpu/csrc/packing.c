// Weights brought into panels, once.
#include "matmul.h"

void ds_pack_bf16(const bf16 *weights, int64_t num_outputs, int64_t num_inputs, bf16 *packed) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k += 2)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++, packed += 2) {
                packed[0] = n < num_outputs ? weights[n * num_inputs + k] : 0;
                packed[1] = n < num_outputs ? weights[n * num_inputs + k + 1] : 0;
            }
}

void ds_pack_float(const float *weights, int64_t num_outputs, int64_t num_inputs, float *packed) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k++)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++) *packed++ = n < num_outputs ? weights[n * num_inputs + k] : 0;
}

void ds_unpack_bf16_row(const ds_matrix *matrix, int64_t output, bf16 *row) {
    const bf16 *panel = (const bf16 *)matrix->data + output / PANEL * PANEL * matrix->num_inputs;
    for (int64_t k = 0; k < matrix->num_inputs; k += 2)
        memcpy(row + k, panel + k * PANEL + output % PANEL * 2, 2 * sizeof(bf16));
}

void ds_pack_int8(const int8_t *weights, int64_t num_outputs, int64_t num_inputs, int8_t *packed, int32_t *sums) {
    int64_t panels = (num_outputs + PANEL - 1) / PANEL;
    memset(sums, 0, (size_t)(panels * PANEL) * sizeof(int32_t));
    for (int64_t p = 0; p < panels; p++)
        for (int64_t k = 0; k < num_inputs; k += 4)
            for (int64_t n = p * PANEL; n < (p + 1) * PANEL; n++, packed += 4)
                for (int i = 0; i < 4; i++) {
                    packed[i] = n < num_outputs ? weights[n * num_inputs + k + i] : 0;
                    sums[n] += packed[i];
                }
}
