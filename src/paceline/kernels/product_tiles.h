/* Products on the processor's matrix unit (AMX), which multiplies whole tiles of bf16. */
#pragma once
#include "product.h"

int tiled(const linear *layer); /* whether this layer's products are made here: a matter of build, machine and layer, never of rows */
void multiply_tiles(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel, int64_t stop);
