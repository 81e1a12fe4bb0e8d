#include "transfers.h"

#include <algorithm>
#include <cstring>

namespace mlc {
namespace vulkan {

namespace {

constexpr uint64_t kWithin = 4096;  // bytes that are recorded within the commands; Vulkan takes up to 65536
constexpr uint64_t kRing = uint64_t{16} << 20;
constexpr uint64_t kPiece = kRing / 4;           // bytes of one copy through the ring
constexpr uint64_t kSubmit = uint64_t{1} << 20;  // copies from this size on are not kept waiting for kernels
constexpr uint64_t kReadback = uint64_t{4} << 20;
constexpr uint64_t kRingAlignment = 256;

}  // namespace

Transfers::Transfers(const DeviceFunctions& functions, Commands* commands, Memory* memory)
    : functions_(functions), commands_(commands), memory_(memory) {}

void Transfers::Write(const void* from, const Place& to, uint64_t address, uint64_t bytes) {
  const char* source = static_cast<const char*>(from);
  MemoryBlock* block = to.allocation->block;
  if (block->mapped != nullptr && commands_->Done(to.allocation->last_use)) {
    std::memcpy(block->mapped + to.buffer_offset(), source, bytes);
  } else if (bytes <= kWithin && bytes % 4 == 0 && to.buffer_offset() % 4 == 0) {
    WriteWithin(source, to, address, bytes);
  } else {
    WriteThroughRing(source, to, address, bytes);
  }
}

void Transfers::WriteWithin(const char* from, const Place& to, uint64_t address, uint64_t bytes) {
  Span span{address, address + bytes, true};
  VkCommandBuffer buffer = commands_->Record(&span, 1);
  functions_.vkCmdUpdateBuffer(buffer, to.buffer(), to.buffer_offset(), bytes, from);
  to.allocation->last_use = commands_->number();
}

void Transfers::WriteThroughRing(const char* from, const Place& to, uint64_t address, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes;) {
    uint64_t piece = std::min(kPiece, bytes - done);
    uint64_t offset = ReserveInRing(piece);
    std::memcpy(ring_->mapped + offset, from + done, piece);
    Place place{to.allocation, to.offset + done};
    RecordCopy(ring_->buffer, offset, place, address + done, piece);
    in_flight_.push_back({ring_end_, commands_->number()});
    if (piece >= kSubmit) commands_->Submit();
    done += piece;
  }
}

// A place of `bytes` in the ring that no command reads from any more.
uint64_t Transfers::ReserveInRing(uint64_t bytes) {
  if (ring_ == nullptr) ring_ = memory_->NewBlock(kRing, MemoryUse::kUpload);
  uint64_t begin = (ring_end_ + kRingAlignment - 1) / kRingAlignment * kRingAlignment;
  if (begin % kRing + bytes > kRing) begin = (begin / kRing + 1) * kRing;  // no piece wraps around
  while (begin + bytes - ring_begin_ > kRing && !in_flight_.empty()) {
    commands_->Wait(in_flight_.front().number);
    ring_begin_ = in_flight_.front().end;
    in_flight_.pop_front();
  }
  ring_end_ = begin + bytes;
  return begin % kRing;
}

void Transfers::RecordCopy(VkBuffer from, uint64_t from_offset, const Place& to, uint64_t address, uint64_t bytes) {
  Span span{address, address + bytes, true};
  VkCommandBuffer buffer = commands_->Record(&span, 1);
  VkBufferCopy region{from_offset, to.buffer_offset(), bytes};
  functions_.vkCmdCopyBuffer(buffer, from, to.buffer(), 1, &region);
  to.allocation->last_use = commands_->number();
}

void Transfers::Read(const Place& from, uint64_t address, void* to, uint64_t bytes) {
  MemoryBlock* block = from.allocation->block;
  char* target = static_cast<char*>(to);
  if (block->mapped != nullptr && block->cached) {
    commands_->Wait(from.allocation->last_use);
    std::memcpy(target, block->mapped + from.buffer_offset(), bytes);
    return;
  }
  if (readback_ == nullptr) readback_ = memory_->NewBlock(kReadback, MemoryUse::kReadback);
  for (uint64_t done = 0; done < bytes;) {
    uint64_t piece = std::min(kReadback, bytes - done);
    Span span{address + done, address + done + piece, false};
    VkCommandBuffer buffer = commands_->Record(&span, 1);
    VkBufferCopy region{from.buffer_offset() + done, 0, piece};
    functions_.vkCmdCopyBuffer(buffer, from.buffer(), readback_->buffer, 1, &region);
    from.allocation->last_use = commands_->number();
    commands_->Wait(commands_->number());
    std::memcpy(target + done, readback_->mapped, piece);
    done += piece;
  }
}

void Transfers::Copy(const Place& from, uint64_t from_address, const Place& to, uint64_t to_address, uint64_t bytes) {
  if (from_address == to_address) return;
  if (from_address < to_address + bytes && to_address < from_address + bytes) {  // Vulkan copies no overlapping ranges
    uint64_t between = memory_->Allocate(bytes);
    Place place{};
    memory_->Find(between, &place);
    Copy(from, from_address, place, between, bytes);
    Copy(place, between, to, to_address, bytes);
    memory_->Free(between);
    return;
  }
  Span spans[] = {{from_address, from_address + bytes, false}, {to_address, to_address + bytes, true}};
  VkCommandBuffer buffer = commands_->Record(spans, 2);
  VkBufferCopy region{from.buffer_offset(), to.buffer_offset(), bytes};
  functions_.vkCmdCopyBuffer(buffer, from.buffer(), to.buffer(), 1, &region);
  from.allocation->last_use = to.allocation->last_use = commands_->number();
}

}  // namespace vulkan
}  // namespace mlc
