/* Decoder layers for few rows on a CPU, run as one call: a sequence of small phases, each shared among threads.
 *
 * Every phase treats a row by itself and sums in an order that depends on that row alone, so a row's bits are the same whatever stands
 * beside it, however many threads there are and whichever of them does a piece.
 */
#include "attend_tiles.h"
#include "pool.h"
#include "product.h"
#include <math.h>
#include <stdlib.h>

#define BLOCK 64         /* elements that are always computed together: which instructions compute one must not depend on the split */
#define WORTH 4096       /* elements below which work is not shared */
#define PIECES_PER_THREAD 4

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

static void share_out(task doing, phase p, int64_t elements, int64_t threads) {
    const int64_t worth = elements / WORTH, most = PIECES_PER_THREAD * threads;
    p.pieces = worth < most ? worth : most;
    if (p.pieces > p.units) p.pieces = p.units;
    if (p.pieces < 1) p.pieces = 1;
    share(doing, &p, p.pieces);
}

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

/* out = x / sqrt(|x|^2 + floor) * gain; floor = width * eps, gain = weight * sqrt(width). out may be x. */
static inline void norm_row(const element *x, const float *gain, element *out, int64_t width, float floor) {
    float square = 0;
    for (int64_t i = 0; i < width; i++) square += get(x[i]) * get(x[i]);
    const float scale = 1 / sqrtf(square + floor);
    for (int64_t i = 0; i < width; i++) out[i] = put(get(x[i]) * scale * gain[i]);
}

/* Units are rows. The residual stream takes in a summand, if there is one, and meets the next norm, if there is one. */
static void add_norm(const void *work, int64_t piece) {
    const phase *p = work;
    const int64_t width = p->s->width;
    FOR_UNITS(row, p, piece) {
        element *at = p->s->hidden + row * width;
        if (p->in)
            for (int64_t i = 0; i < width; i++) at[i] = put(get(at[i]) + get(p->in[row * width + i]));
        if (p->gain) norm_row(at, p->gain, p->out + row * width, width, p->floor);
    }
}

/* Units are blocks. out = silu(gate) * up, gate and up side by side in a row. */
static void silu_gate(const void *work, int64_t piece) {
    const phase *p = work;
    const int64_t width = p->l->down.inputs, blocks = (width + BLOCK - 1) / BLOCK;
    FOR_UNITS(unit, p, piece) {
        const int64_t row = unit / blocks, start = unit % blocks * BLOCK, count = width - start < BLOCK ? width - start : BLOCK;
        const element *gate = p->in + 2 * row * width + start, *up = gate + width;
        element *at = p->out + row * width + start;
        for (int64_t i = 0; i < count; i++) {
            const float value = get(gate[i]);
            at[i] = put(value / (1 + exponential(-value)) * get(up[i]));
        }
    }
}

static inline void rotate(element *restrict at, const element *cosine, const element *sine, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = get(at[i]), b = get(at[half + i]);
        at[i] = put(a * get(cosine[i]) + b * get(sine[i]));
        at[half + i] = put(b * get(cosine[half + i]) + a * get(sine[half + i]));
    }
}

/* Units are heads of rows. Norm and rotate queries and keys in place; store keys and values. A row holds queries, then keys, then values. */
static void rotate_store(const void *work, int64_t piece) {
    const phase *p = work;
    const layer *l = p->l;
    const turn *t = p->s->turns + l->turn;
    const int64_t heads = l->heads + 2 * l->kv_heads, turned = l->heads + l->kv_heads;
    FOR_UNITS(unit, p, piece) {
        const int64_t row = unit / heads, head = unit % heads;
        element *at = p->out + unit * l->dim;
        if (head < turned) {
            const float *gain = head < l->heads ? l->query_gain : l->key_gain;
            if (gain) norm_row(at, gain, at, l->dim, l->head_floor);
            const int64_t place = p->s->positions[row] * t->dims;
            rotate(at, t->cosine + place, t->sine + place, t->dims / 2);
        }
        if (head < l->heads || row >= p->s->real) continue;
        element *pool = head < turned ? l->keys + (head - l->heads) * l->dim : l->values + (head - turned) * l->dim;
        memcpy(pool + p->s->slots[row] * l->slot_stride, at, l->dim * sizeof(element));
    }
}

