/* The two halves of attention around the softmax, for queries that read the same keys. */
#pragma once
#include "element.h"

#define LANES 16       /* scores are written in whole blocks of so many */
#define SPAN 32        /* places on a path that are laid out together */
#define MOST_QUERIES 4 /* that read a key together */
#define MOST_TILED 16  /* the same on the matrix unit */
#define MOST_CHUNKS 32 /* of LANES elements in a head */

/* Keys (or values) of one head in the order of a path, from place `start` (a whole number of spans) up to `stop`. */
typedef struct {
    const element *pool;
    const int32_t *slots; /* of the path, filled up to a whole span with valid slots, and LANES more */
    int64_t start, stop, stride, dim;
    element *tiles; /* room for them as the matrix unit reads them, if it does */
    const int32_t *spans; /* which spans are read, `stop` counting their places alone; NULL for all (the matrix unit only) */
} stretch;

/* Query q's vector, scores (or weights, zero up to a whole span) and sums are at q times dim, room and dim; scores begin at place `start`. */
void score(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries);
void mix(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries);
