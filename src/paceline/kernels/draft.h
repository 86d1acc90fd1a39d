/* What the children of a node were drawn from. */
#pragma once
#include <stdint.h>

/* The law that a node's children were drawn from: `size` probabilities, of the ids or, without them, of the first tokens. */
typedef struct {
    int64_t node;
    const int64_t *ids;
    const void *probs;
    int64_t size, wide; /* whether in float64 */
} draft;
