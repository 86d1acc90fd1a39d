/* The n-gram table of drafting/stand/table.py: mean laws behind contexts, in spaces that do not see each other. */
#pragma once
#include <stdint.h>

typedef struct ngrams ngrams;

/* What is known behind a context: likeliest tokens with mean probabilities, largest first. */
typedef struct {
    const int32_t *ids;
    const double *probs;
    int64_t size, count; /* tokens, and laws that it is the mean of */
} known;

/* The longest end of a context that is known: its length, or 0 where there is none. Counts as a use of it.
 *
 * The context ends in front of `end` and has `available` tokens. */
int64_t ngrams_longest(ngrams *table, int64_t space, const int32_t *end, int64_t available, known *found);

/* Count as a use of a whole space. */
void ngrams_use(ngrams *table, int64_t space);
