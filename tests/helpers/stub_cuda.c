/* A CUDA driver and runtime without a card: memory is the process's own, and what a program asks for is written to
 * the file $STUB_LOG. It runs those kernels whose image is "HOSTCODE" and the path of a library of this machine, made as
 * cuda_on_cpu.py does, and no others. A stream that is captured keeps its launches with copies of their arguments, which
 * it finds by the sizes that such a library tells, and meanwhile there is no new memory. $STUB_CARDS: the compute capabilities of its cards, as "90,80" (default 90);
 * $STUB_VERSION: what the driver is for (default 13000); $STUB_LAUNCH: the code that launches return (default 0). */
#include <dlfcn.h>

#include "stub_notes.h"

typedef int Code;

/* The compute capability of a card, as 90; 0 where there is none. */
static int card(int index) { return listed(index, "90"); }

static int cards(void) {
  int count = 0;
  while (card(count)) ++count;
  return count;
}

#ifdef DRIVER
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream, *attributes;
  unsigned count;
} Launch;

Code cuInit(unsigned flags) { return flags ? 1 : cards() ? 0 : 100; }
Code cuDriverGetVersion(int *version) { return *version = number("STUB_VERSION", 13000), 0; }
Code cuDeviceGetCount(int *count) { return *count = cards(), 0; }
Code cuDeviceGet(int *device, int index) { return *device = index, 0; }
Code cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)(device + 1) << 33, 0; }
Code cuDeviceGetName(char *name, int size, int device) {
  return snprintf(name, (size_t)size, "Stub %d", device), 0;
}
Code cuDeviceGetAttribute(int *value, int which, int device) {
  switch (which) {
    case 1: return *value = 1024, 0;
    case 8: return *value = 49152, 0;
    case 10: return *value = 32, 0;
    case 16: return *value = 132, 0;
    case 75: return *value = card(device) / 10, 0;
    case 76: return *value = card(device) % 10, 0;
  }
  return 1;
}
Code cuGetErrorName(Code code, const char **name) {
  return *name = code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_INVALID_VALUE", 0;
}
Code cuGetErrorString(Code code, const char **text) { return cuGetErrorName(code, text); }

typedef struct {
  char *name;
  void (*run)(const unsigned *grid, const unsigned *block, void **arguments);  /* NULL: notes only */
  const unsigned *sizes;  /* of the arguments, then 0; NULL: unknown */
} Function;

typedef struct Kept {
  Function *function;
  unsigned grid[3], block[3];
  void **arguments;
  struct Kept *next;
} Kept;
static void *captured;  /* the stream */
static Kept *first_kept, **end_of_kept = &first_kept;

static void *libraries[256];
static int loaded;

Code cuModuleLoadData(void **module, const void *image) {
  const unsigned char *bytes = image;
  if (!memcmp(image, "HOSTCODE", 8)) {
    *module = dlopen((const char *)image + 8, RTLD_NOW);
    if (!*module) fprintf(stderr, "%s\n", dlerror());
    if (*module && loaded < 256) libraries[loaded++] = *module;
    return *module ? 0 : 209;
  }
  note("load %02x%02x%02x%02x\n", bytes[0], bytes[1], bytes[2], bytes[3]);
  return *module = (void *)image, 0;
}
Code cuModuleUnload(void *module) { return (void)module, 0; }
Code cuModuleGetFunction(void **function, void *module, const char *name) {
  Function *found = calloc(1, sizeof(Function));
  char launch[512];
  found->name = strdup(name);
  snprintf(launch, sizeof launch, "launch_%s", name);
  for (void **library = libraries; library < libraries + loaded; ++library) {
    if (*library != module) continue;
    *(void **)&found->run = dlsym(module, launch);
    snprintf(launch, sizeof launch, "sizes_%s", name);
    found->sizes = dlsym(module, launch);
  }
  return note("function %s\n", name), *function = found, 0;
}
Code cuFuncSetAttribute(void *function, int attribute, int value) {
  return note("attribute %s %d %d\n", ((Function *)function)->name, attribute, value), 0;
}
Code cuTensorMapEncodeTiled(void) { return 1; }
static void keep(const Launch *launch, Function *function, void **arguments) {
  Kept *kept = calloc(1, sizeof(Kept));
  kept->function = function;
  memcpy(kept->grid, launch->grid, sizeof kept->grid);
  memcpy(kept->block, launch->block, sizeof kept->block);
  kept->arguments = calloc(64, sizeof(void *));
  for (int i = 0; function->sizes && function->sizes[i] && i < 64; ++i) {
    kept->arguments[i] = malloc(function->sizes[i]);
    memcpy(kept->arguments[i], arguments[i], function->sizes[i]);
  }
  *end_of_kept = kept;
  end_of_kept = &kept->next;
}
/* For the runtime below. */
void stub_capture(void *stream) { captured = stream, first_kept = NULL, end_of_kept = &first_kept; }
void *stub_end_capture(void) { return captured = NULL, first_kept; }
void stub_replay(void *graph) {
  for (Kept *kept = graph; kept; kept = kept->next)
    if (kept->function->run) kept->function->run(kept->grid, kept->block, kept->arguments);
}
Code cuLaunchKernelEx(const Launch *launch, void *function, void **arguments, void **extra) {
  Function *called = function;
  (void)extra;
  if (captured && launch->stream == captured) return note("keep %s\n", called->name), keep(launch, called, arguments), 0;
  if (called->run) called->run(launch->grid, launch->block, arguments);
  note("launch %s %u,%u,%u %u,%u,%u\n", called->name, launch->grid[0], launch->grid[1], launch->grid[2],
       launch->block[0], launch->block[1], launch->block[2]);
  return number("STUB_LAUNCH", 0);
}
#else
static int current, capturing;
enum { UNSUPPORTED_IN_CAPTURE = 900 };

