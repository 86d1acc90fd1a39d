/* Laws of sampling: from a row of logits to probabilities, and draws from them. */
#pragma once
#include <stdint.h>

/* What sampling options say. `top_k` is 0 or less than the width where it cuts; `top_p` is 1 and `min_p` 0 where they do not. */
typedef struct {
    int64_t top_k;
    double top_p;
    float temperature, min_p;
} options;

/* Law of a row; NaN throughout where it has none. `room` is for three rows. */
void make_law(const float *logits, float *out, int64_t width, const options *asked, float *room);

/* The `count` likeliest tokens of a law that have any mass, largest first, of equal ones the first; returns how many there are. */
int64_t largest(const float *law, int64_t width, int64_t count, int64_t *ids, float *probs);

/* Sum in float64. */
double mass(const float *row, int64_t width);

/* First index at which the running sum in float64 exceeds `number` times the whole; the width where there is none. */
int64_t draw(const float *law, int64_t width, double number);
int64_t draw_wide(const double *law, int64_t width, double number);
