/* A linear layer over a packed weight. */
#pragma once
#include "element.h"

#define PANEL 32 /* outputs */

typedef struct {
    const element *weight; /* in panels: see product.c */
    const float *bias;     /* or NULL */
    int64_t inputs, outputs;
} linear;

static inline int64_t panels(const linear *layer) { return (layer->outputs + PANEL - 1) / PANEL; }

void multiply(const linear *layer, const element *x, element *out, int64_t rows, int64_t panel, int64_t stop);
