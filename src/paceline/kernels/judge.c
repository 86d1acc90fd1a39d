/* The walk down a judged tree on a CPU: the rules of verification/walk.py and verification/rejection.py, with the random numbers of
 * core/rng.py. Only the logits of nodes that are reached are looked at.
 *
 * Like law.c, this file is not compiled with -ffast-math.
 */
#include "draft.h"
#include "law.h"
#include "rng.h"
#include "scratch.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH, REJECT, GREEDY };                /* by sample and match, by recursive rejection, or along the likeliest tokens */

typedef struct {
    const void *logits; /* of the nodes */
    int64_t half, width; /* whether in bf16 */
    options asked;
    const int64_t *token, *parent; /* in pre-order */
    const draft *drafts; /* by node; children of nodes without one were chosen */
    int64_t nodes, drawn, replacement, rule;
    uint64_t seed;
    int64_t position; /* of the token decided at the root */
    int64_t *reached, *accepted; /* room for as many nodes as the tree is deep, and one more */
    int64_t depth, token_behind; /* found: how many nodes were reached, and the token that follows the accepted ones */
    int64_t wanted; /* of the law of each node that is reached: how many likeliest tokens */
    int64_t *found, *ids; /* how many there were, and which */
    float *probs;
} question;

static double number_at(const question *q, int64_t depth, uint64_t purpose, uint64_t count) {
    return number(stream(q->seed, q->position + depth, purpose), count);
}

/* The law at a node, as the next one that was reached, until the next is asked for; NULL where there is none. */
static const float *law_at(question *q, int64_t node, float *room) {
    const int64_t width = q->width;
    float *wide = room + 3 * width, *law = wide + width;
    const float *logits = (const float *)q->logits + node * width;
    if (q->half) {
        const uint16_t *given = (const uint16_t *)q->logits + node * width;
        uint32_t *bits = (uint32_t *)wide;
        for (int64_t at = 0; at < width; at++) bits[at] = (uint32_t)given[at] << 16;
        logits = wide;
    }
    make_law(logits, law, width, &q->asked, room);
    if (isnan(law[0])) return NULL;
    if (q->wanted) {
        const int64_t place = q->depth * q->wanted;
        q->found[q->depth] = largest(law, width, q->wanted, q->ids + place, q->probs + place);
    }
    q->reached[q->depth++] = node;
    return law;
}

/* The first of the largest numbers of a row, or -1 where one is none. Numbers are compared as whole numbers in the same order, zeros alike. */
#define LIKELIEST(name, bits, number, low, none)                                                                                          \
    static int64_t name(const bits *row, int64_t width) {                                                                                 \
        number best = low;                                                                                                                \
        bits wrong = 0;                                                                                                                   \
        for (int64_t at = 0; at < width; at++) {                                                                                          \
            const number value = ORDERED(row[at], number, low);                                                                           \
            best = value > best ? value : best;                                                                                           \
            wrong |= (bits)((row[at] & (bits)~(bits)low) > (bits)none);                                                                   \
        }                                                                                                                                 \
        for (int64_t at = 0; !wrong && at < width; at++)                                                                                  \
            if (ORDERED(row[at], number, low) == best) return at;                                                                         \
        return -1;                                                                                                                        \
    }
#define ORDERED(value, number, low) \
    ((number)(value) == low ? (number)0 : (number)(value) < 0 ? (number)((value) ^ (number)~low) : (number)(value))
LIKELIEST(likeliest_half, uint16_t, int16_t, INT16_MIN, 0x7f80)
LIKELIEST(likeliest_whole, uint32_t, int32_t, INT32_MIN, 0x7f800000)

/* The token that is said at a node, by the walk's rule; -1 where there is none. */
static int64_t said(question *q, int64_t node, float *room) {
    if (q->rule == GREEDY) {
        const int64_t at = node * q->width;
        q->depth++;
        return q->half ? likeliest_half((const uint16_t *)q->logits + at, q->width) : likeliest_whole((const uint32_t *)q->logits + at, q->width);
    }
    const float *law = law_at(q, node, room);
    const int64_t token = law ? draw(law, q->width, number_at(q, q->depth - 1, TARGET, 0)) : q->width;
    return token < q->width ? token : -1;
}

/* Sample and match, or greedy. Several nodes may stand for the same text; `here` holds them all. Returns how many children were accepted. */
static int64_t match(question *q, float *room, int64_t *here) {
    int64_t last = 0, count = 1, *next = here + q->nodes;
    here[0] = 0;
    for (;;) {
        const int64_t token = q->token_behind = said(q, here[0], room);
        if (token < 0) return -1;
        int64_t found = 0;
        for (int64_t node = here[0] + 1, at = 0; node < q->nodes; node++) {
            if (q->parent[node] < here[0] && count == 1) break;
            if (q->token[node] != token) continue;
            for (at = 0; at < count && here[at] != q->parent[node]; at++) {}
            if (at < count) next[found++] = node;
        }
        if (!found) break;
        memcpy(here, next, found * sizeof *here);
        last = here[0], count = found;
    }
    int64_t accepted = 0;
    for (int64_t node = last; node; node = q->parent[node]) accepted++;
    for (int64_t node = last, at = accepted; node; node = q->parent[node]) q->accepted[--at] = node;
    return accepted;
}

