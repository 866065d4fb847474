#include "asking.h"

#include "pool.h"
#include "scratch.h"

#define ROWS_PER_ITEM 8

typedef struct {
    const ds_asking *asking;
    ds_dispatch dispatch;
    bf16 *wide;   // [pairs][hidden]
    bf16 *narrow; // [pairs][num_kv_heads * head_dim]
    bf16 *heads;  // rows of [num_kv_heads][K][head_dim], heads_stride apart
    int64_t heads_stride, is_back, num_bytes;
} room;

static room lay_out(const ds_routing *routing, int64_t hidden, int64_t width, int64_t rows, void *scratch) {
    char *next = scratch;
    room r = {.dispatch = ds_dispatch_lay_out(routing, hidden > width ? hidden : width, rows, &next)};
    r.wide = ds_take(&next, r.dispatch.num_pairs * hidden * 2);
    r.narrow = ds_take(&next, r.dispatch.num_pairs * width * 2);
    r.num_bytes = next - (char *)scratch;
    return r;
}

int64_t ds_asking_bytes(const ds_routing *routing, int64_t hidden, int64_t width, int64_t num_rows) {
    return lay_out(routing, hidden, width, num_rows, 0).num_bytes;
}

// Heads of a row's pairs to their places side by side, or back.
static void move_item(void *argument, int64_t item, int thread) {
    (void)thread;
    const room *r = argument;
    const ds_asking *a = r->asking;
    const int64_t per_token = a->routing->experts_per_token, dim = a->head_dim, width = a->num_kv_heads * dim;
    const int64_t end = (item + 1) * ROWS_PER_ITEM < a->num_rows ? (item + 1) * ROWS_PER_ITEM : a->num_rows;
    for (int64_t row = item * ROWS_PER_ITEM; row < end; row++)
        for (int64_t k = 0; k < per_token; k++)
            for (int64_t n = 0; n < a->num_kv_heads; n++) {
                bf16 *of_pair = r->narrow + r->dispatch.place[row * per_token + k] * width + n * dim;
                bf16 *of_row = r->heads + row * r->heads_stride + (n * per_token + k) * dim;
                memcpy(r->is_back ? of_pair : of_row, r->is_back ? of_row : of_pair, (size_t)dim * sizeof(bf16));
            }
}

static void move_heads(room *r, bf16 *heads, int64_t stride, int64_t is_back) {
    r->heads = heads;
    r->heads_stride = stride;
    r->is_back = is_back;
    ds_parallel_for((r->asking->num_rows + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, move_item, r);
}

static room room_of(const ds_asking *a) {
    room r = lay_out(a->routing, a->hidden_size, a->num_kv_heads * a->head_dim, a->num_rows, a->scratch);
    r.asking = a;
    return r;
}

void ds_ask(const ds_asking *a, const bf16 *rows, bf16 *target, int64_t target_stride) {
    room r = room_of(a);
    ds_dispatch_route(&r.dispatch, a->router, 0, rows);
    ds_dispatch_gather(&r.dispatch, rows, a->hidden_size, r.wide);
    ds_dispatch_multiply(&r.dispatch, a->queries, r.wide, DS_STORE_BF16, r.narrow, a->num_kv_heads * a->head_dim);
    move_heads(&r, target, target_stride, 0);
}

void ds_answer(const ds_asking *a, const bf16 *attended, bf16 *target) {
    room r = room_of(a);
    move_heads(&r, (bf16 *)attended, a->routing->experts_per_token * a->num_kv_heads * a->head_dim, 1);
    ds_dispatch_multiply(&r.dispatch, a->outputs, r.narrow, DS_STORE_BF16, r.wide, a->hidden_size);
    ds_dispatch_combine(&r.dispatch, r.wide, a->bias, a->hidden_size, target);
}
