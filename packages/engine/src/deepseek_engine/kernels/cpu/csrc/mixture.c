#include "mixture.h"

#include "dispatch.h"
#include "scratch.h"

typedef struct {
    ds_dispatch dispatch;
    bf16 *gathered; // [pairs][hidden]
    bf16 *inner;    // [pairs][intermediate]
    bf16 *outputs;  // [pairs][hidden]
    int64_t num_bytes;
} room;

static room lay_out(const ds_routing *routing, int64_t hidden, int64_t inner, int64_t rows, void *scratch) {
    char *next = scratch;
    room r = {.dispatch = ds_dispatch_lay_out(routing, hidden > inner ? hidden : inner, rows, &next)};
    r.gathered = ds_take(&next, r.dispatch.num_pairs * hidden * 2);
    r.inner = ds_take(&next, r.dispatch.num_pairs * inner * 2);
    r.outputs = ds_take(&next, r.dispatch.num_pairs * hidden * 2);
    r.num_bytes = next - (char *)scratch;
    return r;
}

int64_t ds_mixture_bytes(const ds_routing *routing, int64_t hidden, int64_t inner, int64_t rows) {
    return lay_out(routing, hidden, inner, rows, 0).num_bytes;
}

void ds_mixture_add(const ds_mixture *m) {
    const int64_t hidden = m->hidden_size, inner = m->down[0].num_inputs;
    const room r = lay_out(m->routing, hidden, inner, m->num_rows, m->scratch);
    ds_dispatch_route(&r.dispatch, m->router, m->choice_bias, m->rows);
    ds_dispatch_gather(&r.dispatch, m->rows, hidden, r.gathered);
    ds_dispatch_multiply(&r.dispatch, m->gate_up, r.gathered, DS_SILU_MUL, r.inner, inner);
    ds_dispatch_multiply(&r.dispatch, m->down, r.inner, DS_STORE_BF16, r.outputs, hidden);
    ds_dispatch_combine(&r.dispatch, r.outputs, m->bias, hidden, m->target);
}
