// A kernel of a compiled module: its code, its arguments, and what it needs of a device.
#pragma once

#include <string>
#include <vector>

#include "../shared/kernel.h"
#include "device_info.h"
#include "shader.h"

namespace mlc {
namespace vulkan {

struct Kernel {
  KernelInfo info;
  uint32_t workgroup[3] = {1, 1, 1};     // its threads
  uint32_t features = 0;                 // bits of Feature
  bool beside_matrices = false;          // another kernel of the library uses cooperative matrices
  uint32_t push_constants = 0;           // bytes of its scalars
  std::vector<uint32_t> scalar_offsets;  // of each argument among them; unused for buffers
  size_t buffers = 0;
  std::string code;
  Shader shader;

  // Reads the next kernel of a module. Throws where its parts contradict one another.
  explicit Kernel(SavedBytes* reader);

  // Throws, naming kernel, limit and value, where the device cannot run this.
  void CheckDevice(const DeviceInfo& device) const;
  // The same for the sizes of a call, whose threads have to be those that the kernel was compiled for.
  void CheckLaunch(const DeviceInfo& device, const Launch& launch) const;
};

}  // namespace vulkan
}  // namespace mlc
