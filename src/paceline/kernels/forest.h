/* How a forest of drafting/lookahead/trie.py stores text. */
#pragma once
#include <stdint.h>

/* What followed one token once: `text[start:stop]`, whole numbers. */
typedef struct {
    double start, stop, weight;
} place;
