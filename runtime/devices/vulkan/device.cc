#include "device.h"

#include <cstring>

namespace mlc {
namespace vulkan {

Device::Device(const Driver& driver, const DeviceInfo& info) : info_(info) {
  FeatureChain features;
  std::vector<const char*> extensions;
  driver.ReadFeatures(info_, &features, &extensions);
  float priority = 1;
  VkDeviceQueueCreateInfo queue{VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO};
  queue.queueFamilyIndex = info_.queue_family;
  queue.queueCount = 1;
  queue.pQueuePriorities = &priority;
  VkDeviceCreateInfo create{VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO};
  create.pNext = &features.core;
  create.queueCreateInfoCount = 1;
  create.pQueueCreateInfos = &queue;
  create.enabledExtensionCount = static_cast<uint32_t>(extensions.size());
  create.ppEnabledExtensionNames = extensions.data();
  Check(driver.functions().vkCreateDevice(info_.handle, &create, nullptr, &device_), info_.label, ": vkCreateDevice");
  auto find = driver.functions().vkGetDeviceProcAddr;
#define MLC_FIND(function, result, arguments)                                               \
  functions_.function = reinterpret_cast<result(*) arguments>(find(device_, #function)); \
  if (functions_.function == nullptr) Fail(info_.label, ": its driver has no function " #function);
  MLC_VULKAN_DEVICE_FUNCTIONS(MLC_FIND)
#undef MLC_FIND
  parts_ = std::make_unique<Parts>(info_, device_, functions_);
}

Device::Parts& Device::parts() const {
  if (closed_) Fail(info_.label, ": the process is ending");
  return *parts_;
}

// Where `bytes` at `address` are. Throws unless all of them lie in one tensor.
Place Device::Find(uint64_t address, uint64_t bytes) {
  Place place{};
  if (!parts().memory.Find(address, &place)) Fail(info_.label, ": a tensor's address is not one of this device");
  if (place.left() < bytes) {
    Fail(info_.label, ": ", Bytes(bytes), " are copied, ", Bytes(place.left()), " are there");
  }
  return place;
}

uint64_t Device::Allocate(uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  return parts().memory.Allocate(bytes);
}

void Device::Free(uint64_t address) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!closed_) parts_->memory.Free(address);
}

void Device::Write(const void* from, uint64_t to, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Place place = Find(to, bytes);
  parts_->transfers.Write(from, place, to, bytes);
}

void Device::Read(uint64_t from, void* to, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Place place = Find(from, bytes);
  parts_->transfers.Read(place, from, to, bytes);
}

void Device::Copy(uint64_t from, uint64_t to, uint64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Place source = Find(from, bytes), target = Find(to, bytes);
  parts_->transfers.Copy(source, from, target, to, bytes);
}

void Device::Run(const Kernel& kernel, const Launch& launch, const TVMFFIAny* arguments) {
  std::lock_guard<std::mutex> lock(mutex_);
  kernel.CheckLaunch(info_, launch);
  Commands& commands = parts().commands;
  const Pipeline& pipeline = parts_->pipelines.Get(kernel);
  Bind(kernel, arguments);
  std::vector<char> scalars = PushConstants(kernel, arguments);

  VkDescriptorSet set = commands.DescriptorSet(pipeline.set_layout, static_cast<uint32_t>(kernel.buffers));
  for (VkWriteDescriptorSet& write : writes_) write.dstSet = set;
  functions_.vkUpdateDescriptorSets(device_, static_cast<uint32_t>(writes_.size()), writes_.data(), 0, nullptr);
  VkCommandBuffer buffer = commands.Record(spans_.data(), spans_.size());
  for (const Place& place : places_) place.allocation->last_use = commands.number();
  functions_.vkCmdBindPipeline(buffer, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.pipeline);
  functions_.vkCmdBindDescriptorSets(buffer, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline.layout, 0, 1, &set, 0, nullptr);
  if (!scalars.empty()) {
    functions_.vkCmdPushConstants(buffer, pipeline.layout, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                  static_cast<uint32_t>(scalars.size()), scalars.data());
  }
  functions_.vkCmdDispatch(buffer, static_cast<uint32_t>(launch.groups[0]), static_cast<uint32_t>(launch.groups[1]),
                           static_cast<uint32_t>(launch.groups[2]));
  commands.DispatchRecorded(launch.groups[0] * launch.groups[1] * launch.groups[2] * launch.group_threads());
}

// Finds the buffers of a call: in `places_`, `spans_`, `buffers_` and, but for the set, `writes_`.
void Device::Bind(const Kernel& kernel, const TVMFFIAny* arguments) {
  const VkPhysicalDeviceLimits& limits = info_.limits();
  places_.clear();
  spans_.clear();
  buffers_.clear();
  for (size_t i = 0; i < kernel.info.types.size(); ++i) {
    if (!IsBuffer(kernel.info.types[i])) continue;
    uint64_t address = arguments[i].type_index == kTVMFFIOpaquePtr ? reinterpret_cast<uint64_t>(arguments[i].v_ptr) : 0;
    Place place{};
    if (!parts_->memory.Find(address, &place)) {
      Fail("kernel ", kernel.info.name, ": argument ", i, " is no memory of ", info_.name);
    }
    if (place.buffer_offset() % limits.minStorageBufferOffsetAlignment != 0) {
      Fail("kernel ", kernel.info.name, ": argument ", i, " begins ", place.offset, " bytes into its memory, ",
           info_.name, " wants a multiple of ", limits.minStorageBufferOffsetAlignment,
           " (minStorageBufferOffsetAlignment)");
    }
    if (place.left() > limits.maxStorageBufferRange) {
      Fail("kernel ", kernel.info.name, ": argument ", i, " is a tensor of ", Bytes(place.left()), ", ", info_.name,
           " allows ", Bytes(limits.maxStorageBufferRange), " (maxStorageBufferRange)");
    }
    bool written = kernel.shader.written[buffers_.size()];
    places_.push_back(place);
    spans_.push_back({address, address + place.left(), written});
    buffers_.push_back({place.buffer(), place.buffer_offset(), place.left()});
  }
  writes_.assign(buffers_.size(), VkWriteDescriptorSet{VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET});
  for (uint32_t i = 0; i < writes_.size(); ++i) {
    writes_[i].dstBinding = i;
    writes_[i].descriptorCount = 1;
    writes_[i].descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
    writes_[i].pBufferInfo = &buffers_[i];
  }
}

std::vector<char> Device::PushConstants(const Kernel& kernel, const TVMFFIAny* arguments) const {
  std::vector<char> block((kernel.push_constants + 3) / 4 * 4);
  for (size_t i = 0; i < kernel.info.types.size(); ++i) {
    if (IsBuffer(kernel.info.types[i])) continue;
    uint64_t bits = ScalarBits(kernel.info, i, arguments[i]);
    std::memcpy(block.data() + kernel.scalar_offsets[i], &bits, std::max(1, kernel.info.types[i].bits / 8));
  }
  return block;
}

void Device::Synchronize() {
  std::lock_guard<std::mutex> lock(mutex_);
  parts().commands.WaitAll();
  parts_->pipelines.Synchronized();
}

void Device::BuildKernels(const std::vector<std::unique_ptr<Kernel>>& kernels, size_t threads) {
  std::unique_lock<std::mutex> lock(mutex_);
  Pipelines& pipelines = parts().pipelines;
  lock.unlock();
  pipelines.BuildAll(kernels, threads);
}

void Device::Forget(const std::vector<std::unique_ptr<Kernel>>& kernels) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) return;
  bool built = false;
  for (const auto& kernel : kernels) built = built || parts_->pipelines.Knows(*kernel);
  if (!built) return;
  parts_->commands.WaitAll();
  for (const auto& kernel : kernels) parts_->pipelines.Forget(*kernel);
}

uint64_t Device::MemoryInUse() {
  std::lock_guard<std::mutex> lock(mutex_);
  return parts().memory.reserved();
}

std::string Device::Counters() {
  std::lock_guard<std::mutex> lock(mutex_);
  const Commands::Counters& commands = parts().commands.counters();
  return JsonObject()
      .Add("dispatches", commands.dispatches)
      .Add("barriers", commands.barriers)
      .Add("submissions", commands.submissions)
      .Add("waits", commands.waits)
      .Add("pipelines", parts_->pipelines.count())
      .Add("tensor_bytes", parts_->memory.in_use())
      .Add("memory_bytes", parts_->memory.reserved())
      .Done();
}

void Device::Close() {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);  // a thread that is in a call ends with the process
  if (!lock.owns_lock() || closed_) return;
  closed_ = true;
  functions_.vkDeviceWaitIdle(device_);
}

}  // namespace vulkan
}  // namespace mlc
