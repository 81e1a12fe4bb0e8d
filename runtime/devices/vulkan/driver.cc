#include "driver.h"

#include <algorithm>
#include <cstdlib>

#include "device.h"

namespace mlc {
namespace vulkan {

namespace {

constexpr const char* kAdvice =
    "install the driver of the GPU, or one that computes on the CPU (Debian: apt install mesa-vulkan-drivers)";

// Extensions whose features newer versions of Vulkan have without being asked.
constexpr const char* k8BitStorage = "VK_KHR_8bit_storage";
constexpr const char* kFloat16Int8 = "VK_KHR_shader_float16_int8";
constexpr const char* kSubgroupTypes = "VK_KHR_shader_subgroup_extended_types";
constexpr const char* kMemoryModel = "VK_KHR_vulkan_memory_model";
constexpr const char* kDriverProperties = "VK_KHR_driver_properties";
constexpr const char* kMatrix = "VK_KHR_cooperative_matrix";
constexpr const char* kSubgroupSizes = "VK_EXT_subgroup_size_control";
constexpr const char* kMemoryBudget = "VK_EXT_memory_budget";

// MLC_VULKAN_UNIFIED=0 has tensors of an integrated GPU or CPU written as those of a GPU with its own memory.
bool IsUnified(VkPhysicalDeviceType type) {
  const char* asked = std::getenv("MLC_VULKAN_UNIFIED");
  if (asked != nullptr && std::string(asked) == "0") return false;
  return type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU || type == VK_PHYSICAL_DEVICE_TYPE_CPU;
}

// Puts `structure` at the front of the list that `head` begins.
template <typename Head, typename Structure>
void Link(Head* head, Structure* structure) {
  structure->pNext = head->pNext;
  head->pNext = structure;
}

}  // namespace

Driver& Driver::Get() {
  static Driver* driver = new Driver();  // outlives whatever the end of the process destroys
  return *driver;
}

Driver::Driver() : library_({"libvulkan.so.1", "libvulkan.so"}) {
  problem_ = library_.opened() ? Start() : Text("no Vulkan loader (", library_.problem(), "): ", kAdvice);
  if (problem_.empty()) problem_ = FindDevices();
  opened_.resize(devices_.size());
  if (!devices_.empty()) std::atexit([] { Get().Close(); });
}

// Makes the instance. Returns why that cannot be.
std::string Driver::Start() {
  PFN_vkVoidFunction (*find)(VkInstance, const char*) = nullptr;
  if (!library_.Find("vkGetInstanceProcAddr", find)) return "libvulkan.so.1 has no vkGetInstanceProcAddr";
#define MLC_FIND(function, result, arguments) \
  auto function = reinterpret_cast<result(*) arguments>(find(nullptr, #function));
  MLC_VULKAN_GLOBAL_FUNCTIONS(MLC_FIND)
#undef MLC_FIND
  uint32_t version = api_version(1, 0);
  if (vkEnumerateInstanceVersion != nullptr) vkEnumerateInstanceVersion(&version);
  if (version < api_version(1, 1) || vkCreateInstance == nullptr) {
    return Text("the Vulkan loader is of version ", VersionName(version), ", 1.1 is needed: ", kAdvice);
  }
  VkApplicationInfo application{VK_STRUCTURE_TYPE_APPLICATION_INFO};
  application.pApplicationName = "mlc_llm";
  application.apiVersion = std::min(version, api_version(1, 3));
  VkInstanceCreateInfo create{VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
  create.pApplicationInfo = &application;
  VkResult result = vkCreateInstance(&create, nullptr, &instance_);
  if (result != VK_SUCCESS) return Text("no Vulkan driver (vkCreateInstance: ", ResultName(result), "): ", kAdvice);
#define MLC_FIND(function, result, arguments)                                         \
  functions_.function = reinterpret_cast<result(*) arguments>(find(instance_, #function)); \
  if (functions_.function == nullptr) return "the Vulkan loader has no function " #function;
  MLC_VULKAN_INSTANCE_FUNCTIONS(MLC_FIND)
#undef MLC_FIND
  matrix_properties_ = reinterpret_cast<decltype(matrix_properties_)>(
      find(instance_, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  return "";
}

// Lists the devices that can compute. Returns why there are none.
std::string Driver::FindDevices() {
  uint32_t count = 0;
  VkResult result = functions_.vkEnumeratePhysicalDevices(instance_, &count, nullptr);
  std::vector<VkPhysicalDevice> handles(count);
  if (result == VK_SUCCESS && count != 0) {
    result = functions_.vkEnumeratePhysicalDevices(instance_, &count, handles.data());
    handles.resize(count);
  }
  if (result != VK_SUCCESS && result != VK_INCOMPLETE) {
    return Text("the Vulkan driver lists no devices (", ResultName(result), "): ", kAdvice);
  }
  for (VkPhysicalDevice handle : handles) {
    DeviceInfo info;
    if (Inspect(handle, &info)) devices_.push_back(std::move(info));
  }
  std::stable_sort(devices_.begin(), devices_.end(), [](const DeviceInfo& a, const DeviceInfo& b) {
    return a.rank() < b.rank();
  });
  if (!devices_.empty()) return "";
  return Text("Vulkan finds ", handles.size(), " devices, none that computes with Vulkan 1.1: ", kAdvice);
}

// Asks a device what it is; false where it cannot run kernels.
bool Driver::Inspect(VkPhysicalDevice handle, DeviceInfo* info) const {
  info->handle = handle;
  functions_.vkGetPhysicalDeviceProperties(handle, &info->properties);
  if (info->properties.apiVersion < api_version(1, 1)) return false;

  uint32_t count = 0;
  functions_.vkGetPhysicalDeviceQueueFamilyProperties(handle, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  functions_.vkGetPhysicalDeviceQueueFamilyProperties(handle, &count, families.data());
  int best = 0;  // 2: computes and does not draw, so that the desktop has its own queue; 1: computes
  for (uint32_t i = 0; i < count; ++i) {
    VkFlags flags = families[i].queueFlags;
    int worth = !(flags & VK_QUEUE_COMPUTE_BIT) ? 0 : flags & VK_QUEUE_GRAPHICS_BIT ? 1 : 2;
    if (worth > best) {
      best = worth;
      info->queue_family = i;
    }
  }
  if (best == 0) return false;

  count = 0;
  functions_.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, nullptr);
  std::vector<VkExtensionProperties> extensions(count);
  functions_.vkEnumerateDeviceExtensionProperties(handle, nullptr, &count, extensions.data());
  for (const VkExtensionProperties& extension : extensions) info->known.emplace_back(extension.extensionName);

  VkPhysicalDeviceMemoryProperties2 memory{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  functions_.vkGetPhysicalDeviceMemoryProperties2(handle, &memory);
  info->memory = memory.memoryProperties;

  VkPhysicalDeviceProperties2 properties{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  VkPhysicalDeviceIDProperties id{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
  VkPhysicalDeviceSubgroupProperties subgroup{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
  VkPhysicalDeviceMaintenance3Properties maintenance{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
  VkPhysicalDeviceDriverProperties driver{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
  Link(&properties, &id);
  Link(&properties, &subgroup);
  Link(&properties, &maintenance);
  if (info->properties.apiVersion >= api_version(1, 2) || info->Knows(kDriverProperties)) Link(&properties, &driver);
  functions_.vkGetPhysicalDeviceProperties2(handle, &properties);

  info->name = info->properties.deviceName;
  info->label = Text("Vulkan device ", info->name);
  info->driver = Text(driver.driverName, driver.driverName[0] != 0 ? " " : "", driver.driverInfo);
  info->unified = IsUnified(info->properties.deviceType);
  info->max_allocation = maintenance.maxMemoryAllocationSize;
  info->subgroup_size = subgroup.subgroupSize;
  const VkPhysicalDeviceProperties& known = info->properties;
  info->identity = Text("vulkan pipelines, ", known.vendorID, " ", known.deviceID, " ", known.driverVersion, " ");
  const uint8_t* uuids[] = {id.deviceUUID, id.driverUUID, known.pipelineCacheUUID};
  for (const uint8_t* uuid : uuids) info->identity.append(reinterpret_cast<const char*>(uuid), kUuidSize);
  InspectFeatures(info, subgroup);
  return true;
}

void Driver::InspectFeatures(DeviceInfo* info, const VkPhysicalDeviceSubgroupProperties& subgroup) const {
  FeatureChain chain;
  std::vector<const char*> extensions;
  ReadFeatures(*info, &chain, &extensions);
  constexpr VkFlags kOperations =
      VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_ARITHMETIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
  bool subgroups = (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0 &&
                   (subgroup.supportedOperations & kOperations) == kOperations;
  auto set = [info](bool has, Feature feature) { if (has) info->features |= feature; };
  set(chain.small.shaderFloat16, kFloat16);
  set(chain.storage16.storageBuffer16BitAccess, kStorage16);
  set(chain.core.features.shaderInt64, kInt64);
  set(chain.storage8.storageBuffer8BitAccess, kStorage8);
  set(chain.small.shaderInt8, kInt8);
  set(subgroups, kSubgroup);
  set(chain.core.features.shaderInt16, kInt16);
  set(chain.core.features.shaderFloat64, kFloat64);
  set(HasMatrices(*info, chain), kCooperativeMatrix);
}

bool Driver::HasMatrices(const DeviceInfo& info, const FeatureChain& chain) const {
  bool can = chain.matrix.cooperativeMatrix && chain.memory_model.vulkanMemoryModel && chain.sizes.subgroupSizeControl &&
             chain.sizes.computeFullSubgroups;
  if (!can || matrix_properties_ == nullptr) return false;
  VkPhysicalDeviceProperties2 properties{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  VkPhysicalDeviceSubgroupSizeControlProperties sizes{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
  Link(&properties, &sizes);
  functions_.vkGetPhysicalDeviceProperties2(info.handle, &properties);
  if (kMatrixSubgroup < sizes.minSubgroupSize || kMatrixSubgroup > sizes.maxSubgroupSize ||
      !(sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT)) {
    return false;
  }
  uint32_t count = 0;
  if (matrix_properties_(info.handle, &count, nullptr) != VK_SUCCESS) return false;
  std::vector<VkCooperativeMatrixPropertiesKHR> kinds(count, {VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR});
  if (matrix_properties_(info.handle, &count, kinds.data()) != VK_SUCCESS) return false;
  return std::any_of(kinds.begin(), kinds.begin() + count, [](const VkCooperativeMatrixPropertiesKHR& kind) {
    return kind.MSize == kMatrixSide && kind.NSize == kMatrixSide && kind.KSize == kMatrixSide &&
           kind.AType == VK_COMPONENT_TYPE_FLOAT16_KHR && kind.BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
           kind.CType == VK_COMPONENT_TYPE_FLOAT32_KHR && kind.ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
           kind.scope == VK_SCOPE_SUBGROUP_KHR;
  });
}

void Driver::ReadFeatures(const DeviceInfo& info, FeatureChain* chain, std::vector<const char*>* extensions) const {
  bool has12 = info.properties.apiVersion >= api_version(1, 2), has13 = info.properties.apiVersion >= api_version(1, 3);
  auto add = [&](auto* structure, const char* extension, bool in_core) {
    if (!in_core && !info.Knows(extension)) return;
    if (!in_core) extensions->push_back(extension);
    Link(&chain->core, structure);
  };
  add(&chain->storage16, "", true);
  add(&chain->storage8, k8BitStorage, has12);
  add(&chain->small, kFloat16Int8, has12);
  add(&chain->subgroup, kSubgroupTypes, has12);
  add(&chain->memory_model, kMemoryModel, has12);
  add(&chain->sizes, kSubgroupSizes, has13);
  add(&chain->matrix, kMatrix, false);
  if (info.Knows(kMemoryBudget)) extensions->push_back(kMemoryBudget);
  functions_.vkGetPhysicalDeviceFeatures2(info.handle, &chain->core);

  // Of the features of version 1.0 only what kernels use: some of the others cost speed.
  VkPhysicalDeviceFeatures wanted{};
  wanted.shaderInt64 = chain->core.features.shaderInt64;
  wanted.shaderInt16 = chain->core.features.shaderInt16;
  wanted.shaderFloat64 = chain->core.features.shaderFloat64;
  chain->core.features = wanted;
  chain->matrix.cooperativeMatrixRobustBufferAccess = 0;
}

uint64_t Driver::AvailableMemory(const DeviceInfo& info, uint64_t in_use) const {
  uint64_t total = info.total_memory();
  if (!info.Knows(kMemoryBudget)) return total > in_use ? total - in_use : 0;
  VkPhysicalDeviceMemoryProperties2 memory{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  Link(&memory, &budget);
  functions_.vkGetPhysicalDeviceMemoryProperties2(info.handle, &memory);
  uint32_t heap = info.main_heap();
  uint64_t left = budget.heapBudget[heap] - std::min(budget.heapBudget[heap], budget.heapUsage[heap]);
  return std::min(left, total);
}

Device& Driver::Open(int index) {
  if (!Has(index)) {
    if (devices_.empty()) Fail("there is no Vulkan device: ", problem_);
    Fail("there is no Vulkan device ", index, ": this machine has ", devices_.size());
  }
  std::lock_guard<std::mutex> lock(opening_);
  std::unique_ptr<Device>& device = opened_[static_cast<size_t>(index)];
  if (device == nullptr) device = std::make_unique<Device>(*this, devices_[static_cast<size_t>(index)]);
  return *device;
}

void Driver::Close() {
  std::lock_guard<std::mutex> lock(opening_);
  for (const std::unique_ptr<Device>& device : opened_) {
    if (device != nullptr) device->Close();
  }
}

}  // namespace vulkan
}  // namespace mlc
