#include "dispatch.h"

#include "pool.h"
#include "scratch.h"

#define ROWS_PER_ITEM 8

ds_dispatch ds_dispatch_lay_out(const ds_routing *routing, int64_t widest, int64_t num_rows, char **next) {
    const int64_t experts = routing->num_experts, pairs = num_rows * routing->experts_per_token;
    ds_dispatch d = {.routing = routing, .num_rows = num_rows, .num_pairs = pairs};
    d.logits = ds_take(next, num_rows * experts * 4);
    d.scores = ds_take(next, num_rows * experts * 4);
    d.keys = ds_take(next, num_rows * experts * 4);
    d.expert = ds_take(next, pairs * 4);
    d.weight = ds_take(next, pairs * 4);
    d.place = ds_take(next, pairs * 4);
    d.first = ds_take(next, (experts + 1) * 4);
    d.bytes = ds_take(next, DS_DIGITS * pairs * widest);
    d.scales = ds_take(next, pairs * 4);
    d.products = ds_take(next, experts * (int64_t)sizeof(ds_product));
    return d;
}

static inline int64_t num_items(const ds_dispatch *d) { return (d->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM; }

static inline int64_t rows_end(const ds_dispatch *d, int64_t item) {
    return (item + 1) * ROWS_PER_ITEM < d->num_rows ? (item + 1) * ROWS_PER_ITEM : d->num_rows;
}

// What a loop over rows works on.
typedef struct {
    const ds_dispatch *dispatch;
    const float *choice_bias;
    const bf16 *from, *bias;
    int64_t size;
    bf16 *to;
} work;

static void route_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const work *w = argument;
    const ds_dispatch *d = w->dispatch;
    const int64_t experts = d->routing->num_experts, per_token = d->routing->experts_per_token;
    for (int64_t row = item * ROWS_PER_ITEM; row < rows_end(d, item); row++)
        ds_route_row(d->routing, w->choice_bias, d->logits + row * experts, d->scores + row * experts,
                     d->keys + row * experts, d->expert + row * per_token, d->weight + row * per_token);
}

static void sort_pairs(const ds_dispatch *d) {
    const int64_t experts = d->routing->num_experts;
    memset(d->first, 0, (size_t)(experts + 1) * sizeof(int32_t));
    for (int64_t p = 0; p < d->num_pairs; p++) d->first[d->expert[p] + 1]++;
    for (int64_t e = 0; e < experts; e++) d->first[e + 1] += d->first[e];
    for (int64_t p = 0; p < d->num_pairs; p++) d->place[p] = d->first[d->expert[p]]++;
    for (int64_t e = experts; e > 0; e--) d->first[e] = d->first[e - 1];
    d->first[0] = 0;
}

void ds_dispatch_route(const ds_dispatch *d, const ds_matrix *router, const float *choice_bias, const bf16 *rows) {
    ds_product routing = {.matrix = router, .rows = rows, .num_rows = d->num_rows, .epilogue = DS_STORE_FLOAT,
                          .target = d->logits, .target_stride = d->routing->num_experts};
    work w = {.dispatch = d, .choice_bias = choice_bias};
    ds_matmul(&routing);
    ds_parallel_for(num_items(d), route_item, &w);
    sort_pairs(d);
}

static void gather_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const work *w = argument;
    const ds_dispatch *d = w->dispatch;
    const int64_t per_token = d->routing->experts_per_token;
    for (int64_t row = item * ROWS_PER_ITEM; row < rows_end(d, item); row++)
        for (int64_t i = row * per_token; i < (row + 1) * per_token; i++)
            memcpy(w->to + d->place[i] * w->size, w->from + row * w->size, (size_t)w->size * sizeof(bf16));
}

void ds_dispatch_gather(const ds_dispatch *d, const bf16 *rows, int64_t size, bf16 *pairs) {
    work w = {.dispatch = d, .from = rows, .size = size, .to = pairs};
    ds_parallel_for(num_items(d), gather_item, &w);
}

void ds_dispatch_multiply(const ds_dispatch *d, const ds_matrix *matrices, const bf16 *pairs, int64_t epilogue,
                          bf16 *target, int64_t stride) {
    const int64_t size = matrices[0].num_inputs;
    int64_t num_products = 0;
    if (matrices[0].kind == DS_INT8) ds_quantize_rows(pairs, d->num_pairs, size, d->bytes, d->scales);
    for (int64_t e = 0; e < d->routing->num_experts; e++) {
        const int64_t first = d->first[e], count = d->first[e + 1] - first;
        if (count == 0) continue;
        d->products[num_products++] = (ds_product){
            .matrix = &matrices[e], .rows = pairs + first * size, .bytes = d->bytes + DS_DIGITS * first * size,
            .row_scales = d->scales + first, .num_rows = count, .epilogue = epilogue,
            .target = target + first * stride, .target_stride = stride,
        };
    }
    ds_matmul_many(d->products, num_products);
}

static void combine_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const work *w = argument;
    const ds_dispatch *d = w->dispatch;
    const int64_t per_token = d->routing->experts_per_token;
    for (int64_t row = item * ROWS_PER_ITEM; row < rows_end(d, item); row++) {
        bf16 *target = w->to + row * w->size;
        for (int64_t i = 0; i < w->size; i += 16) {
            const __mmask16 lanes = first_lanes(w->size - i);
            __m512 sum = _mm512_setzero_ps();
            for (int64_t p = row * per_token; p < (row + 1) * per_token; p++) {
                __m512 output = load_bf16_masked(lanes, w->from + d->place[p] * w->size + i);
                sum = _mm512_fmadd_ps(_mm512_set1_ps(d->weight[p]), output, sum);
            }
            sum = round_bf16(sum);
            if (w->bias) sum = round_bf16(_mm512_add_ps(sum, load_bf16_masked(lanes, w->bias + i)));
            store_bf16_masked(target + i, lanes, _mm512_add_ps(sum, load_bf16_masked(lanes, target + i)));
        }
    }
}

void ds_dispatch_combine(const ds_dispatch *d, const bf16 *pairs, const bf16 *bias, int64_t size, bf16 *target) {
    work w = {.dispatch = d, .from = pairs, .bias = bias, .size = size, .to = target};
    ds_parallel_for(num_items(d), combine_item, &w);
}
