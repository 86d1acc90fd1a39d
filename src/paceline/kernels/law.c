/* From a row of logits to the law that sampling options define, the likeliest tokens of a law, and a draw from it.
 *
 * Every row is worked on by itself, in an order that depends on nothing but its width: its bits do not depend on rows beside it. For that
 * reason, and because NaN and infinity mean something here, this file is not compiled with -ffast-math.
 */
#include "law.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define MOST 64         /* threads */
#define WORTH (1 << 18) /* logits that are worth a thread: a millisecond of work */
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t marks __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double halves __attribute__((vector_size(4 * LANES))); /* half as many, twice as wide */
typedef float half __attribute__((vector_size(2 * LANES), aligned(4)));

/* Whether any lane is marked. */
INLINE int any(marks found) {
    int64_t parts[LANES / 2], all = 0;
    memcpy(parts, &found, sizeof parts);
    for (int at = 0; at < LANES / 2; at++) all |= parts[at];
    return all != 0;
}

INLINE lanes either(marks first, lanes a, lanes b) { return (lanes)((first & (marks)a) | (~first & (marks)b)); }

/* e^x for x <= 0, within two units in the last place; zero where the result would be no normal number. */
INLINE lanes power(lanes x) {
    const lanes shift = (lanes){0} + 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    marks tiny = x < -87.0f;
    x = either(tiny, (lanes){0}, x);
    lanes whole = (x * 1.44269504f + shift) - shift;
    lanes r = (x - whole * 0.693145752f) - whole * 1.42860677e-6f; /* ln 2 in two parts (Cody and Waite 1980) */
    lanes sum = (lanes){0} + 1.98412698e-4f;                        /* Taylor's series; |r| < 0.35 leaves 5e-9 behind its end */
    sum = sum * r + 1.38888889e-3f;
    sum = sum * r + 8.33333333e-3f;
    sum = sum * r + 4.16666667e-2f;
    sum = sum * r + 1.66666667e-1f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    marks scale = (__builtin_convertvector(whole, marks) + 127) << 23;
    return either(tiny, (lanes){0}, sum * (lanes)scale);
}

/* What is left of a row whose width is no multiple of the lanes, filled up. */
INLINE lanes tail(const float *row, int64_t left, float fill) {
    float part[LANES];
    for (int at = 0; at < LANES; at++) part[at] = at < left ? row[at] : fill;
    return *(const lanes *)part;
}

INLINE lanes take(const float *row, int64_t at, int64_t width, float fill) {
    return at + LANES <= width ? *(const lanes *)(row + at) : tail(row + at, width - at, fill);
}

INLINE void put(float *row, int64_t at, int64_t width, lanes values) {
    memcpy(row + at, &values, sizeof(float) * (at + LANES <= width ? LANES : width - at));
}

double mass(const float *row, int64_t width) {
    halves sums[2] = {{0}, {0}};
    for (int64_t at = 0; at < width; at += LANES) {
        lanes values = take(row, at, width, 0.0f);
        half parts[2];
        memcpy(parts, &values, sizeof parts);
        for (int part = 0; part < 2; part++) sums[part] += __builtin_convertvector(parts[part], halves);
    }
    double sum = 0;
    for (int part = 0; part < 2; part++)
        for (int at = 0; at < LANES / 2; at++) sum += sums[part][at];
    return sum;
}

/* Of the shortest run of largest values whose total reaches `most`: how many there are, and the smallest. Every value counts as `each`, or as
 * itself if that is 0; all of them, if their total is less. Reorders the values (quickselect, Hoare 1961). */
static int64_t longest(float *values, int64_t size, double most, double each, float *least) {
    int64_t first = 0, count = 0;
    double total = 0;
    while (first < size) {
        const float a = values[first], b = values[(first + size) / 2], c = values[size - 1];
        const float pivot = a < b ? (b < c ? b : (a < c ? c : a)) : (a < c ? a : (b < c ? c : b));
        int64_t equal = first, stop = size; /* larger ones up to `equal`, equal ones up to `at`, smaller ones from `stop` on */
        double larger = 0;
        for (int64_t at = first; at < stop;) {
            const float value = values[at];
            if (value > pivot) {
                larger += each ? each : value;
                values[at++] = values[equal];
                values[equal++] = value;
            } else if (value < pivot) {
                values[at] = values[--stop];
                values[stop] = value;
            } else at++;
        }
        if (total + larger >= most) {
            size = equal;
            continue;
        }
        total += larger;
        count += equal - first;
        for (int64_t at = equal; at < stop; at++) {
            count++;
            *least = pivot;
            if ((total += each ? each : pivot) >= most) return count;
        }
        first = stop;
    }
    return count;
}