/* Weights in place of scores, as they are stored, before they are divided by their sum; zeros from `count` up to `end`. Returns 1 / sum. */
static inline float soften(float *score, int64_t count, int64_t end, float scale, float softcap) {
    float most = -1e30f, total = 0;
    for (int64_t i = 0; i < count; i++) score[i] *= scale;
    if (softcap > 0)
        for (int64_t i = 0; i < count; i++) score[i] = tanhf(score[i] / softcap) * softcap;
    for (int64_t i = 0; i < count; i++) most = score[i] > most ? score[i] : most;
    for (int64_t i = 0; i < count; i++) score[i] = get(put(exponential(score[i] - most)));
    for (int64_t i = 0; i < count; i++) total += score[i];
    for (int64_t i = count; i < end; i++) score[i] = 0;
    return total > 0 ? 1 / total : 0; /* a path may be empty */
}

INLINE int64_t spans(int64_t places) { return (places + SPAN - 1) / SPAN * SPAN; }

static inline int64_t length(const path *p, int64_t row) {
    int64_t count = 0;
    for (int64_t run = p->first[row]; run < p->first[row + 1]; run++) count += p->runs[2 * run + 1] - p->runs[2 * run];
    return count;
}

/* Places at the start that two paths have in common. */
static inline int64_t alike(const path *p, int64_t a, int64_t b) {
    const int64_t *one = p->runs + 2 * p->first[a], *other = p->runs + 2 * p->first[b];
    const int64_t *end = p->runs + 2 * p->first[a + 1], *other_end = p->runs + 2 * p->first[b + 1];
    int64_t same = 0;
    for (; one < end && other < other_end && one[0] == other[0]; one += 2, other += 2) {
        same += (one[1] < other[1] ? one[1] : other[1]) - one[0];
        if (one[1] != other[1]) break;
    }
    return same;
}

/* Slots of a row's path, in order, filled up as `stretch` wants it. */
static inline void walk(const path *p, int64_t row, int32_t *slots) {
    int64_t count = 0;
    for (int64_t run = p->first[row]; run < p->first[row + 1]; run++) {
        const int32_t low = (int32_t)p->runs[2 * run], length = (int32_t)p->runs[2 * run + 1] - low;
        for (int32_t i = 0; i < length; i++) slots[count + i] = low + i;
        count += length;
    }
    for (int64_t at = count; at < spans(count) + LANES; at++) slots[at] = slots[count - 1];
}

/* This thread's room for `floats` numbers, kept from call to call. */
static float *scratch(int64_t floats) {
    static __thread float *room;
    static __thread int64_t held;
    if (floats > held) {
        free(room);
        room = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
        if (!room) abort();
        held = floats;
    }
    return room;
}

/* Queries that read a key together, and rows that they belong to: all heads of a key head each. */
static inline int64_t most_queries(const layer *l) { return tiled_heads(l->dim) ? MOST_TILED : MOST_QUERIES; }

static inline int64_t tile_rows(const layer *l) {
    const int64_t rows = most_queries(l) / (l->heads / l->kv_heads);
    return rows > 0 ? rows : 1;
}

/* Whether all of these rows belong to gangs. */
static inline int64_t ganged(const step *s, int64_t row, int64_t stop) {
    for (int64_t at = 0; at < s->ganged && row < stop; at++)
        if (s->gangs[at].first <= row && row < s->gangs[at].first + s->gangs[at].rows) row = s->gangs[at].first + s->gangs[at].rows;
    return row >= stop;
}

