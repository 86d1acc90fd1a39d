#include "amx.h"

#if AMX
#include <sys/syscall.h>
#include <unistd.h>

#define ASK 0x1023   /* ARCH_REQ_XCOMP_PERM: Linux lets a process have the unit's registers when it asks */
#define REGISTERS 18 /* XFEATURE_XTILEDATA */

static int allowed;

__attribute__((constructor)) static void ask(void) { allowed = syscall(SYS_arch_prctl, ASK, REGISTERS) == 0; }

int matrix_unit(void) { return allowed; }
#else
int matrix_unit(void) { return 0; }
#endif
