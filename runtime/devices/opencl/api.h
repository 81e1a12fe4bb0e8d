// The part of OpenCL 1.2 that is used here, declared by ourselves and found in the driver's library at run time.
//
// Source of types, numbers and signatures: Khronos, "The OpenCL Specification", version 1.2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mlc {
namespace opencl {

using cl_int = int32_t;
using cl_uint = uint32_t;
using cl_ulong = uint64_t;
using cl_bitfield = uint64_t;
struct _cl_platform_id;
struct _cl_device_id;
struct _cl_context;
struct _cl_command_queue;
struct _cl_mem;
struct _cl_program;
struct _cl_kernel;
struct _cl_event;
using cl_platform_id = _cl_platform_id*;
using cl_device_id = _cl_device_id*;
using cl_context = _cl_context*;
using cl_command_queue = _cl_command_queue*;
using cl_mem = _cl_mem*;
using cl_program = _cl_program*;
using cl_kernel = _cl_kernel*;
using cl_event = _cl_event*;

enum : cl_int {
  CL_SUCCESS = 0,
  CL_DEVICE_NOT_FOUND = -1,
  CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
  CL_OUT_OF_RESOURCES = -5,
  CL_OUT_OF_HOST_MEMORY = -6,
};
enum : cl_uint { CL_FALSE = 0, CL_TRUE = 1 };
enum : cl_bitfield {
  CL_DEVICE_TYPE_CPU = 1 << 1,
  CL_DEVICE_TYPE_GPU = 1 << 2,
  CL_DEVICE_TYPE_ACCELERATOR = 1 << 3,
  CL_MEM_READ_WRITE = 1 << 0,
};
enum : cl_uint {
  CL_PLATFORM_VERSION = 0x0901,
  CL_PLATFORM_NAME = 0x0902,
  CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002,
  CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
  CL_DEVICE_MAX_WORK_ITEM_SIZES = 0x1005,
  CL_DEVICE_MAX_CLOCK_FREQUENCY = 0x100C,
  CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010,
  CL_DEVICE_MAX_PARAMETER_SIZE = 0x1017,
  CL_DEVICE_GLOBAL_MEM_CACHE_SIZE = 0x101E,
  CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
  CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
  CL_DEVICE_ENDIAN_LITTLE = 0x1026,
  CL_DEVICE_AVAILABLE = 0x1027,
  CL_DEVICE_COMPILER_AVAILABLE = 0x1028,
  CL_DEVICE_NAME = 0x102B,
  CL_DEVICE_VENDOR = 0x102C,
  CL_DRIVER_VERSION = 0x102D,
  CL_DEVICE_VERSION = 0x102F,
  CL_DEVICE_EXTENSIONS = 0x1030,
  CL_PROGRAM_BINARY_SIZES = 0x1165,
  CL_PROGRAM_BINARIES = 0x1166,
  CL_PROGRAM_BUILD_LOG = 0x1183,
  CL_KERNEL_WORK_GROUP_SIZE = 0x11B0,
  CL_KERNEL_LOCAL_MEM_SIZE = 0x11B2,
};

// name, result, parameters
#define MLC_OPENCL_FUNCTIONS(F)                                                                                     \
  F(GetPlatformIDs, cl_int, (cl_uint, cl_platform_id*, cl_uint*))                                                   \
  F(GetPlatformInfo, cl_int, (cl_platform_id, cl_uint, size_t, void*, size_t*))                                     \
  F(GetDeviceIDs, cl_int, (cl_platform_id, cl_bitfield, cl_uint, cl_device_id*, cl_uint*))                          \
  F(GetDeviceInfo, cl_int, (cl_device_id, cl_uint, size_t, void*, size_t*))                                         \
  F(CreateContext, cl_context, (const intptr_t*, cl_uint, const cl_device_id*,                                      \
                                void (*)(const char*, const void*, size_t, void*), void*, cl_int*))                 \
  F(CreateCommandQueue, cl_command_queue, (cl_context, cl_device_id, cl_bitfield, cl_int*))                         \
  F(CreateBuffer, cl_mem, (cl_context, cl_bitfield, size_t, void*, cl_int*))                                        \
  F(ReleaseMemObject, cl_int, (cl_mem))                                                                             \
  F(CreateProgramWithSource, cl_program, (cl_context, cl_uint, const char**, const size_t*, cl_int*))               \
  F(CreateProgramWithBinary, cl_program, (cl_context, cl_uint, const cl_device_id*, const size_t*,                  \
                                          const unsigned char**, cl_int*, cl_int*))                                 \
  F(BuildProgram, cl_int, (cl_program, cl_uint, const cl_device_id*, const char*, void (*)(cl_program, void*),      \
                           void*))                                                                                  \
  F(GetProgramInfo, cl_int, (cl_program, cl_uint, size_t, void*, size_t*))                                          \
  F(GetProgramBuildInfo, cl_int, (cl_program, cl_device_id, cl_uint, size_t, void*, size_t*))                       \
  F(ReleaseProgram, cl_int, (cl_program))                                                                           \
  F(CreateKernel, cl_kernel, (cl_program, const char*, cl_int*))                                                    \
  F(GetKernelWorkGroupInfo, cl_int, (cl_kernel, cl_device_id, cl_uint, size_t, void*, size_t*))                     \
  F(SetKernelArg, cl_int, (cl_kernel, cl_uint, size_t, const void*))                                                \
  F(ReleaseKernel, cl_int, (cl_kernel))                                                                             \
  F(EnqueueNDRangeKernel, cl_int, (cl_command_queue, cl_kernel, cl_uint, const size_t*, const size_t*,              \
                                   const size_t*, cl_uint, const cl_event*, cl_event*))                             \
  F(EnqueueReadBuffer, cl_int, (cl_command_queue, cl_mem, cl_uint, size_t, size_t, void*, cl_uint, const cl_event*, \
                                cl_event*))                                                                         \
  F(EnqueueWriteBuffer, cl_int, (cl_command_queue, cl_mem, cl_uint, size_t, size_t, const void*, cl_uint,           \
                                 const cl_event*, cl_event*))                                                       \
  F(EnqueueCopyBuffer, cl_int, (cl_command_queue, cl_mem, cl_mem, size_t, size_t, size_t, cl_uint, const cl_event*, \
                                cl_event*))                                                                         \
  F(WaitForEvents, cl_int, (cl_uint, const cl_event*))                                                              \
  F(ReleaseEvent, cl_int, (cl_event))                                                                               \
  F(Flush, cl_int, (cl_command_queue))                                                                              \
  F(Finish, cl_int, (cl_command_queue))

// The functions, as `Api::Get().CreateBuffer(...)`; to be called only where `problem` is empty.
struct Api {
#define MLC_OPENCL_DECLARE(name, result, parameters) result(*name) parameters = nullptr;
  MLC_OPENCL_FUNCTIONS(MLC_OPENCL_DECLARE)
#undef MLC_OPENCL_DECLARE

  std::string problem;  // why there is no OpenCL, and what to install

  static const Api& Get();

 private:
  Api();
};

// "CL_OUT_OF_RESOURCES"
std::string ErrorName(cl_int code);

// Throws, naming what failed, unless `code` is success.
void Check(cl_int code, const std::string& what);

}  // namespace opencl
}  // namespace mlc
