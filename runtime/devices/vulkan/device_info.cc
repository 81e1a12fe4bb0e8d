#include "device_info.h"

#include <algorithm>

namespace mlc {
namespace vulkan {

std::string VersionName(uint32_t version) { return Text(version >> 22 & 0x7f, ".", version >> 12 & 0x3ff); }

std::string ResultName(VkResult result) {
#define MLC_NAME(code) \
  case code: return #code;
  switch (result) {
    MLC_NAME(VK_SUCCESS)
    MLC_NAME(VK_NOT_READY)
    MLC_NAME(VK_TIMEOUT)
    MLC_NAME(VK_INCOMPLETE)
    MLC_NAME(VK_ERROR_OUT_OF_HOST_MEMORY)
    MLC_NAME(VK_ERROR_OUT_OF_DEVICE_MEMORY)
    MLC_NAME(VK_ERROR_INITIALIZATION_FAILED)
    MLC_NAME(VK_ERROR_DEVICE_LOST)
    MLC_NAME(VK_ERROR_MEMORY_MAP_FAILED)
    MLC_NAME(VK_ERROR_LAYER_NOT_PRESENT)
    MLC_NAME(VK_ERROR_EXTENSION_NOT_PRESENT)
    MLC_NAME(VK_ERROR_FEATURE_NOT_PRESENT)
    MLC_NAME(VK_ERROR_INCOMPATIBLE_DRIVER)
    MLC_NAME(VK_ERROR_TOO_MANY_OBJECTS)
    MLC_NAME(VK_ERROR_FRAGMENTED_POOL)
    MLC_NAME(VK_ERROR_UNKNOWN)
    MLC_NAME(VK_ERROR_OUT_OF_POOL_MEMORY)
    MLC_NAME(VK_ERROR_INVALID_SHADER_NV)
  }
#undef MLC_NAME
  return Text("VkResult ", static_cast<int>(result));
}

std::string FeatureNames(uint32_t features) {
  constexpr const char* kNames[] = {"float16",
                                    "16-bit storage",
                                    "int64",
                                    "8-bit storage",
                                    "int8",
                                    "subgroup arithmetic and shuffles",
                                    "int16",
                                    "float64",
                                    "cooperative matrices"};
  std::string names;
  for (size_t bit = 0; bit < std::size(kNames); ++bit) {
    if (features >> bit & 1) names += (names.empty() ? "" : ", ") + std::string(kNames[bit]);
  }
  return names;
}

bool DeviceInfo::Knows(const char* extension) const {
  return std::find(known.begin(), known.end(), extension) != known.end();
}

uint32_t DeviceInfo::main_heap() const {
  uint32_t best = 0;
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < memory.memoryTypeCount; ++i) {
    const VkMemoryType& type = memory.memoryTypes[i];
    uint64_t size = memory.memoryHeaps[type.heapIndex].size;
    if ((type.propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) && size > bytes) {
      best = type.heapIndex;
      bytes = size;
    }
  }
  return best;
}

uint64_t DeviceInfo::total_memory() const { return memory.memoryHeaps[main_heap()].size; }

int DeviceInfo::rank() const {
  switch (properties.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return 2;
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return 4;
    default: return 3;
  }
}

JsonObject DeviceInfo::Describe() const {
  constexpr const char* kTypes[] = {"discrete", "integrated", "virtual", "other", "cpu"};
  return JsonObject()
      .Add("name", name)
      .Add("driver", driver)
      .Add("type", kTypes[rank()])
      .Add("api", VersionName(properties.apiVersion))
      .Add("memory", total_memory())
      .Add("unified_memory", unified)
      .Add("max_buffer", uint64_t{limits().maxStorageBufferRange})
      .Add("max_allocation", max_allocation)
      .Add("max_buffers", uint64_t{limits().maxPerStageDescriptorStorageBuffers})
      .Add("buffer_alignment", static_cast<uint64_t>(limits().minStorageBufferOffsetAlignment))
      .Add("max_threads", uint64_t{limits().maxComputeWorkGroupInvocations})
      .Add("max_groups", uint64_t{limits().maxComputeWorkGroupCount[0]})
      .Add("shared_memory", uint64_t{limits().maxComputeSharedMemorySize})
      .Add("push_constants", uint64_t{limits().maxPushConstantsSize})
      .Add("subgroup", uint64_t{subgroup_size})
      .Add("float16", (features & kFloat16) != 0)
      .Add("storage16", (features & kStorage16) != 0)
      .Add("storage8", (features & kStorage8) != 0)
      .Add("int8", (features & kInt8) != 0)
      .Add("int16", (features & kInt16) != 0)
      .Add("int64", (features & kInt64) != 0)
      .Add("float64", (features & kFloat64) != 0)
      .Add("subgroup_operations", (features & kSubgroup) != 0)
      .Add("cooperative_matrix", (features & kCooperativeMatrix) != 0);
}

}  // namespace vulkan
}  // namespace mlc