static void *of_driver(const char *name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), name); }
Code cudaStreamCreate(void **stream) { return *stream = malloc(1), 0; }
Code cudaStreamDestroy(void *stream) { return free(stream), 0; }
Code cudaStreamBeginCapture(void *stream, int mode) {
  (void)mode;
  capturing = 1;
  return ((void (*)(void *))of_driver("stub_capture"))(stream), note("capture\n"), 0;
}
Code cudaStreamEndCapture(void *stream, void **graph) {
  (void)stream;
  capturing = 0;
  return *graph = ((void *(*)(void))of_driver("stub_end_capture"))(), note("captured\n"), 0;
}
Code cudaGraphInstantiate(void **ready, void *graph) { return *ready = graph, 0; }
Code cudaGraphLaunch(void *graph, void *stream) {
  (void)stream;
  return note("replay\n"), ((void (*)(void *))of_driver("stub_replay"))(graph), 0;
}
Code cudaGraphDestroy(void *graph) { return (void)graph, 0; }
Code cudaGraphExecDestroy(void *graph) { return (void)graph, 0; }
Code cudaGetDeviceCount(int *count) { return *count = cards(), 0; }
Code cudaSetDevice(int device) { return current = device, device < cards() ? 0 : 101; }
Code cudaGetDevice(int *device) { return *device = current, 0; }
Code cudaMalloc(void **memory, size_t bytes) { return capturing ? UNSUPPORTED_IN_CAPTURE : (*memory = aligned_alloc(256, (bytes + 255) / 256 * 256)) ? (memset(*memory, 0, bytes), 0) : 2; }
Code cudaMallocHost(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }
Code cudaFree(void *memory) { return free(memory), 0; }
Code cudaFreeHost(void *memory) { return free(memory), 0; }
Code cudaMemGetInfo(size_t *free_bytes, size_t *bytes) { return *free_bytes = *bytes = (size_t)1 << 33, 0; }
Code cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  return (void)stream, capturing ? UNSUPPORTED_IN_CAPTURE : (note("copy %zu %d\n", bytes, kind), memcpy(to, from, bytes), 0);
}
Code cudaStreamSynchronize(void *stream) { return (void)stream, 0; }
const char *cudaGetErrorName(Code code) { return (void)code, "cudaErrorStub"; }
const char *cudaGetErrorString(Code code) { return cudaGetErrorName(code); }
#define UNUSED(name) \
  Code name(void) { return 1; }
UNUSED(cudaDeviceGetAttribute)
UNUSED(cudaEventCreate)
UNUSED(cudaEventDestroy)
UNUSED(cudaEventElapsedTime)
UNUSED(cudaEventRecord)
UNUSED(cudaEventSynchronize)
UNUSED(cudaGetDeviceProperties)
UNUSED(cudaGetLastError)
UNUSED(cudaMemcpyPeerAsync)
UNUSED(cudaPeekAtLastError)
UNUSED(cudaStreamCreateWithFlags)
UNUSED(cudaStreamWaitEvent)
#endif
