// TVM's device "rocm" and its modules of kind "hip", registered when this library is loaded.
//
// The code of a module, little endian: "MLCHIP1\n"; u64 n, then n x {string architecture; string code object}. Strings
// begin with their length as u64. A card runs one of them: that of its architecture, else the first that HIP takes.

#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>
#include <tvm/runtime/device_api.h>

#include <map>

#include "device.h"

namespace mlc {
namespace hip {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAPI;

constexpr char kMagic[] = "MLCHIP1\n";
thread_local int current_device = 0;  // compiled code sets it before it calls kernels

void* Moved(const void* address, size_t offset) {
  return const_cast<char*>(static_cast<const char*>(address)) + offset;
}

class ROCmDeviceAPI final : public DeviceAPI {
 public:
  void SetDevice(tvm::Device device) final { current_device = device.device_id; }

  void GetAttr(tvm::Device device, tvm::runtime::DeviceAttrKind kind, ffi::Any* result) final {
    Devices& devices = Devices::Get();
    if (kind == tvm::runtime::kExist) {
      *result = static_cast<int64_t>(devices.Has(device.device_id));
      return;
    }
    Device& found = devices[device.device_id];
    if (kind == tvm::runtime::kAvailableGlobalMemory) {
      *result = static_cast<int64_t>(found.available_memory());
      return;
    }
    found.limits.Answer(kind, result);
  }

  void* AllocDataSpace(tvm::Device device, size_t bytes, size_t, DLDataType) final {
    return Devices::Get()[device.device_id].Allocate(bytes);
  }

  void FreeDataSpace(tvm::Device device, void* data) final { Devices::Get()[device.device_id].Free(data); }

  void StreamSync(tvm::Device device, TVMStreamHandle) final { Devices::Get()[device.device_id].Finish(); }

  bool SupportsDevicePointerArithmeticsOnHost() final { return true; }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    const void* source = Moved(from, from_offset);
    void* target = Moved(to, to_offset);
    bool reads = from_device.device_type == kDLROCM, writes = to_device.device_type == kDLROCM;
    Devices& devices = Devices::Get();
    if (reads && writes && from_device.device_id == to_device.device_id) {
      devices[to_device.device_id].Copy(source, target, bytes);
    } else if (reads && writes) {
      std::vector<char> between(bytes);
      devices[from_device.device_id].Read(source, between.data(), bytes);
      devices[to_device.device_id].Write(target, between.data(), bytes);
    } else if (reads) {
      devices[from_device.device_id].Read(source, target, bytes);
    } else {
      devices[to_device.device_id].Write(target, source, bytes);
    }
  }
};

class HipModule final : public ffi::ModuleObj {
 public:
  explicit HipModule(const ffi::Bytes& bytes) : bytes_(bytes), saved_(bytes.data(), bytes.size(), kWhat) {
    SavedBytes reader(saved_.code.data(), saved_.code.size(), kWhat);
    for (char letter : std::string(kMagic)) {
      if (reader.Read<char>() != letter) Fail(kWhat, " is of another format: compile the library again");
    }
    codes_.resize(reader.ReadCount(2 * sizeof(uint64_t)));
    for (auto& [architecture, code] : codes_) {
      architecture = reader.ReadString();
      code = reader.ReadString();
    }
    reader.ExpectEnd();
    for (const KernelInfo& kernel : saved_.kernels) by_name_[kernel.name] = &kernel;
  }

  ~HipModule() {
    for (auto& [device, module] : modules_) device->Unload(module);
  }

  const char* kind() const final { return "hip"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  bool ImplementsFunction(const ffi::String& name) final { return by_name_.count(std::string(name)) != 0; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = by_name_.find(std::string(name));
    if (found == by_name_.end()) return std::nullopt;
    const KernelInfo* info = found->second;
    auto self = ffi::GetObjectPtr<HipModule>(this);
    return ffi::Function::FromPacked([self, info](ffi::PackedArgs arguments, ffi::Any*) {
      Launch launch = info->ReadLaunch(arguments);
      if (launch.empty()) return;
      Device& device = Devices::Get()[current_device];
      device.Run(self->Kernel(device, *info), *info, reinterpret_cast<const TVMFFIAny*>(arguments.data()), launch);
    });
  }

 private:
  static constexpr const char* kWhat = "the library's hip module";

  const Loaded& Kernel(Device& device, const KernelInfo& info) {
    std::lock_guard<std::mutex> lock(mutex_);
    Loaded& kernel = kernels_[{&device, &info}];
    if (kernel.function == nullptr) kernel = device.Find(Module(device), info);
    return kernel;
  }

  hipModule_t Module(Device& device) {
    hipModule_t& module = modules_[&device];
    if (module != nullptr) return module;
    hipError_t error = hipSuccess;
    std::string names;
    // twice over the codes: those that are named as the card, then the others, which HIP refuses where they do not fit
    for (bool named : {true, false}) {
      for (const auto& [architecture, code] : codes_) {
        if ((architecture == device.limits.architecture) != named) continue;
        names += (names.empty() ? "" : ", ") + architecture;
        module = device.Load(code, &error);
        if (module != nullptr) return module;
      }
    }
    modules_.erase(&device);
    const Limits& limits = device.limits;
    Fail("the library has ROCm code for ", names, ", the card here is ",
         limits.architecture.empty() ? limits.name : limits.architecture, " (", ErrorName(error), ")");
  }

  const ffi::Bytes bytes_;
  const SavedModule saved_;
  std::vector<std::pair<std::string, std::string>> codes_;  // architecture, code object
  std::map<std::string, const KernelInfo*> by_name_;
  std::mutex mutex_;
  std::map<Device*, hipModule_t> modules_;
  std::map<std::pair<Device*, const KernelInfo*>, Loaded> kernels_;
};

ffi::String DevicesAsJson() {
  std::vector<JsonObject> items;
  for (const auto& device : Devices::Get().all) {
    const Limits& limits = device->limits;
    items.push_back(JsonObject()
                        .Add("name", limits.name)
                        .Add("driver", limits.driver)
                        .Add("architecture", limits.architecture)
                        .Add("memory", limits.memory)
                        .Add("max_buffer", limits.memory)
                        .Add("max_threads", limits.max_threads)
                        .Add("shared_memory", limits.shared_memory)
                        .Add("compute_units", limits.compute_units)
                        .Add("subgroup", limits.subgroup)
                        .Add("float16", true));
  }
  return ffi::String(JsonList(items));
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("device_api.rocm", []() -> void* { return static_cast<DeviceAPI*>(new ROCmDeviceAPI()); })
      .def("ffi.Module.load_from_bytes.hip",
           [](const ffi::Bytes& bytes) { return ffi::Module(ffi::make_object<HipModule>(bytes)); })
      .def("mlc.rocm.devices", DevicesAsJson)
      .def("mlc.rocm.problem", [] { return ffi::String(Devices::Get().problem); });
}

}  // namespace
}  // namespace hip
}  // namespace mlc
