/* Choosing what to draft: the best nodes of tries that are kept as bags of places in text (drafting/lookahead/trie.py).
 *
 * No trie is ever built. A node is the set of places that agree so far, and only nodes that stand for election are worked out. The rules are
 * those of drafting/lookahead/select.py, number for number: this file is compiled without contraction of products and sums.
 */
#include "forest.h"
#include "scratch.h"
#include <stdlib.h>
#include <string.h>

enum { PROMPT, OUTPUTS, BOTH };
enum { KINDS = 8, FEW = 8 }; /* trie.py: KINDS; children that are found by looking at each of them */

typedef struct {
    const int32_t *text;
    const place *tree; /* in the order they were noted */
    int64_t size;
} source;

typedef struct {
    source sources[2];
    const int32_t *query; /* tokens behind the root of the trees */
    int64_t length, looked; /* of the query; places of a tree that are looked at, newest ones */
    int64_t budget, depth, single; /* most nodes, how deep; only the best child of the best child */
    int64_t reserve[2]; /* nodes kept for the best of one source alone where there are too many */
    double weight; /* of outputs beside the prompt */
    int32_t *token, *parent, *kind; /* found, in pre-order; parent -1 is the pending token */
} question;

/* A place that the query led to. */
typedef struct {
    const int32_t *next; /* what follows the query */
    double weight;
    int32_t left, age; /* how much follows; places of the prompt first, of each source the newest first */
} path;

typedef struct {
    double count[2]; /* by source */
    int32_t oldest[2]; /* age of the oldest path through here, by source; -1 where there is none */
    int32_t first, stop; /* the paths through here */
    int32_t token, parent, depth;
    int32_t below, children; /* where its children stand, and how many there are; -1 before anybody asked */
    int32_t race, racing; /* where those of them stand that were not picked, the best one first, and how many there are */
    int32_t rank, keep; /* when it was picked first; -1 before */
    int32_t head, next, out; /* of the draft: its first child, its next sibling, its place */
} node;

typedef struct {
    double score;
    int32_t age, what; /* among equals the lower age goes first */
} rival;

typedef struct {
    path *paths, *spare;
    int32_t *child, *slots; /* of each path; a hash table of children */
    node *nodes;
    rival *rivals, *heap;
    int32_t *picked; /* nodes by rank */
    int32_t prompts, used, ranks; /* paths of the prompt; nodes there are; nodes that have a rank */
    double share[2]; /* of a source in a common score */
} race;

static int ahead(const rival *a, const rival *b) { return a->score > b->score || (a->score == b->score && a->age < b->age); }

