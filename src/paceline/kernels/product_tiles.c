/* Products on the processor's matrix unit.
 *
 * A panel is two tiles wide as it lies in memory: 16 outputs, inputs in pairs. One instruction adds 32 inputs to 16 x 16 sums. Every output of
 * every row is the same chain of these sums whatever the rows beside it are, so its bits depend on that row and that weight alone.
 */
#include "product_tiles.h"
#include "amx.h"

#if AMX
#define HALF PANEL            /* elements between a panel's two tiles in one row of it */
#define PITCH (2 * PANEL * (int)sizeof(element)) /* bytes between two pairs of inputs in a panel */
#define GROUP 4               /* panels that stay in cache while all rows pass */
#define AHEAD 8192            /* bytes that the weight is fetched ahead */

int tiled(const linear *layer) { return matrix_unit() && layer->inputs % DEEP == 0; }

/* Registers 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights. Sums 0, 1 and rows 4 are of the first 16 rows, the others of those below. */
static void arrange_rows(int64_t rows) {
    const uint8_t upper = rows < SIDE ? rows : SIDE, lower = rows > SIDE ? rows - SIDE : 1;
    arrange((const uint8_t[8]){upper, upper, lower, lower, upper, lower, DEEP / 2, DEEP / 2});
}

/* Two tiles of sums, side by side, to a panel's outputs: a row's line of memory is written once. */
INLINE void finish(const linear *layer, float sums[2][SIDE * SIDE], element *out, int64_t rows, int64_t panel) {
    const int64_t first = panel * PANEL, left = layer->outputs - first, count = left < PANEL ? left : PANEL;
    for (int64_t row = 0; row < rows; row++) {
        element *at = out + row * layer->outputs + first;
        float line[PANEL];
        for (int half = 0; half < 2; half++) memcpy(line + half * SIDE, sums[half] + row * SIDE, SIDE * sizeof(float));
        if (layer->bias)
            for (int64_t i = 0; i < count; i++) line[i] += layer->bias[first + i];
        if (count == PANEL)
            for (int64_t i = 0; i < PANEL; i++) at[i] = put(line[i]);
        else
            for (int64_t i = 0; i < count; i++) at[i] = put(line[i]);
    }
}

/* Up to 16 rows times one panel. So few wait for the weight, which is fetched ahead. */
static void few(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel) {
    const int64_t inputs = layer->inputs, width = inputs * (int64_t)sizeof(element);
    const element *weight = layer->weight + panel * PANEL * inputs;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t i = 0; i < inputs; i += DEEP) {
        const element *at = weight + i * PANEL;
        for (int line = 0; line < DEEP * PANEL * (int)sizeof(element); line += 64) __builtin_prefetch((const char *)at + AHEAD + line);
        _tile_loadd(6, at, PITCH);
        _tile_loadd(7, at + HALF, PITCH);
        _tile_loadd(4, x + i, width);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    float sums[2][SIDE * SIDE];
    _tile_stored(0, sums[0], 4 * SIDE);
    _tile_stored(1, sums[1], 4 * SIDE);
    finish(layer, sums, out, rows, panel);
}

/* 16 rows and `lower` more times one panel. */
static void many(const linear *layer, const element *x, element *out, int64_t lower, int64_t panel) {
    const int64_t inputs = layer->inputs, width = inputs * (int64_t)sizeof(element);
    const element *weight = layer->weight + panel * PANEL * inputs, *below = x + SIDE * inputs;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < inputs; i += DEEP) {
        _tile_loadd(6, weight + i * PANEL, PITCH);
        _tile_loadd(7, weight + i * PANEL + HALF, PITCH);
        _tile_loadd(4, x + i, width);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, below + i, width);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    float sums[4][SIDE * SIDE];
    _tile_stored(0, sums[0], 4 * SIDE);
    _tile_stored(1, sums[1], 4 * SIDE);
    _tile_stored(2, sums[2], 4 * SIDE);
    _tile_stored(3, sums[3], 4 * SIDE);
    finish(layer, sums, out, SIDE, panel);
    finish(layer, sums + 2, out + SIDE * layer->outputs, lower, panel);
}

void multiply_tiles(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel, int64_t stop) {
    int64_t height = 0;
    for (; panel < stop; panel += GROUP) {
        const int64_t last = panel + GROUP < stop ? panel + GROUP : stop;
        for (int64_t done = 0, now; done < rows; done += now) {
            now = rows - done < 2 * SIDE ? rows - done : 2 * SIDE;
            if (now != height) arrange_rows(height = now);
            const element *from = x + done * layer->inputs;
            element *to = out + done * layer->outputs;
            if (now > SIDE)
                for (int64_t at = panel; at < last; at++) many(layer, from, to, now - SIDE, at);
            else
                for (int64_t at = panel; at < last; at++) few(layer, from, to, now, at);
        }
    }
    _tile_release();
}
#else
int tiled(const linear *layer) { return 0; }
void multiply_tiles(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel, int64_t stop) {}
#endif
