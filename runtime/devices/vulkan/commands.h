// Work for a device: recorded into command buffers, submitted in batches, several of them under way at once.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "device_info.h"

namespace mlc {
namespace vulkan {

// Addresses of device memory that a command reads or writes.
struct Span {
  uint64_t begin;
  uint64_t end;
  bool write;
};

// A queue of a device. Batches are numbered from 1 on in the order in which they run; waiting for a number waits for
// all before it. Commands run in the order of recording as far as they touch the same memory. Not locked.
class Commands {
 public:
  Commands(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions);

  // The command buffer to record into, after what touches `spans` before; begins one where none is open.
  VkCommandBuffer Record(const Span* spans, size_t count);
  // A descriptor set of that layout, which lives as long as the open batch; `Record` comes afterwards.
  VkDescriptorSet DescriptorSet(VkDescriptorSetLayout layout, uint32_t buffers);
  // Tells that a kernel of that many threads was recorded; submits when there is enough to do.
  void DispatchRecorded(uint64_t threads);

  // The number of the batch that what is recorded next becomes part of.
  uint64_t number() const { return next_; }
  // Hands the open batch to the device.
  void Submit();
  // Whether the batch has run; one that was not submitted has not.
  bool Done(uint64_t number);
  // Submits the batch if it is the open one, and waits until it has run.
  void Wait(uint64_t number);
  // Submits and waits for everything.
  void WaitAll() { Wait(next_); }

  // How often each happened, for tests and measurements.
  struct Counters {
    uint64_t dispatches = 0, barriers = 0, submissions = 0, waits = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  struct Batch {
    VkCommandPool pool = 0;
    VkCommandBuffer buffer = nullptr;
    VkFence fence = 0;
    VkDescriptorPool descriptors = 0;
    uint64_t number = 0, threads = 0;
    uint32_t dispatches = 0, sets = 0, set_buffers = 0;
  };

  void Begin();
  void CheckAlive(VkResult result, const char* what);
  std::unique_ptr<Batch> NewBatch();
  void Barrier(VkFlags also_stage, VkFlags also_access);
  void Collect();
  void Retire();

  const DeviceInfo& info_;
  const VkDevice device_;
  const DeviceFunctions& functions_;
  VkQueue queue_ = nullptr;
  uint64_t next_ = 1, done_ = 0;  // number of the open batch or the next one, of the last that has run
  std::unique_ptr<Batch> open_;
  std::deque<std::unique_ptr<Batch>> running_;
  std::vector<std::unique_ptr<Batch>> idle_;
  std::vector<Span> unordered_;  // what the commands since the last barrier touch
  bool failed_ = false;          // the device has stopped computing
  Counters counters_;
};

}  // namespace vulkan
}  // namespace mlc
