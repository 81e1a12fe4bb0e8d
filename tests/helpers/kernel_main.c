/* Runs one compiled kernel on a processor that qemu emulates: a program without TVM's runtime, linked with the kernel's
 * object file and with the thread pool of model libraries.
 *
 * Standard input: int32 number of arguments, then for each int32 ndim and
 *     ndim >= 0    int32 type code, int32 bits, int64 shape[ndim], the data: a tensor
 *     ndim == -1   int64: an integer
 * Standard output: the data of every tensor after the call, in their order.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* TVM's interfaces: c_api.h of tvm_ffi, dlpack.h, c_backend_api.h of the runtime. */
typedef struct {
  int32_t type;
  uint32_t padding;
  union {
    int64_t integer;
    void *pointer;
  };
} Any;
enum { TYPE_INTEGER = 1, TYPE_TENSOR = 7 };
typedef struct {
  void *data;
  int32_t device_type, device;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t offset;
} Tensor;
enum { DEVICE_CPU = 1, MAX_ARGUMENTS = 64, MAX_DIMENSIONS = 8, ALIGNMENT = 64 };

int __tvm_ffi_kernel(void *self, const Any *arguments, int32_t count, Any *result);
int __tvm_ffi_set_num_threads(void *self, const Any *arguments, int32_t count, Any *result);

static void *allocate(size_t bytes) { return aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT); }

static void *allocate_workspace(int type, int device, uint64_t bytes, int code, int bits) {
  (void)type, (void)device, (void)code, (void)bits;
  return allocate(bytes);
}

static int free_workspace(int type, int device, void *memory) {
  (void)type, (void)device;
  free(memory);
  return 0;
}

/* What TVM's runtime sets when it loads a library. */
__attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *) = free_workspace;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

static void take(void *target, size_t bytes) {
  if (bytes && fread(target, bytes, 1, stdin) != 1) {
    fputs("the input ends early\n", stderr);
    exit(2);
  }
}

int main(void) {
  static Any arguments[MAX_ARGUMENTS];
  static Tensor tensors[MAX_ARGUMENTS];
  static int64_t shapes[MAX_ARGUMENTS][MAX_DIMENSIONS];
  static size_t sizes[MAX_ARGUMENTS];
  Any threads = {TYPE_INTEGER, 0, {2}}, result = {0};
  int32_t count;
  take(&count, sizeof count);
  if (count > MAX_ARGUMENTS) return 2;
  for (int i = 0; i < count; ++i) {
    int32_t ndim, code, bits;
    take(&ndim, sizeof ndim);
    if (ndim < 0) {
      arguments[i].type = TYPE_INTEGER;
      take(&arguments[i].integer, sizeof(int64_t));
      continue;
    }
    if (ndim > MAX_DIMENSIONS) return 2;
    take(&code, sizeof code);
    take(&bits, sizeof bits);
    take(shapes[i], ndim * sizeof(int64_t));
    sizes[i] = bits / 8;
    for (int d = 0; d < ndim; ++d) sizes[i] *= shapes[i][d];
    tensors[i] = (Tensor){allocate(sizes[i]), DEVICE_CPU, 0, ndim, code, bits, 1, shapes[i], 0, 0};
    take(tensors[i].data, sizes[i]);
    arguments[i].type = TYPE_TENSOR;
    arguments[i].pointer = &tensors[i];
  }
  __TVMBackendAllocWorkspace = allocate_workspace;
  __TVMBackendFreeWorkspace = free_workspace;
  if (__tvm_ffi_set_num_threads(0, &threads, 1, &result) != 0) return 3;
  if (__tvm_ffi_kernel(0, arguments, count, &result) != 0) return 3;
  for (int i = 0; i < count; ++i)
    if (arguments[i].type == TYPE_TENSOR) fwrite(tensors[i].data, sizes[i], 1, stdout);
  return 0;
}
