#include "device.h"

#include <algorithm>
#include <cstring>

#include "topology.h"

namespace mlc {
namespace hip {
namespace {

int Attribute(int index, int which) {
  int value = 0;
  Api::Get().DeviceGetAttribute(&value, static_cast<hipDeviceAttribute_t>(which), index);
  return value;
}

Limits ReadLimits(int index) {
  const Api& api = Api::Get();
  Limits limits;
  char name[256] = {};
  if (api.DeviceGetName(name, sizeof(name) - 1, index) == hipSuccess) limits.name = name;
  if (limits.name.empty()) limits.name = Text("rocm:", index);
  size_t memory = 0;
  Check(api.DeviceTotalMem(&memory, index), Text("ROCm device ", limits.name, ": its memory"));
  limits.memory = memory;
  int version = 0;
  api.RuntimeGetVersion(&version);  // 60342134 is 6.3.42134
  limits.driver = Text("HIP ", version / 10000000, ".", version / 100000 % 100, ".", version % 100000);
  limits.architecture = Architecture(Attribute(index, hipDeviceAttributePciDomainID),
                                     Attribute(index, hipDeviceAttributePciBusId),
                                     Attribute(index, hipDeviceAttributePciDeviceId));
  limits.max_threads = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeMaxThreadsPerBlock));
  for (int axis = 0; axis < 3; ++axis) {
    limits.max_threads_of[axis] = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeMaxBlockDimX + axis));
  }
  limits.shared_memory = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeMaxSharedMemoryPerBlock));
  limits.cache = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeL2CacheSize));
  limits.subgroup = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeWarpSize));
  limits.compute_units = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeMultiprocessorCount));
  limits.clock_khz = static_cast<uint64_t>(Attribute(index, hipDeviceAttributeClockRate));
  return limits;
}

// The arguments as a kernel finds them in memory: each aligned to its size.
std::vector<char> Packed(const KernelInfo& info, const TVMFFIAny* arguments) {
  std::vector<char> packed;
  for (size_t i = 0; i < info.types.size(); ++i) {
    uint64_t bits = 0;
    size_t size = sizeof(void*);
    if (IsBuffer(info.types[i])) {
      if (arguments[i].type_index != kTVMFFIOpaquePtr) {
        Fail("kernel ", info.name, ": argument ", i, " is no tensor of the device");
      }
      bits = reinterpret_cast<uint64_t>(arguments[i].v_ptr);
    } else {
      bits = ScalarBits(info, i, arguments[i]);
      size = (info.types[i].bits + 7) / 8;
    }
    packed.resize((packed.size() + size - 1) / size * size);
    const char* bytes = reinterpret_cast<const char*>(&bits);  // AMD's cards and their hosts are little endian
    packed.insert(packed.end(), bytes, bytes + size);
  }
  return packed;
}

}  // namespace

void Staging::Write(hipStream_t stream, void* to, const void* from, size_t bytes) {
  const Api& api = Api::Get();
  if (memory_ == nullptr) {
    void* memory = nullptr;
    Check(api.HostMalloc(&memory, 2 * kHalf, 0), "memory for writes to the device");
    for (hipEvent_t& event : sent_) {
      Check(api.EventCreateWithFlags(&event, hipEventDisableTiming), "a write to the device");
    }
    memory_ = static_cast<char*>(memory);
  }
  if (used_ + bytes > kHalf) {
    Check(api.EventRecord(sent_[half_], stream), "a write to the device");
    half_ = 1 - half_;
    used_ = 0;
    Check(api.EventSynchronize(sent_[half_]), "a write to the device");  // what was sent from here the last time has left
  }
  char* copy = memory_ + half_ * kHalf + used_;
  std::memcpy(copy, from, bytes);
  Check(api.MemcpyAsync(to, copy, bytes, hipMemcpyHostToDevice, stream), "a write to the device");
  used_ += bytes;
}

Device::Device(int index, Limits found) : limits(std::move(found)), index_(index), pool_(Pool<Block>::MostOf(limits.memory)) {}

void Device::Select() {
  Check(Api::Get().SetDevice(index_), Named("cannot be opened"));
  if (stream_ == nullptr) {
    hipStream_t stream = nullptr;
    Check(Api::Get().StreamCreateWithFlags(&stream, hipStreamNonBlocking), Named("cannot be opened"));
    stream_ = stream;
  }
}

void* Device::Allocate(size_t bytes) {
  size_t rounded = Pool<Block>::Rounded(bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  Block* block = pool_.Take(rounded);
  if (block == nullptr) {
    void* address = nullptr;
    hipError_t code = Api::Get().Malloc(&address, rounded);
    if (code == hipErrorOutOfMemory) {
      ReleaseKept();
      code = Api::Get().Malloc(&address, rounded);
    }
    if (code != hipSuccess) {
      Fail("ROCm device ", limits.name, ": too little memory: ", Bytes(bytes), " more are wanted, ", Bytes(allocated_),
           " of ", Bytes(limits.memory), " are in use (", ErrorName(code), ")");
    }
    allocated_ += rounded;
    block = new Block{address, rounded};
  }
  in_use_[block->address] = block;
  return block->address;
}

void Device::Free(void* address) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = in_use_.find(address);
  if (found == in_use_.end()) return;
  Block* block = found->second;
  in_use_.erase(found);
  // Kernels that still use it run before those that get it next: the stream is in order.
  for (Block* over : pool_.Give(block)) Release(over);
}

