// The part of the Vulkan API that the plug-in uses, declared after the Vulkan specification (registry.khronos.org):
// names, values and layouts are the specification's. tests/runtime/devices/test_vulkan_api.py compares every one of
// them with the headers of Khronos where those are installed; building the plug-in needs none.
#pragma once

#include "vulkan_objects.h"

namespace mlc {
namespace vulkan {

using PFN_vkVoidFunction = void(*)();
using PFN_vkGetInstanceProcAddr = PFN_vkVoidFunction(*)(VkInstance, const char*);

// Functions as X(name, result, arguments). Allocators are `const void*`: the plug-in passes none.
#define MLC_VULKAN_GLOBAL_FUNCTIONS(X)                                                      \
  X(vkEnumerateInstanceVersion, VkResult, (uint32_t*))                                      \
  X(vkCreateInstance, VkResult, (const VkInstanceCreateInfo*, const void*, VkInstance*))

#define MLC_VULKAN_INSTANCE_FUNCTIONS(X)                                                    \
  X(vkEnumeratePhysicalDevices, VkResult, (VkInstance, uint32_t*, VkPhysicalDevice*))       \
  X(vkEnumerateDeviceExtensionProperties, VkResult,                                         \
    (VkPhysicalDevice, const char*, uint32_t*, VkExtensionProperties*))                     \
  X(vkGetPhysicalDeviceProperties, void, (VkPhysicalDevice, VkPhysicalDeviceProperties*))   \
  X(vkGetPhysicalDeviceProperties2, void, (VkPhysicalDevice, VkPhysicalDeviceProperties2*)) \
  X(vkGetPhysicalDeviceFeatures2, void, (VkPhysicalDevice, VkPhysicalDeviceFeatures2*))     \
  X(vkGetPhysicalDeviceMemoryProperties2, void,                                             \
    (VkPhysicalDevice, VkPhysicalDeviceMemoryProperties2*))                                 \
  X(vkGetPhysicalDeviceQueueFamilyProperties, void,                                         \
    (VkPhysicalDevice, uint32_t*, VkQueueFamilyProperties*))                                \
  X(vkCreateDevice, VkResult, (VkPhysicalDevice, const VkDeviceCreateInfo*, const void*, VkDevice*)) \
  X(vkGetDeviceProcAddr, PFN_vkVoidFunction, (VkDevice, const char*))

#define MLC_VULKAN_DEVICE_FUNCTIONS(X)                                                      \
  X(vkGetDeviceQueue, void, (VkDevice, uint32_t, uint32_t, VkQueue*))                       \
  X(vkQueueSubmit, VkResult, (VkQueue, uint32_t, const VkSubmitInfo*, VkFence))             \
  X(vkDeviceWaitIdle, VkResult, (VkDevice))                                                 \
  X(vkAllocateMemory, VkResult,                                                             \
    (VkDevice, const VkMemoryAllocateInfo*, const void*, VkDeviceMemory*))                  \
  X(vkFreeMemory, void, (VkDevice, VkDeviceMemory, const void*))                            \
  X(vkMapMemory, VkResult,                                                                  \
    (VkDevice, VkDeviceMemory, VkDeviceSize, VkDeviceSize, VkFlags, void**))                \
  X(vkCreateBuffer, VkResult, (VkDevice, const VkBufferCreateInfo*, const void*, VkBuffer*)) \
  X(vkDestroyBuffer, void, (VkDevice, VkBuffer, const void*))                               \
  X(vkGetBufferMemoryRequirements, void, (VkDevice, VkBuffer, VkMemoryRequirements*))       \
  X(vkBindBufferMemory, VkResult, (VkDevice, VkBuffer, VkDeviceMemory, VkDeviceSize))       \
  X(vkCreateFence, VkResult, (VkDevice, const VkFenceCreateInfo*, const void*, VkFence*))   \
  X(vkGetFenceStatus, VkResult, (VkDevice, VkFence))                                        \
  X(vkWaitForFences, VkResult, (VkDevice, uint32_t, const VkFence*, VkBool32, uint64_t))    \
  X(vkResetFences, VkResult, (VkDevice, uint32_t, const VkFence*))                          \
  X(vkCreateCommandPool, VkResult,                                                          \
    (VkDevice, const VkCommandPoolCreateInfo*, const void*, VkCommandPool*))                \
  X(vkResetCommandPool, VkResult, (VkDevice, VkCommandPool, VkFlags))                       \
  X(vkAllocateCommandBuffers, VkResult,                                                     \
    (VkDevice, const VkCommandBufferAllocateInfo*, VkCommandBuffer*))                       \
  X(vkBeginCommandBuffer, VkResult, (VkCommandBuffer, const VkCommandBufferBeginInfo*))     \
  X(vkEndCommandBuffer, VkResult, (VkCommandBuffer))                                        \
  X(vkCreateDescriptorPool, VkResult,                                                       \
    (VkDevice, const VkDescriptorPoolCreateInfo*, const void*, VkDescriptorPool*))          \
  X(vkResetDescriptorPool, VkResult, (VkDevice, VkDescriptorPool, VkFlags))                 \
  X(vkAllocateDescriptorSets, VkResult,                                                     \
    (VkDevice, const VkDescriptorSetAllocateInfo*, VkDescriptorSet*))                       \
  X(vkUpdateDescriptorSets, void,                                                           \
    (VkDevice, uint32_t, const VkWriteDescriptorSet*, uint32_t, const void*))               \
  X(vkCreateDescriptorSetLayout, VkResult,                                                  \
    (VkDevice, const VkDescriptorSetLayoutCreateInfo*, const void*, VkDescriptorSetLayout*)) \
  X(vkDestroyDescriptorSetLayout, void, (VkDevice, VkDescriptorSetLayout, const void*))     \
  X(vkCreatePipelineLayout, VkResult,                                                       \
    (VkDevice, const VkPipelineLayoutCreateInfo*, const void*, VkPipelineLayout*))          \
  X(vkDestroyPipelineLayout, void, (VkDevice, VkPipelineLayout, const void*))               \
  X(vkCreateShaderModule, VkResult,                                                         \
    (VkDevice, const VkShaderModuleCreateInfo*, const void*, VkShaderModule*))              \
  X(vkDestroyShaderModule, void, (VkDevice, VkShaderModule, const void*))                   \
  X(vkCreateComputePipelines, VkResult,                                                     \
    (VkDevice, VkPipelineCache, uint32_t, const VkComputePipelineCreateInfo*, const void*, VkPipeline*)) \
  X(vkDestroyPipeline, void, (VkDevice, VkPipeline, const void*))                           \
  X(vkCreatePipelineCache, VkResult,                                                        \
    (VkDevice, const VkPipelineCacheCreateInfo*, const void*, VkPipelineCache*))            \
  X(vkGetPipelineCacheData, VkResult, (VkDevice, VkPipelineCache, size_t*, void*))          \
  X(vkCmdBindPipeline, void, (VkCommandBuffer, VkPipelineBindPoint, VkPipeline))            \
  X(vkCmdBindDescriptorSets, void,                                                          \
    (VkCommandBuffer, VkPipelineBindPoint, VkPipelineLayout, uint32_t, uint32_t,            \
     const VkDescriptorSet*, uint32_t, const uint32_t*))                                    \
  X(vkCmdPushConstants, void,                                                               \
    (VkCommandBuffer, VkPipelineLayout, VkFlags, uint32_t, uint32_t, const void*))          \
  X(vkCmdDispatch, void, (VkCommandBuffer, uint32_t, uint32_t, uint32_t))                   \
  X(vkCmdCopyBuffer, void, (VkCommandBuffer, VkBuffer, VkBuffer, uint32_t, const VkBufferCopy*)) \
  X(vkCmdUpdateBuffer, void,                                                                \
    (VkCommandBuffer, VkBuffer, VkDeviceSize, VkDeviceSize, const void*))                   \
  X(vkCmdPipelineBarrier, void,                                                             \
    (VkCommandBuffer, VkFlags, VkFlags, VkFlags, uint32_t, const VkMemoryBarrier*, uint32_t, \
     const void*, uint32_t, const void*))

#define MLC_VULKAN_MEMBER(name, result, arguments) result(*name) arguments = nullptr;

struct InstanceFunctions {
  MLC_VULKAN_INSTANCE_FUNCTIONS(MLC_VULKAN_MEMBER)
};

struct DeviceFunctions {
  MLC_VULKAN_DEVICE_FUNCTIONS(MLC_VULKAN_MEMBER)
};

#undef MLC_VULKAN_MEMBER

}  // namespace vulkan
}  // namespace mlc
