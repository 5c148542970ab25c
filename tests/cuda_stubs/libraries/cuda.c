// A CUDA driver with one device, as far as it is asked directly.
#include <string.h>

static const int INVALID_DEVICE = 101;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *to) { *to = 13000; return 0; }
int cuDeviceGetCount(int *to) { *to = 1; return 0; }
int cuDeviceGet(int *to, int number) { *to = number; return number ? INVALID_DEVICE : 0; }
int cuDeviceGetName(char *to, int size, int device) { strncpy(to, "stub", (size_t)size); return 0; }
int cuDeviceGetPCIBusId(char *to, int size, int device) { strncpy(to, "0000:41:00.0", (size_t)size); return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
