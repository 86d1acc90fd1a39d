/* Fused kernels for forwards of few rows on a CPU, in one element type per build (-DBF16=0 or 1).
 *
 * They replace runs of small operators between two matrix products. Each treats a row by itself and sums in an order that depends on that
 * row alone, so a row's bits are the same whatever stands beside it. All are single-threaded: the work is a few microseconds.
 * Arithmetic is float32; BF16 only changes how elements are stored.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if BF16
typedef uint16_t element;
static inline float get(element value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
static inline element put(float value) { /* round to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (element)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float element;
static inline float get(element value) { return value; }
static inline element put(float value) { return value; }
#endif

/* out = x / sqrt(|x|^2 + floor) * gain, row by row; floor = width * eps, gain = weight * sqrt(width).
 * With delta, x += delta first, in place: the residual stream meets the next norm. */
void add_norm(element *x, const element *delta, const float *gain, element *out, int64_t rows, int64_t width, float floor) {
    for (int64_t row = 0; row < rows; row++, x += width, out += width) {
        if (delta) {
            for (int64_t i = 0; i < width; i++) x[i] = put(get(x[i]) + get(delta[i]));
            delta += width;
        }
        float square = 0;
        for (int64_t i = 0; i < width; i++) square += get(x[i]) * get(x[i]);
        float scale = 1 / sqrtf(square + floor);
        for (int64_t i = 0; i < width; i++) out[i] = put(get(x[i]) * scale * gain[i]);
    }
}

/* out = silu(gate) * up, gate and up side by side in a row. */
void silu_gate(const element *both, element *out, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++, both += 2 * width, out += width)
        for (int64_t i = 0; i < width; i++) {
            float gate = get(both[i]);
            out[i] = put(gate / (1 + expf(-gate)) * get(both[width + i]));
        }
}

/* Rotate queries and keys in place (half-split; sin carries the sign of the first half) and store keys and values in their slots.
 * A row of qkv holds heads queries, kv_heads keys and kv_heads values of dim each; cos and sin have dims <= dim factors per row. */
void rotate_store(element *qkv, const element *cosine, const element *sine, element *keys, element *values, const int64_t *slots,
                  int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t dims, int64_t slot_stride) {
    int64_t half = dims / 2, turned = heads + kv_heads;
    for (int64_t row = 0; row < rows; row++, cosine += dims, sine += dims) {
        for (int64_t head = 0; head < turned; head++) {
            element *restrict at = qkv + head * dim;
            for (int64_t i = 0; i < half; i++) {
                float a = get(at[i]), b = get(at[half + i]);
                at[i] = put(a * get(cosine[i]) + b * get(sine[i]));
                at[half + i] = put(b * get(cosine[half + i]) + a * get(sine[half + i]));
            }
        }
        int64_t kept = kv_heads * dim;
        memcpy(keys + slots[row] * slot_stride, qkv + heads * dim, kept * sizeof(element));
        memcpy(values + slots[row] * slot_stride, qkv + turned * dim, kept * sizeof(element));
        qkv += (turned + kv_heads) * dim;
    }
}

typedef struct {
    const element *query, *keys, *values;
    element *out;
    const int64_t *first, *runs;
    float *weight; /* as many as the longest row has keys */
    int64_t rows, heads, kv_heads, query_stride, slot_stride;
    float scale, softcap;
} attention;

/* Softmax of scores in place. */
static inline void soften(float *score, int64_t count, float softcap) {
    float most = -1e30f, total = 0;
    if (softcap > 0)
        for (int64_t i = 0; i < count; i++) score[i] = tanhf(score[i] / softcap) * softcap;
    for (int64_t i = 0; i < count; i++) most = score[i] > most ? score[i] : most;
    for (int64_t i = 0; i < count; i++) score[i] = expf(score[i] - most);
    for (int64_t i = 0; i < count; i++) total += score[i];
    for (int64_t i = 0; i < count; i++) score[i] /= total;
}

static inline __attribute__((always_inline)) void attend_dim(const attention *a, const int64_t dim) {
    const int64_t groups = a->heads / a->kv_heads;
    for (int64_t row = 0; row < a->rows; row++)
        for (int64_t head = 0; head < a->heads; head++) {
            const element *own = a->query + row * a->query_stride + head * dim;
            const element *keys = a->keys + head / groups * dim, *values = a->values + head / groups * dim;
            float asked[dim], sum[dim];
            for (int64_t i = 0; i < dim; i++) asked[i] = get(own[i]) * a->scale, sum[i] = 0;
            int64_t count = 0;
            for (int64_t run = a->first[row]; run < a->first[row + 1]; run++)
                for (int64_t slot = a->runs[2 * run]; slot < a->runs[2 * run + 1]; slot++) {
                    const element *key = keys + slot * a->slot_stride;
                    float score = 0;
                    for (int64_t i = 0; i < dim; i++) score += asked[i] * get(key[i]);
                    a->weight[count++] = score;
                }
            soften(a->weight, count, a->softcap);
            count = 0;
            for (int64_t run = a->first[row]; run < a->first[row + 1]; run++)
                for (int64_t slot = a->runs[2 * run]; slot < a->runs[2 * run + 1]; slot++) {
                    const element *value = values + slot * a->slot_stride;
                    float weight = a->weight[count++];
                    for (int64_t i = 0; i < dim; i++) sum[i] += weight * get(value[i]);
                }
            element *out = a->out + (row * a->heads + head) * dim;
            for (int64_t i = 0; i < dim; i++) out[i] = put(sum[i]);
        }
}

/* Attention of each row over its own keys. Row r sees the slots of runs first[r] .. first[r + 1] - 1, each a half-open range
 * (low, high), in this order: the order of its path, whatever lies between the runs. */
void attend(const element *query, const element *keys, const element *values, element *out, const int64_t *first, const int64_t *runs,
            float *weight, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t query_stride, int64_t slot_stride,
            float scale, float softcap) {
    attention a = {query, keys, values, out, first, runs, weight, rows, heads, kv_heads, query_stride, slot_stride, scale, softcap};
    switch (dim) { /* a width known to the compiler keeps queries and sums in registers */
    case 32: attend_dim(&a, 32); break;
    case 64: attend_dim(&a, 64); break;
    case 96: attend_dim(&a, 96); break;
    case 128: attend_dim(&a, 128); break;
    default: attend_dim(&a, dim);
    }
}
