// cuBLASLt that multiplies nothing.
#include <stdlib.h>

#define DONE(name) \
  int name(void) { return 0; }
#define MADE(name) \
  int name(void **made) { *made = calloc(1, 256); return 0; }

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, void *results, int *found) {
  *found = 1;
  return 0;
}
MADE(cublasLtCreate)
MADE(cublasLtMatmulDescCreate)
MADE(cublasLtMatmulPreferenceCreate)
MADE(cublasLtMatrixLayoutCreate)
MADE(cublasLtMatrixTransformDescCreate)
DONE(cublasLtDestroy)
DONE(cublasLtMatmul)
DONE(cublasLtMatmulAlgoConfigSetAttribute)
DONE(cublasLtMatmulAlgoInit)
DONE(cublasLtMatmulDescDestroy)
DONE(cublasLtMatmulDescSetAttribute)
DONE(cublasLtMatmulPreferenceDestroy)
DONE(cublasLtMatmulPreferenceSetAttribute)
DONE(cublasLtMatrixLayoutDestroy)
DONE(cublasLtMatrixLayoutSetAttribute)
DONE(cublasLtMatrixTransform)
DONE(cublasLtMatrixTransformDescDestroy)
