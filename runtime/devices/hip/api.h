// The part of HIP that is used here, declared by ourselves and found in the driver's library at run time.
//
// Source of types, numbers and signatures: AMD, "HIP Runtime API Reference". Attributes have these numbers since ROCm 4.4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mlc {
namespace hip {

using hipError_t = int;
using hipDevice_t = int;
using hipStream_t = struct ihipStream_t*;
using hipEvent_t = struct ihipEvent_t*;
using hipModule_t = struct ihipModule_t*;
using hipFunction_t = struct ihipModuleSymbol_t*;

enum : hipError_t {
  hipSuccess = 0,
  hipErrorOutOfMemory = 2,
  hipErrorNoDevice = 100,
};
enum hipMemcpyKind : int { hipMemcpyHostToDevice = 1, hipMemcpyDeviceToHost = 2, hipMemcpyDeviceToDevice = 3 };
enum hipDeviceAttribute_t : int {
  hipDeviceAttributeClockRate = 5,  // kHz
  hipDeviceAttributeL2CacheSize = 19,
  hipDeviceAttributeMaxBlockDimX = 26,  // then Y and Z
  hipDeviceAttributeMaxThreadsPerBlock = 56,
  hipDeviceAttributeMultiprocessorCount = 63,
  hipDeviceAttributePciBusId = 67,
  hipDeviceAttributePciDeviceId = 68,
  hipDeviceAttributePciDomainID = 69,
  hipDeviceAttributeMaxSharedMemoryPerBlock = 74,
  hipDeviceAttributeWarpSize = 87,
};
enum hipFunction_attribute : int {
  HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
};
enum : unsigned { hipEventDisableTiming = 2, hipStreamNonBlocking = 1 };

// What a launch finds its arguments by: {pointer tag, arguments, size tag, size, end}.
inline void* LaunchTag(uintptr_t tag) { return reinterpret_cast<void*>(tag); }
constexpr uintptr_t HIP_LAUNCH_PARAM_BUFFER_POINTER = 1, HIP_LAUNCH_PARAM_BUFFER_SIZE = 2, HIP_LAUNCH_PARAM_END = 3;

// name, parameters; all return an error code
#define MLC_HIP_FUNCTIONS(F)                                                                                         \
  F(Init, (unsigned))                                                                                                \
  F(RuntimeGetVersion, (int*))                                                                                       \
  F(GetDeviceCount, (int*))                                                                                          \
  F(SetDevice, (int))                                                                                                \
  F(DeviceGetName, (char*, int, hipDevice_t))                                                                        \
  F(DeviceTotalMem, (size_t*, hipDevice_t))                                                                          \
  F(DeviceGetAttribute, (int*, hipDeviceAttribute_t, int))                                                           \
  F(MemGetInfo, (size_t*, size_t*))                                                                                  \
  F(Malloc, (void**, size_t))                                                                                        \
  F(Free, (void*))                                                                                                   \
  F(HostMalloc, (void**, size_t, unsigned))                                                                          \
  F(MemcpyAsync, (void*, const void*, size_t, hipMemcpyKind, hipStream_t))                                           \
  F(StreamCreateWithFlags, (hipStream_t*, unsigned))                                                                 \
  F(StreamSynchronize, (hipStream_t))                                                                                \
  F(EventCreateWithFlags, (hipEvent_t*, unsigned))                                                                   \
  F(EventRecord, (hipEvent_t, hipStream_t))                                                                          \
  F(EventSynchronize, (hipEvent_t))                                                                                  \
  F(ModuleLoadData, (hipModule_t*, const void*))                                                                     \
  F(ModuleUnload, (hipModule_t))                                                                                     \
  F(ModuleGetFunction, (hipFunction_t*, hipModule_t, const char*))                                                   \
  F(FuncGetAttribute, (int*, hipFunction_attribute, hipFunction_t))                                                  \
  F(ModuleLaunchKernel, (hipFunction_t, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,        \
                         hipStream_t, void**, void**))

// The functions, as `Api::Get().Malloc(...)`; to be called only where `problem` is empty.
struct Api {
#define MLC_HIP_DECLARE(name, parameters) hipError_t(*name) parameters = nullptr;
  MLC_HIP_FUNCTIONS(MLC_HIP_DECLARE)
#undef MLC_HIP_DECLARE
  const char* (*GetErrorName)(hipError_t) = nullptr;

  std::string problem;  // why there is no HIP, and what to install

  static const Api& Get();

 private:
  Api();
};

// "hipErrorOutOfMemory"
std::string ErrorName(hipError_t code);

// Throws, naming what failed, unless `code` is success.
void Check(hipError_t code, const std::string& what);

}  // namespace hip
}  // namespace mlc
