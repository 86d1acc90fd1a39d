/* The stored element of one build (-DBF16=0 or 1). Arithmetic is float32 everywhere; BF16 only changes how elements are stored. */
#pragma once
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if BF16
typedef uint16_t element;
INLINE float get(element value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
INLINE element put(float value) { /* round to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (element)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float element;
INLINE float get(element value) { return value; }
INLINE element put(float value) { return value; }
#endif
