/* Drawing the trees of STAND from its table: the rules of drafting/stand/draw.py, number for number. This file is compiled without
 * contraction of products and sums.
 */
#include "draft.h"
#include "ngrams.h"
#include "rng.h"
#include "scratch.h"
#include <math.h>
#include <string.h>

enum { RANKS = 3, PEAKS = 4, BINS = PEAKS + 1 };        /* drafting/stand/budget.py */
enum { SHORTEST = 2, LONGEST = 4, NODE_NUMBERS = 64 }; /* suffixes that a copy rests on; drafting/growth.py: draw_counters */
enum { NONE = -1, BLOCK = 64 };

/* A sequence to draft for, and its draft. */
typedef struct {
    int64_t space;
    const int32_t *text;                   /* what was read or written; the last one is the pending token */
    int64_t begin, end, step;              /* contexts begin there at the earliest; its length; tokens without the source */
    const int32_t *width, *first, *below; /* of the template's places: children, and where those stand in `below` that may have some */
    int64_t most, copies;                  /* nodes below the root; tokens of a copy, 0 for none */
    const int64_t *ends;                   /* tokens below which nothing is drafted */
    int64_t ending, sampled, due;          /* how many these are; whether children are drawn; whether to try although nothing pays */
    uint64_t seed;
    int64_t *token, *parent, *kind; /* of the nodes, in pre-order */
    draft *drafts;                  /* laws that were drawn from, their numbers in `ids` and `probs` */
    int64_t *ids;
    double *probs;
    int64_t nodes, drawn, asked; /* how many of these; whether nothing seemed to pay */
} walk;

/* What draws are worth. */
typedef struct {
    const double *rates, *cost; /* chances by kind; seconds of a forward by rows, the first `known` ones. Without rates all is drawn */
    int64_t known, span, longest; /* `longest` context */
    double pace, hand, eager;     /* tokens per second; seconds of the host for one more draw; see budget.py */
} odds;

typedef struct {
    int32_t token, parent, depth, kind, law, head, next, out;
} node;

typedef struct {
    int64_t walk, node, place;
    double reach;
} spot;

typedef struct {
    ngrams *table;
    const odds *odds;
    walk *walks;
    node **nodes; /* of each walk, as they are drafted */
    int32_t *context;
} drawing;

static double cost(const odds *o, int64_t rows) {
    if (rows < o->known) return o->cost[rows];
    return o->cost[o->known - 1] + (o->cost[o->known - 1] - o->cost[o->known - 2]) * (rows - o->known + 1);
}

/* The chance below which a further row does not pay, in a forward that has so many already. */
static double least(const odds *o, int64_t rows) {
    if (!o->rates) return 0;
    const double row = (cost(o, rows + o->span) - cost(o, rows)) / o->span;
    return o->pace * (o->eager * row + o->hand);
}

static int64_t kind_of(int64_t length, int64_t rank, double peak) {
    const int64_t bin = (peak >= 0.3) + (peak >= 0.6) + (peak >= 0.85) + (peak >= 0.97);
    return (length * RANKS + (rank < RANKS - 1 ? rank : RANKS - 1)) * BINS + bin;
}

static int64_t kind_of_copy(const odds *o, int64_t suffix, int64_t depth) {
    return (o->longest + suffix) * RANKS * BINS + (depth < PEAKS ? depth : PEAKS);
}

static int64_t add(walk *w, node *nodes, int64_t token, int64_t parent, int64_t kind) {
    nodes[w->nodes] = (node){token, parent, nodes[parent].depth + 1, kind, NONE, NONE, NONE, 0};
    return w->nodes++;
}

static int ends(const walk *w, int64_t token) {
    for (int64_t at = 0; at < w->ending; at++)
        if (w->ends[at] == token) return 1;
    return 0;
}

/* Whether a sequence that would send nothing should try all the same. */
static int due(walk *w) {
    if (w->nodes > 1) return 0;
    w->asked = 1;
    return w->due;
}

