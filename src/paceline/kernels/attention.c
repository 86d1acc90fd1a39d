/* Attention of rows over their paths, or over some blocks of them: the scores of queries and the sums that their weights make are in attend.c,
 * or on the matrix unit in attend_tiles.c; here is who reads what together. Like decode.c, this file is compiled with -ffast-math.
 */
#include "attend_tiles.h"
#include "decode.h"
#include <stdlib.h>

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

int64_t attend_units(const layer *l, const step *s) { return (s->rows + tile_rows(l) - 1) / tile_rows(l) * l->kv_heads; }

int64_t gang_units(const layer *l, const step *s) { return l->heads * s->ganged; }

/* Whether all of these rows belong to gangs. */
static inline int64_t ganged(const step *s, int64_t row, int64_t stop) {
    for (int64_t at = 0; at < s->ganged && row < stop; at++)
        if (s->gangs[at].first <= row && row < s->gangs[at].first + s->gangs[at].rows) row = s->gangs[at].first + s->gangs[at].rows;
    return row >= stop;
}

/* Units are tiles of rows of a key head. Attention of each row over its own path. The longest path is read for all rows of a tile together; a
 * row that leaves it reads the rest of its own, from the last whole span that they share. Either way a row's sums run along its path: places
 * that are not on it weigh nothing. Rows behind `real` are padding and get zeros. */
void attend(const void *work, int64_t piece) {
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
void attend_gangs(const void *work, int64_t piece) {
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
