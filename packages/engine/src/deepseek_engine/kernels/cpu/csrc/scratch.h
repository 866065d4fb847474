// Arrays laid out one after another in memory that the caller has.
#pragma once
#include <stdint.h>

// An array of so many bytes; *next moves behind it, to a whole cache line. Laid out from null, *next is the size of all.
static inline void *ds_take(char **next, int64_t bytes) {
    void *start = *next;
    *next += (bytes + 63) / 64 * 64;
    return start;
}
