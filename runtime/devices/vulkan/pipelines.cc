#include "pipelines.h"

#include <vector>

namespace mlc {
namespace vulkan {

Pipelines::Pipelines(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions)
    : info_(info), device_(device), functions_(functions), disk_("vulkan") {
  std::string kept = disk_.Get(info_.identity).value_or("");
  VkPipelineCacheCreateInfo create{VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  create.initialDataSize = kept.size();
  create.pInitialData = kept.data();
  if (functions_.vkCreatePipelineCache(device_, &create, nullptr, &cache_) == VK_SUCCESS) return;
  create.initialDataSize = 0;  // what was kept does not please the driver
  Check(functions_.vkCreatePipelineCache(device_, &create, nullptr, &cache_), info_.label, ": vkCreatePipelineCache");
}

const Pipeline& Pipelines::Get(const Kernel& kernel) {
  return built_.Get(&kernel, [&] { return Build(kernel); });
}

void Pipelines::BuildAll(const std::vector<std::unique_ptr<Kernel>>& kernels, size_t threads) {
  OnThreads(kernels.size(), threads, [&](size_t i) { Get(*kernels[i]); });
}

Pipeline Pipelines::Build(const Kernel& kernel) {
  kernel.CheckDevice(info_);
  Pipeline pipeline;
  try {
    Build(kernel, &pipeline);
  } catch (...) {
    Destroy(pipeline);
    throw;
  }
  ++count_;
  unsaved_ = true;
  built_since_ = true;
  return pipeline;
}

void Pipelines::Build(const Kernel& kernel, Pipeline* pipeline) {
  std::vector<VkDescriptorSetLayoutBinding> bindings(kernel.buffers);
  for (uint32_t i = 0; i < bindings.size(); ++i) {
    bindings[i] = {i, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, 1, VK_SHADER_STAGE_COMPUTE_BIT, nullptr};
  }
  auto check = [&](VkResult result, const char* what) {
    Check(result, "kernel ", kernel.info.name, ": ", info_.name, " refuses it (", what, ")");
  };
  VkDescriptorSetLayoutCreateInfo set{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO};
  set.bindingCount = static_cast<uint32_t>(bindings.size());
  set.pBindings = bindings.data();
  check(functions_.vkCreateDescriptorSetLayout(device_, &set, nullptr, &pipeline->set_layout),
        "vkCreateDescriptorSetLayout");
  VkPushConstantRange push{VK_SHADER_STAGE_COMPUTE_BIT, 0, (kernel.push_constants + 3) / 4 * 4};
  VkPipelineLayoutCreateInfo layout{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
  layout.setLayoutCount = 1;
  layout.pSetLayouts = &pipeline->set_layout;
  layout.pushConstantRangeCount = push.size != 0 ? 1 : 0;
  layout.pPushConstantRanges = &push;
  check(functions_.vkCreatePipelineLayout(device_, &layout, nullptr, &pipeline->layout), "vkCreatePipelineLayout");

  std::vector<uint32_t> words(kernel.code.size() / 4);  // aligned, as the code in a module is not
  std::memcpy(words.data(), kernel.code.data(), kernel.code.size());
  VkShaderModuleCreateInfo module{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
  module.codeSize = kernel.code.size();
  module.pCode = words.data();
  VkShaderModule shader = 0;
  check(functions_.vkCreateShaderModule(device_, &module, nullptr, &shader), "vkCreateShaderModule");
  VkComputePipelineCreateInfo create{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
  create.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  create.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  create.stage.module = shader;
  create.stage.pName = kernel.shader.entry_point.c_str();
  VkPipelineShaderStageRequiredSubgroupSizeCreateInfo subgroup{
      VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO};
  if (kernel.features & kCooperativeMatrix) {
    subgroup.requiredSubgroupSize = kMatrixSubgroup;
    create.stage.pNext = &subgroup;
    create.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
  }
  create.layout = pipeline->layout;
  create.basePipelineIndex = -1;
  VkResult result = functions_.vkCreateComputePipelines(device_, cache_, 1, &create, nullptr, &pipeline->pipeline);
  functions_.vkDestroyShaderModule(device_, shader, nullptr);
  check(result, "vkCreateComputePipelines");
}

void Pipelines::Destroy(const Pipeline& pipeline) {  // Vulkan ignores handles that are zero
  functions_.vkDestroyPipeline(device_, pipeline.pipeline, nullptr);
  functions_.vkDestroyPipelineLayout(device_, pipeline.layout, nullptr);
  functions_.vkDestroyDescriptorSetLayout(device_, pipeline.set_layout, nullptr);
}

void Pipelines::Forget(const Kernel& kernel) {
  built_.Forget(&kernel, [&](const Pipeline& pipeline) {
    Destroy(pipeline);
    --count_;
  });
}

void Pipelines::Synchronized() {
  bool quiet = !built_since_.exchange(false);
  if (!unsaved_ || !quiet) return;
  unsaved_ = false;
  size_t bytes = 0;
  if (functions_.vkGetPipelineCacheData(device_, cache_, &bytes, nullptr) != VK_SUCCESS || bytes == 0) return;
  std::string data(bytes, '\0');
  if (functions_.vkGetPipelineCacheData(device_, cache_, &bytes, &data[0]) != VK_SUCCESS) return;
  data.resize(bytes);
  disk_.Put(info_.identity, data);
}

}  // namespace vulkan
}  // namespace mlc
