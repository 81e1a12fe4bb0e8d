// The Vulkan loader, the machine's devices, and what is known of each before it is opened.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../shared/driver_library.h"
#include "../shared/text.h"
#include "vulkan_api.h"

namespace mlc {
namespace vulkan {

class Device;

// What a kernel can need of a device, as the bits of the compiled module.
enum Feature : uint32_t {
  kFloat16 = 1u << 0,
  kStorage16 = 1u << 1,
  kInt64 = 1u << 2,
  kStorage8 = 1u << 3,
  kInt8 = 1u << 4,
  kSubgroup = 1u << 5,
  kInt16 = 1u << 6,
  kFloat64 = 1u << 7,
  kCooperativeMatrix = 1u << 8,
};
constexpr uint32_t kAllFeatures = (1u << 9) - 1;

// "float16, int64": the features in words.
std::string FeatureNames(uint32_t features);

// "1.3" of a packed version.
std::string VersionName(uint32_t version);

// "VK_ERROR_DEVICE_LOST", or the number of a code that the plug-in has no name for.
std::string ResultName(VkResult result);

// Throws unless `result` is VK_SUCCESS: the parts, then the name of the code.
template <typename... Parts>
void Check(VkResult result, const Parts&... parts) {
  if (result != VK_SUCCESS) Fail(parts..., ": ", ResultName(result));
}

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
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};

  FeatureChain() = default;
  FeatureChain(const FeatureChain&) = delete;
  FeatureChain& operator=(const FeatureChain&) = delete;
};

// A device as its driver describes it.
struct DeviceInfo {
  VkPhysicalDevice handle = nullptr;
  VkPhysicalDeviceProperties properties{};
  VkPhysicalDeviceMemoryProperties memory{};
  std::string name, driver;
  std::string label;                // as errors begin: "Vulkan device ..."
  std::string identity;             // of device and driver: what pipelines were built for
  std::vector<std::string> known;   // extensions of the device
  uint32_t queue_family = 0;        // the one that computes
  uint32_t features = 0;            // bits of Feature
  uint32_t subgroup_size = 0;
  uint64_t max_allocation = 0;
  bool unified = false;  // device and host share their memory

  const VkPhysicalDeviceLimits& limits() const { return properties.limits; }
  bool Knows(const char* extension) const;
  uint64_t total_memory() const;
  // The heap that tensors live in: the largest of the device's own memory.
  uint32_t main_heap() const;
  JsonObject Describe() const;
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

  DriverLibrary library_;
  VkInstance instance_ = nullptr;
  InstanceFunctions functions_;
  std::vector<DeviceInfo> devices_;
  std::string problem_;
  std::mutex opening_;
  std::vector<std::unique_ptr<Device>> opened_;
};

}  // namespace vulkan
}  // namespace mlc