/* All values above a bound, or at it. */
static int64_t gather(const float *row, int64_t width, float bound, float *found) {
    int64_t size = 0;
    for (int64_t first = 0; first < width; first += LANES) {
        if (!any(take(row, first, width, NAN) >= bound)) continue;
        for (int64_t at = first; at < width && at < first + LANES; at++)
            if (row[at] >= bound) found[size++] = row[at];
    }
    return size;
}

/* The `count`-th largest value. */
static float nth(const float *row, int64_t width, int64_t count, float *room) {
    float least = -INFINITY;
    int64_t groups = 0;
    for (int64_t first = 0; first < width; first += LANES, groups++) {
        lanes values = take(row, first, width, -INFINITY);
        float best = values[0];
        for (int lane = 1; lane < LANES; lane++) best = values[lane] > best ? values[lane] : best;
        room[groups] = best;
    }
    if (count <= groups) longest(room, groups, count, 1, &least); /* so many values are not smaller */
    longest(room, gather(row, width, least, room), count, 1, &least);
    return least;
}

/* Zero the weights of all but `count` entries: those with the largest scores, of equal ones the first. `least` is the smallest of them. */
static void cut(float *weights, const float *scores, int64_t width, float least, int64_t count) {
    int64_t kept = 0;
    for (int64_t first = 0; first < width; first += LANES) {
        lanes score = take(scores, first, width, NAN); /* in no order with anything: not kept */
        marks keep = score >= least;
        put(weights, first, width, either(keep, take(weights, first, width, 0.0f), (lanes){0}));
        if (any(keep))
            for (int64_t at = first; at < width && at < first + LANES; at++) kept += scores[at] >= least;
    }
    for (int64_t at = width - 1; kept > count; at--)
        if (scores[at] == least) {
            weights[at] = 0;
            kept--;
        }
}

/* Size of, and smallest probability in, the smallest set of likeliest tokens whose mass reaches `top_p`. */
static int64_t nucleus(const float *probs, int64_t width, double top_p, float *room, float *least) {
    /* All tokens below (1 - p) / width together are lighter than 1 - p, so the nucleus ends before them; the factor is for rounding. */
    const float bound = (float)(0.5 * (1 - top_p) / width);
    return longest(room, gather(probs, width, bound, room), top_p, 0, least);
}

static void divide(float *row, const float *weights, int64_t width, float by) {
    for (int64_t at = 0; at < width; at++) row[at] = weights[at] / by;
}

/* Rows of one caller or helper. */
typedef struct {
    const float *logits;
    float *out;
    int64_t rows, width, failed;
    const options *asked;
} job;

void make_law(const float *logits, float *out, int64_t width, const options *asked, float *scores) {
    float *weights = scores + width, *room = weights + width;
    lanes best = (lanes){0} - INFINITY;
    marks wrong = {0};
    for (int64_t at = 0; at < width; at += LANES) {
        lanes values = take(logits, at, width, -INFINITY);
        wrong |= values != values;
        best = either(values > best, values, best);
    }
    float highest = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) highest = best[lane] > highest ? best[lane] : highest;
    if (any(wrong) || !isfinite(highest)) {
        for (int64_t at = 0; at < width; at++) out[at] = NAN;
        return;
    }
    for (int64_t at = 0; at < width; at += LANES) {
        lanes score = (take(logits, at, width, -INFINITY) - highest) / asked->temperature;
        put(scores, at, width, score);
        put(weights, at, width, power(score));
    }
    if (asked->top_k) cut(weights, scores, width, nth(scores, width, asked->top_k, room), asked->top_k);
    const float whole = (float)mass(weights, width);
    divide(out, weights, width, whole);
    if (asked->top_p < 1) {
        float least = 0;
        const int64_t count = nucleus(out, width, asked->top_p, room, &least);
        cut(weights, out, width, least, count);
    }
    if (asked->min_p > 0) {
        const float least = asked->min_p * (1 / whole);
        for (int64_t at = 0; at < width; at++) weights[at] = out[at] >= least ? weights[at] : 0;
    }
    if (asked->top_p < 1 || asked->min_p > 0) divide(out, weights, width, (float)mass(weights, width));
}

static void *all(void *given) {
    job *asked = given;
    float *room = malloc(3 * sizeof(float) * asked->width);
    asked->failed = !room;
    for (int64_t row = 0; room && row < asked->rows; row++)
        make_law(asked->logits + row * asked->width, asked->out + row * asked->width, asked->width, asked->asked, room);
    free(room);
    return NULL;
}

