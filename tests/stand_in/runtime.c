// A CUDA runtime, and what PyTorch asks of the driver, without a GPU.
//
// Loaded before PyTorch (LD_PRELOAD), these functions take the place of libcudart's; by its name, libcuda.so.1, the
// library takes the place of the driver too. All else is PyTorch's own: dispatcher, caching allocator, autograd's
// threads and streams, recording of graphs.
//
// - Kernels are counted and do nothing, so all work is done at once and no query ever finds it unfinished.
// - Memory of the device is address space that is only reserved: it reads as zeros and costs nothing until it is
//   written. Copies and small fills do write, so that what was put on the device can be read back.
// - Capture follows CUDA's rules (Programming Guide, "Stream capture"; errors 900 to 908 of cudaError_t). A call that
//   they forbid gets CUDA's own error, invalidates the capture that it disturbs, and is written down as a violation.
#define _GNU_SOURCE
#include "stand_in.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// One lock for everything. LOCKED takes it until the end of the function, which may call others that do.
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int take(void) { return pthread_mutex_lock(&mutex); }
static void let_go(int *taken) { pthread_mutex_unlock(&mutex); }
#define LOCKED __attribute__((cleanup(let_go), unused)) int taken = take()

// ------------------------------------------------------------------------------------------ what Python is told

#define COUNTERS(X)                                                                                                 \
  X(launches)       /* kernels, copies and fills outside captures */                                               \
  X(captured)       /* the same, recorded */                                                                       \
  X(replays)        /* of whole graphs */                                                                          \
  X(replayed)       /* kernels, copies and fills in them */                                                        \
  X(h2d_pageable)   /* copies to the device; these hold Python up, unlike those from page-locked memory */         \
  X(h2d_pinned)                                                                                                    \
  X(d2h) X(d2d) X(fills)                                                                                           \
  X(stream_syncs) X(event_syncs) X(device_syncs)                                                                   \
  X(allocations) X(host_allocations)                                                                               \
  X(violations)     /* calls that CUDA refuses during a capture */                                                 \
  X(strays)         /* launches that a capture under way does not record, though meant to */
#define NUMBER(name) name,
#define NAME(name) #name,
enum { COUNTERS(NUMBER) N_COUNTERS };
static const char *const counter_names[] = {COUNTERS(NAME)};
static long counters[N_COUNTERS];

typedef struct { const void *key; const char *name; long launched, captured; } Kernel;
static Kernel *kernels;
static size_t n_kernels;
static char incidents[1 << 16];  // a line for each violation and stray launch, as many as there is room for

static void incident(int counter, const char *what, int code) {
  size_t used = strlen(incidents);
  counters[counter]++;
  snprintf(incidents + used, sizeof incidents - used, "%s %d\n", what, code);
}

// Each report is a text that the next report of the same thread frees; it lists what happened since the last one.
static __thread char *text;
static __thread size_t text_size;
static FILE *report(void) { free(text); text = NULL; return open_memstream(&text, &text_size); }

const char *stand_in_counters(void) {
  LOCKED;
  FILE *out = report();
  for (int i = 0; i < N_COUNTERS; i++) fprintf(out, "%s %ld\n", counter_names[i], counters[i]);
  memset(counters, 0, sizeof counters);
  fclose(out);
  return text;
}

const char *stand_in_kernels(void) {
  LOCKED;
  FILE *out = report();
  for (size_t i = 0; i < n_kernels; i++) fprintf(out, "%ld %ld %s\n", kernels[i].launched, kernels[i].captured, kernels[i].name);
  n_kernels = 0;
  fclose(out);
  return text;
}

const char *stand_in_incidents(void) {
  LOCKED;
  FILE *out = report();
  fputs(incidents, out);
  incidents[0] = 0;
  fclose(out);
  return text;
}

// ------------------------------------------------------------------------------------------ errors

