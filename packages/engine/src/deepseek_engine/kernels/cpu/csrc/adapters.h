// Low-rank changes (LoRA) of a step's rows, all adapters of a layer at once.
#pragma once
#include "matmul.h"

// The linear layers that adapters may change, in the order of a layer's changes.
enum { DS_QKV = 0, DS_OUTPUT = 1, DS_GATE_UP = 2, DS_DOWN = 3, DS_QUERY = 4, DS_INDEX_QUERY = 5, DS_INDEX_KEY = 6, DS_NUM_SITES = 7 };

// y += b (a x); a.data is null where the adapter changes nothing. Both are bf16.
typedef struct {
    ds_matrix a; // [ranks] outputs
    ds_matrix b; // [ranks] inputs
} ds_low_rank;

// One adapter's rows in a step.
typedef struct {
    const int64_t *rows;
    int64_t num_rows;
    const ds_low_rank *changes; // [layers][DS_NUM_SITES]
} ds_adapter_rows;

// All adapters of a step; no row is two adapters'.
typedef struct {
    const ds_adapter_rows *groups;
    int64_t num_groups;
    int64_t max_ranks; // of one change
    void *scratch;     // ds_adapters_scratch_bytes of it
} ds_adapters;

// Add every adapter's change at one site, `change` of its list, to its rows of target.
// inputs: [rows][a's inputs]; target: [rows][b's outputs].
void ds_adapters_add(const ds_adapters *adapters, int64_t change, const bf16 *inputs, bf16 *target, void *scratch);

// What ds_adapters_add needs for steps of so many rows, up to so many inputs and outputs.
int64_t ds_adapters_add_bytes(int64_t num_rows, int64_t max_inputs, int64_t max_outputs, int64_t max_ranks);
