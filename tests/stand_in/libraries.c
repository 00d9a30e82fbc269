// What of cuBLAS and cuDNN has more to say than "done" (the rest of them is written by libraries.py).
//
// Versions, and the words for errors, are left to the real libraries, which need no GPU for that.
#include "stand_in.h"

#include <cudnn_graph.h>
#include <stdlib.h>
#include <string.h>

// PyTorch asks for one way to multiply, takes it, and names the stream with each product.
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted,
                                   char *results, int *found) {
  memset(results, 0, 96);  // of a cublasLtMatmulHeuristicResult_t: no workspace, status 0
  *found = 1;
  return 0;
}
int cublasLtMatmul(void *handle, void *operation, void *alpha, void *a, void *a_form, void *b, void *b_form, void *beta, void *c,
                   void *c_form, void *d, void *d_form, void *algorithm, void *workspace, size_t size, cudaStream_t stream) {
  return stand_in_launch(cublasLtMatmul, __func__, stream);
}
int cublasSetStream_v2(Handle *handle, cudaStream_t stream) { handle->stream = stream; return 0; }
int cublasGetMathMode(Handle *handle, int *out) { *out = 0; return 0; }
int cublasGetPointerMode_v2(Handle *handle, int *out) { *out = 0; return 0; }

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) { ((Handle *)handle)->stream = stream; return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *out) { *out = ((Handle *)handle)->stream; return CUDNN_STATUS_SUCCESS; }

// A convolution is a graph of descriptors, of which one plan to compute it is found: it has no notes (such as "not
// deterministic"), no knobs, and wants no workspace.
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) { *out = calloc(1, 64); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) { free(descriptor); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                                       int64_t wanted, int64_t *count, void *out) {
  int none = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE || name == CUDNN_ATTR_ENGINE_KNOB_INFO;
  if (count) *count = none ? 0 : 1;
  if (none || !out || wanted <= 0) return CUDNN_STATUS_SUCCESS;
  if (type == CUDNN_TYPE_INT64) *(int64_t *)out = 0;
  if (type == CUDNN_TYPE_INT32) *(int32_t *)out = 0;
  if (type == CUDNN_TYPE_CHAR) *(char *)out = 0;
  return CUDNN_STATUS_SUCCESS;  // a descriptor that is asked for is the caller's own
}

// cuDNN's older batch norms want no memory of their own.
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *handle, int mode, int ops, void *x, void *z, void *y, void *norm,
                                                             void *activation, size_t *out) { *out = 0; return 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *handle, int mode, int ops, void *x, void *y, void *dy, void *dz, void *dx,
                                                      void *norm, void *activation, size_t *out) { *out = 0; return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int ops, void *activation, void *x, size_t *out) { *out = 0; return 0; }
