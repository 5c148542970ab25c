// cuDNN 9 that convolves nothing. It offers two engines for each convolution: 0 with tensor cores, 1 without them, and
// counts the plans that are built from each.
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { HEURISTIC = 4, PLAN = 5 };  // cudnnBackendDescriptorType_t
enum {                             // cudnnBackendAttributeName_t
  HEURISTIC_MODE = 200,
  HEURISTIC_RESULTS = 202,
  CONFIGURED_ENGINE = 300,
  CONFIGURED_WORKSPACE = 303,
  CONFIGURED_SHARED_MEMORY = 304,
  PLAN_CONFIGURATION = 401,
  PLAN_WORKSPACE = 402,
  ENGINE_INDEX = 1301,
  ENGINE_NUMERICAL_NOTE = 1303,
};
enum { WITH_TENSOR_CORES = 0, ENGINES = 2 };
enum { NOTE_TENSOR_CORE = 0 };
enum { MODE_INSTANT, MODE_B, MODE_FALLBACK, MODE_A, MODES };

static atomic_long plans, plans_with_tensor_cores, runs, asked[MODES];
static atomic_int failure;

struct stub_cudnn_counts { long plans, plans_with_tensor_cores, runs, asked_mode_a, asked_mode_b, asked_fallback; };

void stub_cudnn_counts(struct stub_cudnn_counts *to) {
  *to = (struct stub_cudnn_counts){plans, plans_with_tensor_cores, runs, asked[MODE_A], asked[MODE_B], asked[MODE_FALLBACK]};
}
// Each convolution fails with this status; 0 for none.
void stub_cudnn_fail(int status) { failure = status; }

struct descriptor { int type, engine, mode; };

int cudnnBackendCreateDescriptor(int type, struct descriptor **made) {
  *made = calloc(1, sizeof **made);
  (*made)->type = type;
  return 0;
}
int cudnnBackendDestroyDescriptor(struct descriptor *one) { free(one); return 0; }
int cudnnBackendSetAttribute(struct descriptor *to, int name, int type, long count, const void *values) {
  if (name == PLAN_CONFIGURATION && count > 0) to->engine = (*(struct descriptor *const *)values)->engine;
  if (name == HEURISTIC_MODE && count > 0) to->mode = *(const int *)values;
  return 0;
}
int cudnnBackendFinalize(struct descriptor *one) {
  if (one->type == HEURISTIC && one->mode < MODES) asked[one->mode]++;
  if (one->type == PLAN) {
    plans++;
    plans_with_tensor_cores += one->engine == WITH_TENSOR_CORES;
  }
  return 0;
}
int cudnnBackendExecute(void *handle, struct descriptor *plan, struct descriptor *tensors) { runs++; return failure; }

int cudnnBackendGetAttribute(struct descriptor *of, int name, int type, long room, long *count, void *values) {
  struct descriptor **descriptors = values;
  long found = 1;
  switch (name) {
    case HEURISTIC_RESULTS:
      found = ENGINES;
      for (long i = 0; values && i < ENGINES && i < room; i++)
        if (descriptors[i]) descriptors[i]->engine = (int)i;
      break;
    case CONFIGURED_ENGINE:
    case PLAN_CONFIGURATION:
      if (values && descriptors[0]) descriptors[0]->engine = of->engine;
      break;
    case ENGINE_NUMERICAL_NOTE:
      found = of->engine == WITH_TENSOR_CORES;
      if (values && found && room > 0) *(int *)values = NOTE_TENSOR_CORE;
      break;
    case ENGINE_INDEX:
      if (values) *(long *)values = of->engine;
      break;
    case CONFIGURED_SHARED_MEMORY:
      if (values) *(int *)values = 0;
      break;
    case CONFIGURED_WORKSPACE:
    case PLAN_WORKSPACE:
      if (values) *(long *)values = 0;
      break;
    default: found = 0;
  }
  if (count) *count = found;
  return 0;
}

