// Kernels as a device runs them, and what the driver made of them kept on disk.
#pragma once

#include <string>
#include <unordered_map>

#include "../shared/disk_cache.h"
#include "device_info.h"
#include "kernel.h"

namespace mlc {
namespace vulkan {

struct Pipeline {
  VkDescriptorSetLayout set_layout = 0;
  VkPipelineLayout layout = 0;
  VkPipeline pipeline = 0;
};

// Built at a kernel's first call. Not locked.
class Pipelines {
 public:
  Pipelines(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions);

  // Throws, naming the kernel, where the device or its driver refuses it.
  const Pipeline& Get(const Kernel& kernel);
  // Of kernels whose module goes; the device must have done with them.
  void Forget(const Kernel& kernel);
  bool Knows(const Kernel& kernel) const { return built_.count(&kernel) != 0; }
  // Called at each synchronization: keeps the cache once no kernel has been built since the last one, so that
  // the first steps of a model are kept together.
  void Synchronized();

  uint64_t count() const { return built_.size(); }

 private:
  void Build(const Kernel& kernel, Pipeline* pipeline);
  void Destroy(const Pipeline& pipeline);

  const DeviceInfo& info_;
  const VkDevice device_;
  const DeviceFunctions& functions_;
  const DiskCache disk_;
  VkPipelineCache cache_ = 0;
  std::unordered_map<const Kernel*, Pipeline> built_;
  bool unsaved_ = false, built_since_ = false;
};

}  // namespace vulkan
}  // namespace mlc