/* What is known behind a node, and the length of the context that found it. */
static int64_t look_up(const drawing *d, const spot *s, known *found) {
    const walk *w = d->walks + s->walk;
    const node *nodes = d->nodes[s->walk];
    const int64_t depth = nodes[s->node].depth, room = w->end - w->begin + depth, available = room < d->odds->longest ? room : d->odds->longest;
    if (!depth) return ngrams_longest(d->table, w->space, w->text + w->end, available, found);
    int32_t *at = d->context + d->odds->longest;
    for (int64_t here = s->node; here && at > d->context; here = nodes[here].parent) *--at = nodes[here].token;
    const int64_t text = available - (d->context + d->odds->longest - at);
    if (text > 0) memcpy(at - text, w->text + w->end - text, text * sizeof *at);
    return ngrams_longest(d->table, w->space, d->context + d->odds->longest, available, found);
}

/* The latest place where the longest known suffix stood before: what follows it; the suffix's length, or 0. */
static int64_t repeated(const walk *w, int64_t *follows) {
    const int32_t *text = w->text;
    const int64_t end = w->end;
    int64_t best = 0;
    for (int64_t stop = end - 1; stop >= SHORTEST && best < LONGEST; stop -= BLOCK) {
        const int64_t from = stop - BLOCK >= SHORTEST ? stop - BLOCK + 1 : SHORTEST;
        int any = 0;
        for (int64_t at = from; at <= stop; at++) any |= text[at - 1] == text[end - 1] && text[at - 2] == text[end - 2];
        for (int64_t at = stop; any && at >= from && best < LONGEST; at--) {
            int64_t length = 0;
            while (length < LONGEST && length < at && text[at - 1 - length] == text[end - 1 - length]) length++;
            if (length >= SHORTEST && length > best) best = length, *follows = at;
        }
    }
    return best;
}

/* Copy from earlier in a sequence, if that is known to hold more often than the table. Returns whether it did. */
static int copy(const drawing *d, const spot *s, int64_t rows) {
    const odds *o = d->odds;
    walk *w = d->walks + s->walk;
    known found;
    const int64_t length = look_up(d, s, &found);
    double chance = !length ? -1 : 1, best = o->rates ? 0 : 1, reach = 1;
    if (length && o->rates) {
        double whole = 0;
        for (int64_t at = 0; at < found.size; at++) whole += found.probs[at];
        chance = o->rates[kind_of(length, 0, found.probs[0] / whole)];
    }
    for (int64_t suffix = 1; o->rates && suffix <= LONGEST; suffix++) {
        const double rate = o->rates[kind_of_copy(o, suffix, 0)];
        best = rate > best ? rate : best;
    }
    if (chance >= best || !w->copies) return 0;
    int64_t follows = 0, here = 0;
    const int64_t suffix = repeated(w, &follows);
    if (!suffix || (o->rates && chance >= o->rates[kind_of_copy(o, suffix, 0)])) return 0;
    const double floor = least(o, rows);
    for (int64_t at = 0; at < w->copies; at++) {
        const int64_t kind = o->rates ? kind_of_copy(o, suffix, at) : NONE;
        if (o->rates && (reach *= o->rates[kind]) < floor && !due(w)) break;
        const int64_t token = w->text[follows + at % (w->end - follows)];
        here = add(w, d->nodes[s->walk], token, here, kind);
        if (ends(w, token)) break;
    }
    return 1;
}

/* Put what is known in the order it is drawn in without replacement; `shares` are the law that is drawn from.
 *
 * Gumbel top-k as a race: the log of an exponential number is Gumbel noise. */
static void race(const walk *w, const node *nodes, int64_t here, int64_t size, const double *shares, int64_t *order) {
    double times[NODE_NUMBERS];
    const uint64_t from = stream(w->seed, w->step + nodes[here].depth, DRAFT), first = ((uint64_t)w->step << 24) + here * NODE_NUMBERS;
    for (int64_t at = 0; at < size; at++) {
        const double time = times[at] = -log(number(from, first + at) + 0x1p-54) / shares[at];
        int64_t to = at;
        for (; to && times[order[to - 1]] > time; to--) order[to] = order[to - 1];
        order[to] = at;
    }
}

