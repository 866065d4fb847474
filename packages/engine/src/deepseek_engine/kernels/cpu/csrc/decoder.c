#include "decoder.h"

#include "elementwise.h"
#include "mixture.h"
#include "pool.h"
#include "scratch.h"

// Where the activations of a step lie.
typedef struct {
    bf16 *stream;    // [rows][hidden_size], what the layers add to
    bf16 *normed;    // [rows][hidden_size]
    bf16 *qkv;       // [rows][input_width]
    bf16 *attended;  // [rows][attended_width]
    bf16 *compressed; // [rows][query_rank]
    bf16 *queries;   // [rows][query_width], out of compressed ones
    bf16 *index_queries; // [rows][index heads * index dim]
    bf16 *index_keys;    // [rows][index dim]
    float *index_weights; // [rows][index heads]
    ds_chosen chosen;
    bf16 *kv;        // [rows][2 * kv heads * head_dim], of a mixture of attention heads
    bf16 *inner;     // [rows][dense_size]
    uint8_t *bytes;  // [rows][digits][widest input of a product]
    float *scales;   // [rows]
    void *mixture, *latent, *asking;
    int64_t num_bytes;
} room;

static inline int64_t longer(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t query_width(const ds_decoder *d) {
    return d->latent.num_heads ? d->latent.num_heads * (d->latent.nope_dim + d->latent.rope_dim) : d->num_heads * d->head_dim;
}

static int64_t kv_width(const ds_decoder *d) { return d->num_kv_heads * d->head_dim; }

// What the first projection gives, with the queries that experts give.
static int64_t input_width(const ds_decoder *d) {
    if (!d->latent.num_heads) return (d->num_heads + 2 * d->num_kv_heads) * d->head_dim;
    return (d->latent.query_rank ? d->latent.query_rank : query_width(d)) + d->latent.kv_rank + d->latent.rope_dim;
}

// What the last one takes.
static int64_t attended_width(const ds_decoder *d) {
    return d->latent.num_heads ? d->latent.num_heads * d->latent.value_dim : d->num_heads * d->head_dim;
}

static int64_t widest_input(const ds_decoder *d) {
    return longer(longer(d->hidden_size, attended_width(d)), longer(d->dense_size, d->latent.query_rank));
}

static room lay_out(const ds_decoder *d, int64_t rows, void *scratch) {
    char *next = scratch;
    room r = {0};
    r.stream = ds_take(&next, rows * d->hidden_size * 2);
    r.normed = ds_take(&next, rows * d->hidden_size * 2);
    r.qkv = ds_take(&next, rows * input_width(d) * 2);
    r.attended = ds_take(&next, rows * attended_width(d) * 2);
    r.compressed = ds_take(&next, rows * d->latent.query_rank * 2);
    if (d->latent.query_rank) r.queries = ds_take(&next, rows * query_width(d) * 2);
    if (d->indexer.num_heads) {
        r.index_queries = ds_take(&next, rows * d->indexer.num_heads * d->indexer.dim * 2);
        r.index_keys = ds_take(&next, rows * d->indexer.dim * 2);
        r.index_weights = ds_take(&next, rows * d->indexer.num_heads * 4);
        r.chosen.positions = ds_take(&next, rows * d->indexer.top_k * 4);
        r.chosen.counts = ds_take(&next, rows * 4);
        r.chosen.top_k = d->indexer.top_k;
    }
    if (d->is_asking) r.kv = ds_take(&next, rows * 2 * kv_width(d) * 2);
    if (d->is_asking) r.asking = ds_take(&next, ds_asking_bytes(&d->routing, d->hidden_size, kv_width(d), rows));
    if (d->latent.num_heads) r.latent = ds_take(&next, ds_latent_bytes(&d->latent, rows));
    r.bytes = ds_take(&next, DS_DIGITS * rows * widest_input(d));
    r.scales = ds_take(&next, rows * 4);
    r.inner = ds_take(&next, rows * d->dense_size * 2);
    if (d->routing.num_experts) r.mixture = ds_take(&next, ds_mixture_bytes(&d->routing, d->hidden_size, d->expert_size, rows));
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

// Behind the adapters' own room: gates and values of all rows before they are multiplied.
static int64_t gates_offset(const ds_decoder *d, int64_t rows, int64_t max_ranks) {
    const int64_t outputs = longer(longer(d->hidden_size, query_width(d)), longer(input_width(d), 2 * d->dense_size));
    const int64_t index_outputs = d->indexer.num_heads * d->indexer.dim;
    return ds_adapters_add_bytes(rows, widest_input(d), longer(outputs, index_outputs), max_ranks);
}

int64_t ds_adapters_scratch_bytes(const ds_decoder *d, int64_t num_rows, int64_t max_ranks) {
    return gates_offset(d, num_rows, max_ranks) + num_rows * 2 * d->dense_size * 2;
}

static void adapt(const ds_adapters *adapters, int64_t layer, int64_t site, const bf16 *inputs, bf16 *target) {
    if (adapters) ds_adapters_add(adapters, layer * DS_NUM_SITES + site, inputs, target, adapters->scratch);
}

static void run_dense(const ds_decoder *d, const ds_step *step, int64_t index, const ds_adapters *adapters, const room *r) {
    const ds_layer *layer = &d->layers[index];
    const int64_t rows = step->num_rows, inner = layer->down.num_inputs;
    if (adapters) {
        bf16 *gates = (bf16 *)((char *)adapters->scratch + gates_offset(d, rows, adapters->max_ranks));
        multiply(r, &layer->gate_up, r->normed, rows, DS_STORE_BF16, gates, 2 * inner);
        adapt(adapters, index, DS_GATE_UP, r->normed, gates);
        ds_silu_mul(gates, rows, inner, r->inner);
    } else {
        multiply(r, &layer->gate_up, r->normed, rows, DS_SILU_MUL, r->inner, inner);
    }
    multiply(r, &layer->down, r->inner, rows, DS_ADD_BF16, r->stream, d->hidden_size);
    adapt(adapters, index, DS_DOWN, r->inner, r->stream);
}

static void attend_grouped(const ds_decoder *d, const ds_step *step, const ds_layer *layer, const room *r) {
    ds_attention attention = {
        .batch = &step->batch, .qkv = r->qkv, .row_stride = input_width(d), .num_heads = d->num_heads,
        .num_kv_heads = d->num_kv_heads, .head_dim = d->head_dim, .cos_sin = d->cos_sin,
        .q_norm = layer->q_norm.weight ? &layer->q_norm : 0, .k_norm = layer->k_norm.weight ? &layer->k_norm : 0,
        .scale = d->attention_scale, .keys = layer->keys, .values = layer->values, .target = r->attended,
    };
    ds_attention_write(&attention);
    ds_attention_attend(&attention);
}

static void attend_asking(const ds_decoder *d, const ds_step *step, int64_t index, const ds_adapters *adapters, const room *r) {
    const ds_layer *layer = &d->layers[index];
    const int64_t rows = step->num_rows, width = input_width(d), kv = 2 * kv_width(d);
    ds_asking asking = {
        .routing = &d->routing, .router = &layer->asking_router, .queries = layer->asking_queries,
        .outputs = layer->asking_outputs, .bias = layer->asking_bias, .hidden_size = d->hidden_size,
        .num_kv_heads = d->num_kv_heads, .head_dim = d->head_dim, .num_rows = rows, .scratch = r->asking,
    };
    ds_ask(&asking, r->normed, r->qkv, width);
    multiply(r, &layer->qkv, r->normed, rows, DS_STORE_BF16, r->kv, kv);
    adapt(adapters, index, DS_QKV, r->normed, r->kv);
    for (int64_t row = 0; row < rows; row++)
        memcpy(r->qkv + (row + 1) * width - kv, r->kv + row * kv, (size_t)kv * sizeof(bf16));
    attend_grouped(d, step, layer, r);
    ds_answer(&asking, r->attended, r->stream);
}

// Leave in the room what each row sees.
static void choose_keys(const ds_decoder *d, const ds_step *step, int64_t index, const ds_adapters *adapters, const room *r) {
    const ds_layer *layer = &d->layers[index];
    const int64_t rows = step->num_rows, heads = d->indexer.num_heads, dim = d->indexer.dim;
    multiply(r, &layer->index_query, r->compressed, rows, DS_STORE_BF16, r->index_queries, heads * dim);
    adapt(adapters, index, DS_INDEX_QUERY, r->compressed, r->index_queries);
    multiply(r, &layer->index_key, r->normed, rows, DS_STORE_BF16, r->index_keys, dim);
    adapt(adapters, index, DS_INDEX_KEY, r->normed, r->index_keys);
    multiply(r, &layer->index_weights, r->normed, rows, DS_STORE_FLOAT, r->index_weights, heads);
    ds_indexer indexer = {
        .shape = &d->indexer, .batch = &step->batch, .num_rows = rows, .queries = r->index_queries, .keys = r->index_keys,
        .weights = r->index_weights, .key_norm = &layer->index_norm, .cos_sin = d->cos_sin, .cache = layer->values,
        .chosen = r->chosen,
    };
    ds_indexer_choose(&indexer);
}

static void attend_latent(const ds_decoder *d, const ds_step *step, int64_t index, const ds_adapters *adapters, const room *r) {
    const ds_layer *layer = &d->layers[index];
    const int64_t rows = step->num_rows, rank = d->latent.query_rank, width = input_width(d);
    ds_latent latent = {
        .shape = &d->latent, .batch = &step->batch, .num_rows = rows, .queries = r->qkv, .query_stride = width,
        .latents = r->qkv + (rank ? rank : query_width(d)), .latent_stride = width, .latent_norm = &layer->k_norm,
        .cos_sin = d->cos_sin, .fold_keys = layer->fold_keys, .fold_values = layer->fold_values, .cache = layer->keys,
        .target = r->attended, .scratch = r->latent,
    };
    if (rank) {
        ds_normalise(&layer->q_norm, r->qkv, rows, width, rank, r->compressed);
        multiply(r, &layer->query, r->compressed, rows, DS_STORE_BF16, r->queries, query_width(d));
        adapt(adapters, index, DS_QUERY, r->compressed, r->queries);
        latent.queries = r->queries;
        latent.query_stride = query_width(d);
    }
    if (d->indexer.num_heads) {
        choose_keys(d, step, index, adapters, r);
        latent.chosen = &r->chosen;
    }
    ds_latent_attention(&latent);
}

static void run_layer(const ds_decoder *d, const ds_step *step, int64_t index, const ds_adapters *adapters, const room *r) {
    const int64_t rows = step->num_rows, hidden = d->hidden_size;
    const ds_layer *layer = &d->layers[index];

    ds_normalise(&layer->attention_norm, r->stream, rows, hidden, hidden, r->normed);
    if (d->is_asking) {
        attend_asking(d, step, index, adapters, r);
    } else {
        multiply(r, &layer->qkv, r->normed, rows, DS_STORE_BF16, r->qkv, input_width(d));
        adapt(adapters, index, DS_QKV, r->normed, r->qkv);
        if (d->latent.num_heads) attend_latent(d, step, index, adapters, r);
        else attend_grouped(d, step, layer, r);
        multiply(r, &layer->output, r->attended, rows, DS_ADD_BF16, r->stream, hidden);
        adapt(adapters, index, DS_OUTPUT, r->attended, r->stream);
    }

    ds_normalise(&layer->feed_forward_norm, r->stream, rows, hidden, hidden, r->normed);
    if (layer->experts_gate_up) {
        ds_mixture mixture = {
            .routing = &d->routing, .router = &layer->router, .choice_bias = layer->choice_bias,
            .gate_up = layer->experts_gate_up, .down = layer->experts_down, .bias = layer->experts_bias,
            .hidden_size = hidden, .rows = r->normed, .num_rows = rows, .target = r->stream, .scratch = r->mixture,
        };
        ds_mixture_add(&mixture);
    }
    if (layer->gate_up.data) run_dense(d, step, index, adapters, r);
}

void ds_decoder_step_adapted(const ds_decoder *d, const ds_step *step, const ds_adapters *adapters) {
    const room r = lay_out(d, step->num_rows, step->scratch);
    const size_t row_bytes = (size_t)d->hidden_size * sizeof(bf16);
    for (int64_t row = 0; row < step->num_rows; row++)
        ds_unpack_bf16_row(&d->embedding, step->token_ids[row], r.stream + row * d->hidden_size);
    for (int64_t layer = 0; layer < d->num_layers; layer++) run_layer(d, step, layer, adapters, &r);
    for (int64_t i = 0; i < step->num_wanted; i++)
        memcpy(r.normed + i * d->hidden_size, r.stream + step->wanted_rows[i] * d->hidden_size, row_bytes);
    ds_normalise(&d->final_norm, r.normed, step->num_wanted, d->hidden_size, d->hidden_size, step->hidden);
}

void ds_decoder_step(const ds_decoder *d, const ds_step *step) { ds_decoder_step_adapted(d, step, 0); }

int64_t ds_structure_size(int64_t which) {
    const int64_t sizes[] = {sizeof(ds_matrix), sizeof(ds_product), sizeof(ds_batch), sizeof(ds_attention),
                             sizeof(ds_layer),  sizeof(ds_decoder), sizeof(ds_step),  sizeof(ds_adapter_rows),
                             sizeof(ds_adapters), sizeof(ds_norm), sizeof(ds_routing),
                             sizeof(ds_latent_shape), sizeof(ds_indexer_shape),
                             sizeof(ds_indexer)};
    return which < 0 || which >= (int64_t)(sizeof(sizes) / sizeof(sizes[0])) ? -1 : sizes[which];
}