/* Units are tiles of rows of a key head. Attention of each row over its own path. The longest path is read for all rows of a tile together; a
 * row that leaves it reads the rest of its own, from the last whole span that they share. Either way a row's sums run along its path: places
 * that are not on it weigh nothing. Rows behind `real` are padding and get zeros. */
static void attend(const void *work, int64_t piece) {
    const phase *p = work;
    const layer *l = p->l;
    const step *s = p->s;
    const path *paths = s->paths + l->path;
    const int64_t dim = l->dim, groups = l->heads / l->kv_heads, tall = tile_rows(l), row_width = (l->heads + 2 * l->kv_heads) * dim;
    const int64_t most = groups < most_queries(l) ? groups : most_queries(l); /* heads of a row at once */
    const int64_t room = spans(s->longest) + SPAN, queries = tall * most, tiles = (s->rows + tall - 1) / tall, laid = tiled_heads(dim);
    float *scores = scratch((2 * queries + 1 + tall) * room + 2 * queries * dim + (laid ? 3 * room * dim : 0));
    float *rests = scores + queries * room, *query = rests + queries * room, *sums = query + queries * dim;
    int32_t *slots = (int32_t *)(sums + queries * dim), *own = slots + room;
    element *places = (element *)(own + tall * room);
    int64_t head_held = -1, held = -1, count[MOST_TILED], shared[MOST_TILED];
    float whole[MOST_TILED];
    FOR_UNITS(unit, p, piece) {
        const int64_t first = unit % tiles * tall, kv_head = unit / tiles;
        const int64_t rows = first + tall < s->rows ? tall : s->rows - first, real = first + rows < s->real ? rows : s->real - first;
        for (int64_t row = real < 0 ? 0 : real; row < rows; row++)
            memset(p->out + ((first + row) * l->heads + kv_head * groups) * dim, 0, groups * dim * sizeof(element));
        if (real <= 0 || ganged(s, first, first + real)) continue;
        int64_t lead = 0;
        for (int64_t row = 0; row < real; row++) {
            count[row] = length(paths, first + row);
            if (count[row] > count[lead]) lead = row;
        }
        for (int64_t row = 0; row < real; row++) {
            shared[row] = row == lead ? count[row] : alike(paths, first + row, first + lead);
            if (shared[row] < count[row]) {
                shared[row] = shared[row] / SPAN * SPAN;
                walk(paths, first + row, own + row * room);
            }
        }
        const int64_t end = spans(count[lead]);
        stretch keys = {l->keys + kv_head * dim, slots, 0, count[lead], l->slot_stride, dim, places};
        stretch values = {l->values + kv_head * dim, slots, 0, count[lead], l->slot_stride, dim, places + room * dim};
        const int64_t same = head_held == kv_head ? alike(paths, held, first + lead) : 0;
        if (same < count[lead]) {
            walk(paths, first + lead, slots);
            if (laid) lay_keys(&keys, same / SPAN * SPAN), lay_values(&values, same / SPAN * SPAN);
            head_held = kv_head, held = first + lead;
        }
        for (int64_t from = 0; from < groups; from += most) {
            const int64_t heads = groups - from < most ? groups - from : most, head = kv_head * groups + from;
            for (int64_t row = 0; row < real; row++)
                for (int64_t i = 0; i < heads * dim; i++)
                    query[row * heads * dim + i] = get(p->in[(first + row) * row_width + head * dim + i]);
            score(query, &keys, scores, room, real * heads);
            for (int64_t row = 0; row < real; row++) {
                const int64_t start = shared[row], rest = count[row] - start;
                float *mine = scores + row * heads * room;
                if (rest) {
                    stretch last = {keys.pool, own + row * room, start, count[row], keys.stride, dim, values.tiles + room * dim};
                    if (laid) lay_keys(&last, 0);
                    score(query + row * heads * dim, &last, mine + start, room, heads);
                }
                for (int64_t q = 0; q < heads; q++) {
                    float *at = mine + q * room;
                    whole[row * heads + q] = soften(at, count[row], end, l->scale, l->softcap);
                    if (!rest) continue;
                    memcpy(rests + (row * heads + q) * room, at + start, spans(rest) * sizeof(float));
                    memset(at + start, 0, (end - start) * sizeof(float));
                }
            }
            memset(sums, 0, real * heads * dim * sizeof(float));
            mix(scores, &values, sums, room, real * heads);
            for (int64_t row = 0; row < real; row++) {
                if (shared[row] < count[row]) {
                    stretch last = {values.pool, own + row * room, shared[row], count[row], values.stride, dim, values.tiles + room * dim};
                    if (laid) lay_values(&last, 0);
                    mix(rests + row * heads * room, &last, sums + row * heads * dim, room, heads);
                }
                element *out = p->out + ((first + row) * l->heads + head) * dim;
                for (int64_t q = 0; q < heads; q++)
                    for (int64_t i = 0; i < dim; i++) out[q * dim + i] = put(sums[(row * heads + q) * dim + i] * whole[row * heads + q]);
            }
        }
    }
}

