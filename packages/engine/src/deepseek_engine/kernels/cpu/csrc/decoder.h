// A whole step of a decoder of the common kind: grouped-query attention and a gated feed-forward or a mixture of such.
#pragma once
#include "adapters.h"
#include "attention.h"
#include "matmul.h"

typedef struct {
    const bf16 *attention_norm;
    ds_matrix qkv, output;
    const bf16 *q_norm, *k_norm; // or null
    const bf16 *feed_forward_norm;
    ds_matrix gate_up, down;           // dense: gates and values interleaved by 16
    ds_matrix router;                  // mixture: [num_experts] outputs
    const ds_matrix *experts_gate_up;  // [num_experts], interleaved by 16
    const ds_matrix *experts_down;
    bf16 *keys, *values;
} ds_layer;

typedef struct {
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
    int64_t num_experts, experts_per_token; // 0 experts: dense
    float eps, final_eps, qk_norm_eps, attention_scale;
    ds_matrix embedding;   // bf16, [vocabulary] outputs: it is packed like the head, which it often is
    const bf16 *final_norm;
    const float *cos_sin;
    const ds_layer *layers;
} ds_decoder;

typedef struct {
    ds_batch batch;
    int64_t num_rows;
    const int64_t *token_ids;
    int64_t num_wanted;          // rows whose result is asked for
    const int64_t *wanted_rows;
    bf16 *hidden;                // [num_wanted][hidden_size] after the last norm
    void *scratch;               // ds_scratch_bytes of it
} ds_step;

int64_t ds_scratch_bytes(const ds_decoder *decoder, int64_t num_rows);
void ds_decoder_step(const ds_decoder *decoder, const ds_step *step);

// The same with adapters on some rows; the others' results have the same bits as without.
int64_t ds_adapters_scratch_bytes(const ds_decoder *decoder, int64_t num_rows, int64_t max_ranks);
void ds_decoder_step_adapted(const ds_decoder *decoder, const ds_step *step, const ds_adapters *adapters);

// Sizes of the structures above, so that whoever describes them elsewhere can check: matrix, product, batch, attention,
// layer, decoder, step, adapter rows, adapters.
int64_t ds_structure_size(int64_t which);
