/* Products of few or many rows with a packed weight.
 *
 * The weight lies in panels of 32 outputs; inside a panel, inputs follow one another (bf16: in pairs), so a panel is read front to back
 * once per tile of rows. Every output of every row is one chain of multiply-adds over the inputs in their order: its bits depend
 * on that row and that weight alone, not on how many rows or threads there are. For that reason this file is not compiled with
 * -ffast-math.
 */
#include "product.h"
#include "product_tiles.h"
#if __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define AHEAD 8192 /* bytes that the weight is fetched ahead: with several rows the processor's own prefetch falls behind */
#define GROUP 4  /* panels that share a tile of rows while both are in cache */
#if __AVX512F__
/* A tile's sums fill the registers. Wide ones load less per product, which is what bounds float32; in bf16 the product itself does. */
#define TALLEST (BF16 ? 12 : 6)   /* rows */
#define ACROSS (BF16 ? 1 : 2)     /* panels */
#define FEW 4                     /* up to so many rows a tile is two panels wide, for enough independent sums */
#else
#define TALLEST 3
#define ACROSS 1
#define FEW 0
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));

#if BF16
#define STEP 2 /* inputs taken at once */
#else
#define STEP 1
#endif

INLINE lanes take(lanes sum, const element *weight, const element *x) {
#if BF16 && __AVX512BF16__
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(weight), (__m512bh)_mm512_set1_epi32(pair));
#elif BF16
    bits both = *(const bits *)weight;
    return sum + (lanes)(both << 16) * get(x[0]) + (lanes)(both & 0xffff0000u) * get(x[1]);
#elif __AVX512F__
    return (lanes)_mm512_fmadd_ps(_mm512_loadu_ps(weight), _mm512_set1_ps(*x), (__m512)sum);
#else
    return sum + *(const lanes *)weight * *x;
#endif
}

/* `tall` rows times `wide` panels. */
INLINE void tile(const linear *layer, const element *x, element *out, int64_t panel, const int tall, const int wide) {
    const int64_t inputs = layer->inputs;
    const element *weight = layer->weight + panel * PANEL * inputs;
    lanes sum[TALLEST][4]; /* of fixed size: sums in an array of variable length stay in memory */
#pragma GCC unroll 16
    for (int row = 0; row < tall; row++)
#pragma GCC unroll 4
        for (int part = 0; part < 2 * wide; part++) sum[row][part] = (lanes){0};
    for (int64_t i = 0; i < inputs; i += STEP, weight += STEP * PANEL) {
        for (int next = 0; next < wide; next++) {
            __builtin_prefetch((const char *)(weight + next * PANEL * inputs) + AHEAD);
            __builtin_prefetch((const char *)(weight + next * PANEL * inputs) + AHEAD + 64);
        }
#pragma GCC unroll 4
        for (int part = 0; part < 2 * wide; part++)
#pragma GCC unroll 16
            for (int row = 0; row < tall; row++)
                sum[row][part] = take(sum[row][part], weight + part / 2 * PANEL * inputs + part % 2 * LANES * STEP, x + row * inputs + i);
    }
    /* Unrolled and without its address taken, or the sums would be stored in every step of the loop above. */
#pragma GCC unroll 16
    for (int row = 0; row < tall; row++) {
        float line[2 * PANEL];
#pragma GCC unroll 4
        for (int part = 0; part < 2 * wide; part++) *(lanes *)(line + part * LANES) = sum[row][part];
        const int64_t first = panel * PANEL, left = layer->outputs - first, count = left < wide * PANEL ? left : wide * PANEL;
        if (layer->bias)
            for (int64_t i = 0; i < count; i++) line[i] += layer->bias[first + i];
        for (int64_t i = 0; i < count; i++) out[row * layer->outputs + first + i] = put(line[i]);
    }
}

/* One tile of rows times one panel, or two. */
static void stripe(const linear *layer, const element *x, element *out, int64_t panel, int64_t height, int64_t across) {
    switch (height) {
#define CASE(n)                                                                                                                            \
    case n:                                                                                                                                \
        if (across == 2 && n <= (ACROSS == 2 ? TALLEST : FEW)) tile(layer, x, out, panel, n, 2);                                      \
        else tile(layer, x, out, panel, n, 1);                                                                                             \
        break;
        CASE(1) CASE(2) CASE(3)
#if __AVX512F__
        CASE(4) CASE(5) CASE(6)
#if BF16
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#endif
    }
}

/* out = x W^T + bias for panels from `panel` up to `stop`. */
void multiply(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel, int64_t stop) {
    if (tiled(layer)) {
        multiply_tiles(layer, x, out, rows, panel, stop);
        return;
    }
    const int64_t across = rows <= FEW ? 2 : ACROSS;
    for (; panel < stop; panel += GROUP) {
        const int64_t last = panel + GROUP < stop ? panel + GROUP : stop;
        for (int64_t done = 0; done < rows;) {
            const int64_t left = rows - done;
            int64_t height = left > TALLEST ? TALLEST : left;
            if (left > TALLEST && left < 2 * TALLEST) height = (left + 1) / 2; /* two even tiles, not a full and a thin one */
            for (int64_t at = panel; at < last; at += across)
                stripe(layer, x + done * layer->inputs, out + done * layer->outputs, at, height, across < last - at ? across : last - at);
            done += height;
        }
    }
}