/* Law of every row. `top_k` is 0 or less than the width where it cuts; `top_p` is 1 and `min_p` 0 where they do not.
 * Rows with NaN, infinity or nothing allowed become NaN. Large work is shared with up to `threads` - 1 helpers, started for the purpose.
 * Returns 0, or 1 without memory. */
int64_t laws(const float *logits, float *out, int64_t rows, int64_t width, float temperature, int64_t top_k, double top_p, float min_p,
             int64_t threads) {
    int64_t parts = rows * width / WORTH, failed = 0;
    parts = parts > threads ? threads : parts;
    parts = parts > rows ? rows : parts;
    parts = parts > MOST ? MOST : parts < 1 ? 1 : parts;
    const options asked = {top_k, top_p, temperature, min_p};
    job jobs[MOST];
    pthread_t helpers[MOST];
    int started[MOST] = {0};
    for (int64_t part = parts - 1; part >= 0; part--) {
        const int64_t first = part * rows / parts, stop = (part + 1) * rows / parts;
        jobs[part] = (job){logits + first * width, out + first * width, stop - first, width, 0, &asked};
        started[part] = part && !pthread_create(&helpers[part], NULL, all, &jobs[part]);
        if (!started[part]) all(&jobs[part]);
    }
    for (int64_t part = 0; part < parts; part++) {
        if (started[part]) pthread_join(helpers[part], NULL);
        failed |= jobs[part].failed;
    }
    return failed;
}

int64_t draw(const float *law, int64_t width, double number) {
    double whole = 0, sum = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t first = 0; first < width; first += LANES) {
            if (!any(take(law, first, width, 0.0f) != 0.0f)) continue; /* NaN is not zero */
            for (int64_t at = first; at < width && at < first + LANES; at++) {
                if (!pass) whole += law[at];
                else if ((sum += law[at]) > number * whole) return at;
            }
        }
    return width;
}

int64_t draw_wide(const double *law, int64_t width, double number) {
    double whole = 0, sum = 0;
    for (int64_t at = 0; at < width; at++) whole += law[at];
    for (int64_t at = 0; at < width; at++)
        if ((sum += law[at]) > number * whole) return at;
    return width;
}

/* What is left of a law, in float64 and of mass one at first, when a draw from a few tokens was refused: the positive part of the law less
 * theirs, without the drawn one. A law that has nothing left stays as it is. */
void refuse(const float *law, int64_t width, const int64_t *ids, const double *probs, int64_t size, int64_t drawn, double *left) {
    const double whole = mass(law, width);
    double drafted = 0, remains = 0;
    for (int64_t at = 0; at < width; at++) left[at] = law[at] / whole;
    for (int64_t at = 0; at < size; at++) drafted += probs[at];
    for (int64_t at = 0; at < size; at++) {
        const double less = left[ids[at]] - probs[at] / drafted;
        left[ids[at]] = less > 0 ? less : 0;
    }
    left[drawn] = 0;
    for (int64_t at = 0; at < width; at++) remains += left[at];
    if (remains > 0) return;
    for (int64_t at = 0; at < width; at++) left[at] = law[at] / whole;
}

/* What part of a row's mass an entry is. */
double share(const float *law, int64_t width, int64_t at) { return law[at] / mass(law, width); }

int64_t largest(const float *law, int64_t width, int64_t count, int64_t *ids, float *probs) {
    int64_t size = 0;
    for (int64_t first = 0; first < width; first += LANES) {
        const float bar = size < count ? 0.0f : probs[count - 1];
        if (!any(take(law, first, width, 0.0f) > bar)) continue;
        for (int64_t at = first; at < width && at < first + LANES; at++) {
            if (!(law[at] > (size < count ? 0.0f : probs[count - 1]))) continue;
            int64_t place = size < count ? size++ : count - 1;
            for (; place && probs[place - 1] < law[at]; place--) ids[place] = ids[place - 1], probs[place] = probs[place - 1];
            ids[place] = at, probs[place] = law[at];
        }
    }
    return size;
}

/* The same of several laws: room for `count` tokens each, and the number of them found. */
void likeliest(const float *const *laws, int64_t rows, int64_t width, int64_t count, int64_t *sizes, int64_t *ids, float *probs) {
    for (int64_t row = 0; row < rows; row++) sizes[row] = largest(laws[row], width, count, ids + row * count, probs + row * count);
}
