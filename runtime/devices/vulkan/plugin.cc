// TVM's device "vulkan" and its modules of SPIR-V kernels, registered when this library is loaded.
//
// A module, little endian: "MLCSPV1\n"; u64 n, then n kernels: string name; types of the arguments; launch tags;
// u32 x 3 threads of a workgroup; u32 features; u32 bytes of push constants; string SPIR-V. Strings and lists begin
// with their length as u64. Buffer i is binding i of set 0; scalars are push constants, each aligned to its size.

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/tvm_ffi.h>
#include <tvm/runtime/device_api.h>

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../shared/device_list.h"
#include "device.h"
#include "driver.h"
#include "kernel.h"

namespace mlc {
namespace vulkan {

namespace ffi = tvm::ffi;

namespace {

constexpr char kMagic[] = "MLCSPV1\n";
thread_local int current_device = 0;  // what TVM has set for this thread

uint64_t Address(const void* pointer, size_t offset) { return reinterpret_cast<uint64_t>(pointer) + offset; }

class VulkanDeviceAPI final : public tvm::runtime::DeviceAPI {
 public:
  void SetDevice(tvm::Device device) final { current_device = device.device_id; }

  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* result) final {
    Driver& driver = Driver::Get();
    bool exists = driver.Has(device.device_id);
    if (kind == tvm::runtime::kExist) *result = static_cast<int64_t>(exists);
    if (kind == tvm::runtime::kExist || !exists) return;
    const DeviceInfo& info = driver.devices()[static_cast<size_t>(device.device_id)];
    if (kind == tvm::runtime::kAvailableGlobalMemory) {
      uint64_t in_use = driver.Open(device.device_id).MemoryInUse();
      *result = static_cast<int64_t>(driver.AvailableMemory(info, in_use));
      return;
    }
    const VkPhysicalDeviceLimits& limits = info.limits();
    Attributes attributes;
    attributes.name = info.name;
    attributes.version = VersionName(info.properties.apiVersion);
    attributes.driver = info.driver;
    attributes.max_threads = limits.maxComputeWorkGroupInvocations;
    std::copy_n(limits.maxComputeWorkGroupSize, 3, attributes.max_threads_of);
    attributes.subgroup = info.subgroup_size;
    attributes.shared_memory = limits.maxComputeSharedMemorySize;
    attributes.memory = info.total_memory();
    attributes.Answer(kind, result);
  }

  void* AllocDataSpace(tvm::Device device, size_t bytes, size_t, DLDataType) final {
    return reinterpret_cast<void*>(Driver::Get().Open(device.device_id).Allocate(bytes));
  }

  void FreeDataSpace(tvm::Device device, void* pointer) final {
    Driver::Get().Open(device.device_id).Free(Address(pointer, 0));
  }

  void StreamSync(tvm::Device device, TVMStreamHandle) final { Driver::Get().Open(device.device_id).Synchronize(); }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    bool reads = from_device.device_type == kDLVulkan, writes = to_device.device_type == kDLVulkan;
    Driver& driver = Driver::Get();
    uint64_t source = Address(from, from_offset), target = Address(to, to_offset);
    if (reads && writes && from_device.device_id == to_device.device_id) {
      driver.Open(to_device.device_id).Copy(source, target, bytes);
    } else if (reads && writes) {
      std::vector<char> between(bytes);
      driver.Open(from_device.device_id).Read(source, between.data(), bytes);
      driver.Open(to_device.device_id).Write(between.data(), target, bytes);
    } else if (reads) {
      driver.Open(from_device.device_id).Read(source, reinterpret_cast<void*>(target), bytes);
    } else {
      driver.Open(to_device.device_id).Write(reinterpret_cast<const void*>(source), target, bytes);
    }
  }
};

class VulkanModule final : public ffi::ModuleObj {
 public:
  explicit VulkanModule(const ffi::Bytes& bytes) : bytes_(bytes.data(), bytes.size()) {
    SavedBytes reader(bytes_.data(), bytes_.size(), "the library's vulkan module");
    for (char letter : std::string(kMagic)) {
      if (reader.Read<char>() != letter) Fail("the library's vulkan module is of another format: compile it again");
    }
    constexpr size_t kLeast = 3 * sizeof(uint64_t) + 5 * sizeof(uint32_t) + sizeof(uint64_t);
    kernels_.resize(reader.ReadCount(kLeast));
    for (std::unique_ptr<Kernel>& kernel : kernels_) {
      kernel = std::make_unique<Kernel>(&reader);
      if (!by_name_.emplace(kernel->info.name, kernel.get()).second) {
        Fail("the library's vulkan module has two kernels ", kernel->info.name, ": compile it again");
      }
    }
    reader.ExpectEnd();
    bool matrices = false;
    for (const std::unique_ptr<Kernel>& kernel : kernels_) matrices |= (kernel->features & kCooperativeMatrix) != 0;
    for (const std::unique_ptr<Kernel>& kernel : kernels_) {
      kernel->beside_matrices = matrices && !(kernel->features & kCooperativeMatrix);
    }
  }

  ~VulkanModule() {
    for (int device : used_on_) {
      try {
        Driver::Get().Open(device).Forget(kernels_);
      } catch (const ffi::Error&) {
        // A device that is lost takes its kernels with it.
      }
    }
  }

  const char* kind() const final { return "vulkan"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return ffi::Bytes(bytes_); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto keeps = ffi::GetObjectPtr<ffi::Object>(this);
    if (name == kBuildKernels) {
      return ffi::Function::FromTyped([this, keeps](int device, int threads) {
        NoteUse(device);
        Driver::Get().Open(device).BuildKernels(kernels_, static_cast<size_t>(std::max(threads, 1)));
      });
    }
    auto found = by_name_.find(std::string(name));
    if (found == by_name_.end()) return std::nullopt;
    const Kernel* kernel = found->second;
    return ffi::Function::FromPacked([this, keeps, kernel](ffi::PackedArgs arguments, ffi::Any*) {
      Launch launch = kernel->info.ReadLaunch(arguments);
      if (launch.empty()) return;
      Device& device = Driver::Get().Open(current_device);
      NoteUse(current_device);
      device.Run(*kernel, launch, reinterpret_cast<const TVMFFIAny*>(arguments.data()));
    });
  }

 private:
  void NoteUse(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int used : used_on_) {
      if (used == device) return;
    }
    used_on_.push_back(device);
  }

  const std::string bytes_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::unordered_map<std::string, const Kernel*> by_name_;
  std::mutex mutex_;
  std::vector<int> used_on_;  // numbers of devices
};

ffi::Module Load(const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<VulkanModule>(bytes)); }

ffi::String Devices() {
  std::vector<JsonObject> described;
  for (const DeviceInfo& info : Driver::Get().devices()) described.push_back(info.Describe());
  return ffi::String(JsonList(described));
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("device_api.vulkan",
           []() -> void* {
             static auto* api = new VulkanDeviceAPI();
             return static_cast<tvm::runtime::DeviceAPI*>(api);
           })
      .def("ffi.Module.load_from_bytes.vulkan", Load)
      .def("mlc.vulkan.devices", Devices)
      .def("mlc.vulkan.problem", []() { return ffi::String(Driver::Get().problem()); })
      .def("mlc.vulkan.counters", [](int device) { return ffi::String(Driver::Get().Open(device).Counters()); });
}

}  // namespace vulkan
}  // namespace mlc