/* Spans of the places that a gang's head reads. Returns how many; `places` counts those that are there. */
static inline int64_t choose(const pattern *from, int64_t head, int64_t block, int64_t length, int32_t *spans, int64_t *places) {
    const int64_t at = head * from->blocks + block, each = from->tile / SPAN;
    int64_t chosen = 0;
    *places = 0;
    for (int64_t i = 0; i < from->counts[at]; i++)
        for (int64_t span = from->index[at * from->most + i] * each, end = span + each; span < end && span * SPAN < length; span++) {
            spans[chosen++] = (int32_t)span;
            *places += length - span * SPAN < SPAN ? length - span * SPAN : SPAN;
        }
    return chosen;
}

/* Units are gangs of a head. */
static void attend_gangs(const void *work, int64_t piece) {
    const phase *p = work;
    const layer *l = p->l;
    const step *s = p->s;
    const path *paths = s->paths + l->path;
    const int64_t dim = l->dim, groups = l->heads / l->kv_heads, row_width = (l->heads + 2 * l->kv_heads) * dim;
    const int64_t room = spans(s->longest) + SPAN;
    float *scores = scratch((MOST_TILED + 2) * room + 2 * MOST_TILED * dim + room * dim), whole[MOST_TILED];
    float *query = scores + MOST_TILED * room, *sums = query + MOST_TILED * dim;
    int32_t *slots = (int32_t *)(sums + MOST_TILED * dim), *chosen = slots + room;
    element *places = (element *)(chosen + room);
    int64_t head_held = -1, held = -1;
    FOR_UNITS(unit, p, piece) {
        const gang *g = s->gangs + unit % s->ganged;
        const int64_t head = unit / s->ganged, kv_head = head / groups, count = length(paths, g->first);
        stretch keys = {l->keys + kv_head * dim, slots, 0, count, l->slot_stride, dim, places};
        stretch values = {l->values + kv_head * dim, slots, 0, count, l->slot_stride, dim, places + room * dim};
        if (head_held != kv_head || alike(paths, held, g->first) < count) {
            walk(paths, g->first, slots);
            lay_keys(&keys, 0), lay_values(&values, 0);
            head_held = kv_head, held = g->first;
        }
        const int64_t end = SPAN * choose(p->patterns + g->pattern, head, g->block, count, chosen, &keys.stop);
        keys.spans = values.spans = chosen, values.stop = keys.stop;
        for (int64_t row = 0; row < g->rows; row++)
            for (int64_t i = 0; i < dim; i++) query[row * dim + i] = get(p->in[(g->first + row) * row_width + head * dim + i]);
        score(query, &keys, scores, room, g->rows);
        for (int64_t row = 0; row < g->rows; row++) whole[row] = soften(scores + row * room, keys.stop, end, l->scale, l->softcap);
        memset(sums, 0, g->rows * dim * sizeof(float));
        mix(scores, &values, sums, room, g->rows);
        for (int64_t row = 0; row < g->rows; row++)
            for (int64_t i = 0; i < dim; i++)
                p->out[((g->first + row) * l->heads + head) * dim + i] = put(sums[row * dim + i] * whole[row]);
    }
}

