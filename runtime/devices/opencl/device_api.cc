// TVM's view of the devices.
#include <tvm/ffi/reflection/registry.h>
#include <tvm/ffi/string.h>
#include <tvm/runtime/device_api.h>

#include "current_device.h"
#include "device.h"

namespace mlc {
namespace opencl {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::DeviceAPI;

thread_local int current_device = 0;

class OpenCLDeviceAPI final : public DeviceAPI {
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

  void FreeDataSpace(tvm::Device, void* data) final {
    if (data == nullptr) return;
    Buffer* buffer = static_cast<Buffer*>(data);
    buffer->device->Free(buffer);
  }

  void StreamSync(tvm::Device device, TVMStreamHandle) final { Devices::Get()[device.device_id].Finish(); }

 protected:
  void CopyDataFromTo(const void* from, size_t from_offset, void* to, size_t to_offset, size_t bytes,
                      tvm::Device from_device, tvm::Device to_device, DLDataType, TVMStreamHandle) final {
    if (bytes == 0) return;
    const Buffer* source = static_cast<const Buffer*>(from);
    const Buffer* target = static_cast<const Buffer*>(to);
    if (from_device.device_type != kDLOpenCL) {
      Inside(*target, to_offset, bytes);
      target->device->Write(*target, to_offset, static_cast<const char*>(from) + from_offset, bytes);
      return;
    }
    Inside(*source, from_offset, bytes);
    if (to_device.device_type != kDLOpenCL) {
      source->device->Read(*source, from_offset, static_cast<char*>(to) + to_offset, bytes);
      return;
    }
    Inside(*target, to_offset, bytes);
    if (source->device == target->device) {
      source->device->Copy(*source, from_offset, *target, to_offset, bytes);
      return;
    }
    std::vector<char> between(bytes);
    source->device->Read(*source, from_offset, between.data(), bytes);
    target->device->Write(*target, to_offset, between.data(), bytes);
  }

 private:
  static void Inside(const Buffer& buffer, size_t offset, size_t bytes) {
    if (offset > buffer.bytes || bytes > buffer.bytes - offset) {
      Fail("a copy of ", bytes, " bytes at ", offset, " leaves a tensor of ", buffer.bytes, " bytes");
    }
  }
};

ffi::String DevicesAsJson() {
  std::vector<JsonObject> items;
  for (const auto& device : Devices::Get().all) {
    const Limits& limits = device->limits;
    items.push_back(JsonObject()
                        .Add("name", limits.name)
                        .Add("type", limits.type)
                        .Add("vendor", limits.vendor)
                        .Add("platform", limits.platform)
                        .Add("driver", limits.driver)
                        .Add("version", limits.version)
                        .Add("memory", limits.memory)
                        .Add("max_buffer", limits.max_buffer)
                        .Add("max_threads", limits.max_threads)
                        .Add("shared_memory", limits.shared_memory)
                        .Add("compute_units", limits.compute_units)
                        .Add("subgroup", uint64_t{0})  // lanes that kernels may rely on
                        .Add("float16", limits.float16)
                        .Add("float64", limits.float64));
  }
  return JsonList(items);
}

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef()
      .def("device_api.opencl", []() -> void* { return static_cast<DeviceAPI*>(new OpenCLDeviceAPI()); })
      .def("mlc.opencl.devices", DevicesAsJson)
      .def("mlc.opencl.problem", [] { return ffi::String(Devices::Get().problem); });
}

}  // namespace

int CurrentDevice() { return current_device; }

}  // namespace opencl
}  // namespace mlc
