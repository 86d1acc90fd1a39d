/* A step through decoder layers, cut into phases that threads share. */
#pragma once
#include "product.h"
#include <math.h>

typedef struct {
    linear qkv, out, gate_up, down;
    const float *mixer_gain, *feed_gain, *query_gain, *key_gain; /* the last two, norms of heads, may be NULL */
    element *keys, *values;
    int64_t path, turn, heads, kv_heads, dim, slot_stride;
    float mixer_floor, feed_floor, head_floor, scale, softcap;
} layer;

/* Row r sees the slots of runs first[r] .. first[r + 1] - 1, each a half-open range (low, high), in this order. */
typedef struct {
    const int64_t *first, *runs;
} path;

/* dims factors per position; sine carries the sign of the half-split rotation. */
typedef struct {
    const element *cosine, *sine;
    int64_t dims;
} turn;

/* Up to 16 rows in turn of one canvas that lie in one block of queries, and read some blocks of keys only: those of a pattern. */
typedef struct {
    int64_t first, rows, block, pattern;
} gang;

/* Of a head's block of queries b, in one layer: counts[head x blocks + b] blocks of `tile` keys, listed in `most` places of index. */
typedef struct {
    const int64_t *index, *counts;
    int64_t blocks, most, tile;
} pattern;

/* What stands before the layers and behind them: rows of a table, a norm and a product, of the `wanted` rows only. */
typedef struct {
    const element *table;
    const float *gain;
    linear head;
    float floor;
} ends;

typedef struct {
    element *hidden;
    element *work;        /* rows x (2 x width + widest of queries and gate + widest of qkv and gate_up) elements */
    const int64_t *slots; /* of the first `real` rows */
    const int64_t *positions;
    const path *paths;
    const turn *turns;
    const gang *gangs;       /* in row order; all other rows read all of their paths */
    const pattern *patterns; /* `kinds` of each layer */
    int64_t rows, real, width, longest, ganged, kinds;
    const ends *ends; /* NULL: hidden states are given, and wanted back */
    const int64_t *ids, *wanted;
    int64_t asked; /* how many are wanted */
    element *logits;
} step;

/* One phase: `units` independent units of work, cut into `pieces`. */
typedef struct {
    const layer *l;
    const step *s;
    const linear *weight;
    const element *in;
    element *out;
    const float *gain;
    float floor;
    const pattern *patterns;
    int64_t rows, units, pieces;
} phase;

#define FOR_UNITS(unit, p, piece)                                                                                                          \
    for (int64_t unit = p->units * piece / p->pieces, last_ = p->units * (piece + 1) / p->pieces; unit < last_; unit++)

/* e^x, within 2e-7 of it, and small enough to be computed in line for many at once. */
INLINE float exponential(float x) {
    x = x < -87 ? -87 : x > 88 ? 88 : x;
    const float twos = rintf(x * 1.44269504f);
    const float rest = __builtin_fmaf(twos, -1.42860682e-6f, __builtin_fmaf(twos, -0.693145752f, x)); /* ln 2 in two parts */
    float sum = 1.f / 720;
    sum = __builtin_fmaf(sum, rest, 1.f / 120);
    sum = __builtin_fmaf(sum, rest, 1.f / 24);
    sum = __builtin_fmaf(sum, rest, 1.f / 6);
    sum = __builtin_fmaf(sum, rest, .5f);
    sum = __builtin_fmaf(sum, rest, 1);
    sum = __builtin_fmaf(sum, rest, 1);
    const int32_t bits = ((int32_t)twos + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* Phases of attention, and how many units they have. */
int64_t attend_units(const layer *l, const step *s);
int64_t gang_units(const layer *l, const step *s);
void attend(const void *work, int64_t piece);
void attend_gangs(const void *work, int64_t piece);
