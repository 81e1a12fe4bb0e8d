/* The Vulkan loader of this machine, $STUB_LOADER, with a driver behind it that takes no kernel: each pipeline is refused
 * with the number $STUB_REFUSAL. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Function)(void);
typedef Function (*Find)(void *, const char *);

static Find loader(void) {
  static Find find;
  if (!find) find = (Find)dlsym(dlopen(getenv("STUB_LOADER"), RTLD_NOW), "vkGetInstanceProcAddr");
  return find;
}

static void *instance; /* through which the loader finds functions */

static int refuse(void) { return atoi(getenv("STUB_REFUSAL")); }

static Function of_device(void *device, const char *name) {
  if (!strcmp(name, "vkCreateComputePipelines")) return (Function)refuse;
  return ((Find)loader()(instance, "vkGetDeviceProcAddr"))(device, name);
}

Function vkGetInstanceProcAddr(void *of, const char *name) {
  if (of) instance = of;
  return strcmp(name, "vkGetDeviceProcAddr") ? loader()(of, name) : (Function)of_device;
}