/* Give a node its children; they enter `deeper` where they may have some themselves. Returns how many entered. */
static int64_t deepen(const drawing *d, const spot *s, double floor, spot *deeper) {
    const odds *o = d->odds;
    walk *w = d->walks + s->walk;
    node *nodes = d->nodes[s->walk];
    known found;
    const int64_t length = look_up(d, s, &found), most = w->most + 1 - w->nodes;
    int64_t wanted = w->width[s->place], entered = 0, order[NODE_NUMBERS];
    if (!length) return 0;
    wanted = wanted < found.size ? wanted : found.size;
    wanted = wanted < most ? wanted : most;
    double shares[NODE_NUMBERS], whole = 0, reach = s->reach, left = 1;
    for (int64_t at = 0; at < found.size; at++) whole += found.probs[at];
    for (int64_t at = 0; at < found.size; at++) shares[at] = found.probs[at] / whole, order[at] = at;
    for (int64_t rank = 0; rank < wanted; rank++) {
        int64_t kind = NONE;
        double chance = 1;
        if (o->rates) { /* nothing here may depend on the value of the draw */
            kind = kind_of(length, rank, rank ? left : shares[0]);
            chance = o->rates[kind];
            if (reach * chance < floor && !due(w)) break;
        }
        if (!rank && w->sampled && found.size > 1) {
            int64_t *ids = w->ids + (w->drawn ? w->drafts[w->drawn - 1].ids - w->ids + w->drafts[w->drawn - 1].size : 0);
            double *probs = w->probs + (ids - w->ids);
            for (int64_t at = 0; at < found.size; at++) ids[at] = found.ids[at], probs[at] = shares[at];
            nodes[s->node].law = w->drawn;
            w->drafts[w->drawn++] = (draft){0, ids, probs, found.size, 1};
            race(w, nodes, s->node, found.size, shares, order);
        }
        const int64_t token = found.ids[order[rank]], child = add(w, nodes, token, s->node, kind), below = w->below[w->first[s->place] + rank];
        if (below >= 0 && !ends(w, token)) deeper[entered++] = (spot){s->walk, child, below, reach * chance};
        reach *= 1 - chance;
        left -= shares[order[rank]];
    }
    return entered;
}

/* Lay a tree out in pre-order, siblings in the order they were drawn. */
static void lay_out(walk *w, node *nodes) {
    for (int64_t at = w->nodes - 1; at; at--) {
        node *above = nodes + nodes[at].parent;
        nodes[at].next = above->head;
        above->head = at;
    }
    int64_t found = 0;
    for (int64_t at = 0; at >= 0;) {
        node *n = nodes + at;
        w->token[found] = n->token;
        w->parent[found] = at ? nodes[n->parent].out : NONE;
        w->kind[found] = n->kind;
        if (n->law >= 0) w->drafts[n->law].node = found;
        n->out = found++;
        if (n->head >= 0) {
            at = n->head;
            continue;
        }
        while (at > 0 && nodes[at].next < 0) at = nodes[at].parent;
        at = at ? nodes[at].next : NONE;
    }
}

/* Draw the trees of sequences, level by level, so that rows are weighed against one another. Returns their rows, roots included, or -1
 * without memory. */
int64_t stand(ngrams *table, const odds *o, walk *walks, int64_t count) {
    int64_t room = 0;
    for (int64_t at = 0; at < count; at++) room += walks[at].most + 1;
    node *nodes = scratch(room * (sizeof *nodes + 2 * sizeof(spot)) + count * sizeof(node *) + o->longest * sizeof(int32_t));
    if (!nodes) return -1;
    spot *live = (spot *)(nodes + room), *deeper = live + room;
    drawing d = {table, o, walks, (node **)(deeper + room), (int32_t *)((node **)(deeper + room) + count)};
    int64_t spots = 0, rows = count;
    for (int64_t at = 0; at < count; at++) {
        walk *w = walks + at;
        ngrams_use(table, w->space);
        d.nodes[at] = nodes;
        nodes += w->most + 1;
        d.nodes[at][0] = (node){w->text[w->end - 1], NONE, 0, NONE, NONE, NONE, NONE, 0};
        w->nodes = 1, w->drawn = w->asked = 0;
    }
    for (int64_t at = 0; at < count; at++) {
        const spot root = {at, 0, 0, 1};
        if (walks[at].width && !(walks[at].copies >= 0 && copy(&d, &root, count))) live[spots++] = root;
        rows += walks[at].nodes - 1;
    }
    while (spots) {
        const double floor = least(o, rows);
        int64_t entered = 0;
        for (int64_t at = 0; at < spots; at++) {
            const walk *w = walks + live[at].walk;
            const int64_t before = w->nodes;
            entered += deepen(&d, live + at, floor, deeper + entered);
            rows += w->nodes - before;
        }
        spot *swap = live;
        live = deeper, deeper = swap, spots = entered;
    }
    for (int64_t at = 0; at < count; at++) lay_out(walks + at, d.nodes[at]);
    return rows;
}
