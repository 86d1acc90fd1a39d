/* Scores and weighted sums over a row's path, in tiles of 16 queries.
 *
 * Keys and values are laid out for the unit first, in spans of 32 places on the path, each place where it stands on the path; what is laid
 * out once serves all queries that share the path. A sum's chain runs along the path, span by span, so bits depend on the path alone.
 */
#include "attend_tiles.h"
#include "amx.h"

#if AMX
#define TILE (SIDE * DEEP) /* elements */

int tiled_heads(int64_t dim) { return matrix_unit() && dim % DEEP == 0; }

INLINE int64_t which(const stretch *of, int64_t span) { return of->spans ? of->spans[span] : span; }

INLINE __m512i line(const stretch *of, int64_t place, int64_t at) {
    return _mm512_loadu_si512(of->pool + of->slots[place] * of->stride + at);
}

/* Turn 16 x 16 numbers of 32 bits. */
INLINE void turn(__m512i r[SIDE]) {
    __m512i t[SIDE];
#pragma GCC unroll 8
    for (int i = 0; i < SIDE; i += 2) t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88), r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
}

/* A tile of 16 keys and 32 elements: a row is one pair of elements of all keys. */
void lay_keys(const stretch *keys, int64_t from) {
    for (int64_t place = keys->start + from; place < keys->stop; place += SIDE)
        for (int64_t at = 0; at < keys->dim; at += DEEP) {
            __m512i rows[SIDE];
            for (int key = 0; key < SIDE; key++) rows[key] = line(keys, place + key, at);
            turn(rows);
            element *tile = keys->tiles + (place - keys->start) * keys->dim + at * SIDE;
            for (int row = 0; row < SIDE; row++) _mm512_storeu_si512(tile + row * DEEP, rows[row]);
        }
}

/* A tile of 32 values and 16 elements: a row is those elements of one pair of values, in turn. */
void lay_values(const stretch *values, int64_t from) {
    uint16_t order[2][DEEP];
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < SIDE; i++) order[half][2 * i] = half * SIDE + i, order[half][2 * i + 1] = DEEP + half * SIDE + i;
    const __m512i low = _mm512_loadu_si512(order[0]), high = _mm512_loadu_si512(order[1]);
    for (int64_t place = values->start + from; place < values->stop; place += SPAN)
        for (int64_t at = 0; at < values->dim; at += DEEP) {
            element *tile = values->tiles + (place - values->start) * values->dim + at / SIDE * TILE;
            for (int pair = 0; pair < SIDE; pair++) {
                const __m512i a = line(values, place + 2 * pair, at), b = line(values, place + 2 * pair + 1, at);
                _mm512_storeu_si512(tile + pair * DEEP, _mm512_permutex2var_epi16(a, low, b));
                _mm512_storeu_si512(tile + TILE + pair * DEEP, _mm512_permutex2var_epi16(a, high, b));
            }
        }
}

void score_tiles(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries) {
    const int64_t dim = keys->dim, pitch = room * (int64_t)sizeof(float);
    element asked[SIDE * MOST_CHUNKS * LANES];
    for (int64_t i = 0; i < queries * dim; i++) asked[i] = put(query[i]); /* they were of this type before: nothing is lost */
    const uint8_t count = queries;
    arrange((const uint8_t[8]){count, count, 1, 1, count, 1, SIDE, SIDE});
    __asm__ volatile("" : : "r"(asked) : "memory");
    for (int64_t span = 0; span * SPAN < keys->stop - keys->start; span++, scores += SPAN) {
        const element *tile = keys->tiles + which(keys, span) * SPAN * dim;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t at = 0; at < dim; at += DEEP) {
            _tile_loadd(4, asked + at, dim * sizeof(element));
            _tile_loadd(6, tile + at * SIDE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, tile + SIDE * dim + at * SIDE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, scores, pitch);
        _tile_stored(1, scores + SIDE, pitch);
    }
    _tile_release();
}

void mix_tiles(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries) {
    const int64_t dim = values->dim, pitch = dim * (int64_t)sizeof(float);
    const uint8_t count = queries;
    arrange((const uint8_t[8]){count, count, count, count, count, 1, SIDE, SIDE});
    for (int64_t at = 0; at < dim; at += 2 * DEEP) {
        const int wide = dim - at > DEEP; /* four tiles of sums at once, or the two that are left */
        const float *from = weights;
        _tile_loadd(0, sums + at, pitch);
        _tile_loadd(1, sums + at + SIDE, pitch);
        if (wide) {
            _tile_loadd(2, sums + at + 2 * SIDE, pitch);
            _tile_loadd(3, sums + at + 3 * SIDE, pitch);
        }
        for (int64_t span = 0; span * SPAN < values->stop - values->start; span++, from += SPAN) {
            const element *tile = values->tiles + which(values, span) * SPAN * dim + at / SIDE * TILE;
            __m512bh narrow[SIDE]; /* weights were rounded before: nothing is lost */
            for (int64_t q = 0; q < queries; q++)
                narrow[q] = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + q * room + SIDE), _mm512_loadu_ps(from + q * room));
            __asm__ volatile("" : : "r"(narrow) : "memory");
            _tile_loadd(4, narrow, 64);
            _tile_loadd(6, tile, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, tile + TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (!wide) continue;
            _tile_loadd(6, tile + 2 * TILE, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, tile + 3 * TILE, 64);
            _tile_dpbf16ps(3, 4, 7);
        }
        _tile_stored(0, sums + at, pitch);
        _tile_stored(1, sums + at + SIDE, pitch);
        if (wide) {
            _tile_stored(2, sums + at + 2 * SIDE, pitch);
            _tile_stored(3, sums + at + 3 * SIDE, pitch);
        }
    }
    _tile_release();
}
#else
int tiled_heads(int64_t dim) { return 0; }
void lay_keys(const stretch *keys, int64_t from) {}
void lay_values(const stretch *values, int64_t from) {}
void score_tiles(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries) {}
void mix_tiles(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries) {}
#endif
