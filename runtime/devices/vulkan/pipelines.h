// Kernels as a device runs them, and what the driver made of them kept on disk.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "../shared/builds.h"
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

// Built at a kernel's first call, or before. For any number of threads.
class Pipelines {
 public:
  Pipelines(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions);

  // Throws, naming the kernel, where the device or its driver refuses it.
  const Pipeline& Get(const Kernel& kernel);
  // Builds all of them, on several threads. Throws as `Get`.
  void BuildAll(const std::vector<std::unique_ptr<Kernel>>& kernels, size_t threads);
  // Of kernels whose module goes; the device must have done with them.
  void Forget(const Kernel& kernel);
  bool Knows(const Kernel& kernel) const { return built_.Has(&kernel); }
  // Called at each synchronization: keeps the cache once no kernel has been built since the last one, so that
  // the first steps of a model are kept together.
  void Synchronized();

  uint64_t count() const { return count_; }

 private:
  Pipeline Build(const Kernel& kernel);
  void Build(const Kernel& kernel, Pipeline* pipeline);
  void Destroy(const Pipeline& pipeline);

  const DeviceInfo& info_;
  const VkDevice device_;
  const DeviceFunctions& functions_;
  const DiskCache disk_;
  VkPipelineCache cache_ = 0;
  Builds<const Kernel*, Pipeline> built_;
  std::atomic<uint64_t> count_{0};
  std::atomic<bool> unsaved_{false}, built_since_{false};
};

}  // namespace vulkan
}  // namespace mlc
