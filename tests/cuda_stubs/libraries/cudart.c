// A CUDA 13 runtime without a device: memory is the machine's, copies are real, kernels do nothing. What is counted and
// made to fail is told below; ../stubs.py calls it. Functions that ONNX Runtime 1.31 does not import are missing.
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };
static const int VERSION = 13000;
static const size_t TOTAL = 140UL << 30, FREE = 130UL << 30;

// Steering, and counts

static atomic_long launches, allocations, bytes, copies, graph_launches, captures, pinned;
static atomic_long limit = -1, passing, waiting, given_up;
static atomic_int failure, failure_at_wait, holding;

struct stub_counts { long launches, allocations, bytes, copies, graph_launches, captures, pinned, waiting, given_up; };

void stub_counts(struct stub_counts *to) {
  *to = (struct stub_counts){launches, allocations,    bytes,  copies,  graph_launches,
                             captures, pinned,         waiting, given_up};
}
// Every later call of the runtime fails with this code, as after an error that stays; 0 for none.
void stub_fail(int code) { failure = code; }
// Waiting for the device fails with this code, as after a kernel that failed; 0 for none.
void stub_fail_at_wait(int code) { failure_at_wait = code; }
// Allocations that would bring all bytes so far above this fail; -1 for no limit. What is freed is not taken off.
void stub_limit(long most) { limit = most; }
// While copies are held, each waits until it is let pass, and gives up after 20 seconds.
void stub_hold_copies(int hold) { passing = 0; holding = hold; }
void stub_let_a_copy_pass(void) { passing++; }

#define RETURN_FAILURE \
  if (failure) return failure
#define DONE(name) \
  int name(void) { RETURN_FAILURE; return SUCCESS; }
#define MADE(name) \
  int name(void **made) { return object(made); }

static int object(void **made) {
  RETURN_FAILURE;
  *made = calloc(1, 64);
  return SUCCESS;
}

static void *zeroed(size_t size) {
  size_t whole = (size + 511) / 256 * 256;
  void *memory = aligned_alloc(256, whole);
  return memory ? memset(memory, 0, whole) : NULL;
}

// Errors

int cudaGetLastError(void) { return failure; }
int cudaPeekAtLastError(void) { return failure; }

const char *cudaGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case OUT_OF_MEMORY: return "out of memory";
    case 46: return "CUDA-capable device(s) is/are busy or unavailable";
    case 700: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    default: return "unknown error";
  }
}

const char *cudaGetErrorName(int code) { return code ? "cudaErrorOfStub" : "cudaSuccess"; }

// Devices: one, like an H200. Only the fields that are read lie where CUDA 13 has them.

struct properties {
  char name[288];
  size_t total, shared_per_block;
  int registers_per_block, warp;
  size_t pitch;
  int threads_per_block, threads[3], grid[3];
  size_t constant;
  int major, minor;
  size_t alignment[2];
  int multiprocessors;
  int others[52];
  int l2, others_2, threads_per_multiprocessor, others_3[4];
  size_t shared_per_multiprocessor;
  int others_4[10];
  size_t shared_per_block_optin;
  char rest[328];
};
_Static_assert(offsetof(struct properties, major) == 360, "major");
_Static_assert(offsetof(struct properties, l2) == 596, "l2CacheSize");
_Static_assert(offsetof(struct properties, shared_per_multiprocessor) == 624, "sharedMemPerMultiprocessor");
_Static_assert(offsetof(struct properties, shared_per_block_optin) == 672, "sharedMemPerBlockOptin");
_Static_assert(sizeof(struct properties) == 1008, "cudaDeviceProp");

