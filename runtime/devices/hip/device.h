// An AMD card: its limits, its memory, its stream.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "../shared/device_list.h"
#include "../shared/kernel.h"
#include "../shared/pool.h"
#include "../shared/text.h"
#include "api.h"

namespace mlc {
namespace hip {

// Memory of a card; a tensor's data pointer is its address.
struct Block {
  void* address;
  size_t bytes;
};

// What a card says of itself. `architecture` is "gfx1100", or "" where the kernel driver does not tell.
using Limits = Attributes;

// A kernel as one card runs it.
struct Loaded {
  hipFunction_t function = nullptr;
  size_t max_threads = 0;
};

// Host memory from which small writes are sent while the host goes on: a ring of two halves.
class Staging {
 public:
  static constexpr size_t kLargest = size_t{64} << 10;  // bytes of a write that is staged

  // Enqueues a write of `bytes` from a copy of what is at `from`.
  void Write(hipStream_t stream, void* to, const void* from, size_t bytes);

 private:
  static constexpr size_t kHalf = size_t{512} << 10;

  char* memory_ = nullptr;        // pinned; kept until the process ends
  size_t half_ = 0, used_ = 0;    // the half that is being filled, and bytes of it that are
  hipEvent_t sent_[2] = {nullptr, nullptr};  // after the last write from each half
};

// One card with one stream, on which everything runs in the order in which it was asked for.
// Every member function may be called from any thread.
class Device {
 public:
  Device(int index, Limits limits);

  const Limits limits;

  void* Allocate(size_t bytes);
  void Free(void* address);
  uint64_t available_memory();

  void Write(void* to, const void* from, size_t bytes);
  void Read(const void* from, void* to, size_t bytes);
  void Copy(const void* from, void* to, size_t bytes);
  void Finish();

  hipModule_t Load(const std::string& code, hipError_t* error);
  void Unload(hipModule_t module);
  Loaded Find(hipModule_t module, const KernelInfo& info);

  // Packs the arguments of a kernel and enqueues it.
  void Run(const Loaded& kernel, const KernelInfo& info, const TVMFFIAny* arguments, const Launch& launch);

 private:
  void Select();  // the calls of this thread are for this card; with the lock held
  void Release(Block* block);
  void ReleaseKept();
  std::string Named(const char* what) const { return Text("ROCm device ", limits.name, ": ", what); }

  const int index_;
  std::mutex mutex_;
  hipStream_t stream_ = nullptr;
  std::unordered_map<void*, Block*> in_use_;
  Pool<Block> pool_;
  Staging staging_;
  uint64_t allocated_ = 0;  // bytes that the driver has given
};

// All cards that HIP shows this process.
class Devices : public DeviceList<Device> {
 public:
  static Devices& Get();

 private:
  Devices();
};

}  // namespace hip
}  // namespace mlc