static const draft *draft_of(const question *q, int64_t node) {
    for (int64_t at = 0; at < q->drawn; at++)
        if (q->drafts[at].node == node) return q->drafts + at;
    return NULL;
}

/* The probabilities of a draft in float64, and their sum. */
static double weigh(const draft *d, double *probs) {
    double whole = 0;
    for (int64_t at = 0; at < d->size; at++) whole += probs[at] = d->wide ? ((const double *)d->probs)[at] : ((const float *)d->probs)[at];
    return whole;
}

static int64_t place_of(const draft *d, int64_t token) {
    if (!d->ids) return token < d->size ? token : -1;
    for (int64_t at = 0; at < d->size; at++)
        if (d->ids[at] == token) return at;
    return -1;
}

/* What is left of a law once a child was rejected: its positive part beyond the draft, without the child. Returns its mass. */
static double subtract(const double *left, double whole, double *out, int64_t width, const draft *d, const double *probs, double drafted,
                       int64_t token) {
    double remains = 0;
    for (int64_t at = 0; at < width; at++) out[at] = left[at] / whole;
    for (int64_t at = 0; d && at < d->size; at++) {
        double *place = out + (d->ids ? d->ids[at] : at);
        const double less = *place - probs[at] / drafted;
        *place = less > 0 ? less : 0;
    }
    out[token] = 0;
    for (int64_t at = 0; at < width; at++) remains += out[at];
    return remains;
}

/* Recursive rejection. `numbers` is for two rows and a draft. Returns how many children were accepted. */
static int64_t reject(question *q, float *room, double *numbers) {
    const int64_t width = q->width;
    double *left = numbers, *fewer = left + width, *probs = fewer + width;
    int64_t accepted = 0;
    for (int64_t node = 0, into;; node = into) {
        const float *law = law_at(q, node, room);
        if (!law) return -1;
        const int64_t depth = q->depth - 1;
        const draft *d = draft_of(q, node);
        double drafted = d ? weigh(d, probs) : 1, whole = 0;
        int64_t refused = 0;
        into = -1;
        for (int64_t child = node + 1; child < q->nodes && q->parent[child] >= node; child++) {
            if (q->parent[child] != node) continue;
            const int64_t token = q->token[child], place = d ? place_of(d, token) : 0;
            if (token >= width || place < 0) return -1;
            if (!whole) whole = mass(law, width);
            const double share = d ? probs[place] / drafted : 1;
            if (!(share > 0)) return -1;
            if (number_at(q, depth, ACCEPT, refused) < (refused ? left[token] : law[token]) / whole / share) {
                into = child;
                break;
            }
            if (!refused++)
                for (int64_t at = 0; at < width; at++) left[at] = law[at];
            const double remains = subtract(left, whole, fewer, width, d, probs, drafted, token);
            if (remains > 0) { /* else the law was its draft's, whose children are never rejected but for rounding: it stays */
                double *swap = left;
                left = fewer, fewer = swap, whole = remains;
            }
            if (d && !q->replacement) {
                probs[place] = drafted = 0;
                for (int64_t at = 0; at < d->size; at++) drafted += probs[at];
            }
        }
        if (into >= 0) {
            q->accepted[accepted++] = into;
            continue;
        }
        const int64_t last = refused ? draw_wide(left, width, number_at(q, depth, RESIDUAL, 0)) : draw(law, width, number_at(q, depth, TARGET, 0));
        q->token_behind = last;
        return last < width ? accepted : -1;
    }
}

/* Judge a tree. Returns how many nodes were accepted, or -1 where the rules in Python have something to say: a node without a law, a draft
 * that does not fit its tree. */
int64_t judge(question *q) {
    int64_t most = 0;
    for (int64_t at = 0; at < q->drawn; at++) {
        const draft *d = q->drafts + at;
        most = d->size > most ? d->size : most;
        for (int64_t place = 0; d->ids && place < d->size; place++)
            if (d->ids[place] < 0 || d->ids[place] >= q->width) return -1;
    }
    if (most > q->width) return -1;
    double *numbers = scratch((2 * q->width + most) * sizeof(double) + 5 * q->width * sizeof(float) + 2 * q->nodes * sizeof(int64_t));
    if (!numbers) return -1;
    int64_t *here = (int64_t *)(numbers + 2 * q->width + most);
    float *room = (float *)(here + 2 * q->nodes);
    q->depth = 0;
    return q->rule == REJECT ? reject(q, room, numbers) : match(q, room, here);
}