static void push(rival *heap, int32_t *size, rival one) {
    int32_t at = (*size)++;
    for (; at && ahead(&one, heap + (at - 1) / 2); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = one;
}

static rival pop(rival *heap, int32_t *size) {
    const rival best = heap[0], last = heap[--*size];
    int32_t at = 0;
    for (int32_t below; (below = 2 * at + 1) < *size; at = below) {
        if (below + 1 < *size && ahead(heap + below + 1, heap + below)) below++;
        if (!ahead(heap + below, &last)) break;
        heap[at] = heap[below];
    }
    heap[at] = last;
    return best;
}

static int32_t new_node(race *r, int32_t token, int32_t parent, int32_t depth) {
    r->nodes[r->used] = (node){.oldest = {-1, -1}, .token = token, .parent = parent, .depth = depth, .children = -1, .rank = -1, .head = -1};
    return r->used++;
}

/* The child of `me` with a token, made if there is none; `mask` and `slots` serve where there may be more than a few. */
static int32_t child_of(race *r, int32_t me, int32_t token, uint32_t mask) {
    const int32_t below = r->nodes[me].below;
    uint32_t slot = 0;
    if (!mask) {
        for (int32_t at = below; at < r->used; at++)
            if (r->nodes[at].token == token) return at;
    } else {
        for (slot = (uint32_t)token * 2654435769u >> 7 & mask; r->slots[slot]; slot = (slot + 1) & mask)
            if (r->nodes[r->slots[slot]].token == token) return r->slots[slot];
        r->slots[slot] = r->used;
    }
    return new_node(r, token, me, r->nodes[me].depth + 1);
}

/* Part the paths through a node by their next token. Their order stays. */
static void expand(race *r, int32_t me) {
    const int32_t first = r->nodes[me].first, stop = r->nodes[me].stop, depth = r->nodes[me].depth;
    const int32_t below = r->nodes[me].below = r->used;
    uint32_t mask = 0;
    if (stop - first > FEW) {
        for (mask = 1; mask < 2 * (uint32_t)(stop - first); mask *= 2) {}
        memset(r->slots, 0, mask-- * sizeof *r->slots); /* node 0 is nobody's child */
    }
    for (int32_t at = first; at < stop; at++) {
        const path *p = r->paths + at;
        r->child[at] = -1;
        if (p->left <= depth) continue;
        node *n = r->nodes + (r->child[at] = child_of(r, me, p->next[depth], mask));
        const int from = p->age >= r->prompts;
        n->count[from] += p->weight;
        n->oldest[from] = p->age;
        n->stop++;
    }
    r->nodes[me].children = r->used - below;
    int32_t begin = first;
    for (int32_t at = below; at < r->used; at++) {
        node *n = r->nodes + at;
        const int32_t size = n->stop;
        n->first = n->stop = begin;
        begin += size;
    }
    if (r->used == below + 1) { /* the common case: nothing moves, and what ended here will be passed over again */
        r->nodes[below].stop = stop;
        return;
    }
    memcpy(r->spare, r->paths + first, (stop - first) * sizeof *r->spare);
    for (int32_t at = first; at < stop; at++)
        if (r->child[at] >= 0) r->paths[r->nodes[r->child[at]].stop++] = r->spare[at - first];
}

/* Let the children of a node enter a race of one source or both. Returns whether there are any; `top` is for the best one's score. */
static int enter(race *r, int32_t me, int which, int32_t *racing, double *top) {
    if (r->nodes[me].children < 0) expand(r, me);
    node *n = r->nodes + me;
    n->race = *racing;
    n->racing = 0;
    for (int32_t at = n->below; at < n->below + n->children; at++) {
        const node *c = r->nodes + at;
        const int from = which < BOTH ? which : c->oldest[PROMPT] < 0;
        if (c->oldest[from] < 0) continue;
        const double score = which < BOTH ? c->count[which] : r->share[PROMPT] * c->count[PROMPT] + r->share[OUTPUTS] * c->count[OUTPUTS];
        push(r->rivals + n->race, &n->racing, (rival){score, c->oldest[from], at});
    }
    *racing += n->racing;
    if (n->racing) *top = r->rivals[n->race].score;
    return n->racing > 0;
}

/* Pick up to `budget` nodes, the best first. Counts never grow on the way down. Nodes that are picked for the first time get a rank; those
 * of a race of one source are kept. */
static void run(race *r, const question *q, int which, int64_t budget) {
    int32_t racing = 0, rivals = 0, tick = 0, parent = 0;
    double top = 0;
    if (budget < 1 || !enter(r, 0, which, &racing, &top)) return;
    for (;;) {
        node *above = r->nodes + parent;
        const int32_t me = pop(r->rivals + above->race, &above->racing).what;
        node *n = r->nodes + me;
        if (n->rank < 0) r->picked[n->rank = r->ranks++] = me;
        n->keep |= which < BOTH;
        if (!--budget) return;
        if (above->racing && !q->single) /* a sibling enters the race when the one before it was picked */
            push(r->heap, &rivals, (rival){r->rivals[above->race].score, --tick, parent});
        if (n->depth < q->depth && enter(r, me, which, &racing, &top)) {
            parent = me;
            if (!rivals || top >= r->heap[0].score) continue; /* what was begun goes on */
            push(r->heap, &rivals, (rival){top, --tick, me});
        }
        if (!rivals) return;
        parent = pop(r->heap, &rivals).what;
    }
}

/* Class of evidence; see trie.py. */
static int32_t kind_of(double count, double total) {
    const double share = total > 0 ? count / total : 0;
    return 2 * (share > 0.95 ? 3 : share > 0.6 ? 2 : share > 0.3 ? 1 : 0) + (count > 1.5);
}

/* Lay the kept nodes out depth first, siblings in the order they were picked. Returns how many there are. */
static int64_t lay_out(race *r, const question *q) {
    int32_t found = 0, at;
    for (int32_t rank = r->ranks - 1; rank >= 0; rank--) {
        node *n = r->nodes + r->picked[rank], *above = r->nodes + n->parent;
        if (!n->keep) continue;
        n->next = above->head;
        above->head = r->picked[rank];
    }
    r->nodes[0].next = r->nodes[0].out = -1;
    for (at = r->nodes[0].head; at > 0;) {
        node *n = r->nodes + at, *above = r->nodes + n->parent;
        const int from = n->oldest[PROMPT] < 0;
        q->token[found] = n->token;
        q->parent[found] = above->out;
        q->kind[found] = kind_of(n->count[from], above->count[from]) + (!from && n->oldest[OUTPUTS] >= 0 ? KINDS : 0);
        n->out = found++;
        if (n->head >= 0) {
            at = n->head;
            continue;
        }
        while (at > 0 && r->nodes[at].next < 0) at = r->nodes[at].parent;
        if (at > 0) at = r->nodes[at].next;
    }
    return found;
}

/* Follow the query in the newest places of a tree. Returns how many paths there are then. */
static int32_t gather(race *r, const question *q, int from, int32_t found) {
    const source *s = q->sources + from;
    node *root = r->nodes;
    for (int64_t at = s->size - 1; at >= 0 && s->size - at <= q->looked; at--) {
        const int64_t start = (int64_t)s->tree[at].start, left = (int64_t)s->tree[at].stop - start - q->length;
        const int32_t *text = s->text + start;
        int64_t agree = 0;
        while (agree < q->length && left >= 0 && text[agree] == q->query[agree]) agree++;
        if (agree < q->length) continue;
        root->count[from] += s->tree[at].weight;
        if (left > 0) {
            r->paths[found] = (path){text + q->length, s->tree[at].weight, (int32_t)left, found};
            found++;
        }
    }
    return found;
}

/* Choose a draft of at least one node, at least one deep. Returns how many nodes it has, or -1 without memory. */
int64_t choose(const question *q) {
    int64_t most = 1, slots = 1;
    for (int from = PROMPT; from <= OUTPUTS; from++) most += q->sources[from].size < q->looked ? q->sources[from].size : q->looked;
    while (slots < 2 * most) slots *= 2;
    const int64_t layers = q->depth < 2 * q->budget + 2 ? q->depth : 2 * q->budget + 2; /* paths part once per token, and once per pick */
    const int64_t nodes = most * layers + 1, picks = 2 * q->budget + 4;
    race r = {0};
    r.nodes = scratch(nodes * (sizeof(node) + sizeof(rival)) + 2 * most * sizeof(path) + 2 * picks * sizeof(rival)
                      + (picks + most + slots) * sizeof(int32_t));
    if (!r.nodes) return -1;
    r.rivals = (rival *)(r.nodes + nodes);
    r.paths = (path *)(r.rivals + nodes);
    r.spare = r.paths + most;
    r.heap = (rival *)(r.spare + most);
    r.picked = (int32_t *)(r.heap + 2 * picks);
    r.child = r.picked + picks;
    r.slots = r.child + most;
    new_node(&r, -1, -1, 0);
    const int32_t prompts = r.prompts = gather(&r, q, PROMPT, 0);
    const int32_t all = q->single && prompts ? prompts : gather(&r, q, OUTPUTS, prompts); /* a single branch is the prompt's if it has one */
    r.nodes[0].stop = all;
    const int mixed = prompts && all > prompts;
    r.share[PROMPT] = mixed ? 1 - q->weight : 1;
    r.share[OUTPUTS] = mixed ? q->weight : 1;
    run(&r, q, BOTH, q->budget + mixed);
    const int32_t best = r.ranks;
    int64_t left = q->budget;
    if (best > q->budget) {
        for (int from = PROMPT; from <= OUTPUTS; from++) run(&r, q, from, q->reserve[from]);
        for (int32_t rank = 0; rank < r.ranks; rank++) left -= r.nodes[r.picked[rank]].keep;
    }
    for (int32_t rank = 0; rank < best && left > 0; rank++) {
        node *n = r.nodes + r.picked[rank];
        left -= !n->keep;
        n->keep = 1;
    }
    return lay_out(&r, q);
}
