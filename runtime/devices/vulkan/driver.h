// The Vulkan loader, the machine's devices, and what is known of each before it is opened.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/driver_library.h"
#include "device_info.h"
#include "vulkan_api.h"

namespace mlc {
namespace vulkan {

class Device;

// The features that Vulkan has structures for, linked to one another; those that a device does not know are left out.
struct FeatureChain {
  VkPhysicalDeviceFeatures2 core{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
  VkPhysicalDevice16BitStorageFeatures storage16{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
  VkPhysicalDevice8BitStorageFeatures storage8{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES};
  VkPhysicalDeviceShaderFloat16Int8Features small{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES};
  VkPhysicalDeviceShaderSubgroupExtendedTypesFeatures subgroup{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SUBGROUP_EXTENDED_TYPES_FEATURES};
  VkPhysicalDeviceVulkanMemoryModelFeatures memory_model{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES};
  VkPhysicalDeviceSubgroupSizeControlFeatures sizes{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};

  FeatureChain() = default;
  FeatureChain(const FeatureChain&) = delete;
  FeatureChain& operator=(const FeatureChain&) = delete;
};

// Everything that Vulkan gives this process; made at the first question, and never taken apart.
class Driver {
 public:
  static Driver& Get();

  // Why there is no device; empty where there is one.
  const std::string& problem() const { return problem_; }
  const std::vector<DeviceInfo>& devices() const { return devices_; }
  const InstanceFunctions& functions() const { return functions_; }
  bool Has(int index) const { return index >= 0 && static_cast<size_t>(index) < devices_.size(); }

  // The device of that number, opened at its first use. Throws where there is none.
  Device& Open(int index);

  // Fills `chain` with what the device can do, and links it for vkCreateDevice; `extensions` have to be enabled for it.
  void ReadFeatures(const DeviceInfo& info, FeatureChain* chain, std::vector<const char*>* extensions) const;

  // Bytes of device memory that this process can still have, as far as the driver tells.
  uint64_t AvailableMemory(const DeviceInfo& info, uint64_t in_use) const;

 private:
  Driver();
  // At the end of the process: a driver must not be torn down under its own threads.
  void Close();
  std::string Start();
  std::string FindDevices();
  bool Inspect(VkPhysicalDevice handle, DeviceInfo* info) const;
  void InspectFeatures(DeviceInfo* info, const VkPhysicalDeviceSubgroupProperties& subgroup) const;
  // Whether kernels find the cooperative matrices that they are compiled for, in subgroups of kMatrixSubgroup threads.
  bool HasMatrices(const DeviceInfo& info, const FeatureChain& chain) const;

  DriverLibrary library_;
  VkInstance instance_ = nullptr;
  // Of an extension that few loaders knew: null where this one does not.
  VkResult (*matrix_properties_)(VkPhysicalDevice, uint32_t*, VkCooperativeMatrixPropertiesKHR*) = nullptr;
  InstanceFunctions functions_;
  std::vector<DeviceInfo> devices_;
  std::string problem_;
  std::mutex opening_;
  std::vector<std::unique_ptr<Device>> opened_;
};

}  // namespace vulkan
}  // namespace mlc