/* Whether rows of heads this wide can be ganged. */
int64_t gangs(int64_t dim) { return tiled_heads(dim); }

/* Units are panels. */
static void multiply_piece(const void *work, int64_t piece) {
    const phase *p = work;
    multiply(p->weight, p->in, p->out, p->rows, p->units * piece / p->pieces, p->units * (piece + 1) / p->pieces);
}

static void shared_product(const linear *weight, const element *x, element *out, int64_t rows, int64_t threads) {
    const phase p = {.weight = weight, .in = x, .out = out, .rows = rows, .units = panels(weight)};
    share_out(multiply_piece, p, weight->inputs * weight->outputs, threads);
}

/* Layers first .. last - 1, in place on the hidden states. */
void run(const layer *layers, int64_t first, int64_t last, const step *s, int64_t threads) {
    threads = gather(threads);
    const int64_t rows = s->rows, width = s->width;
    element *normed = s->work, *delta = normed + rows * width, *narrow = delta + rows * width;
    const element *added = NULL;
    for (const layer *l = layers + first; l < layers + last; l++) {
        const int64_t inner = l->out.inputs, feed = l->down.inputs, heads = l->heads + 2 * l->kv_heads;
        element *wide = narrow + rows * (inner > feed ? inner : feed);
#define PHASE(...) (phase){.l = l, .s = s, __VA_ARGS__}
        share_out(add_norm, PHASE(.in = added, .out = normed, .gain = l->mixer_gain, .floor = l->mixer_floor, .units = rows), rows * width, threads);
        shared_product(&l->qkv, normed, wide, rows, threads);
        share_out(rotate_store, PHASE(.out = wide, .units = rows * heads), rows * l->qkv.outputs, threads);
        const int64_t tiles = (rows + tile_rows(l) - 1) / tile_rows(l);
        share_out(attend, PHASE(.in = wide, .out = narrow, .units = tiles * l->kv_heads), rows * inner * s->longest, threads);
        if (s->ganged) {
            const phase some = PHASE(.in = wide, .out = narrow, .patterns = s->patterns + (l - layers) * s->kinds, .units = l->heads * s->ganged);
            share_out(attend_gangs, some, rows * inner * s->longest, threads);
        }
        shared_product(&l->out, narrow, delta, rows, threads);
        share_out(add_norm, PHASE(.in = delta, .out = normed, .gain = l->feed_gain, .floor = l->feed_floor, .units = rows), rows * width, threads);
        shared_product(&l->gate_up, normed, wide, rows, threads);
        share_out(silu_gate, PHASE(.in = wide, .out = narrow, .units = rows * ((feed + BLOCK - 1) / BLOCK)), rows * feed, threads);
        shared_product(&l->down, narrow, delta, rows, threads);
        added = delta;
    }
    share_out(add_norm, (phase){.s = s, .in = added, .units = rows}, rows * width, threads);
    dismiss();
}

/* out = norm of x, row by row. */
void normalize(const element *x, const float *gain, element *out, int64_t rows, int64_t width, float floor) {
    for (int64_t row = 0; row < rows; row++) norm_row(x + row * width, gain, out + row * width, width, floor);
}

/* out = x W^T + bias. */
void product(const linear *weight, const element *x, element *out, int64_t rows, int64_t threads) {
    threads = gather(threads);
    shared_product(weight, x, out, rows, threads);
    dismiss();
}

/* Whether the processor multiplies elements of this type as they are stored. */
int64_t native(void) {
#if BF16 && !__AVX512BF16__
    return 0;
#else
    return 1;
#endif
}