void Device::Release(Block* block) {
  const Api& api = Api::Get();
  // hipFree waits for the card itself; an error of it is an error of a kernel before, which the next call reports
  if (api.SetDevice(index_) == hipSuccess) api.Free(block->address);
  allocated_ -= block->bytes;
  delete block;
}

void Device::ReleaseKept() {
  for (Block* kept : pool_.Empty()) Release(kept);
}

uint64_t Device::available_memory() {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  size_t available = 0, all = 0;
  Check(Api::Get().MemGetInfo(&available, &all), Named("its free memory"));
  return available;
}

void Device::Write(void* to, const void* from, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  if (bytes <= Staging::kLargest) {
    staging_.Write(stream_, to, from, bytes);
    return;
  }
  const Api& api = Api::Get();
  Check(api.MemcpyAsync(to, from, bytes, hipMemcpyHostToDevice, stream_), Named("a write to it"));
  Check(api.StreamSynchronize(stream_), Named("a write to it"));
}

void Device::Read(const void* from, void* to, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  const Api& api = Api::Get();
  Check(api.MemcpyAsync(to, from, bytes, hipMemcpyDeviceToHost, stream_), Named("a read from it"));
  Check(api.StreamSynchronize(stream_), Named("the kernels that ran last"));
}

void Device::Copy(const void* from, void* to, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  Check(Api::Get().MemcpyAsync(to, from, bytes, hipMemcpyDeviceToDevice, stream_), Named("a copy"));
}

void Device::Finish() {
  hipStream_t stream = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stream_ == nullptr) return;
    Select();
    stream = stream_;
  }
  Check(Api::Get().StreamSynchronize(stream), Named("the kernels that ran last"));
}

hipModule_t Device::Load(const std::string& code, hipError_t* error) {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  hipModule_t module = nullptr;
  *error = Api::Get().ModuleLoadData(&module, code.data());
  return *error == hipSuccess ? module : nullptr;
}

void Device::Unload(hipModule_t module) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Api& api = Api::Get();
  if (api.SetDevice(index_) == hipSuccess && api.StreamSynchronize(stream_) == hipSuccess) api.ModuleUnload(module);
}

Loaded Device::Find(hipModule_t module, const KernelInfo& info) {
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  const Api& api = Api::Get();
  Loaded kernel;
  Check(api.ModuleGetFunction(&kernel.function, module, info.name.c_str()), Text("kernel ", info.name, ": not found"));
  int threads = 0, shared = 0;
  bool known = api.FuncGetAttribute(&threads, HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel.function) == hipSuccess;
  kernel.max_threads = known && threads > 0 ? static_cast<size_t>(threads) : limits.max_threads;
  known = api.FuncGetAttribute(&shared, HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel.function) == hipSuccess;
  if (known && shared > 0 && static_cast<uint64_t>(shared) > limits.shared_memory) {
    Fail("kernel ", info.name, ": wants ", shared, " bytes of shared memory, ", limits.name, " has ",
         limits.shared_memory);
  }
  return kernel;
}

void Device::Run(const Loaded& kernel, const KernelInfo& info, const TVMFFIAny* arguments, const Launch& launch) {
  if (launch.group_threads() > kernel.max_threads) {
    Fail("kernel ", info.name, ": wants groups of ", launch.group_threads(), " threads, ", limits.name,
         " runs at most ", kernel.max_threads, " of this kernel");
  }
  std::vector<char> packed = Packed(info, arguments);
  size_t size = packed.size();
  void* extra[] = {LaunchTag(HIP_LAUNCH_PARAM_BUFFER_POINTER), packed.data(), LaunchTag(HIP_LAUNCH_PARAM_BUFFER_SIZE),
                   &size, LaunchTag(HIP_LAUNCH_PARAM_END)};
  unsigned groups[3], threads[3];
  for (int axis = 0; axis < 3; ++axis) {
    if (launch.groups[axis] * launch.threads[axis] > UINT32_MAX) {
      Fail("kernel ", info.name, ": ", launch.groups[axis], " groups of ", launch.threads[axis], " threads along axis ",
           axis, " are more than the 4294967295 threads that HIP counts");
    }
    groups[axis] = static_cast<unsigned>(launch.groups[axis]);
    threads[axis] = static_cast<unsigned>(launch.threads[axis]);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  Select();
  hipError_t code = Api::Get().ModuleLaunchKernel(kernel.function, groups[0], groups[1], groups[2], threads[0],
                                                  threads[1], threads[2], 0, stream_, nullptr, extra);
  if (code != hipSuccess) {
    Fail("kernel ", info.name, ": cannot run on ", limits.name, ": ", ErrorName(code), " (", groups[0], "x", groups[1],
         "x", groups[2], " groups of ", launch.group_threads(), " threads)");
  }
}

Devices& Devices::Get() {
  static Devices* devices = new Devices();  // never destroyed: tensors are freed until the process ends
  return *devices;
}

Devices::Devices() : DeviceList("ROCm") {
  const Api& api = Api::Get();
  problem = api.problem;
  if (!problem.empty()) return;
  int count = 0;
  hipError_t code = api.Init(0);
  if (code == hipSuccess) code = api.GetDeviceCount(&count);
  if (code == hipErrorNoDevice || (code == hipSuccess && count == 0)) {
    problem = "no ROCm device: AMD's driver sees no card (is the user in the groups render and video? rocminfo tells)";
  } else if (code != hipSuccess) {
    problem = Text("AMD's driver does not start: ", ErrorName(code), "; does rocminfo work?");
  }
  for (int index = 0; problem.empty() && index < count; ++index) {
    all.push_back(std::make_unique<Device>(index, ReadLimits(index)));
  }
}

}  // namespace hip
}  // namespace mlc