int cudaGetDeviceProperties(struct properties *to, int device) {
  *to = (struct properties){
      .name = "stub", .total = TOTAL, .shared_per_block = 49152, .registers_per_block = 65536, .warp = 32,
      .threads_per_block = 1024, .threads = {1024, 1024, 64}, .grid = {2147483647, 65535, 65535}, .major = 9,
      .multiprocessors = 132, .l2 = 60 << 20, .threads_per_multiprocessor = 2048,
      .shared_per_multiprocessor = 233472, .shared_per_block_optin = 232448};
  return SUCCESS;
}

int cudaDeviceGetAttribute(int *to, int attribute, int device) {
  switch (attribute) {
    case 1: *to = 1024; break;     // cudaDevAttrMaxThreadsPerBlock
    case 8: *to = 49152; break;    // cudaDevAttrMaxSharedMemoryPerBlock
    case 10: *to = 32; break;      // cudaDevAttrWarpSize
    case 12:                       // cudaDevAttrMaxRegistersPerBlock
    case 82: *to = 65536; break;   // cudaDevAttrMaxRegistersPerMultiprocessor
    case 16: *to = 132; break;     // cudaDevAttrMultiProcessorCount
    case 39: *to = 2048; break;    // cudaDevAttrMaxThreadsPerMultiProcessor
    case 75: *to = 9; break;       // cudaDevAttrComputeCapabilityMajor
    case 81: *to = 233472; break;  // cudaDevAttrMaxSharedMemoryPerMultiprocessor
    case 97: *to = 232448; break;  // cudaDevAttrMaxSharedMemoryPerBlockOptin
    default: *to = 0;
  }
  return SUCCESS;
}

int cudaGetDeviceCount(int *to) { *to = 1; RETURN_FAILURE; return SUCCESS; }
int cudaGetDevice(int *to) { *to = 0; return SUCCESS; }
int cudaSetDevice(int device) { RETURN_FAILURE; return device ? INVALID_DEVICE : SUCCESS; }
int cudaDriverGetVersion(int *to) { *to = VERSION; return SUCCESS; }
int cudaRuntimeGetVersion(int *to) { *to = VERSION; return SUCCESS; }
int cudaDeviceSynchronize(void) { RETURN_FAILURE; return failure_at_wait; }

// Memory

static int allocate(void **to, size_t size) {
  RETURN_FAILURE;
  *to = NULL;
  if (limit >= 0 && bytes + (long)size > limit) return OUT_OF_MEMORY;
  bytes += (long)size;
  allocations++;
  *to = zeroed(size);
  return *to ? SUCCESS : OUT_OF_MEMORY;
}

int cudaMalloc(void **to, size_t size) { return allocate(to, size); }
int cudaMallocFromPoolAsync(void **to, size_t size, void *pool, void *stream) { return allocate(to, size); }
int cudaMallocHost(void **to, size_t size) { pinned++; *to = zeroed(size); return SUCCESS; }
int cudaHostAlloc(void **to, size_t size, unsigned flags) { return cudaMallocHost(to, size); }
int cudaFree(void *memory) { free(memory); return SUCCESS; }
int cudaFreeAsync(void *memory, void *stream) { free(memory); return SUCCESS; }
int cudaFreeHost(void *memory) { free(memory); return SUCCESS; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  RETURN_FAILURE;
  *free_bytes = limit < 0 ? FREE : limit > bytes ? (size_t)(limit - bytes) : 0;
  *total = TOTAL;
  return SUCCESS;
}
int cudaPointerGetAttributes(void *to, const void *memory) { memset(to, 0, 32); return SUCCESS; }

static int may_pass(void) {
  long left = passing;
  return left > 0 && atomic_compare_exchange_strong(&passing, &left, left - 1);
}

