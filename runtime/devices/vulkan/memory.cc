#include "memory.h"

#include <sys/mman.h>

#include <algorithm>

namespace mlc {
namespace vulkan {

namespace {

constexpr uint64_t kSharedBlock = uint64_t{32} << 20;  // bytes of a block for many tensors
constexpr uint64_t kLargest = kSharedBlock / 4;        // tensors above this have a block of their own
constexpr uint64_t kMinAlignment = 256;                // the largest that Vulkan lets a device ask for

constexpr uint64_t RoundUp(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

// Reserves a range of addresses that nobody can read or write; 0 where the process has none left.
uint64_t ReserveAddresses(uint64_t bytes) {
  void* found = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return found == MAP_FAILED ? 0 : reinterpret_cast<uint64_t>(found);
}

}  // namespace

Memory::Memory(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions, Commands* commands)
    : info_(info),
      device_(device),
      functions_(functions),
      commands_(commands),
      alignment_(std::max(kMinAlignment, info.limits().minStorageBufferOffsetAlignment)) {}

uint64_t Memory::Allocate(uint64_t bytes) {
  uint64_t wanted = RoundUp(std::max<uint64_t>(bytes, 1), alignment_);
  if (wanted < bytes) Fail(info_.label, ": no device has ", Bytes(bytes), " of memory");
  ReleaseRetired(false);
  MemoryBlock* block = BlockFor(wanted);
  auto range = block->free.begin();
  while (range->second.bytes < wanted) ++range;
  uint64_t offset = range->first, left = range->second.bytes - wanted, last_use = range->second.last_use;
  block->free.erase(range);
  if (left != 0) block->free.emplace(offset + wanted, MemoryBlock::Free{left, last_use});
  uint64_t address = block->address + offset;
  allocations_.emplace(address, Allocation{block, offset, wanted, last_use});
  in_use_ += wanted;
  return address;
}

// A block with room for `bytes` in one piece.
MemoryBlock* Memory::BlockFor(uint64_t bytes) {
  if (bytes <= kLargest) {
    for (const std::unique_ptr<MemoryBlock>& block : blocks_) {
      if (!block->shared) continue;
      for (const auto& range : block->free) {
        if (range.second.bytes >= bytes) return block.get();
      }
    }
  }
  std::unique_ptr<MemoryBlock> block = NewBlock(bytes <= kLargest ? kSharedBlock : bytes, MemoryUse::kTensors);
  block->shared = bytes <= kLargest;
  block->free.emplace(0, MemoryBlock::Free{block->bytes, 0});
  block->address = ReserveAddresses(block->bytes);
  if (block->address == 0) {
    Release(block.get());
    Fail(info_.label, ": the process has no ", Bytes(bytes), " of addresses left");
  }
  blocks_.push_back(std::move(block));
  return blocks_.back().get();
}

void Memory::Free(uint64_t address) {
  auto found = allocations_.find(address);
  if (found == allocations_.end()) Fail(info_.label, ": memory is freed that was not allocated");
  MemoryBlock* block = found->second.block;
  uint64_t offset = found->second.offset, bytes = found->second.bytes, last_use = found->second.last_use;
  in_use_ -= bytes;
  allocations_.erase(found);

  auto next = block->free.lower_bound(offset);
  if (next != block->free.end() && next->first == offset + bytes) {
    bytes += next->second.bytes;
    last_use = std::max(last_use, next->second.last_use);
    next = block->free.erase(next);
  }
  if (next != block->free.begin()) {
    auto previous = std::prev(next);
    if (previous->first + previous->second.bytes == offset) {
      offset = previous->first;
      bytes += previous->second.bytes;
      last_use = std::max(last_use, previous->second.last_use);
      block->free.erase(previous);
    }
  }
  block->free.emplace(offset, MemoryBlock::Free{bytes, last_use});
  if (bytes == block->bytes) DropEmpty(block);
}

// Gives a block back that no tensor is left in, as soon as the device has done with it; one shared block is kept.
void Memory::DropEmpty(MemoryBlock* block) {
  auto empty = [](const std::unique_ptr<MemoryBlock>& other) {
    return other->shared && other->free.size() == 1 && other->free.begin()->second.bytes == other->bytes;
  };
  if (block->shared && std::count_if(blocks_.begin(), blocks_.end(), empty) == 1) return;
  auto place = std::find_if(blocks_.begin(), blocks_.end(), [&](const auto& other) { return other.get() == block; });
  retired_.push_back({std::move(*place), block->free.begin()->second.last_use});
  blocks_.erase(place);
}

void Memory::ReleaseRetired(bool wait) {
  for (size_t i = 0; i < retired_.size();) {
    if (wait) commands_->Wait(retired_[i].last_use);
    if (commands_->Done(retired_[i].last_use)) {
      Release(retired_[i].block.get());
      retired_.erase(retired_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

bool Memory::Find(uint64_t address, Place* place) {
  auto next = allocations_.upper_bound(address);
  if (next == allocations_.begin()) return false;
  auto found = std::prev(next);
  if (address - found->first >= found->second.bytes) return false;
  *place = {&found->second, address - found->first};
  return true;
}

std::unique_ptr<MemoryBlock> Memory::NewBlock(uint64_t bytes, MemoryUse use) {
  auto block = std::make_unique<MemoryBlock>();
  block->bytes = bytes;
  VkResult result = TryBlock(bytes, use, block.get());
  if (result != VK_SUCCESS && !retired_.empty()) {
    ReleaseRetired(true);
    result = TryBlock(bytes, use, block.get());
  }
  if (result != VK_SUCCESS) FailOutOfMemory(bytes, result);
  return block;
}

// Makes the buffer and its memory; leaves nothing behind where that fails.
VkResult Memory::TryBlock(uint64_t bytes, MemoryUse use, MemoryBlock* block) {
  if (bytes > info_.max_allocation) return VK_ERROR_OUT_OF_DEVICE_MEMORY;
  VkBufferCreateInfo create{VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
  create.size = bytes;
  create.usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
  if (use == MemoryUse::kTensors) create.usage |= VK_BUFFER_USAGE_STORAGE_BUFFER_BIT;
  create.sharingMode = VK_SHARING_MODE_EXCLUSIVE;
  VkResult result = functions_.vkCreateBuffer(device_, &create, nullptr, &block->buffer);
  if (result != VK_SUCCESS) return result;
  VkMemoryRequirements needs{};
  functions_.vkGetBufferMemoryRequirements(device_, block->buffer, &needs);
  int type = MemoryType(needs.memoryTypeBits, use);
  VkMemoryAllocateInfo allocate{VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
  allocate.allocationSize = needs.size;
  allocate.memoryTypeIndex = static_cast<uint32_t>(type);
  result = functions_.vkAllocateMemory(device_, &allocate, nullptr, &block->memory);
  if (result == VK_SUCCESS) {
    result = functions_.vkBindBufferMemory(device_, block->buffer, block->memory, 0);
    VkFlags flags = info_.memory.memoryTypes[type].propertyFlags;
    constexpr VkFlags kMapped = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    bool seen = use != MemoryUse::kTensors || info_.unified;  // a GPU's own memory is slow even where it can be seen
    if (result == VK_SUCCESS && seen && (flags & kMapped) == kMapped) {
      void* mapped = nullptr;
      result = functions_.vkMapMemory(device_, block->memory, 0, kWholeSize, 0, &mapped);
      block->mapped = static_cast<char*>(mapped);
      block->cached = (flags & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) != 0;
    }
  } else {
    block->memory = 0;
  }
  if (result == VK_SUCCESS) reserved_ += bytes;
  else {
    functions_.vkDestroyBuffer(device_, block->buffer, nullptr);
    if (block->memory != 0) functions_.vkFreeMemory(device_, block->memory, nullptr);
    *block = MemoryBlock();
    block->bytes = bytes;
  }
  return result;
}

// The first type that has all wanted properties; the lists go from the best to what will do.
int Memory::MemoryType(uint32_t allowed, MemoryUse use) const {
  constexpr VkFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
  constexpr VkFlags kHost = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
  constexpr VkFlags kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  struct Choice {
    VkFlags has, lacks;
  };
  using Choices = std::vector<Choice>;
  Choices choices = use == MemoryUse::kUpload     ? Choices{{kHost, kCached | kLocal}, {kHost, kLocal}, {kHost, 0}}
                    : use == MemoryUse::kReadback ? Choices{{kHost | kCached, 0}, {kHost, 0}}
                    : info_.unified ? Choices{{kLocal | kHost | kCached, 0}, {kLocal | kHost, 0}, {kLocal, 0}, {0, 0}}
                                      : Choices{{kLocal, kHost}, {kLocal, 0}, {0, 0}};
  for (const Choice& choice : choices) {
    for (uint32_t i = 0; i < info_.memory.memoryTypeCount; ++i) {
      VkFlags flags = info_.memory.memoryTypes[i].propertyFlags;
      bool plain = (flags & ~(kLocal | kHost | kCached)) == 0;  // not protected, not lazily allocated
      if ((allowed >> i & 1) && plain && (flags & choice.has) == choice.has && (flags & choice.lacks) == 0) {
        return static_cast<int>(i);
      }
    }
  }
  Fail(info_.label, ": it has no memory for buffers that the plug-in could use");
}

void Memory::Release(MemoryBlock* block) {
  functions_.vkDestroyBuffer(device_, block->buffer, nullptr);
  functions_.vkFreeMemory(device_, block->memory, nullptr);
  if (block->address != 0) munmap(reinterpret_cast<void*>(block->address), block->bytes);
  reserved_ -= block->bytes;
}

void Memory::FailOutOfMemory(uint64_t bytes, VkResult result) const {
  if (bytes > info_.max_allocation) {
    Fail(info_.label, ": a tensor of ", Bytes(bytes), " is larger than the ", Bytes(info_.max_allocation),
         " that this device allocates at once: use a smaller model or context");
  }
  Fail(info_.label, ": no memory for another ", Bytes(bytes), " (", ResultName(result), "), ", Bytes(reserved_), " of ",
       Bytes(info_.total_memory()), " are taken by this process: use a smaller model, context or batch");
}

}  // namespace vulkan
}  // namespace mlc
