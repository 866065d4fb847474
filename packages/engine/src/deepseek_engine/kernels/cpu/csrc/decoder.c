#include "decoder.h"

#include "elementwise.h"
#include "mixture.h"
#include "pool.h"

// Where the activations of a step lie.
typedef struct {
    bf16 *stream;    // [rows][hidden_size], what the layers add to
    bf16 *normed;    // [rows][hidden_size]
    bf16 *qkv;       // [rows][(heads + 2 kv heads) * head_dim]
    bf16 *attended;  // [rows][heads * head_dim]
    bf16 *inner;     // [rows][intermediate_size], dense only
    uint8_t *bytes;  // [rows][widest input of a product]
    float *scales;   // [rows]
    void *mixture;
    int64_t num_bytes;
} room;

static void *take(char **next, int64_t bytes) {
    void *start = *next;
    *next += (bytes + 63) / 64 * 64;
    return start;
}

static inline int64_t longer(int64_t a, int64_t b) { return a > b ? a : b; }

static room lay_out(const ds_decoder *d, int64_t rows, void *scratch) {
    char *next = scratch;
    const int64_t attention_width = d->num_heads * d->head_dim, kv_width = d->num_kv_heads * d->head_dim;
    room r = {0};
    r.stream = take(&next, rows * d->hidden_size * 2);
    r.normed = take(&next, rows * d->hidden_size * 2);
    r.qkv = take(&next, rows * (attention_width + 2 * kv_width) * 2);
    r.attended = take(&next, rows * attention_width * 2);
    r.bytes = take(&next, rows * longer(longer(d->hidden_size, attention_width), d->intermediate_size));
    r.scales = take(&next, rows * 4);
    if (d->num_experts) r.mixture = take(&next, ds_mixture_bytes(d->hidden_size, d->intermediate_size, d->num_experts, d->experts_per_token, rows));
    else r.inner = take(&next, rows * d->intermediate_size * 2);
    r.num_bytes = next - (char *)scratch;
    return r;
}

int64_t ds_scratch_bytes(const ds_decoder *decoder, int64_t num_rows) { return lay_out(decoder, num_rows, 0).num_bytes; }

static void multiply(const room *r, const ds_matrix *matrix, const bf16 *rows, int64_t num_rows, int64_t epilogue,
                     void *target, int64_t stride) {
    ds_product product = {matrix, rows, r->bytes, r->scales, num_rows, epilogue, target, stride};
    if (matrix->kind == DS_INT8) ds_quantize_rows(rows, num_rows, matrix->num_inputs, r->bytes, r->scales);
    ds_matmul(&product);
}

static void run_layer(const ds_decoder *d, const ds_step *step, const ds_layer *layer, const room *r) {
    const int64_t rows = step->num_rows, hidden = d->hidden_size;
    const int64_t qkv_width = (d->num_heads + 2 * d->num_kv_heads) * d->head_dim;

    ds_rms_norm(r->stream, layer->attention_norm, d->eps, rows, hidden, r->normed);
    multiply(r, &layer->qkv, r->normed, rows, DS_STORE_BF16, r->qkv, qkv_width);
    ds_attention attention = {
        .batch = &step->batch, .qkv = r->qkv, .row_stride = qkv_width, .num_heads = d->num_heads,
        .num_kv_heads = d->num_kv_heads, .head_dim = d->head_dim, .cos_sin = d->cos_sin, .q_norm = layer->q_norm,
        .k_norm = layer->k_norm, .eps = d->qk_norm_eps, .scale = d->attention_scale, .keys = layer->keys,
        .values = layer->values, .target = r->attended,
    };
    ds_attention_write(&attention);
    ds_attention_attend(&attention);
    multiply(r, &layer->output, r->attended, rows, DS_ADD_BF16, r->stream, hidden);

    ds_rms_norm(r->stream, layer->feed_forward_norm, d->eps, rows, hidden, r->normed);
    if (d->num_experts) {
        ds_mixture mixture = {
            .router = &layer->router, .gate_up = layer->experts_gate_up, .down = layer->experts_down,
            .num_experts = d->num_experts, .experts_per_token = d->experts_per_token, .hidden_size = hidden,
            .intermediate_size = d->intermediate_size, .rows = r->normed, .num_rows = rows, .target = r->stream,
            .scratch = r->mixture,
        };
        ds_mixture_add(&mixture);
    } else {
        multiply(r, &layer->gate_up, r->normed, rows, DS_SILU_MUL, r->inner, d->intermediate_size);
        multiply(r, &layer->down, r->inner, rows, DS_ADD_BF16, r->stream, hidden);
    }
}

void ds_decoder_step(const ds_decoder *d, const ds_step *step) {
    const room r = lay_out(d, step->num_rows, step->scratch);
    const size_t row_bytes = (size_t)d->hidden_size * sizeof(bf16);
    for (int64_t row = 0; row < step->num_rows; row++)
        ds_unpack_bf16_row(&d->embedding, step->token_ids[row], r.stream + row * d->hidden_size);
    for (int64_t layer = 0; layer < d->num_layers; layer++) run_layer(d, step, &d->layers[layer], &r);
    for (int64_t i = 0; i < step->num_wanted; i++)
        memcpy(r.normed + i * d->hidden_size, r.stream + step->wanted_rows[i] * d->hidden_size, row_bytes);
    ds_rms_norm(r.normed, d->final_norm, d->final_eps, step->num_wanted, d->hidden_size, step->hidden);
}

int64_t ds_structure_size(int64_t which) {
    const int64_t sizes[] = {sizeof(ds_matrix), sizeof(ds_product), sizeof(ds_batch), sizeof(ds_attention),
                             sizeof(ds_layer),  sizeof(ds_decoder), sizeof(ds_step)};
    return which < 0 || which >= (int64_t)(sizeof(sizes) / sizeof(sizes[0])) ? -1 : sizes[which];
}
