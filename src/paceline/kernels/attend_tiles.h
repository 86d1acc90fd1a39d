/* The two halves of attention on the processor's matrix unit (AMX). */
#pragma once
#include "attend.h"

int tiled_heads(int64_t dim); /* whether heads of this width are read here: a matter of build, machine and width, never of queries */
void lay_keys(const stretch *keys, int64_t from);     /* into keys->tiles, from place `from` (a whole number of spans) on */
void lay_values(const stretch *values, int64_t from);
void score_tiles(const float *query, const stretch *keys, float *scores, int64_t room, int64_t queries);
void mix_tiles(const float *weights, const stretch *values, float *sums, int64_t room, int64_t queries);
