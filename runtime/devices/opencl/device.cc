#include "device.h"

#include <algorithm>
#include <cstring>

namespace mlc {
namespace opencl {
namespace {

constexpr unsigned kFlushAfter = 16;  // kernels: a driver may wait for a flush before it begins

template <typename Value>
Value Info(cl_device_id id, cl_uint what) {
  Value value{};
  Api::Get().GetDeviceInfo(id, what, sizeof(value), &value, nullptr);
  return value;
}

template <typename Getter, typename Object>
std::string TextInfo(Getter getter, Object object, cl_uint what) {
  size_t size = 0;
  if (getter(object, what, 0, nullptr, &size) != CL_SUCCESS || size == 0) return "";
  std::string text(size, '\0');
  if (getter(object, what, size, &text[0], nullptr) != CL_SUCCESS) return "";
  text.resize(std::strlen(text.c_str()));
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

Limits ReadLimits(cl_platform_id platform, cl_device_id id, const char* type) {
  const Api& api = Api::Get();
  Limits limits;
  limits.type = type;
  limits.name = TextInfo(api.GetDeviceInfo, id, CL_DEVICE_NAME);
  limits.vendor = TextInfo(api.GetDeviceInfo, id, CL_DEVICE_VENDOR);
  limits.driver = TextInfo(api.GetDeviceInfo, id, CL_DRIVER_VERSION);
  limits.version = TextInfo(api.GetDeviceInfo, id, CL_DEVICE_VERSION);
  limits.platform = TextInfo(api.GetPlatformInfo, platform, CL_PLATFORM_NAME) + ", " +
                    TextInfo(api.GetPlatformInfo, platform, CL_PLATFORM_VERSION);
  limits.memory = Info<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_SIZE);
  limits.max_buffer = Info<cl_ulong>(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
  limits.shared_memory = Info<cl_ulong>(id, CL_DEVICE_LOCAL_MEM_SIZE);
  limits.cache = Info<cl_ulong>(id, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE);
  limits.compute_units = Info<cl_uint>(id, CL_DEVICE_MAX_COMPUTE_UNITS);
  limits.clock_khz = uint64_t{Info<cl_uint>(id, CL_DEVICE_MAX_CLOCK_FREQUENCY)} * 1000;
  limits.subgroup = 1;  // kernels rely on no lanes
  limits.max_threads = Info<size_t>(id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
  limits.max_argument_bytes = Info<size_t>(id, CL_DEVICE_MAX_PARAMETER_SIZE);
  size_t bytes = 0;  // three axes or more
  api.GetDeviceInfo(id, CL_DEVICE_MAX_WORK_ITEM_SIZES, 0, nullptr, &bytes);
  std::vector<size_t> axes(std::max<size_t>(3, bytes / sizeof(size_t)), 1);
  api.GetDeviceInfo(id, CL_DEVICE_MAX_WORK_ITEM_SIZES, axes.size() * sizeof(size_t), axes.data(), nullptr);
  std::copy_n(axes.begin(), 3, limits.max_threads_of);
  std::string extensions = " " + TextInfo(api.GetDeviceInfo, id, CL_DEVICE_EXTENSIONS) + " ";
  limits.float16 = extensions.find(" cl_khr_fp16 ") != std::string::npos;
  limits.float64 = extensions.find(" cl_khr_fp64 ") != std::string::npos;
  return limits;
}

bool OutOfMemory(cl_int code) {
  return code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES || code == CL_OUT_OF_HOST_MEMORY;
}

}  // namespace

void Staging::Write(cl_command_queue queue, cl_mem to, size_t offset, const void* from, size_t bytes) {
  const Api& api = Api::Get();
  if (memory_.empty()) memory_.resize(2 * kHalf);
  if (used_ + bytes > kHalf) {
    half_ = 1 - half_;
    used_ = 0;
    if (last_[half_] != nullptr) {  // what was sent from here the last time has to have left
      Check(api.WaitForEvents(1, &last_[half_]), "a write to the device");
    }
  }
  char* copy = memory_.data() + half_ * kHalf + used_;
  std::memcpy(copy, from, bytes);
  cl_event event = nullptr;
  Check(api.EnqueueWriteBuffer(queue, to, CL_FALSE, offset, bytes, copy, 0, nullptr, &event), "a write to the device");
  if (last_[half_] != nullptr) api.ReleaseEvent(last_[half_]);
  last_[half_] = event;
  used_ += bytes;
}

Device::Device(cl_device_id id, Limits found) : limits(std::move(found)), id_(id), pool_(Pool<Buffer>::MostOf(limits.memory)) {}

void Device::Open() {
  if (queue_ != nullptr) return;
  const Api& api = Api::Get();
  cl_int code = CL_SUCCESS;
  if (context_ == nullptr) {
    cl_context context = api.CreateContext(nullptr, 1, &id_, nullptr, nullptr, &code);
    Check(code, Text("OpenCL device ", limits.name, " cannot be opened: clCreateContext"));
    context_ = context;
  }
  cl_command_queue queue = api.CreateCommandQueue(context_, id_, 0, &code);
  Check(code, Text("OpenCL device ", limits.name, " cannot be opened: clCreateCommandQueue"));
  queue_ = queue;
}

cl_context Device::context() {
  std::lock_guard<std::mutex> lock(mutex_);
  Open();
  return context_;
}

cl_mem Device::CreateBuffer(size_t bytes, cl_int* code) {
  if (allocated_ + bytes > limits.memory) {
    *code = CL_MEM_OBJECT_ALLOCATION_FAILURE;
    return nullptr;
  }
  return Api::Get().CreateBuffer(context_, CL_MEM_READ_WRITE, bytes, nullptr, code);
}

Buffer* Device::Allocate(size_t bytes) {
  size_t rounded = std::min<uint64_t>(Pool<Buffer>::Rounded(bytes), std::max<uint64_t>(limits.max_buffer, bytes));
  if (bytes > limits.max_buffer) {
    Fail("OpenCL device ", limits.name, ": a tensor of ", Bytes(bytes), " is wanted, the driver's limit for one is ",
         Bytes(limits.max_buffer), " (CL_DEVICE_MAX_MEM_ALLOC_SIZE)");
  }
  std::lock_guard<std::mutex> lock(mutex_);
  Open();
  if (Buffer* kept = pool_.Take(rounded)) return kept;
  cl_int code = CL_SUCCESS;
  cl_mem memory = CreateBuffer(rounded, &code);
  if (OutOfMemory(code)) {
    ReleaseKept();
    memory = CreateBuffer(rounded, &code);
  }
  if (code != CL_SUCCESS) {
    Fail("OpenCL device ", limits.name, ": too little memory: ", Bytes(bytes), " more are wanted, ", Bytes(allocated_),
         " of ", Bytes(limits.memory), " are in use (", ErrorName(code), ")");
  }
  allocated_ += rounded;
  return new Buffer{memory, rounded, this};
}

void Device::Free(Buffer* buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  // Kernels that still use it run before those that get it next: the queue is in order.
  for (Buffer* over : pool_.Give(buffer)) Release(over);
}

void Device::Release(Buffer* buffer) {
  Api::Get().ReleaseMemObject(buffer->memory);
  allocated_ -= buffer->bytes;
  delete buffer;
}

void Device::ReleaseKept() {
  if (queue_ != nullptr) Api::Get().Finish(queue_);  // memory that a kernel still uses is not given back before
  for (Buffer* kept : pool_.Empty()) Release(kept);
}

uint64_t Device::available_memory() {
  std::lock_guard<std::mutex> lock(mutex_);
  return limits.memory - std::min(limits.memory, allocated_);
}

void Device::Write(const Buffer& to, size_t offset, const void* from, size_t bytes) {
  if (bytes <= Staging::kLargest) {
    std::lock_guard<std::mutex> lock(mutex_);
    staging_.Write(queue_, to.memory, offset, from, bytes);
    return;
  }
  Check(Api::Get().EnqueueWriteBuffer(queue_, to.memory, CL_TRUE, offset, bytes, from, 0, nullptr, nullptr),
        Text("OpenCL device ", limits.name, ": a write of ", Bytes(bytes)));
}

void Device::Read(const Buffer& from, size_t offset, void* to, size_t bytes) {
  Check(Api::Get().EnqueueReadBuffer(queue_, from.memory, CL_TRUE, offset, bytes, to, 0, nullptr, nullptr),
        Text("OpenCL device ", limits.name, ": a read of ", Bytes(bytes)));
}

void Device::Copy(const Buffer& from, size_t from_offset, const Buffer& to, size_t to_offset, size_t bytes) {
  Check(Api::Get().EnqueueCopyBuffer(queue_, from.memory, to.memory, from_offset, to_offset, bytes, 0, nullptr, nullptr),
        Text("OpenCL device ", limits.name, ": a copy of ", Bytes(bytes)));
}

void Device::Finish() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (queue_ == nullptr) return;
    unflushed_ = 0;
  }
  Check(Api::Get().Finish(queue_), Text("OpenCL device ", limits.name, ": the kernels that ran last"));
}

void Device::SetArguments(cl_kernel kernel, const KernelInfo& info, const TVMFFIAny* arguments) {
  const Api& api = Api::Get();
  for (size_t i = 0; i < info.types.size(); ++i) {
    const TVMFFIAny& value = arguments[i];
    cl_int code;
    if (IsBuffer(info.types[i])) {
      if (value.type_index != kTVMFFIOpaquePtr || value.v_ptr == nullptr) {
        Fail("kernel ", info.name, ": argument ", i, " is no tensor of the device");
      }
      const Buffer* buffer = static_cast<const Buffer*>(value.v_ptr);
      if (buffer->device != this) Fail("kernel ", info.name, ": argument ", i, " is on another OpenCL device");
      code = api.SetKernelArg(kernel, static_cast<cl_uint>(i), sizeof(cl_mem), &buffer->memory);
    } else {
      uint64_t bits = ScalarBits(info, i, value);
      code = api.SetKernelArg(kernel, static_cast<cl_uint>(i), (info.types[i].bits + 7) / 8, &bits);
    }
    if (code != CL_SUCCESS) Fail("kernel ", info.name, ": argument ", i, ": ", ErrorName(code));
  }
}

void Device::Run(cl_kernel kernel, const KernelInfo& info, const TVMFFIAny* arguments, const Launch& launch) {
  const Api& api = Api::Get();
  size_t total[3];
  for (int axis = 0; axis < 3; ++axis) total[axis] = launch.groups[axis] * launch.threads[axis];
  std::lock_guard<std::mutex> lock(mutex_);  // arguments belong to the kernel object until it is enqueued
  SetArguments(kernel, info, arguments);
  auto enqueue = [&] {
    return api.EnqueueNDRangeKernel(queue_, kernel, 3, nullptr, total, launch.threads, 0, nullptr, nullptr);
  };
  cl_int code = enqueue();
  if (OutOfMemory(code)) {
    ReleaseKept();
    code = enqueue();
  }
  if (code != CL_SUCCESS) {
    size_t most = 0;
    api.GetKernelWorkGroupInfo(kernel, id_, CL_KERNEL_WORK_GROUP_SIZE, sizeof(most), &most, nullptr);
    Fail("kernel ", info.name, ": cannot run on ", limits.name, ": ", ErrorName(code), " (", launch.groups[0], "x",
         launch.groups[1], "x", launch.groups[2], " groups of ", launch.group_threads(), " threads; the driver runs at most ",
         most, " of this kernel)");
  }
  if (++unflushed_ == kFlushAfter) {
    unflushed_ = 0;
    Check(api.Flush(queue_), Text("OpenCL device ", limits.name, ": clFlush"));
  }
}

Devices& Devices::Get() {
  static Devices* devices = new Devices();  // never destroyed: tensors are freed until the process ends
  return *devices;
}

Devices::Devices() : DeviceList("OpenCL") {
  const Api& api = Api::Get();
  problem = api.problem;
  if (!problem.empty()) return;
  cl_uint count = 0;
  api.GetPlatformIDs(0, nullptr, &count);
  std::vector<cl_platform_id> platforms(count);
  if (count == 0 || api.GetPlatformIDs(count, platforms.data(), nullptr) != CL_SUCCESS) {
    problem = "no OpenCL driver: the loader found none (/etc/OpenCL/vendors lists them); install your device's driver";
    return;
  }
  const std::pair<cl_bitfield, const char*> types[] = {
      {CL_DEVICE_TYPE_GPU, "gpu"}, {CL_DEVICE_TYPE_ACCELERATOR, "accelerator"}, {CL_DEVICE_TYPE_CPU, "cpu"}};
  for (const auto& [type, name] : types) {
    for (cl_platform_id platform : platforms) {
      cl_uint found = 0;
      if (api.GetDeviceIDs(platform, type, 0, nullptr, &found) != CL_SUCCESS || found == 0) continue;
      std::vector<cl_device_id> ids(found);
      if (api.GetDeviceIDs(platform, type, found, ids.data(), nullptr) != CL_SUCCESS) continue;
      for (cl_device_id id : ids) {
        bool usable = Info<cl_uint>(id, CL_DEVICE_AVAILABLE) && Info<cl_uint>(id, CL_DEVICE_COMPILER_AVAILABLE) &&
                      Info<cl_uint>(id, CL_DEVICE_ENDIAN_LITTLE);
        if (usable) all.push_back(std::make_unique<Device>(id, ReadLimits(platform, id, name)));
      }
    }
  }
  if (all.empty()) problem = "no OpenCL device: the installed drivers know none that is available and has a compiler";
}

}  // namespace opencl
}  // namespace mlc