static __thread cudaError_t last_error;
static cudaError_t failed(cudaError_t error) { return last_error = error; }
cudaError_t cudaGetLastError(void) { cudaError_t error = last_error; last_error = cudaSuccess; return error; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(cudaError_t error) { return error ? "an error of the stand-in" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {  // CUDA's own words where PyTorch, or a reader of its messages, may know them
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge: return "operation would result in a merge of separate capture sequences";
    case cudaErrorStreamCaptureUnmatched: return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    case cudaErrorStreamCaptureWrongThread: return "attempt to terminate a thread-local capture sequence from another thread";
    default: return "an error of the stand-in";
  }
}

// An entry point that nobody has needed so far: said aloud, so that it gets written.
int stand_in_missing(const char *name) {
  fprintf(stderr, "[stand-in for CUDA] %s is not there; write it in tests/stand_in\n", name);
  return failed(cudaErrorNotSupported);
}

// ------------------------------------------------------------------------------------------ capture

typedef struct Stream Stream;
typedef struct {
  enum cudaStreamCaptureMode mode;
  unsigned long long id;
  int live, invalid;
  long nodes;
  Stream *origin;
  pthread_t thread;  // that began it
} Capture;
struct Stream {
  Capture *capture;
  long work;      // so many things it has recorded in this capture
  int unjoined;   // some of which the capture's origin does not wait for yet
  Stream *next;
};
typedef struct {
  int recorded;
  Capture *capture;  // in which it was last recorded
  Stream *stream;
  long work;         // that of the stream then
} Event;
typedef struct { long nodes; } Graph;

// The default ("legacy") stream is one for all devices, and cannot be captured. PyTorch makes its other streams such that
// they do not wait for it, so 906 (cudaErrorStreamCaptureImplicit) cannot come up.
static Stream legacy;
static Stream *streams;
static Capture *captures[64];  // those that are live
static int n_captures;
static unsigned long long next_id = 1;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static Stream *stream_of(cudaStream_t stream) {
  return stream == NULL || stream == cudaStreamLegacy || stream == cudaStreamPerThread ? &legacy : (Stream *)stream;
}

static cudaError_t refused(const char *what, cudaError_t error, Capture *disturbed) {
  incident(violations, what, error);
  if (disturbed) disturbed->invalid = 1;
  return failed(error);
}

// Calls that may wait for the device, or for which it may wait, are "potentially unsafe" (900). A thread in global mode,
// the default, may not make them while a capture in global mode is under way in any thread; unless its own mode is
// relaxed, no thread may during a capture of its own that is not relaxed.
static cudaError_t unsafe(const char *what) {
  cudaError_t error = cudaSuccess;
  for (int i = 0; i < n_captures; i++) {
    Capture *capture = captures[i];
    int own = pthread_equal(capture->thread, pthread_self()) && capture->mode != cudaStreamCaptureModeRelaxed;
    int global = capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (thread_mode != cudaStreamCaptureModeRelaxed && (own || global))
      error = refused(what, cudaErrorStreamCaptureUnsupported, capture);
  }
  return error;
}

static cudaError_t launched(const char *what, cudaStream_t handle) {
  Stream *stream = stream_of(handle);
  Capture *capture = stream->capture;
  if (capture) {
    if (capture->invalid) return failed(cudaErrorStreamCaptureInvalidated);
    capture->nodes++;
    stream->work++;
    stream->unjoined = stream != capture->origin;
    counters[captured]++;
    return cudaSuccess;
  }
  counters[launches]++;
  int meant = 0;  // Autograd's threads launch for the one that captures: what lands on the default stream was meant too.
  for (int i = 0; i < n_captures; i++) meant |= stream == &legacy || pthread_equal(captures[i]->thread, pthread_self());
  if (meant) incident(strays, what, 0);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  enum cudaStreamCaptureMode old = thread_mode;
  thread_mode = *mode;
  *mode = old;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode) {
  LOCKED;
  Stream *stream = stream_of(handle);
  if (stream == &legacy || stream->capture || n_captures == 64)
    return refused(__func__, cudaErrorStreamCaptureUnsupported, stream->capture);
  Capture *capture = calloc(1, sizeof *capture);
  *capture = (Capture){mode, next_id++, 1, 0, 0, stream, pthread_self()};
  stream->capture = captures[n_captures++] = capture;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  LOCKED;
  Stream *stream = stream_of(handle);
  Capture *capture = stream->capture;
  *graph = NULL;
  if (!capture) return failed(cudaErrorIllegalState);
  if (capture->origin != stream) return refused(__func__, cudaErrorStreamCaptureUnmatched, capture);
  if (capture->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(capture->thread, pthread_self()))
    return refused(__func__, cudaErrorStreamCaptureWrongThread, capture);
  int unjoined = 0;
  for (Stream *each = streams; each; each = each->next)
    if (each->capture == capture) {
      unjoined |= each->unjoined;
      each->capture = NULL;
      each->work = each->unjoined = 0;
    }
  for (int i = 0; i < n_captures; i++)
    if (captures[i] == capture) captures[i--] = captures[--n_captures];
  capture->live = 0;
  if (capture->invalid) return failed(cudaErrorStreamCaptureInvalidated);
  if (unjoined) return refused(__func__, cudaErrorStreamCaptureUnjoined, capture);
  Graph *made = calloc(1, sizeof *made);
  made->nodes = capture->nodes;
  *graph = (cudaGraph_t)made;
  return cudaSuccess;
}

static enum cudaStreamCaptureStatus status(Capture *capture) {
  if (!capture) return cudaStreamCaptureStatusNone;
  return capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *out) {
  LOCKED;
  *out = status(stream_of(handle)->capture);
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, enum cudaStreamCaptureStatus *out, unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
  LOCKED;
  Capture *capture = stream_of(handle)->capture;
  *out = status(capture);
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = NULL;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (n) *n = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream, cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges, size_t n, unsigned flags) { return cudaSuccess; }

// Graphs may not be taken apart while another is captured; PyTorch never frees one otherwise either.
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { LOCKED; return unsafe(__func__); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n) { *n = ((Graph *)graph)->nodes; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) {
  Graph *copy = calloc(1, sizeof *copy);
  *copy = *(Graph *)graph;
  *out = (cudaGraphExec_t)copy;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) { return cudaGraphInstantiate(out, graph, flags); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  LOCKED;
  if (stream_of(stream)->capture) return launched(__func__, stream);
  counters[replays]++;
  counters[replayed] += ((Graph *)graph)->nodes;
  return cudaSuccess;
}
// What keeps memory alive as long as a graph: graphs live forever here.
cudaError_t cudaUserObjectCreate(cudaUserObject_t *out, void *p, cudaHostFn_t destroy, unsigned count, unsigned flags) { *out = calloc(1, 8); return cudaSuccess; }
cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) { return cudaSuccess; }
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count, unsigned flags) { return cudaSuccess; }

