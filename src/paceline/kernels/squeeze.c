/* Making a trie smaller that is kept as a bag of places in text: the rules of `squeeze` in drafting/lookahead/trie.py. */
#include "forest.h"
#include <stdlib.h>

/* A place while its tree is squeezed: of `left` tokens, as many are kept as lead to a node that counts more than one. */
typedef struct {
    const int32_t *next;
    double weight;
    int64_t at, left, kept;
} piece;

static int in_order(const void *one, const void *other) {
    const piece *a = one, *b = other;
    for (int64_t at = 0; at < a->left && at < b->left; at++)
        if (a->next[at] != b->next[at]) return a->next[at] < b->next[at] ? -1 : 1;
    if (a->left != b->left) return a->left < b->left ? -1 : 1;
    return a->at < b->at ? -1 : a->at > b->at;
}

/* Nodes below one that sorted pieces agree on for `depth` tokens; notes how much of the pieces to keep. Pieces that end before do not
 * interrupt others that agree: they were cut where all that agree with them were. */
static int64_t weigh(piece *pieces, int64_t first, int64_t stop, int64_t depth) {
    int64_t nodes = 0;
    while (first < stop) {
        if (pieces[first].left <= depth) {
            first++;
            continue;
        }
        double count = 0;
        int64_t end = first;
        for (; end < stop && pieces[end].left > depth && pieces[end].next[depth] == pieces[first].next[depth]; end++) count += pieces[end].weight;
        for (int64_t at = first; count > 1 && at < end; at++) pieces[at].kept = depth + 1;
        nodes += 1 + weigh(pieces, first, end, depth + 1);
        first = end;
    }
    return nodes;
}

/* Halve all counts of a tree above one and drop the others, until it has at most `bound` nodes. Returns its places then, or -1 without
 * memory. */
int64_t squeeze(place *tree, int64_t size, const int32_t *text, int64_t bound) {
    int64_t tokens = 0;
    for (int64_t at = 0; at < size; at++) tokens += (int64_t)(tree[at].stop - tree[at].start);
    if (tokens <= bound) return size; /* the common case: nodes are no more */
    piece *pieces = malloc(size * sizeof *pieces);
    if (!pieces) return -1;
    for (int64_t at = 0; at < size; at++)
        pieces[at] = (piece){text + (int64_t)tree[at].start, tree[at].weight, at, (int64_t)(tree[at].stop - tree[at].start), 0};
    qsort(pieces, size, sizeof *pieces, in_order);
    while (weigh(pieces, 0, size, 0) > bound)
        for (int64_t at = 0; at < size; at++) {
            pieces[at].left = pieces[at].kept;
            pieces[at].kept = 0;
            pieces[at].weight *= 0.5;
        }
    for (int64_t at = 0; at < size; at++) {
        place *p = tree + pieces[at].at;
        p->stop = p->start + (double)pieces[at].left;
        p->weight = pieces[at].weight;
    }
    free(pieces);
    int64_t kept = 0;
    for (int64_t at = 0; at < size; at++)
        if (tree[at].stop > tree[at].start) tree[kept++] = tree[at];
    return kept;
}
