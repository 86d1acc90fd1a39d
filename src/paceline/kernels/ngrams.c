/* The n-gram table of STAND; rules and numbers are those of drafting/stand/table.py. This file is compiled without contraction of products
 * and sums.
 *
 * Rows lie one after the other, found through an open-addressing table of their places. The rows of a space form a list from the least to
 * the most recently used, and so do the spaces that have any.
 */
#include "ngrams.h"
#include <stdlib.h>
#include <string.h>

enum { NONE = -1, MOST = 64 }; /* StandConfig: MOST_CANDIDATES */

typedef struct {
    uint64_t key;
    int32_t space, length, size, count; /* of the context, of what is known, and laws that it is the mean of */
    int32_t before, after;              /* in the order of use; `after` links what is free, too */
} row;                                  /* behind it stand probabilities, ids, and the context */

typedef struct {
    int32_t oldest, newest, size;
    int32_t before, after;
} share;

struct ngrams {
    int64_t kinds, longest; /* lengths of contexts there are, and the first of them */
    int64_t width, capacity, size, evictions;
    int64_t stride, room, used; /* bytes of a row; rows there is memory for, and that were ever used */
    char *rows;
    int32_t free, *slots; /* places of rows, plus one */
    int64_t mask;
    share *spaces;
    int64_t known; /* spaces there is memory for */
    int32_t oldest, newest;
    int64_t lengths[]; /* falling */
};

static row *at(const ngrams *t, int64_t place) { return (row *)(t->rows + place * t->stride); }
static double *probs_of(row *r) { return (double *)(r + 1); }
static int32_t *ids_of(const ngrams *t, row *r) { return (int32_t *)(probs_of(r) + t->width); }
static int32_t *context_of(const ngrams *t, row *r) { return ids_of(t, r) + t->width; }

static uint64_t stir(uint64_t value) {
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93u;
    return value ^ (value >> 32);
}

void ngrams_free(ngrams *t) {
    if (!t) return;
    free(t->rows), free(t->slots), free(t->spaces), free(t);
}

ngrams *ngrams_new(const int64_t *lengths, int64_t kinds, int64_t width, int64_t capacity) {
    ngrams *t = calloc(1, sizeof *t + kinds * sizeof *lengths);
    if (!t) return NULL;
    memcpy(t->lengths, lengths, kinds * sizeof *lengths);
    t->kinds = kinds, t->longest = lengths[0], t->width = width, t->capacity = capacity;
    t->stride = (int64_t)(sizeof(row) + width * (sizeof(double) + sizeof(int32_t)) + t->longest * sizeof(int32_t) + 7) / 8 * 8;
    t->free = t->oldest = t->newest = NONE;
    t->mask = -1;
    return t;
}

/* Where a row stands in the table of places, or where it would. */
static int64_t slot_of(const ngrams *t, uint64_t key, int64_t space, const int32_t *context, int64_t length) {
    int64_t slot = key & t->mask;
    for (; t->slots[slot]; slot = (slot + 1) & t->mask) {
        row *r = at(t, t->slots[slot] - 1);
        if (r->key == key && r->space == space && r->length == length && !memcmp(context_of(t, r), context, length * sizeof *context)) break;
    }
    return slot;
}

static void unlink_row(ngrams *t, row *r) {
    share *s = t->spaces + r->space;
    *(r->before == NONE ? &s->oldest : &at(t, r->before)->after) = r->after;
    *(r->after == NONE ? &s->newest : &at(t, r->after)->before) = r->before;
}

static void append_row(ngrams *t, int32_t place) {
    row *r = at(t, place);
    share *s = t->spaces + r->space;
    r->before = s->newest, r->after = NONE;
    *(s->newest == NONE ? &s->oldest : &at(t, s->newest)->after) = place;
    s->newest = place;
}

static void unlink_space(ngrams *t, share *s) {
    *(s->before == NONE ? &t->oldest : &t->spaces[s->before].after) = s->after;
    *(s->after == NONE ? &t->newest : &t->spaces[s->after].before) = s->before;
}

static void append_space(ngrams *t, int32_t space) {
    share *s = t->spaces + space;
    s->before = t->newest, s->after = NONE;
    *(t->newest == NONE ? &t->oldest : &t->spaces[t->newest].after) = space;
    t->newest = space;
}

static void touch(ngrams *t, int32_t place) {
    row *r = at(t, place);
    if (r->after == NONE) return;
    unlink_row(t, r);
    append_row(t, place);
}

void ngrams_use(ngrams *t, int64_t space) {
    if (space >= t->known || !t->spaces[space].size || t->newest == space) return;
    unlink_space(t, t->spaces + space);
    append_space(t, space);
}

