#include "adapters.h"

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t ds_adapters_add_bytes(int64_t num_rows, int64_t max_inputs, int64_t max_outputs, int64_t max_ranks) {
    return aligned(2 * num_rows * (int64_t)sizeof(ds_product)) + aligned(num_rows * max_inputs * 2) +
           aligned(num_rows * max_ranks * 2) + aligned(num_rows * max_outputs * 2);
}

// Rows of one adapter, copied to follow each other, or back to where they belong.
static void gather(const ds_adapter_rows *group, const bf16 *rows, int64_t size, bf16 *target) {
    for (int64_t i = 0; i < group->num_rows; i++)
        memcpy(target + i * size, rows + group->rows[i] * size, (size_t)size * sizeof(bf16));
}

static void scatter(const ds_adapter_rows *group, const bf16 *rows, int64_t size, bf16 *target) {
    for (int64_t i = 0; i < group->num_rows; i++)
        memcpy(target + group->rows[i] * size, rows + i * size, (size_t)size * sizeof(bf16));
}

void ds_adapters_add(const ds_adapters *adapters, int64_t change, const bf16 *inputs, bf16 *target, void *scratch) {
    int64_t num_rows = 0, num_inputs = 0, num_outputs = 0, num_active = 0;
    for (int64_t g = 0; g < adapters->num_groups; g++) {
        const ds_low_rank *factors = &adapters->groups[g].changes[change];
        if (!factors->a.data) continue;
        num_active++;
        num_rows += adapters->groups[g].num_rows;
        num_inputs = factors->a.num_inputs;
        num_outputs = factors->b.num_outputs;
    }
    if (!num_active) return;

    char *next = scratch;
    ds_product *first = (ds_product *)next, *second = first + num_active;
    next += aligned(2 * num_active * (int64_t)sizeof(ds_product));
    bf16 *gathered = (bf16 *)next;
    next += aligned(num_rows * num_inputs * 2);
    bf16 *changed = (bf16 *)next;
    next += aligned(num_rows * num_outputs * 2);
    bf16 *middle = (bf16 *)next;

    int64_t i = 0;
    for (int64_t g = 0; g < adapters->num_groups; g++) {
        const ds_adapter_rows *group = &adapters->groups[g];
        const ds_low_rank *factors = &group->changes[change];
        if (!factors->a.data) continue;
        const int64_t ranks = factors->a.num_outputs;
        gather(group, inputs, num_inputs, gathered);
        gather(group, target, num_outputs, changed);
        first[i] = (ds_product){&factors->a, gathered, 0, 0, group->num_rows, DS_STORE_BF16, middle, ranks};
        second[i] = (ds_product){&factors->b, middle, 0, 0, group->num_rows, DS_ADD_BF16, changed, num_outputs};
        gathered += group->num_rows * num_inputs;
        changed += group->num_rows * num_outputs;
        middle += group->num_rows * ranks;
        i++;
    }
    // Twice all adapters together, so that many with a row each keep all threads busy.
    ds_matmul_many(first, num_active);
    ds_matmul_many(second, num_active);
    i = 0;
    for (int64_t g = 0; g < adapters->num_groups; g++) {
        if (!adapters->groups[g].changes[change].a.data) continue;
        scatter(&adapters->groups[g], second[i++].target, num_outputs, target);
    }
}
