#include "kernel.h"

#include <algorithm>

namespace mlc {
namespace vulkan {

namespace {

constexpr uint32_t kMaxPushConstants = 1u << 16;  // more than any device takes
constexpr char kAxes[] = "xyz";

// Whether `text` can stand in an error.
bool Printable(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 127; });
}

// Bytes that a scalar takes among the push constants.
uint32_t ScalarBytes(DLDataType type) { return std::max<uint32_t>(1, type.bits / 8u); }

}  // namespace

Kernel::Kernel(SavedBytes* reader) {
  info.name = reader->ReadString();
  info.types = reader->ReadTypes();
  info.tags = reader->ReadStrings();
  for (uint32_t& extent : workgroup) extent = reader->Read<uint32_t>();
  features = reader->Read<uint32_t>();
  push_constants = reader->Read<uint32_t>();
  code = reader->ReadString();

  if (!Printable(info.name) || !std::all_of(info.tags.begin(), info.tags.end(), Printable)) {
    Fail("the library's vulkan module is damaged: compile the library again");
  }
  info.CheckTags();
  uint32_t end = 0;
  scalar_offsets.resize(info.types.size());
  for (size_t i = 0; i < info.types.size(); ++i) {
    if (IsBuffer(info.types[i])) {
      ++buffers;
      continue;
    }
    uint32_t bytes = ScalarBytes(info.types[i]);
    if (info.types[i].lanes != 1 || bytes > 8 || (bytes & (bytes - 1)) != 0) {
      Fail("kernel ", info.name, ": argument ", i, " is of a type that devices do not take");
    }
    scalar_offsets[i] = (end + bytes - 1) / bytes * bytes;
    end = scalar_offsets[i] + bytes;
    if (end > kMaxPushConstants) Fail("kernel ", info.name, ": it has too many scalars: compile the library again");
  }
  shader = ReadShader(info.name, code, buffers);
  bool same = shader.workgroup[0] == 0 || std::equal(workgroup, workgroup + 3, shader.workgroup);
  bool empty = std::find(workgroup, workgroup + 3, 0u) != workgroup + 3;
  uint32_t padded = (end + 3) / 4 * 4;
  if (!same || empty || push_constants < end || push_constants > padded || (features & ~kAllFeatures) != 0) {
    Fail("kernel ", info.name, ": its description does not fit its code: compile the library again");
  }
}

void Kernel::CheckDevice(const DeviceInfo& device) const {
  const VkPhysicalDeviceLimits& limits = device.limits();
  auto check = [&](uint64_t value, uint64_t limit, const char* name, const auto&... what) {
    if (value > limit) {
      Fail("kernel ", info.name, ": ", value, " ", what..., ", ", device.name, " allows ", limit, " (", name, ")");
    }
  };
  if (beside_matrices && !(device.features & kCooperativeMatrix)) {  // at the first kernel, not after a while
    Fail("the library multiplies with cooperative matrices (float16, ", kMatrixSide, " x ", kMatrixSide,
         ", subgroups of ", kMatrixSubgroup, " threads), ", device.name, " lacks them: compile it for --device vulkan");
  }
  if (uint32_t missing = features & ~device.features) {
    Fail("kernel ", info.name, ": ", device.name, " lacks ", FeatureNames(missing),
         ": compile the library for a device without it");
  }
  uint32_t buffer_limit = std::min(limits.maxPerStageDescriptorStorageBuffers, limits.maxDescriptorSetStorageBuffers);
  check(buffers, buffer_limit, "maxPerStageDescriptorStorageBuffers", "buffers");
  check(push_constants, limits.maxPushConstantsSize, "maxPushConstantsSize", "bytes of scalars");
  check(shader.shared_bytes, limits.maxComputeSharedMemorySize, "maxComputeSharedMemorySize", "bytes of shared memory");
  for (int axis = 0; axis < 3; ++axis) {
    check(workgroup[axis], limits.maxComputeWorkGroupSize[axis], "maxComputeWorkGroupSize", "threads in ", kAxes[axis]);
  }
  check(uint64_t{workgroup[0]} * workgroup[1] * workgroup[2], limits.maxComputeWorkGroupInvocations,
        "maxComputeWorkGroupInvocations", "threads in a workgroup");
}

void Kernel::CheckLaunch(const DeviceInfo& device, const Launch& launch) const {
  for (int axis = 0; axis < 3; ++axis) {
    if (launch.threads[axis] != workgroup[axis]) {
      Fail("kernel ", info.name, ": called with ", launch.threads[axis], " threads in ", kAxes[axis],
           ", it was compiled for ", workgroup[axis]);
    }
    uint32_t limit = device.limits().maxComputeWorkGroupCount[axis];
    if (launch.groups[axis] > limit) {
      Fail("kernel ", info.name, ": ", launch.groups[axis], " workgroups in ", kAxes[axis], ", ", device.name,
           " allows ", limit, " (maxComputeWorkGroupCount)");
    }
  }
}

}  // namespace vulkan
}  // namespace mlc
