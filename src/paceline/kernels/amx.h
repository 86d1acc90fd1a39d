/* Leave to use the matrix unit, and the shapes of its eight registers. */
#pragma once
#include "element.h"

#define AMX (BF16 && __AMX_BF16__ && __linux__)

int matrix_unit(void); /* whether there is one and this process may use it */

#if AMX
#include <immintrin.h>

#define SIDE 16 /* rows and columns of sums in a register */
#define DEEP 32 /* products that one instruction adds to each sum */

/* Rows of the eight registers; a row is always 64 bytes. */
INLINE void arrange(const uint8_t rows[8]) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } made = {.palette = 1};
    for (int at = 0; at < 8; at++) made.rows[at] = rows[at], made.bytes[at] = 64;
    __asm__ volatile("" : : "r"(&made) : "memory"); /* the instruction's declaration tells the compiler of eight bytes only */
    _tile_loadconfig(&made);
}
#endif
