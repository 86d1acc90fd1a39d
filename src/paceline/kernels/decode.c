/* Decoder layers on a CPU, run as one call: a sequence of small phases, each shared among threads.
 *
 * Every phase treats a row by itself and sums in an order that depends on that row alone, so a row's bits are the same whatever stands
 * beside it, however many threads there are and whichever of them does a piece.
 */
#include "decode.h"
#include "pool.h"

#define BLOCK 64         /* elements that are always computed together: which instructions compute one must not depend on the split */
#define WORTH 4096       /* elements below which work is not shared */
#define PIECES_PER_THREAD 4

static void share_out(task doing, phase p, int64_t elements, int64_t threads) {
    const int64_t worth = elements / WORTH, most = PIECES_PER_THREAD * threads;
    p.pieces = worth < most ? worth : most;
    if (p.pieces > p.units) p.pieces = p.units;
    if (p.pieces < 1) p.pieces = 1;
    share(doing, &p, p.pieces);
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

/* Units are rows that are wanted. */
static void norm_wanted(const void *work, int64_t piece) {
    const phase *p = work;
    const step *s = p->s;
    FOR_UNITS(row, p, piece) norm_row(s->hidden + s->wanted[row] * s->width, s->ends->gain, p->out + row * s->width, s->width, s->ends->floor);
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

/* Units are panels. */
static void multiply_piece(const void *work, int64_t piece) {
    const phase *p = work;
    multiply(p->weight, p->in, p->out, p->rows, p->units * piece / p->pieces, p->units * (piece + 1) / p->pieces);
}

static void shared_product(const linear *weight, const element *x, element *out, int64_t rows, int64_t threads) {
    const phase p = {.weight = weight, .in = x, .out = out, .rows = rows, .units = panels(weight)};
    share_out(multiply_piece, p, weight->inputs * weight->outputs, threads);
}

/* Layers first .. last - 1, in place on the hidden states; with ends, from ids to logits. */
void run(const layer *layers, int64_t first, int64_t last, const step *s, int64_t threads) {
    threads = gather(threads);
    const int64_t rows = s->rows, width = s->width;
    element *normed = s->work, *delta = normed + rows * width, *narrow = delta + rows * width;
    const element *added = NULL;
    for (int64_t row = 0; s->ends && row < rows; row++)
        memcpy(s->hidden + row * width, s->ends->table + s->ids[row] * width, width * sizeof(element));
    for (const layer *l = layers + first; l < layers + last; l++) {
        const int64_t inner = l->out.inputs, feed = l->down.inputs, heads = l->heads + 2 * l->kv_heads;
        element *wide = narrow + rows * (inner > feed ? inner : feed);
#define PHASE(...) (phase){.l = l, .s = s, __VA_ARGS__}
        share_out(add_norm, PHASE(.in = added, .out = normed, .gain = l->mixer_gain, .floor = l->mixer_floor, .units = rows), rows * width, threads);
        shared_product(&l->qkv, normed, wide, rows, threads);
        share_out(rotate_store, PHASE(.out = wide, .units = rows * heads), rows * l->qkv.outputs, threads);
        share_out(attend, PHASE(.in = wide, .out = narrow, .units = attend_units(l, s)), rows * inner * s->longest, threads);
        if (s->ganged) {
            const pattern *own = s->patterns + (l - layers) * s->kinds;
            const phase some = PHASE(.in = wide, .out = narrow, .patterns = own, .units = gang_units(l, s));
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
    if (s->ends && s->asked) {
        share_out(norm_wanted, (phase){.s = s, .out = normed, .units = s->asked}, s->asked * width, threads);
        shared_product(&s->ends->head, normed, s->logits, s->asked, threads);
    }
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