static int copy(void *to, const void *from, size_t size) {
  RETURN_FAILURE;
  copies++;
  memmove(to, from, size);
  waiting++;
  for (int tries = 0; holding && !may_pass(); tries++) {
    if (tries == 20000) {
      given_up++;
      break;
    }
    usleep(1000);
  }
  waiting--;
  return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return copy(to, from, size); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { return copy(to, from, size); }
int cudaMemcpyFromSymbol(void *to, const void *from, size_t size, size_t offset, int kind) {
  memset(to, 0, size);
  return SUCCESS;
}
int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
  RETURN_FAILURE;
  for (size_t row = 0; row < height; row++) memmove(to + row * to_pitch, from + row * from_pitch, width);
  return SUCCESS;
}
int cudaMemset(void *to, int value, size_t size) { RETURN_FAILURE; memset(to, value, size); return SUCCESS; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return cudaMemset(to, value, size); }
MADE(cudaMemPoolCreate)
int cudaMemPoolGetAttribute(void *pool, int attribute, unsigned long *to) { *to = 0; return SUCCESS; }
DONE(cudaMemPoolDestroy)
DONE(cudaMemPoolSetAttribute)
DONE(cudaMemPoolTrimTo)

// Streams, events and graphs

static _Thread_local int capturing;

MADE(cudaStreamCreate)
MADE(cudaStreamCreateWithFlags)
DONE(cudaStreamSynchronize)
DONE(cudaStreamWaitEvent)
int cudaStreamDestroy(void *stream) { return SUCCESS; }
MADE(cudaEventCreate)
MADE(cudaEventCreateWithFlags)
DONE(cudaEventRecord)
DONE(cudaEventRecordWithFlags)
DONE(cudaEventSynchronize)
int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
int cudaEventElapsedTime(float *to, void *begin, void *end) { *to = 1; return SUCCESS; }
int cudaStreamBeginCapture(void *stream, int mode) { RETURN_FAILURE; capturing = 1; captures++; return SUCCESS; }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; return object(graph); }
int cudaStreamIsCapturing(void *stream, int *to) { *to = capturing; return SUCCESS; }
MADE(cudaGraphInstantiate)
int cudaGraphLaunch(void *graph, void *stream) { RETURN_FAILURE; graph_launches++; return SUCCESS; }
int cudaGraphDestroy(void *graph) { return SUCCESS; }
int cudaGraphExecDestroy(void *graph) { return SUCCESS; }

// Kernels

struct dim3 { unsigned x, y, z; };
static _Thread_local struct { struct dim3 grid, block; size_t shared; void *stream; } configuration;
static void *module[4];

static int launch(void) { RETURN_FAILURE; launches++; return SUCCESS; }

int cudaLaunchKernel(void) { return launch(); }
int __cudaLaunchKernel(void) { return launch(); }
int cudaLaunchKernelExC(void) { return launch(); }
int cudaLaunchCooperativeKernel(void) { return launch(); }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) { function(data); return SUCCESS; }
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return SUCCESS; }
unsigned __cudaPushCallConfiguration(struct dim3 grid, struct dim3 block, size_t shared, void *stream) {
  configuration.grid = grid, configuration.block = block;
  configuration.shared = shared, configuration.stream = stream;
  return SUCCESS;
}
int __cudaPopCallConfiguration(struct dim3 *grid, struct dim3 *block, size_t *shared, void **stream) {
  *grid = configuration.grid, *block = configuration.block;
  *shared = configuration.shared, *stream = configuration.stream;
  return SUCCESS;
}
void **__cudaRegisterFatBinary(void *binary) { return module; }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void) {}
void __cudaRegisterVar(void) {}
int cudaFuncGetAttributes(void *to, const void *function) { memset(to, 0, 64); return SUCCESS; }
DONE(cudaFuncSetAttribute)
DONE(cudaKernelSetAttributeForDevice)
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *to) { *to = 1; return SUCCESS; }
MADE(cudaLibraryGetKernel)
MADE(cudaLibraryLoadData)
DONE(cudaLibraryUnload)
int cudaGetDriverEntryPointByVersion(const char *name, void **to, unsigned version, unsigned long long flags, int *found) {
  *to = NULL;
  if (found) *found = 1;  // cudaDriverEntryPointSymbolNotFound
  return SUCCESS;
}
