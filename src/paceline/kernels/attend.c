/* Scores and weighted sums over a row's path.
 *
 * A key's place in its block of 16 is its place on the path, and every sum runs along the path, so bits depend on the path alone. For that
 * reason this file is not compiled with -ffast-math.
 */
#include "attend_tiles.h"

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t order __attribute__((vector_size(4 * LANES)));
typedef uint16_t narrow __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));

INLINE lanes widen(const element *at) {
#if BF16
    return (lanes)(__builtin_convertvector(*(const narrow *)at, bits) << 16);
#else
    return *(const lanes *)at;
#endif
}

/* Fetch what is needed a block later: heads lie far apart in memory, which the processor's own prefetch does not follow. */
INLINE void ahead(const stretch *of, int64_t place, const int chunks) {
    const element *next = of->pool + of->slots[place + LANES] * of->stride;
    for (int at = 0; at < chunks * LANES; at += 64 / (int)sizeof(element)) __builtin_prefetch(next + at);
}

/* Sums of neighbouring lanes: those of a in the lower half, those of b in the upper. */
INLINE lanes fold(lanes a, lanes b) {
    const order even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

/* One number per vector: the sum of its lanes. */
INLINE lanes sums_of(lanes part[LANES]) {
#pragma GCC unroll 4
    for (int count = LANES; count > 1; count /= 2)
#pragma GCC unroll 8
        for (int pair = 0; pair < count / 2; pair++) part[pair] = fold(part[2 * pair], part[2 * pair + 1]);
    return part[0];
}

INLINE void score_shape(const float *query, const stretch *keys, float *scores, int64_t room, const int chunks, const int queries) {
    lanes asked[MOST_QUERIES][MOST_CHUNKS];
#pragma GCC unroll 4
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
        for (int chunk = 0; chunk < chunks; chunk++) asked[q][chunk] = *(const lanes *)(query + (q * chunks + chunk) * LANES);
    for (int64_t start = keys->start; start < keys->stop; start += LANES) {
        lanes part[MOST_QUERIES][LANES];
        for (int place = 0; place < LANES; place++) {
            const element *key = keys->pool + keys->slots[start + place] * keys->stride;
            ahead(keys, start + place, chunks);
            lanes sum[MOST_QUERIES];
#pragma GCC unroll 4
            for (int q = 0; q < queries; q++) sum[q] = (lanes){0};
#pragma GCC unroll 8
            for (int chunk = 0; chunk < chunks; chunk++) {
                const lanes held = widen(key + chunk * LANES);
#pragma GCC unroll 4
                for (int q = 0; q < queries; q++) sum[q] += asked[q][chunk] * held;
            }
#pragma GCC unroll 4
            for (int q = 0; q < queries; q++) part[q][place] = sum[q];
        }
#pragma GCC unroll 4
        for (int q = 0; q < queries; q++) *(lanes *)(scores + q * room + start - keys->start) = sums_of(part[q]);
    }
}

INLINE void mix_shape(const float *weights, const stretch *values, float *sums, int64_t room, const int chunks, const int queries) {
    lanes sum[MOST_QUERIES][MOST_CHUNKS];
#pragma GCC unroll 4
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
        for (int chunk = 0; chunk < chunks; chunk++) sum[q][chunk] = *(const lanes *)(sums + (q * chunks + chunk) * LANES);
    for (int64_t at = values->start; at < values->stop; at++) {
        const element *value = values->pool + values->slots[at] * values->stride;
        ahead(values, at, chunks);
#pragma GCC unroll 8
        for (int chunk = 0; chunk < chunks; chunk++) {
            const lanes held = widen(value + chunk * LANES);
#pragma GCC unroll 4
            for (int q = 0; q < queries; q++) sum[q][chunk] += weights[q * room + at - values->start] * held;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; q++)
#pragma GCC unroll 8
        for (int chunk = 0; chunk < chunks; chunk++) *(lanes *)(sums + (q * chunks + chunk) * LANES) = sum[q][chunk];
}

/* Numbers known to the compiler keep queries and sums in registers: so many queries at once as fit. */
#define NUMBERS(call, chunks)                                                                                                              \
    switch (queries) {                                                                                                                     \
    case 1: call(chunks, 1); break;                                                                                                        \
    case 2: call(chunks, 2); break;                                                                                                        \
    case 3: call(chunks, 3); break;                                                                                                        \
    default: call(chunks, 4);                                                                                                              \
    }
#define SHAPES(call, width)                                                                                                                \
    switch (width) {                                                                                                                       \
    case 2: NUMBERS(call, 2) break;                                                                                                        \
    case 4: NUMBERS(call, 4) break;                                                                                                        \
    case 8: NUMBERS(call, 8) break;                                                                                                        \
    default: NUMBERS(call, width)                                                                                                          \
    }

void score(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries) {
    if (tiled_heads(keys->dim)) {
        score_tiles(query, keys, scores, room, queries);
        return;
    }
    const int width = (int)(keys->dim / LANES);
#define CALL(chunks, number) score_shape(query, keys, scores, room, chunks, number)
    SHAPES(CALL, width)
#undef CALL
}

void mix(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries) {
    if (tiled_heads(values->dim)) {
        mix_tiles(weights, values, sums, room, queries);
        return;
    }
    const int width = (int)(values->dim / LANES);
#define CALL(chunks, number) mix_shape(weights, values, sums, room, chunks, number)
    SHAPES(CALL, width)
#undef CALL
}