// ------------------------------------------------------------------------------------------ streams and events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority) {
  LOCKED;
  Stream *stream = calloc(1, sizeof *stream);
  stream->next = streams;
  streams = stream;
  *out = (cudaStream_t)stream;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) { return cudaStreamCreateWithPriority(out, flags, 0); }
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithPriority(out, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }

static cudaError_t ask_stream(const char *what, cudaStream_t handle) {  // whether it is done is not known during capture
  Capture *capture = stream_of(handle)->capture;
  return capture ? refused(what, cudaErrorStreamCaptureUnsupported, capture) : unsafe(what);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { LOCKED; return ask_stream(__func__, stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { LOCKED; counters[stream_syncs]++; return ask_stream(__func__, stream); }
cudaError_t cudaDeviceSynchronize(void) {
  LOCKED;
  counters[device_syncs]++;
  return n_captures ? refused(__func__, cudaErrorStreamCaptureUnsupported, captures[0]) : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) { *out = calloc(1, sizeof(Event)); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { *ms = 1; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  LOCKED;
  Stream *source = stream_of(stream);
  *(Event *)handle = (Event){1, source->capture, source, source->work};
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaEventRecord(event, stream); }

static cudaError_t ask_event(const char *what, cudaEvent_t handle) {  // a captured event is a place in a graph
  Capture *capture = ((Event *)handle)->capture;
  return capture ? refused(what, cudaErrorCapturedEvent, capture->live ? capture : NULL) : unsafe(what);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { LOCKED; return ask_event(__func__, event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { LOCKED; counters[event_syncs]++; return ask_event(__func__, event); }

// A stream that waits for a captured event takes part in that capture from then on (a fork), until the stream where the
// capture began waits for it in turn (a join).
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t which, unsigned flags) {
  LOCKED;
  Stream *stream = stream_of(handle);
  Event *event = (Event *)which;
  Capture *theirs = event->capture && event->capture->live ? event->capture : NULL;
  if (!stream->capture && theirs && stream == &legacy) return refused(__func__, cudaErrorStreamCaptureImplicit, theirs);
  if (stream->capture && theirs && theirs != stream->capture) return refused(__func__, cudaErrorStreamCaptureMerge, stream->capture);
  if (stream->capture && !theirs)
    return event->recorded && !(flags & cudaEventWaitExternal) ? refused(__func__, cudaErrorStreamCaptureIsolation, stream->capture) : cudaSuccess;
  if (!theirs || event->stream == stream) return cudaSuccess;
  if (event->work == event->stream->work) event->stream->unjoined = 0;
  stream->capture = theirs;
  stream->unjoined = stream != theirs->origin;
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void *data, unsigned flags) { call(stream, cudaSuccess, data); return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) {
  LOCKED;
  int captured_too = stream_of(stream)->capture != NULL;
  cudaError_t error = launched(__func__, stream);
  if (!error && !captured_too) call(data);
  return error;
}

// ------------------------------------------------------------------------------------------ memory

#define MAX_DEVICES 16
#define TOTAL ((size_t)143771 << 20)  // bytes of an H200
#define FILLED ((size_t)1 << 16)      // bytes: larger fills, and larger copies on the device, are counted only
typedef struct { char *start; size_t size; enum cudaMemoryType type; int device; } Range;
static Range *ranges;
static size_t n_ranges;
static size_t used[MAX_DEVICES];
static __thread int device;

static void add(void *start, size_t size, enum cudaMemoryType type) {
  if (n_ranges % 256 == 0) ranges = realloc(ranges, (n_ranges + 256) * sizeof *ranges);
  ranges[n_ranges++] = (Range){start, size, type, device};
}
static Range *range_of(const void *p) {
  for (size_t i = 0; i < n_ranges; i++)
    if ((char *)p >= ranges[i].start && (char *)p < ranges[i].start + ranges[i].size) return &ranges[i];
  return NULL;
}
static enum cudaMemoryType type_of(const void *p) {
  Range *range = range_of(p);
  return range ? range->type : cudaMemoryTypeUnregistered;
}
static void drop(Range *range) { *range = ranges[--n_ranges]; }

cudaError_t cudaMalloc(void **out, size_t size) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  if (error) return error;
  void *start = used[device] + size > TOTAL ? MAP_FAILED
              : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
  counters[allocations]++;
  used[device] += size;
  add(start, size, cudaMemoryTypeDevice);
  *out = start;
  return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
  LOCKED;
  cudaError_t error = p ? unsafe(__func__) : cudaSuccess;  // cudaFree(0) only makes sure that there is a context
  Range *range = p ? range_of(p) : NULL;
  if (error || !range) return error;
  used[range->device] -= range->size;
  munmap(range->start, range->size);
  drop(range);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  if (error) return error;
  counters[host_allocations]++;
  *out = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  add(*out, size, cudaMemoryTypeHost);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void **out, size_t size) { return cudaHostAlloc(out, size, 0); }
cudaError_t cudaFreeHost(void *p) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  Range *range = range_of(p);
  if (error || !range) return error;
  drop(range);
  free(p);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  if (!error) add(p, size, cudaMemoryTypeHost);
  return error;
}
cudaError_t cudaHostUnregister(void *p) {
  LOCKED;
  Range *range = range_of(p);
  if (range) drop(range);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) { *total = TOTAL; *unused = TOTAL - used[device]; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *p) {
  LOCKED;
  Range *range = range_of(p);
  memset(out, 0, sizeof *out);
  out->type = type_of(p);
  out->device = range ? range->device : -2;  // cudaInvalidDeviceId
  out->devicePointer = (void *)p;
  out->hostPointer = out->type == cudaMemoryTypeHost ? (void *)p : NULL;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  LOCKED;
  enum cudaMemoryType source = type_of(from), target = type_of(to);
  int upward = target == cudaMemoryTypeDevice, downward = source == cudaMemoryTypeDevice, within = upward && downward;
  counters[within ? d2d : downward ? d2h : source == cudaMemoryTypeHost ? h2d_pinned : h2d_pageable]++;
  if (!within || size <= FILLED) memmove(to, from, size);
  return launched(__func__, stream);
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  counters[stream_syncs]++;
  return error ? error : cudaMemcpyAsync(to, from, size, kind, NULL);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int its_device, const void *from, int other_device, size_t size, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream) {
  LOCKED;
  counters[fills]++;
  if (size <= FILLED) memset(p, value, size);
  return launched(__func__, stream);
}
cudaError_t cudaMemset(void *p, int value, size_t size) {
  LOCKED;
  cudaError_t error = unsafe(__func__);
  return error ? error : cudaMemsetAsync(p, value, size, NULL);
}
// Constants of PyTorch's code for the device, which no kernel reads.
static char symbols[1 << 20];
cudaError_t cudaGetSymbolAddress(void **out, const void *symbol) { *out = symbols; return cudaSuccess; }
cudaError_t cudaMemcpyToSymbol(const void *to, const void *from, size_t size, size_t offset, enum cudaMemcpyKind kind) { return cudaSuccess; }
// PyTorch reads these at an end of a capture in its pool; it never takes memory from CUDA's own pools.
cudaError_t cudaDeviceGetGraphMemAttribute(int which, enum cudaGraphMemAttributeType name, void *value) { *(unsigned long long *)value = 0; return cudaSuccess; }
cudaError_t cudaDeviceSetGraphMemAttribute(int which, enum cudaGraphMemAttributeType name, void *value) { return cudaSuccess; }

// ------------------------------------------------------------------------------------------ kernels

// Compiled into PyTorch, each kernel registers its name under the address of a function of the host, when its library is
// loaded. (What else is registered then, and the brackets <<< >>>, stay with the real libcudart: no driver is asked.)
typedef struct { const void *key; const char *name; } Registered;
static Registered *registered;
static size_t n_registered, n_sorted;

void __cudaRegisterFunction(void **binary, const char *key, char *function, const char *name, int limit, void *thread,
                            void *block, void *dimensions, void *grid, int *warp) {
  LOCKED;
  if ((n_registered & (n_registered - 1)) == 0)  // at each power of two
    registered = realloc(registered, (n_registered ? 2 * n_registered : 1) * sizeof *registered);
  registered[n_registered++] = (Registered){key, name};
}
static int by_key(const void *one, const void *other) {
  const void *a = ((Registered *)one)->key, *b = ((Registered *)other)->key;
  return (a > b) - (a < b);
}
static const char *name_of(const void *key) {
  if (n_sorted < n_registered) qsort(registered, n_sorted = n_registered, sizeof *registered, by_key);
  Registered *found = bsearch(&(Registered){key, NULL}, registered, n_registered, sizeof *registered, by_key);
  return found ? found->name : "?";
}

cudaError_t stand_in_launch(const void *key, const char *name, cudaStream_t stream) {
  LOCKED;
  size_t i = 0;
  while (i < n_kernels && kernels[i].key != key) i++;
  if (i == n_kernels) {
    if (n_kernels % 256 == 0) kernels = realloc(kernels, (n_kernels + 256) * sizeof *kernels);
    kernels[n_kernels++] = (Kernel){key, name ? name : name_of(key), 0, 0};
  }
  if (stream_of(stream)->capture) kernels[i].captured++; else kernels[i].launched++;
  return launched(kernels[i].name, stream);
}
cudaError_t cudaLaunchKernel(const void *key, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return stand_in_launch(key, NULL, stream); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *key, void **arguments) { return stand_in_launch(key, NULL, config->stream); }
// CUDA 13 asks for a handle first.
cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *key) { *out = (cudaKernel_t)key; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t key, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return stand_in_launch(key, NULL, stream); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *key) {
  memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->numRegs = 32;
  out->ptxVersion = out->binaryVersion = 90;
  out->maxDynamicSharedSizeBytes = 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *key, enum cudaFuncAttribute name, int value) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t key, enum cudaFuncAttribute name, int value, int which) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *key, int block, size_t shared, unsigned flags) { *out = 2; return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *key, int block, size_t shared) { *out = 2; return cudaSuccess; }

// ------------------------------------------------------------------------------------------ the device

cudaError_t cudaGetDeviceCount(int *out) {
  const char *asked = getenv("STAND_IN_DEVICES");
  *out = asked ? atoi(asked) : 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *out) { *out = device; return cudaSuccess; }
cudaError_t cudaSetDevice(int which) {
  int count;
  cudaGetDeviceCount(&count);
  if (which < 0 || which >= count || which >= MAX_DEVICES) return failed(cudaErrorInvalidDevice);
  device = which;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *out, int one, int other) { *out = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *out, int size, int which) { snprintf(out, size, "0000:%02x:00.0", which); return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *out) { *out = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *out) { *out = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

// Of an H200, as far as PyTorch decides anything by it.
cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr name, int which) {
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor: *out = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *out = 0; break;
    case cudaDevAttrMultiProcessorCount: *out = 132; break;
    case cudaDevAttrWarpSize: *out = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *out = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *out = 2048; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *out = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = 227 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = 228 << 10; break;
    case cudaDevAttrMaxGridDimX: *out = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *out = 65535; break;
    default: *out = 1;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int which) {
  memset(out, 0, sizeof *out);
  strcpy(out->name, "Stand-in for an H200");
  out->totalGlobalMem = TOTAL;
  out->major = 9;
  out->multiProcessorCount = 132;
  out->warpSize = 32;
  out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
  out->maxThreadsDim[2] = 64;
  out->maxThreadsPerMultiProcessor = 2048;
  out->maxBlocksPerMultiProcessor = 32;
  out->maxGridSize[0] = 2147483647;
  out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->sharedMemPerBlock = 48 << 10;
  out->sharedMemPerBlockOptin = 227 << 10;
  out->sharedMemPerMultiprocessor = 228 << 10;
  out->regsPerBlock = out->regsPerMultiprocessor = 65536;
  out->l2CacheSize = 60 << 20;
  out->memoryBusWidth = 6144;
  out->totalConstMem = 65536;
  out->textureAlignment = 512;
  out->concurrentKernels = out->unifiedAddressing = out->canMapHostMemory = out->cooperativeLaunch = 1;
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------ the driver

// PyTorch looks its functions up by name, most of them before it knows whether it will call them.
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
  *out = dlsym(RTLD_DEFAULT, name);
  if (!*out) *out = (void *)nothing;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
int cuDevicePrimaryCtxGetState(int which, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuCtxGetCurrent(void **out) { *out = symbols; return 0; }
int cuGetErrorString(int error, const char **out) { *out = "an error of the stand-in"; return 0; }
// Kernels that NVRTC, which needs no GPU, has compiled for a call: digamma and the like.
int cuModuleLoadData(void **out, const void *image) { *out = symbols; return 0; }
int cuModuleGetFunction(void **out, void *module, const char *name) { *out = strdup(name); return 0; }
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   cudaStream_t stream, void **arguments, void **extra) {
  return stand_in_launch(function, function, stream);
}
