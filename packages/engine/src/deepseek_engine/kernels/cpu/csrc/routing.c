#include "routing.h"

#include <math.h>
#include <stdbool.h>

#define SMALLEST_SUM 1e-20f // added before a division, so that weights that are all 0 stay 0

static bool is_among(const int32_t *ids, int64_t count, int32_t id) {
    for (int64_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

// The ids of the `count` largest keys, largest first. Each id once, whatever the keys are, NaN too.
static void largest(const float *keys, int64_t num_keys, int64_t count, int32_t *ids) {
    for (int64_t i = 0; i < count; i++) {
        int32_t best = -1;
        for (int32_t k = 0; k < num_keys; k++)
            if ((best < 0 || keys[k] > keys[best]) && !is_among(ids, i, k)) best = k;
        ids[i] = best;
    }
}

static void softmax(const float *logits, int64_t count, float *scores) {
    float top = -INFINITY, total = 0;
    for (int64_t e = 0; e < count; e++) top = fmaxf(top, logits[e]);
    for (int64_t e = 0; e < count; e++) total += scores[e] = expf(logits[e] - top);
    for (int64_t e = 0; e < count; e++) scores[e] /= total;
}

// A group's own score: of its best expert, or of its two best together.
static float group_score(const float *keys, int64_t size, bool is_of_two) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        if (keys[i] > best) {
            second = best;
            best = keys[i];
        } else if (keys[i] > second) {
            second = keys[i];
        }
    }
    return is_of_two && size > 1 ? best + second : best;
}

// Give experts outside the best groups the key `excluded`.
static void keep_best_groups(const ds_routing *r, float excluded, float *keys) {
    const int64_t size = r->num_experts / r->num_groups;
    float of_groups[r->num_groups];
    int32_t kept[r->groups_per_token];
    for (int64_t g = 0; g < r->num_groups; g++) of_groups[g] = group_score(keys + g * size, size, r->kind == DS_SIGMOID);
    largest(of_groups, r->num_groups, r->groups_per_token, kept);
    for (int32_t g = 0; g < r->num_groups; g++) {
        if (is_among(kept, r->groups_per_token, g)) continue;
        for (int64_t i = 0; i < size; i++) keys[g * size + i] = excluded;
    }
}

static void finish(const ds_routing *r, float *weights) {
    float total = SMALLEST_SUM;
    for (int64_t i = 0; i < r->experts_per_token; i++) total += weights[i];
    for (int64_t i = 0; i < r->experts_per_token; i++) weights[i] = (r->normalise ? weights[i] / total : weights[i]) * r->scaling;
}

static void route_softmax(const ds_routing *r, const float *logits, float *scores, int32_t *experts, float *weights) {
    softmax(logits, r->num_experts, scores);
    if (r->num_groups > 1) keep_best_groups(r, 0.0f, scores);
    largest(scores, r->num_experts, r->experts_per_token, experts);
    for (int64_t i = 0; i < r->experts_per_token; i++) weights[i] = scores[experts[i]];
    finish(r, weights);
}

static void route_sigmoid(const ds_routing *r, const float *choice_bias, const float *logits, float *scores, float *keys,
                          int32_t *experts, float *weights) {
    for (int64_t e = 0; e < r->num_experts; e++) {
        scores[e] = 1.0f / (1.0f + expf(-logits[e]));
        keys[e] = scores[e] + choice_bias[e];
    }
    if (r->num_groups > 1) keep_best_groups(r, -INFINITY, keys);
    largest(keys, r->num_experts, r->experts_per_token, experts);
    for (int64_t i = 0; i < r->experts_per_token; i++) weights[i] = scores[experts[i]];
    finish(r, weights);
}

// Distances are measured on all logits, the first choice's too: that one is left out by its id.
static void route_sparsemixer(const ds_routing *r, const float *logits, int32_t *experts, float *weights) {
    for (int64_t i = 0; i < r->experts_per_token; i++) {
        int32_t id = -1;
        for (int32_t e = 0; e < r->num_experts; e++)
            if ((id < 0 || logits[e] > logits[id]) && !is_among(experts, i, e)) id = e;
        const float best = logits[id];
        float total = 0;
        for (int32_t e = 0; e < r->num_experts; e++) {
            const float distance = (best - logits[e]) / fmaxf(fabsf(logits[e]), best);
            if (!is_among(experts, i, e) && !(distance > 2 * r->jitter)) total += expf(logits[e] - best);
        }
        experts[i] = id;
        weights[i] = 1.0f / total;
    }
}

void ds_route_row(const ds_routing *r, const float *choice_bias, const float *logits, float *scores, float *keys,
                  int32_t *experts, float *weights) {
    if (r->kind == DS_SIGMOID) route_sigmoid(r, choice_bias, logits, scores, keys, experts, weights);
    else if (r->kind == DS_SPARSEMIXER) route_sparsemixer(r, logits, experts, weights);
    else route_softmax(r, logits, scores, experts, weights);
}
