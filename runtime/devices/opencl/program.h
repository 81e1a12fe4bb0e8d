// Kernels as a library carries them, OpenCL C, and as a device runs them.
#pragma once

#include <map>
#include <string>

#include "../shared/disk_cache.h"
#include "../shared/kernel.h"
#include "device.h"

namespace mlc {
namespace opencl {

// The text of one kernel, and the threads of a group that it is for.
struct KernelText {
  std::string source;
  size_t threads[3];
};

// Kernels by name in the text of a module. Throws where a kernel does not say how many threads it is for.
std::map<std::string, KernelText> SplitSource(const std::string& source);

// Has the driver build a kernel, or takes what it made of it in an earlier run from the disk. Throws, naming kernel,
// limit and value, where the device cannot run it, and with the driver's reason where that rejects it.
cl_kernel BuildKernel(Device& device, const KernelInfo& info, const KernelText& text, const DiskCache& cache);

}  // namespace opencl
}  // namespace mlc