static void remove_row(ngrams *t, int32_t place) {
    row *r = at(t, place);
    int64_t hole = slot_of(t, r->key, r->space, context_of(t, r), r->length);
    t->slots[hole] = 0;
    for (int64_t slot = (hole + 1) & t->mask; t->slots[slot]; slot = (slot + 1) & t->mask) { /* nobody may stand behind a gap */
        const int64_t home = at(t, t->slots[slot] - 1)->key & t->mask;
        if (((slot - home) & t->mask) < ((slot - hole) & t->mask)) continue;
        t->slots[hole] = t->slots[slot];
        t->slots[hole = slot] = 0;
    }
    unlink_row(t, r);
    share *s = t->spaces + r->space;
    if (!--s->size) unlink_space(t, s);
    r->after = t->free;
    t->free = place;
    t->size--;
}

void ngrams_drop(ngrams *t, int64_t space) {
    while (space < t->known && t->spaces[space].size) remove_row(t, t->spaces[space].oldest);
}

/* Room for one more row of a space; an empty table has none. To be called before looking for a row that may have to be made. */
static int make_room(ngrams *t, int64_t space) {
    if (space >= t->known) {
        const int64_t wanted = 2 * space + 8;
        share *spaces = realloc(t->spaces, wanted * sizeof *spaces);
        if (!spaces) return -1;
        for (int64_t each = t->known; each < wanted; each++) spaces[each] = (share){.oldest = NONE, .newest = NONE};
        t->spaces = spaces, t->known = wanted;
    }
    if (t->free == NONE && t->used == t->room) {
        const int64_t wanted = t->room ? 2 * t->room : 256;
        char *rows = realloc(t->rows, wanted * t->stride);
        if (!rows) return -1;
        t->rows = rows, t->room = wanted;
    }
    if (2 * (t->size + 1) <= t->mask) return 0;
    const int64_t mask = t->slots ? 2 * t->mask + 1 : 1023;
    int32_t *slots = calloc(mask + 1, sizeof *slots);
    if (!slots) return -1;
    for (int64_t old = 0; old <= t->mask; old++) {
        if (!t->slots[old]) continue;
        int64_t slot = at(t, t->slots[old] - 1)->key & mask;
        while (slots[slot]) slot = (slot + 1) & mask;
        slots[slot] = t->slots[old];
    }
    free(t->slots);
    t->slots = slots, t->mask = mask;
    return 0;
}

/* A row for a context that has none yet, the most recently used one of its space. */
static int32_t add_row(ngrams *t, uint64_t key, int64_t space, const int32_t *context, int64_t length) {
    const int32_t place = t->free == NONE ? (int32_t)t->used++ : t->free;
    row *r = at(t, place);
    if (place == t->free) t->free = r->after;
    r->key = key, r->space = space, r->length = length, r->size = r->count = 0;
    memcpy(context_of(t, r), context, length * sizeof *context);
    t->slots[slot_of(t, key, space, context, length)] = place + 1;
    if (!t->spaces[space].size++) append_space(t, space);
    append_row(t, place);
    t->size++;
    return place;
}

static void evict(ngrams *t) {
    while (t->size > t->capacity) {
        remove_row(t, t->spaces[t->oldest].oldest);
        t->evictions++;
    }
}

/* Hash of a space's context whose last token stands in front of `end`, token by token: `keys[n]` is that of the last n + 1. */
static void hash(int64_t space, const int32_t *end, int64_t available, uint64_t *keys) {
    uint64_t state = stir((uint64_t)space + 0x9E3779B97F4A7C15u);
    for (int64_t back = 0; back < available; back++) keys[back] = state = stir(state ^ (uint32_t)end[-1 - back]) + 0x9E3779B97F4A7C15u;
}

int64_t ngrams_longest(ngrams *t, int64_t space, const int32_t *end, int64_t available, known *found) {
    if (space >= t->known || !t->spaces[space].size) return 0;
    available = available < t->longest ? available : t->longest;
    uint64_t keys[available + 1];
    hash(space, end, available, keys);
    for (int64_t kind = 0; kind < t->kinds; kind++) {
        const int64_t length = t->lengths[kind];
        if (length > available) continue;
        const int32_t place = t->slots[slot_of(t, keys[length - 1], space, end - length, length)] - 1;
        if (place < 0) continue;
        row *r = at(t, place);
        touch(t, place);
        *found = (known){ids_of(t, r), probs_of(r), r->size, r->count};
        return length;
    }
    return 0;
}

typedef struct {
    double prob;
    int32_t id;
} pair;

