/* Random numbers as pure functions of what they are for; see core/rng.py. */
#pragma once
#include <stdint.h>

enum { TARGET = 1, DRAFT, ACCEPT, RESIDUAL }; /* core/rng.py: Purpose */

static uint64_t mix(uint64_t value) {
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

/* The stream of a position. */
static uint64_t stream(uint64_t seed, int64_t position, uint64_t purpose) { return mix(mix(mix(seed) ^ (uint64_t)position) ^ purpose); }

/* A number in [0, 1) of a stream. */
static double number(uint64_t from, uint64_t count) { return (double)(mix(from ^ count) >> 11) * 0x1p-53; }
