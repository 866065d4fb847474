#include "mixture.h"

#include "pool.h"

#define ROWS_PER_ITEM 8

// A pair is one expert of one row; pairs are sorted by expert, so that an expert's weights are read once.
typedef struct {
    const ds_mixture *mixture;
    float *logits;        // [rows][experts]
    float *scores, *keys; // [rows][experts], what the rule makes of them
    int32_t *expert;      // [rows][per_token]
    float *weight;        // [rows][per_token]
    int32_t *place;       // [rows][per_token], a pair's index among the sorted
    int32_t *first;       // [experts + 1], an expert's first sorted pair
    bf16 *gathered;       // [pairs][hidden]
    bf16 *inner;          // [pairs][intermediate]
    bf16 *outputs;        // [pairs][hidden]
    uint8_t *bytes;       // [pairs][wider of both]
    float *scales;        // [pairs]
    ds_product *products; // [experts]
    int64_t num_bytes;
} room;

static void *take(char **next, int64_t bytes) {
    void *start = *next;
    *next += (bytes + 63) / 64 * 64;
    return start;
}

static room lay_out(const ds_routing *routing, int64_t hidden, int64_t inner, int64_t rows, void *scratch) {
    char *next = scratch;
    const int64_t experts = routing->num_experts, pairs = rows * routing->experts_per_token;
    room r = {0};
    r.logits = take(&next, rows * experts * 4);
    r.scores = take(&next, rows * experts * 4);
    r.keys = take(&next, rows * experts * 4);
    r.expert = take(&next, pairs * 4);
    r.weight = take(&next, pairs * 4);
    r.place = take(&next, pairs * 4);
    r.first = take(&next, (experts + 1) * 4);
    r.gathered = take(&next, pairs * hidden * 2);
    r.inner = take(&next, pairs * inner * 2);
    r.outputs = take(&next, pairs * hidden * 2);
    r.bytes = take(&next, pairs * (hidden > inner ? hidden : inner));
    r.scales = take(&next, pairs * 4);
    r.products = take(&next, experts * (int64_t)sizeof(ds_product));
    r.num_bytes = next - (char *)scratch;
    return r;
}

int64_t ds_mixture_bytes(const ds_routing *routing, int64_t hidden, int64_t inner, int64_t rows) {
    return lay_out(routing, hidden, inner, rows, 0).num_bytes;
}

static inline int64_t rows_end(const ds_mixture *m, int64_t item) {
    return (item + 1) * ROWS_PER_ITEM < m->num_rows ? (item + 1) * ROWS_PER_ITEM : m->num_rows;
}

static void route_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    const ds_mixture *m = r->mixture;
    const int64_t experts = m->routing->num_experts, per_token = m->routing->experts_per_token, end = rows_end(m, item);
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        ds_route_row(m->routing, m->choice_bias, r->logits + row * experts, r->scores + row * experts,
                     r->keys + row * experts, r->expert + row * per_token, r->weight + row * per_token);
}

static void sort_pairs(const room *r) {
    const ds_mixture *m = r->mixture;
    const int64_t pairs = m->num_rows * m->routing->experts_per_token;
    memset(r->first, 0, (size_t)(m->routing->num_experts + 1) * sizeof(int32_t));
    for (int64_t p = 0; p < pairs; p++) r->first[r->expert[p] + 1]++;
    for (int64_t e = 0; e < m->routing->num_experts; e++) r->first[e + 1] += r->first[e];
    for (int64_t p = 0; p < pairs; p++) r->place[p] = r->first[r->expert[p]]++;
    for (int64_t e = m->routing->num_experts; e > 0; e--) r->first[e] = r->first[e - 1];
    r->first[0] = 0;
}

static void gather_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    const ds_mixture *m = r->mixture;
    const int64_t end = rows_end(m, item);
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        for (int64_t i = row * m->routing->experts_per_token; i < (row + 1) * m->routing->experts_per_token; i++)
            memcpy(r->gathered + r->place[i] * m->hidden_size, m->rows + row * m->hidden_size,
                   (size_t)m->hidden_size * sizeof(bf16));
}

static void combine_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    const ds_mixture *m = r->mixture;
    const int64_t end = rows_end(m, item);
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++) {
        bf16 *target = m->target + row * m->hidden_size;
        for (int64_t d = 0; d < m->hidden_size; d += 16) {
            const __mmask16 lanes = first_lanes(m->hidden_size - d);
            __m512 sum = _mm512_setzero_ps();
            for (int64_t i = row * m->routing->experts_per_token; i < (row + 1) * m->routing->experts_per_token; i++) {
                __m512 output = load_bf16_masked(lanes, r->outputs + r->place[i] * m->hidden_size + d);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(r->weight[i]), output, sum);
            }
            sum = _mm512_add_ps(round_bf16(sum), load_bf16_masked(lanes, target + d));
            store_bf16_masked(target + d, lanes, sum);
        }
    }
}

static void multiply_experts(const room *r, const ds_matrix *matrices, const bf16 *rows, int64_t epilogue, bf16 *target,
                             int64_t stride) {
    const ds_mixture *m = r->mixture;
    const int64_t pairs = m->num_rows * m->routing->experts_per_token, size = matrices[0].num_inputs;
    if (matrices[0].kind == DS_INT8) ds_quantize_rows(rows, pairs, size, r->bytes, r->scales);
    int64_t num_products = 0;
    for (int64_t e = 0; e < m->routing->num_experts; e++) {
        const int64_t first = r->first[e], count = r->first[e + 1] - first;
        if (count == 0) continue;
        r->products[num_products++] = (ds_product){
            .matrix = &matrices[e], .rows = rows + first * size, .bytes = r->bytes + first * size,
            .row_scales = r->scales + first, .num_rows = count, .epilogue = epilogue,
            .target = target + first * stride, .target_stride = stride,
        };
    }
    ds_matmul_many(r->products, num_products);
}

void ds_mixture_add(const ds_mixture *m) {
    const int64_t inner = m->down[0].num_inputs, items = (m->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM;
    room r = lay_out(m->routing, m->hidden_size, inner, m->num_rows, m->scratch);
    r.mixture = m;
    ds_product routing = {.matrix = m->router, .rows = m->rows, .num_rows = m->num_rows, .epilogue = DS_STORE_FLOAT,
                          .target = r.logits, .target_stride = m->routing->num_experts};
    ds_matmul(&routing);
    ds_parallel_for(items, route_item, &r);
    sort_pairs(&r);
    ds_parallel_for(items, gather_item, &r);
    multiply_experts(&r, m->gate_up, r.gathered, DS_SILU_MUL, r.inner, inner);
    multiply_experts(&r, m->down, r.inner, DS_STORE_BF16, r.outputs, m->hidden_size);
    ds_parallel_for(items, combine_item, &r);
}