/* Average one more law into a row: a mean moved by a share of the difference stays where it is, to the bit, when it meets the same law. */
static void average(const ngrams *t, row *r, const pair *law, int64_t size) {
    double *probs = probs_of(r);
    int32_t *ids = ids_of(t, r);
    const int64_t count = ++r->count;
    int64_t same = count > 1 && r->size == size, fresh = 0;
    for (int64_t place = 0; same && place < size; place++) same = ids[place] == law[place].id && probs[place] == law[place].prob;
    if (same) return;
    pair mean[2 * MOST];
    int64_t found = r->size;
    for (int64_t place = 0; place < found; place++) mean[place] = (pair){probs[place] + (0 - probs[place]) / count, ids[place]};
    for (int64_t place = 0; place < size; place++) {
        int64_t old = 0;
        while (old < r->size && ids[old] != law[place].id) old++;
        if (old < r->size) mean[old].prob = probs[old] + (law[place].prob - probs[old]) / count;
        else mean[found + fresh++] = (pair){law[place].prob / count, law[place].id};
    }
    found += fresh;
    for (int64_t place = 1; count > 1 && place < found; place++) { /* largest first, of equal ones the lowest id */
        const pair one = mean[place];
        int64_t to = place;
        for (; to && (mean[to - 1].prob < one.prob || (mean[to - 1].prob == one.prob && mean[to - 1].id > one.id)); to--) mean[to] = mean[to - 1];
        mean[to] = one;
    }
    r->size = 0;
    for (int64_t place = 0; place < found && r->size < t->width; place++)
        if (mean[place].prob > 0) probs[r->size] = mean[place].prob, ids[r->size++] = mean[place].id;
}

/* Average laws into the rows of the contexts that they were seen behind, of every length, in the order given.
 *
 * The first law was seen in front of `text[end]`, the next one a token later, and so on; contexts begin at `begin` at the earliest. Law n has
 * `sizes[n]` tokens, and those of the next follow. Returns 0, or -1 without memory. */
int64_t ngrams_learn(ngrams *t, int64_t space, const int32_t *text, int64_t begin, int64_t end, int64_t laws, const int64_t *sizes,
                     const int64_t *ids, const float *probs) {
    uint64_t keys[t->longest];
    for (int64_t each = 0; each < laws; ids += sizes[each], probs += sizes[each], each++, end++) {
        const int32_t *stop = text + end;
        const int64_t available = end - begin < t->longest ? end - begin : t->longest;
        pair law[MOST];
        int64_t size = 0;
        for (int64_t place = 0; place < sizes[each] && size < t->width; place++)
            if (probs[place] > 0) law[size++] = (pair){probs[place], (int32_t)ids[place]};
        hash(space, stop, available, keys);
        for (int64_t kind = 0; kind < t->kinds; kind++) {
            const int64_t length = t->lengths[kind];
            if (length > available) continue;
            if (make_room(t, space)) return -1;
            int32_t place = t->slots[slot_of(t, keys[length - 1], space, stop - length, length)] - 1;
            if (place >= 0) touch(t, place);
            else place = add_row(t, keys[length - 1], space, stop - length, length);
            average(t, at(t, place), law, size);
        }
        evict(t);
    }
    return 0;
}

/* Put a row in place, whatever was known. Returns 0, or -1 without memory. */
int64_t ngrams_restore(ngrams *t, int64_t space, const int32_t *context, int64_t length, const int64_t *ids, const double *probs, int64_t size,
                       int64_t count) {
    uint64_t keys[length];
    hash(space, context + length, length, keys);
    if (make_room(t, space)) return -1;
    int32_t place = t->slots[slot_of(t, keys[length - 1], space, context, length)] - 1;
    if (place >= 0) touch(t, place);
    else place = add_row(t, keys[length - 1], space, context, length);
    row *r = at(t, place);
    r->size = size, r->count = count;
    for (int64_t each = 0; each < size; each++) ids_of(t, r)[each] = (int32_t)ids[each], probs_of(r)[each] = probs[each];
    evict(t);
    return 0;
}

/* Rows of a space. */
int64_t ngrams_rows(const ngrams *t, int64_t space) { return space < t->known ? t->spaces[space].size : 0; }

/* Copy a row's context, ids and probabilities; returns the place of the one that was used next, or NONE behind the last.
 *
 * `place` is NONE for the least recently used one. `shape` is for the lengths of these, and the count of laws. */
int64_t ngrams_read(const ngrams *t, int64_t space, int64_t place, int64_t *shape, int32_t *context, int32_t *ids, double *probs) {
    row *r = at(t, place == NONE ? t->spaces[space].oldest : place);
    shape[0] = r->length, shape[1] = r->size, shape[2] = r->count;
    memcpy(context, context_of(t, r), r->length * sizeof *context);
    memcpy(ids, ids_of(t, r), r->size * sizeof *ids);
    memcpy(probs, probs_of(r), r->size * sizeof *probs);
    return r->after;
}

/* Rows, evictions, and bytes of memory. */
void ngrams_told(const ngrams *t, int64_t *told) {
    told[0] = t->size, told[1] = t->evictions;
    told[2] = t->room * t->stride + (t->mask + 1) * (int64_t)sizeof *t->slots + t->known * (int64_t)sizeof *t->spaces;
}
