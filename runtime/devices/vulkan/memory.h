// Memory of a device: tensors cut from large blocks, at addresses of their own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "commands.h"
#include "device_info.h"

namespace mlc {
namespace vulkan {

// A buffer over memory of its own. Host-visible ones are mapped as long as they live.
struct MemoryBlock {
  VkBuffer buffer = 0;
  VkDeviceMemory memory = 0;
  char* mapped = nullptr;  // nullptr where the host cannot see the memory
  bool cached = false;     // whether the host reads it fast
  uint64_t bytes = 0;
  uint64_t address = 0;    // where it is for the host: reserved, neither readable nor writable
  bool shared = false;     // holds many allocations
  struct Free {
    uint64_t bytes;
    uint64_t last_use;
  };
  std::map<uint64_t, Free> free;  // by offset; neighbours are merged
};

// What a tensor lives in.
struct Allocation {
  MemoryBlock* block;
  uint64_t offset;    // in the block
  uint64_t bytes;
  uint64_t last_use;  // number of the last batch of commands that touches it
};

// Where an address points to: `allocation` and the bytes from its beginning.
struct Place {
  Allocation* allocation;
  uint64_t offset;

  VkBuffer buffer() const { return allocation->block->buffer; }
  uint64_t buffer_offset() const { return allocation->offset + offset; }
  uint64_t left() const { return allocation->bytes - offset; }
};

// Kinds of memory that a block is made of.
enum class MemoryUse { kTensors, kUpload, kReadback };

// Tensors have addresses in a range that is reserved of the process's and cannot be touched: pointers into them can be
// computed on the host, as on devices whose memory has addresses, and using one there fails at once. Not locked.
class Memory {
 public:
  Memory(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions, Commands* commands);

  // Memory for a tensor of `bytes`, and its address. Throws, with the sizes, where there is none left.
  uint64_t Allocate(uint64_t bytes);
  // Commands that use the memory may still run: it is not touched by the host before they have.
  void Free(uint64_t address);
  // Where `address` points to; false if into no tensor of this device.
  bool Find(uint64_t address, Place* place);
  // A block for the device's own use.
  std::unique_ptr<MemoryBlock> NewBlock(uint64_t bytes, MemoryUse use);

  uint64_t in_use() const { return in_use_; }      // bytes of tensors
  uint64_t reserved() const { return reserved_; }  // bytes taken from the driver

 private:
  struct Retired {
    std::unique_ptr<MemoryBlock> block;
    uint64_t last_use;
  };

  MemoryBlock* BlockFor(uint64_t bytes);
  VkResult TryBlock(uint64_t bytes, MemoryUse use, MemoryBlock* block);
  int MemoryType(uint32_t allowed, MemoryUse use) const;
  void Release(MemoryBlock* block);
  void DropEmpty(MemoryBlock* block);
  void ReleaseRetired(bool wait);
  [[noreturn]] void FailOutOfMemory(uint64_t bytes, VkResult result) const;

  const DeviceInfo& info_;
  const VkDevice device_;
  const DeviceFunctions& functions_;
  Commands* const commands_;
  const uint64_t alignment_;
  std::vector<std::unique_ptr<MemoryBlock>> blocks_;
  std::vector<Retired> retired_;
  std::map<uint64_t, Allocation> allocations_;  // by address
  uint64_t in_use_ = 0, reserved_ = 0;
};

}  // namespace vulkan
}  // namespace mlc
