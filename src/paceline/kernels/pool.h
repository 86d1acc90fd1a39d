/* A few threads that help one caller through a sequence of small phases. */
#pragma once
#include <stdint.h>

/* Does one piece of the work. */
typedef void (*task)(const void *work, int64_t piece);

int64_t gather(int64_t threads);                          /* call helpers together; returns how many threads there are at most */
void share(task doing, const void *work, int64_t pieces);  /* between gather and dismiss: do all pieces, in any order, and return */
void dismiss(void);
