#include "commands.h"

namespace mlc {
namespace vulkan {

namespace {

constexpr uint32_t kFirstDispatches = 8;  // of a batch for an idle device: it should not wait for the host
constexpr uint32_t kDispatches = 64;      // of a batch for a device that is busy
constexpr uint64_t kThreads = 1 << 22;    // of a batch: systems stop what keeps a GPU for seconds
constexpr size_t kRunning = 16;           // batches under way before recording waits
constexpr uint32_t kSets = kDispatches, kSetBuffers = kDispatches * 32;
constexpr size_t kUnordered = 256;        // spans that are compared before a barrier is simply made
constexpr VkFlags kStages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
constexpr VkFlags kWrites = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
constexpr VkFlags kReads = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;

bool Conflict(const Span& a, const Span& b) {
  return (a.write || b.write) && a.begin < b.end && b.begin < a.end;
}

}  // namespace

Commands::Commands(const DeviceInfo& info, VkDevice device, const DeviceFunctions& functions)
    : info_(info), device_(device), functions_(functions) {
  functions_.vkGetDeviceQueue(device_, info_.queue_family, 0, &queue_);
}

std::unique_ptr<Commands::Batch> Commands::NewBatch() {
  auto batch = std::make_unique<Batch>();
  VkCommandPoolCreateInfo pool{VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
  pool.flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
  pool.queueFamilyIndex = info_.queue_family;
  Check(functions_.vkCreateCommandPool(device_, &pool, nullptr, &batch->pool), info_.label, ": vkCreateCommandPool");
  VkCommandBufferAllocateInfo buffer{VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
  buffer.commandPool = batch->pool;
  buffer.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  buffer.commandBufferCount = 1;
  Check(functions_.vkAllocateCommandBuffers(device_, &buffer, &batch->buffer), info_.label,
        ": vkAllocateCommandBuffers");
  VkFenceCreateInfo fence{VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
  Check(functions_.vkCreateFence(device_, &fence, nullptr, &batch->fence), info_.label, ": vkCreateFence");
  VkDescriptorPoolSize size{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, kSetBuffers};
  VkDescriptorPoolCreateInfo descriptors{VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO};
  descriptors.maxSets = kSets;
  descriptors.poolSizeCount = 1;
  descriptors.pPoolSizes = &size;
  Check(functions_.vkCreateDescriptorPool(device_, &descriptors, nullptr, &batch->descriptors), info_.label,
        ": vkCreateDescriptorPool");
  return batch;
}

// Throws where the device failed now or earlier: what it had to do then is lost, and with it what tensors hold.
void Commands::CheckAlive(VkResult result, const char* what) {
  if (result == VK_SUCCESS && !failed_) return;
  if (failed_) Fail(info_.label, ": the device has failed before: start the program again");
  failed_ = true;
  open_.reset();
  Fail(info_.label, ": ", what, ": ", ResultName(result));
}

void Commands::Begin() {
  CheckAlive(VK_SUCCESS, "");
  if (open_ != nullptr) return;
  Collect();
  if (running_.size() >= kRunning) Wait(running_.front()->number);
  if (idle_.empty()) idle_.push_back(NewBatch());
  std::unique_ptr<Batch> batch = std::move(idle_.back());
  idle_.pop_back();
  VkCommandBufferBeginInfo begin{VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
  begin.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  Check(functions_.vkBeginCommandBuffer(batch->buffer, &begin), info_.label, ": vkBeginCommandBuffer");
  batch->number = next_;
  open_ = std::move(batch);
}

VkDescriptorSet Commands::DescriptorSet(VkDescriptorSetLayout layout, uint32_t buffers) {
  if (open_ != nullptr && (open_->sets == kSets || open_->set_buffers + buffers > kSetBuffers)) Submit();
  Begin();
  VkDescriptorSetAllocateInfo allocate{VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO};
  allocate.descriptorPool = open_->descriptors;
  allocate.descriptorSetCount = 1;
  allocate.pSetLayouts = &layout;
  VkDescriptorSet set = 0;
  Check(functions_.vkAllocateDescriptorSets(device_, &allocate, &set), info_.label, ": vkAllocateDescriptorSets");
  ++open_->sets;
  open_->set_buffers += buffers;
  return set;
}

VkCommandBuffer Commands::Record(const Span* spans, size_t count) {
  Begin();
  bool ordered = unordered_.size() + count <= kUnordered;
  for (size_t i = 0; i < count && ordered; ++i) {
    for (const Span& earlier : unordered_) ordered = ordered && !Conflict(spans[i], earlier);
  }
  if (!ordered) {
    Barrier(0, 0);
    ++counters_.barriers;
  }
  unordered_.insert(unordered_.end(), spans, spans + count);
  return open_->buffer;
}

// Whatever comes later sees what came before.
void Commands::Barrier(VkFlags also_stage, VkFlags also_access) {
  VkMemoryBarrier barrier{VK_STRUCTURE_TYPE_MEMORY_BARRIER};
  barrier.srcAccessMask = kWrites;
  barrier.dstAccessMask = kReads | kWrites | also_access;
  functions_.vkCmdPipelineBarrier(open_->buffer, kStages, kStages | also_stage, 0, 1, &barrier, 0, nullptr, 0, nullptr);
  unordered_.clear();
}

void Commands::DispatchRecorded(uint64_t threads) {
  ++counters_.dispatches;
  ++open_->dispatches;
  open_->threads += threads;
  bool first = open_->dispatches == kFirstDispatches;
  if (first) Collect();
  bool idle = first && running_.empty();
  if (idle || open_->dispatches >= kDispatches || open_->threads >= kThreads) Submit();
}

void Commands::Submit() {
  if (open_ == nullptr) return;
  Barrier(VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);  // the next batch and the host see everything
  CheckAlive(functions_.vkEndCommandBuffer(open_->buffer), "vkEndCommandBuffer");
  VkSubmitInfo submit{VK_STRUCTURE_TYPE_SUBMIT_INFO};
  submit.commandBufferCount = 1;
  submit.pCommandBuffers = &open_->buffer;
  CheckAlive(functions_.vkQueueSubmit(queue_, 1, &submit, open_->fence), "vkQueueSubmit");
  ++counters_.submissions;
  ++next_;
  running_.push_back(std::move(open_));
}

// Takes back the batches that have run, without waiting.
void Commands::Collect() {
  while (!running_.empty()) {
    VkResult result = functions_.vkGetFenceStatus(device_, running_.front()->fence);
    if (result == VK_NOT_READY) return;
    CheckAlive(result, "vkGetFenceStatus");
    Retire();
  }
}

void Commands::Retire() {
  std::unique_ptr<Batch> batch = std::move(running_.front());
  running_.pop_front();
  done_ = batch->number;
  Check(functions_.vkResetFences(device_, 1, &batch->fence), info_.label, ": vkResetFences");
  Check(functions_.vkResetCommandPool(device_, batch->pool, 0), info_.label, ": vkResetCommandPool");
  Check(functions_.vkResetDescriptorPool(device_, batch->descriptors, 0), info_.label, ": vkResetDescriptorPool");
  batch->threads = batch->dispatches = batch->sets = batch->set_buffers = 0;
  idle_.push_back(std::move(batch));
}

bool Commands::Done(uint64_t number) {
  if (number > done_) Collect();
  return number <= done_;
}

void Commands::Wait(uint64_t number) {
  CheckAlive(VK_SUCCESS, "");
  if (number >= next_) Submit();
  std::vector<VkFence> fences;
  for (const std::unique_ptr<Batch>& batch : running_) {
    if (batch->number <= number) fences.push_back(batch->fence);
  }
  if (fences.empty()) return;
  ++counters_.waits;
  uint32_t count = static_cast<uint32_t>(fences.size());
  CheckAlive(functions_.vkWaitForFences(device_, count, fences.data(), 1, ~uint64_t{0}), "vkWaitForFences");
  for (; count != 0; --count) Retire();
}

}  // namespace vulkan
}  // namespace mlc
