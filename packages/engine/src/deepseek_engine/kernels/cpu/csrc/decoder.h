// A whole step of a decoder: attention, then a gated feed-forward or a mixture of such, layer by layer.
#pragma once
#include "adapters.h"
#include "asking.h"
#include "attention.h"
#include "latent.h"
#include "matmul.h"
#include "routing.h"

typedef struct {
    ds_norm attention_norm, feed_forward_norm;
    ds_matrix qkv, output;             // latent attention: queries, or what they come from, then the latent
    ds_norm q_norm, k_norm;            // weights are null where there is none; latent attention: of query and latent
    ds_matrix query;                   // latent attention with compressed queries: out of them
    const ds_matrix *fold_keys, *fold_values; // latent attention: [heads]
    ds_matrix gate_up, down;           // of the one network, or of what the mixture's experts share; data may be null
    ds_matrix router;                  // mixture: [num_experts] outputs
    const float *choice_bias;          // [num_experts], sigmoid only
    const ds_matrix *experts_gate_up;  // [num_experts]; null where the layer is no mixture
    const ds_matrix *experts_down;
    const bf16 *experts_bias;          // [hidden_size] of the experts' sum, or null
    // Sparse attention's indexer: queries from the compressed ones, keys and a weight for each head from the hidden state.
    ds_matrix index_query, index_key, index_weights;
    ds_norm index_norm;                // of keys
    // A mixture of attention heads has keys and values in qkv, and no output; null otherwise.
    ds_matrix asking_router;
    const ds_matrix *asking_queries, *asking_outputs; // [num_experts]
    const bf16 *asking_bias;           // [hidden_size]
    bf16 *keys, *values;               // latent attention: the latents, and the index keys
} ds_layer; // every gate_up has gates and values interleaved by 16

typedef struct {
    int64_t num_layers, hidden_size;
    int64_t num_heads, num_kv_heads, head_dim; // of grouped-query attention
    ds_latent_shape latent;                    // or of latent attention
    ds_indexer_shape indexer;                  // which may be sparse
    int64_t dense_size;    // width of the widest network that is no expert
    int64_t expert_size;
    ds_routing routing;    // of every mixture, of attention heads too
    int64_t is_asking;     // whether attention is a mixture of heads: num_heads counts those of all of a token's experts
    float attention_scale;
    ds_matrix embedding;   // bf16, [vocabulary] outputs: it is packed like the head, which it often is
    ds_norm final_norm;
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
// layer, decoder, step, adapter rows, adapters, norm, routing, latent shape,
// indexer shape, indexer.
int64_t ds_structure_size(int64_t which);