size_t cudnnGetVersion(void) { return 91500; }
size_t cudnnGetCudartVersion(void) { return 13000; }
void cudnnGetLastErrorString(char *to, size_t size) { if (size) *to = 0; }
const char *cudnnGetErrorString(int status) {
  switch (status) {
    case 0: return "CUDNN_STATUS_SUCCESS";
    case 4004: return "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED";
    case 5000: return "CUDNN_STATUS_EXECUTION_FAILED";
    case 5003: return "CUDNN_STATUS_EXECUTION_FAILED_CUDART";
    default: return "CUDNN_STATUS_INTERNAL_ERROR";
  }
}

#define DONE(name) \
  int name(void) { return 0; }
#define MADE(name) \
  int name(void **made) { *made = calloc(1, 256); return 0; }

int cudnnGetStream(void *handle, void **stream) { *stream = NULL; return 0; }
int cudnnDropoutGetStatesSize(void *handle, size_t *size) { *size = 16; return 0; }
int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *a, void *c, size_t *size) { *size = 16; return 0; }
int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *c, size_t *size) { *size = 16; return 0; }
MADE(cudnnCreate)
MADE(cudnnCreateActivationDescriptor)
MADE(cudnnCreateConvolutionDescriptor)
MADE(cudnnCreateDropoutDescriptor)
MADE(cudnnCreateFilterDescriptor)
MADE(cudnnCreateLRNDescriptor)
MADE(cudnnCreatePoolingDescriptor)
MADE(cudnnCreateRNNDataDescriptor)
MADE(cudnnCreateRNNDescriptor)
MADE(cudnnCreateReduceTensorDescriptor)
MADE(cudnnCreateTensorDescriptor)
DONE(cudnnActivationForward)
DONE(cudnnAddTensor)
DONE(cudnnBatchNormalizationForwardInference)
DONE(cudnnBatchNormalizationForwardTraining)
DONE(cudnnConvolutionBiasActivationForward)
DONE(cudnnConvolutionForward)
DONE(cudnnDeriveBNTensorDescriptor)
DONE(cudnnDestroy)
DONE(cudnnDestroyActivationDescriptor)
DONE(cudnnDestroyConvolutionDescriptor)
DONE(cudnnDestroyDropoutDescriptor)
DONE(cudnnDestroyFilterDescriptor)
DONE(cudnnDestroyLRNDescriptor)
DONE(cudnnDestroyPoolingDescriptor)
DONE(cudnnDestroyRNNDataDescriptor)
DONE(cudnnDestroyRNNDescriptor)
DONE(cudnnDestroyReduceTensorDescriptor)
DONE(cudnnDestroyTensorDescriptor)
DONE(cudnnFindConvolutionForwardAlgorithmEx)
DONE(cudnnGetConvolutionForwardAlgorithm_v7)
DONE(cudnnGetConvolutionForwardWorkspaceSize)
DONE(cudnnGetRNNTempSpaceSizes)
DONE(cudnnGetRNNWeightParams)
DONE(cudnnGetTensorNdDescriptor)
DONE(cudnnLRNCrossChannelForward)
DONE(cudnnPoolingForward)
DONE(cudnnRNNForward)
DONE(cudnnReduceTensor)
DONE(cudnnSetActivationDescriptor)
DONE(cudnnSetConvolutionGroupCount)
DONE(cudnnSetConvolutionMathType)
DONE(cudnnSetConvolutionNdDescriptor)
DONE(cudnnSetDropoutDescriptor)
DONE(cudnnSetFilterNdDescriptor)
DONE(cudnnSetLRNDescriptor)
DONE(cudnnSetPoolingNdDescriptor)
DONE(cudnnSetRNNDataDescriptor)
DONE(cudnnSetRNNDescriptor_v8)
DONE(cudnnSetReduceTensorDescriptor)
DONE(cudnnSetStream)
DONE(cudnnSetTensorNdDescriptor)
DONE(cudnnSoftmaxForward)
