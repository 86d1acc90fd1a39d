/* The two halves of attention around the softmax, for queries that read the same keys. */
#pragma once
#include "element.h"

#define LANES 16       /* scores are written in whole blocks of so many */
#define MOST_QUERIES 4 /* that read a key together */
#define MOST_CHUNKS 32 /* of LANES elements in a head */

/* Keys (or values) of one head in the order of a path, from place `start` (a whole number of blocks) up to `stop`. */
typedef struct {
    const element *pool;
    const int32_t *slots; /* of the path, filled up to a whole block with valid slots, and one block more */
    int64_t start, stop, stride, dim;
} stretch;

/* Query q's vector, scores (or weights) and sum are at q times dim, room and dim. */
void score(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries);
void mix(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries);
