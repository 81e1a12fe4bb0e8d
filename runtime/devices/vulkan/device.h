// An opened device: memory, kernels and transfers of one Vulkan device, for any number of threads.
#pragma once

#include <tvm/ffi/function.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "commands.h"
#include "driver.h"
#include "kernel.h"
#include "memory.h"
#include "pipelines.h"
#include "transfers.h"

namespace mlc {
namespace vulkan {

// Addresses are those that `Allocate` gives, or lie behind them within the same allocation.
class Device {
 public:
  Device(const Driver& driver, const DeviceInfo& info);

  const DeviceInfo& info() const { return info_; }

  uint64_t Allocate(uint64_t bytes);
  void Free(uint64_t address);
  void Write(const void* from, uint64_t to, uint64_t bytes);
  void Read(uint64_t from, void* to, uint64_t bytes);
  void Copy(uint64_t from, uint64_t to, uint64_t bytes);
  // Runs a kernel after everything that was asked for before. Does not wait for it.
  void Run(const Kernel& kernel, const Launch& launch, const TVMFFIAny* arguments);
  // Waits for everything.
  void Synchronize();

  // Has all kernels of a module built by several threads, while others use the device.
  void BuildKernels(const std::vector<std::unique_ptr<Kernel>>& kernels, size_t threads);
  // Kernels whose module goes.
  void Forget(const std::vector<std::unique_ptr<Kernel>>& kernels);
  // Bytes that tensors take.
  uint64_t MemoryInUse();
  // What happened so far, as JSON.
  std::string Counters();
  // Waits for the device; afterwards there is nothing that it does any more.
  void Close();

 private:
  struct Parts {
    Parts(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions)
        : commands(info, device, functions),
          memory(info, device, functions, &commands),
          transfers(functions, &commands, &memory),
          pipelines(info, device, functions) {}
    Commands commands;
    Memory memory;
    Transfers transfers;
    Pipelines pipelines;
  };

  Place Find(uint64_t address, uint64_t bytes);
  void Bind(const Kernel& kernel, const TVMFFIAny* arguments);
  std::vector<char> PushConstants(const Kernel& kernel, const TVMFFIAny* arguments) const;
  Parts& parts() const;

  const DeviceInfo& info_;
  VkDevice device_ = nullptr;
  DeviceFunctions functions_;
  std::mutex mutex_;
  std::unique_ptr<Parts> parts_;
  bool closed_ = false;
  // Of the kernel that is being recorded: kept so that their memory is not asked for again.
  std::vector<Place> places_;
  std::vector<Span> spans_;
  std::vector<VkDescriptorBufferInfo> buffers_;
  std::vector<VkWriteDescriptorSet> writes_;
};

}  // namespace vulkan
}  // namespace mlc
