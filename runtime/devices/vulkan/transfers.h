// Bytes between host and device, and from one tensor to another.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>

#include "commands.h"
#include "memory.h"

namespace mlc {
namespace vulkan {

// Writes do not wait for the device: into memory that it does not use at the moment they go straight where the host can
// see it; otherwise they are recorded among the commands, small ones within them, larger ones through a ring of memory
// that both see. Reads wait for the commands that use what is read. Not locked.
class Transfers {
 public:
  Transfers(const DeviceFunctions& functions, Commands* commands, Memory* memory);

  // `from` may be changed as soon as this returns.
  void Write(const void* from, const Place& to, uint64_t address, uint64_t bytes);
  void Read(const Place& from, uint64_t address, void* to, uint64_t bytes);
  // The two may overlap.
  void Copy(const Place& from, uint64_t from_address, const Place& to, uint64_t to_address, uint64_t bytes);

 private:
  struct InFlight {
    uint64_t end;     // position in the ring, counted from the beginning of time
    uint64_t number;  // of the batch that reads the bytes before it
  };

  void WriteWithin(const char* from, const Place& to, uint64_t address, uint64_t bytes);
  void WriteThroughRing(const char* from, const Place& to, uint64_t address, uint64_t bytes);
  uint64_t ReserveInRing(uint64_t bytes);
  void RecordCopy(VkBuffer from, uint64_t from_offset, const Place& to, uint64_t address, uint64_t bytes);

  const DeviceFunctions& functions_;
  Commands* const commands_;
  Memory* const memory_;
  std::unique_ptr<MemoryBlock> ring_, readback_;  // made when first needed
  uint64_t ring_begin_ = 0, ring_end_ = 0;        // positions of the bytes that are in use
  std::deque<InFlight> in_flight_;
};

}  // namespace vulkan
}  // namespace mlc
