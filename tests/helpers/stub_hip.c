/* AMD's HIP without a card: memory is the process's own, and what a program asks for is written to the file $STUB_LOG.
 * It runs no kernels. $STUB_CARDS: the EF_AMDGPU_MACH of its cards' architectures, as "65,76" (default 65: gfx1100);
 * $STUB_MEMORY: MiB of a card (default 1024); $STUB_INIT, $STUB_LAUNCH: what initialization and launches return. */
#include "stub_notes.h"

typedef int Code;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NO_BINARY = 209, NOT_FOUND = 500 };

static int current;
static size_t used;

/* The architecture of a card; 0 where there is none. */
static int card(int index) { return listed(index, "65"); }

Code hipInit(unsigned flags) { return flags ? INVALID_VALUE : number("STUB_INIT", 0); }
Code hipRuntimeGetVersion(int *version) { return *version = 60342134, 0; }
Code hipGetDeviceCount(int *count) {
  for (*count = 0; card(*count);) ++*count;
  return *count ? SUCCESS : NO_DEVICE;
}
Code hipSetDevice(int device) { return current = device, card(device) ? SUCCESS : 101; }
Code hipDeviceGetName(char *name, int size, int device) { return snprintf(name, (size_t)size, "Stub %d", device), 0; }
Code hipDeviceTotalMem(size_t *bytes, int device) {
  return (void)device, *bytes = (size_t)number("STUB_MEMORY", 1024) << 20, 0;
}
Code hipDeviceGetAttribute(int *value, int which, int device) {
  (void)device;
  switch (which) {
    case 5: return *value = 2500000, 0;
    case 19: return *value = 6 << 20, 0;
    case 26: case 27: case 28: case 56: return *value = 1024, 0;
    case 63: return *value = 48, 0;
    case 67: return *value = 255, 0; /* a bus where nothing is */
    case 68: case 69: return *value = 0, 0;
    case 74: return *value = 65536, 0;
    case 87: return *value = 32, 0;
  }
  return INVALID_VALUE;
}
const char *hipGetErrorName(Code code) {
  switch (code) {
    case SUCCESS: return "hipSuccess";
    case OUT_OF_MEMORY: return "hipErrorOutOfMemory";
    case NO_BINARY: return "hipErrorNoBinaryForGpu";
    case NOT_FOUND: return "hipErrorNotFound";
    case 719: return "hipErrorLaunchFailure";
  }
  return "hipErrorInvalidValue";
}

/* Memory: the size of a block stands before it. */
Code hipMalloc(void **memory, size_t bytes) {
  if (used + bytes > (size_t)number("STUB_MEMORY", 1024) << 20) return note("malloc fails\n"), OUT_OF_MEMORY;
  char *block = aligned_alloc(256, (bytes + 511) / 256 * 256);
  *(size_t *)block = bytes;
  used += bytes;
  return note("malloc %d %zu\n", current, bytes), *memory = memset(block + 256, 0, bytes), 0;
}
Code hipFree(void *memory) {
  char *block = (char *)memory - 256;
  used -= *(size_t *)block;
  return note("free %d %zu\n", current, *(size_t *)block), free(block), 0;
}
Code hipHostMalloc(void **memory, size_t bytes, unsigned flags) {
  return flags ? INVALID_VALUE : ((*memory = malloc(bytes)) ? SUCCESS : OUT_OF_MEMORY);
}
Code hipMemGetInfo(size_t *available, size_t *all) {
  hipDeviceTotalMem(all, 0);
  return *available = *all - used, 0;
}
Code hipMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  return note("copy %d %zu %d%s\n", current, bytes, kind, stream ? "" : " without a stream"), memcpy(to, from, bytes), 0;
}

Code hipStreamCreateWithFlags(void **stream, unsigned flags) {
  static int streams[16];
  return *stream = &streams[current], flags == 1 ? SUCCESS : INVALID_VALUE;
}
Code hipStreamSynchronize(void *stream) { return (void)stream, note("wait %d\n", current), 0; }
Code hipEventCreateWithFlags(void **event, unsigned flags) {
  return *event = malloc(1), flags == 2 ? SUCCESS : INVALID_VALUE;
}
Code hipEventRecord(void *event, void *stream) { return event && stream ? note("record\n"), SUCCESS : INVALID_VALUE; }
Code hipEventSynchronize(void *event) { return event ? note("wait for event\n"), SUCCESS : INVALID_VALUE; }

Code hipModuleLoadData(void **module, const void *image) {
  const unsigned char *bytes = image;
  if (memcmp(bytes, "\x7f" "ELF", 4)) return 200;
  int architecture = bytes[48]; /* the lowest byte of e_flags */
  note("load %d %d\n", current, architecture);
  return *module = (void *)image, architecture == card(current) ? SUCCESS : NO_BINARY;
}
Code hipModuleUnload(void *module) { return (void)module, note("unload %d\n", current), 0; }
Code hipModuleGetFunction(void **function, void *module, const char *name) {
  (void)module;
  return *function = strdup(name), number("STUB_NO_FUNCTIONS", 0) ? NOT_FOUND : SUCCESS;
}
Code hipFuncGetAttribute(int *value, int attribute, void *function) {
  (void)function;
  return *value = attribute == 0 ? number("STUB_MAX_THREADS", 256) : number("STUB_SHARED", 512), 0;
}
Code hipModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned x, unsigned y, unsigned z,
                           unsigned shared, void *stream, void **arguments, void **extra) {
  const unsigned char *packed = extra[1];
  size_t size = *(size_t *)extra[3];
  if (arguments || (uintptr_t)extra[0] != 1 || (uintptr_t)extra[2] != 2 || (uintptr_t)extra[4] != 3 || !stream) return 1;
  note("launch %d %s %u,%u,%u %u,%u,%u %u ", current, (char *)function, gx, gy, gz, x, y, z, shared);
  for (size_t i = 0; i < size; ++i) note("%02x", packed[i]);
  note("\n");
  return number("STUB_LAUNCH", 0);
}
