/* Decoder layers for few rows on a CPU, run as one call: a sequence of small phases, each shared among threads.
 *
 * Every phase treats a row by itself and sums in an order that depends on that row alone, so a row's bits are the same whatever stands
 * beside it, however many threads there are and whichever of them does a piece.
 */
#include "attend.h"
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

typedef struct {
    element *hidden;
    element *work;        /* rows x (2 x width + widest of queries and gate + widest of qkv and gate_up) elements */
    const int64_t *slots; /* of the first `real` rows */
    const int64_t *positions;
    const path *paths;
    const turn *turns;
    int64_t rows, real, width, longest;
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
            at[i] = put(value / (1 + expf(-value)) * get(up[i]));
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

/* Softmax of scores in place. */
static inline void soften(float *score, int64_t count, float softcap) {
    float most = -1e30f, total = 0;
    if (softcap > 0)
        for (int64_t i = 0; i < count; i++) score[i] = tanhf(score[i] / softcap) * softcap;
    for (int64_t i = 0; i < count; i++) most = score[i] > most ? score[i] : most;
    for (int64_t i = 0; i < count; i++) score[i] = expf(score[i] - most);
    for (int64_t i = 0; i < count; i++) total += score[i];
    for (int64_t i = 0; i < count; i++) score[i] /= total;
}

/* Slots of a row's path, in order, filled up to a whole block and one more. Returns their number. */
static inline int64_t walk(const path *p, int64_t row, int32_t *slots) {
    int64_t count = 0;
    for (int64_t run = p->first[row]; run < p->first[row + 1]; run++) {
        const int32_t low = (int32_t)p->runs[2 * run], length = (int32_t)p->runs[2 * run + 1] - low;
        for (int32_t i = 0; i < length; i++) slots[count + i] = low + i;
        count += length;
    }
    const int64_t filled = (count + LANES - 1) / LANES * LANES + LANES;
    for (int64_t at = count; at < filled; at++) slots[at] = slots[count - 1];
    return count;
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

/* Rows that are read together: those whose queries, all heads of a key head each, can share a key. */
static inline int64_t tile_rows(const layer *l) {
    const int64_t groups = l->heads / l->kv_heads;
    return groups < MOST_QUERIES ? MOST_QUERIES / groups : 1;
}

static inline int64_t shared_start(const int32_t *a, const int32_t *b, int64_t most) {
    int64_t same = 0;
    while (same < most && a[same] == b[same]) same++;
    return same / LANES * LANES;
}

/* Units are key heads of tiles of rows. Attention of each row over its own path; what the paths of a tile have in common is read once.
 * Rows behind `real` are padding and get zeros. */
static void attend(const void *work, int64_t piece) {
    const phase *p = work;
    const layer *l = p->l;
    const step *s = p->s;
    const int64_t dim = l->dim, groups = l->heads / l->kv_heads, tall = tile_rows(l), row_width = (l->heads + 2 * l->kv_heads) * dim;
    const int64_t most = groups < MOST_QUERIES ? groups : MOST_QUERIES; /* heads of a row at once */
    const int64_t room = (s->longest + LANES - 1) / LANES * LANES + LANES;
    float *scores = scratch(2 * MOST_QUERIES * room + 2 * MOST_QUERIES * dim);
    int32_t *slots = (int32_t *)(scores + MOST_QUERIES * room);
    float *query = (float *)(slots + MOST_QUERIES * room), *sums = query + MOST_QUERIES * dim;
    int64_t walked = -1, common = 0, count[MOST_QUERIES];
    FOR_UNITS(unit, p, piece) {
        const int64_t first = unit / l->kv_heads * tall, kv_head = unit % l->kv_heads;
        const int64_t rows = first + tall < s->rows ? tall : s->rows - first, real = first + rows < s->real ? rows : s->real - first;
        for (int64_t row = real < 0 ? 0 : real; row < rows; row++)
            memset(p->out + ((first + row) * l->heads + kv_head * groups) * dim, 0, groups * dim * sizeof(element));
        if (real <= 0) continue;
        if (first != walked) {
            for (int64_t row = 0; row < real; row++) count[row] = walk(s->paths + l->path, first + row, slots + row * room);
            common = real > 1 ? count[0] : 0;
            for (int64_t row = 1; row < real; row++)
                common = shared_start(slots, slots + row * room, common < count[row] ? common : count[row]);
            walked = first;
        }
        for (int64_t from = 0; from < groups; from += most) {
            const int64_t heads = groups - from < most ? groups - from : most;
            const int64_t head = kv_head * groups + from;
            for (int64_t row = 0; row < real; row++)
                for (int64_t i = 0; i < heads * dim; i++)
                    query[row * heads * dim + i] = get(p->in[(first + row) * row_width + head * dim + i]) * l->scale;
            stretch keys = {l->keys + kv_head * dim, slots, 0, common, l->slot_stride, dim};
            score(query, &keys, scores, room, real * heads);
            for (int64_t row = 0; row < real; row++) {
                keys.slots = slots + row * room, keys.start = common, keys.stop = count[row];
                score(query + row * heads * dim, &keys, scores + row * heads * room, room, heads);
                for (int64_t q = row * heads; q < (row + 1) * heads; q++) soften(scores + q * room, count[row], l->softcap);
            }
            memset(sums, 0, real * heads * dim * sizeof(float));
            stretch values = {l->values + kv_head * dim, slots, 0, common, l->slot_stride, dim};
            mix(scores, &values, sums, room, real * heads);
            for (int64_t row = 0; row < real; row++) {
                values.slots = slots + row * room, values.start = common, values.stop = count[row];
                mix(scores + row * heads * room, &values, sums + row * heads * dim, room, heads);
                element *out = p->out + ((first + row) * l->heads + head) * dim;
                for (int64_t i = 0; i < heads * dim; i++) out[i] = put(sums[row * heads * dim + i]);
            }
        }
    }
}

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
