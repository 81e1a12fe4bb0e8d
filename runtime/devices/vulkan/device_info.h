// A device as its driver describes it, and the names of what Vulkan has numbers for.
#pragma once

#include <string>
#include <vector>

#include "../shared/text.h"
#include "vulkan_api.h"

namespace mlc {
namespace vulkan {

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

// Of a cooperative matrix in a kernel: its rows and columns, and the threads of a subgroup, which hold it.
constexpr uint32_t kMatrixSide = 16, kMatrixSubgroup = 32;

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
  // Faster kinds of devices come first.
  int rank() const;
  JsonObject Describe() const;
};

}  // namespace vulkan
}  // namespace mlc
