// Which experts each row goes through, and with what weights: the rules of `layers/routers.py`.
#pragma once
#include <stdint.h>

// How logits become choices.
enum {
    DS_SOFTMAX = 0,      // the likeliest experts; a group is as good as its best expert
    DS_SIGMOID = 1,      // independent scores, chosen with a bias each; a group is as good as its two best
    DS_SPARSEMIXER = 2,  // two experts in turn, each weighted by a softmax over those that come close to it
};

typedef struct {
    int64_t kind;
    int64_t num_experts, experts_per_token;
    int64_t num_groups, groups_per_token; // 1 and 1: no grouping
    int64_t normalise;                    // whether the weights are scaled to sum to 1
    float scaling;                        // of the weights, at last
    float jitter;                         // sparsemixer's threshold
} ds_routing;

// Choose for one row; the lower id comes first on a tie.
// logits, scores, keys: [num_experts], the latter two are overwritten; choice_bias: [num_experts], sigmoid only.
void ds_route_row(const ds_routing *routing, const float *choice_bias, const float *logits, float *scores, float *keys,
                  int32_t *experts, float *weights);
