// An OpenCL device: its limits, its memory, its queue.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/device_list.h"
#include "../shared/kernel.h"
#include "../shared/pool.h"
#include "../shared/text.h"
#include "api.h"

namespace mlc {
namespace opencl {

class Device;

// Memory on a device: what a tensor's data pointer points to.
struct Buffer {
  cl_mem memory;
  size_t bytes;
  Device* device;
};

// What a device says of itself.
struct Limits : Attributes {
  std::string vendor, platform, type;
  uint64_t max_buffer = 0, max_argument_bytes = 0;
  bool float16 = false, float64 = false;
};

// Host memory from which small writes are sent while the host goes on: a ring of two halves.
class Staging {
 public:
  static constexpr size_t kLargest = size_t{64} << 10;  // bytes of a write that is staged

  // Enqueues a write of `bytes` from a copy of what is at `from`.
  void Write(cl_command_queue queue, cl_mem to, size_t offset, const void* from, size_t bytes);

 private:
  static constexpr size_t kHalf = size_t{512} << 10;

  std::vector<char> memory_;
  size_t half_ = 0, used_ = 0;             // the half that is being filled, and bytes of it that are
  cl_event last_[2] = {nullptr, nullptr};  // the last write from each half: the queue is in order
};

// One device with one queue, on which everything runs in the order in which it was asked for.
// Every member function may be called from any thread.
class Device {
 public:
  Device(cl_device_id id, Limits limits);

  const Limits limits;

  Buffer* Allocate(size_t bytes);
  void Free(Buffer* buffer);
  uint64_t available_memory();

  void Write(const Buffer& to, size_t offset, const void* from, size_t bytes);
  void Read(const Buffer& from, size_t offset, void* to, size_t bytes);
  void Copy(const Buffer& from, size_t from_offset, const Buffer& to, size_t to_offset, size_t bytes);
  void Finish();

  // Sets the arguments of a kernel and enqueues it.
  void Run(cl_kernel kernel, const KernelInfo& info, const TVMFFIAny* arguments, const Launch& launch);

  cl_device_id id() const { return id_; }
  cl_context context();

 private:
  void Open();  // with the lock held
  cl_mem CreateBuffer(size_t bytes, cl_int* code);
  void ReleaseKept();
  void Release(Buffer* buffer);
  void SetArguments(cl_kernel kernel, const KernelInfo& info, const TVMFFIAny* arguments);

  const cl_device_id id_;
  std::mutex mutex_;
  cl_context context_ = nullptr;
  cl_command_queue queue_ = nullptr;
  Pool<Buffer> pool_;
  Staging staging_;
  uint64_t allocated_ = 0;    // bytes that the driver has given
  unsigned unflushed_ = 0;  // kernels enqueued since the driver was last told to begin
};

// All devices of this machine: GPUs, then accelerators, then processors.
class Devices : public DeviceList<Device> {
 public:
  static Devices& Get();

 private:
  Devices();
};

}  // namespace opencl
}  // namespace mlc
