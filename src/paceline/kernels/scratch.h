/* Room to work in. */
#pragma once
#include <stdint.h>
#include <stdlib.h>

/* This thread's room for `bytes`, kept from call to call; NULL without memory. */
static void *scratch(int64_t bytes) {
    static __thread void *room;
    static __thread int64_t held;
    if (bytes > held) {
        free(room);
        room = malloc(bytes);
        held = room ? bytes : 0;
    }
    return room;
}
