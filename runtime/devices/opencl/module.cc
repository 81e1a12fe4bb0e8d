// The kernels of a library: OpenCL C, built by the driver when a kernel first runs and kept on disk.
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <array>
#include <cstdlib>
#include <map>
#include <optional>
#include <tuple>

#include "../shared/disk_cache.h"
#include "../shared/kernel.h"
#include "current_device.h"
#include "device.h"
#include "pocl.h"

namespace mlc {
namespace opencl {
namespace {

namespace ffi = tvm::ffi;

const char* const kOptions = "";

// Which program a kernel is: the device's, for groups of so many threads.
struct Variant {
  Device* device;
  const KernelInfo* info;
  std::array<size_t, 3> threads;

  bool operator<(const Variant& other) const {
    return std::tie(device, info, threads) < std::tie(other.device, other.info, other.threads);
  }
};

// Whether to keep what the driver made of a kernel. PoCL keeps it itself, and compiles once more to hand it out.
bool KeepsBinaries(const Limits& limits) {
  const char* wish = std::getenv("MLC_OPENCL_CACHE");
  if (wish != nullptr && *wish != '\0') return std::string(wish) != "0";
  return !IsPoCL(limits);
}

// Kernels by name in the text of a module: each part begins with a comment that names its kernel.
std::map<std::string, std::string> SplitSource(const std::string& source) {
  const std::string mark = "// Function: ";
  std::map<std::string, std::string> parts;
  for (size_t at = source.find(mark); at != std::string::npos;) {
    size_t name = at + mark.size(), end_of_line = source.find('\n', name);
    if (end_of_line == std::string::npos) break;
    size_t next = source.find(mark, end_of_line);
    size_t length = next == std::string::npos ? std::string::npos : next - end_of_line;
    parts[source.substr(name, end_of_line - name)] = source.substr(end_of_line, length);
    at = next;
  }
  return parts;
}

// The text with the size of its groups said: a driver that has to guess may use so many registers that a group of that
// size does not fit.
std::string Sized(std::string source, const std::string& kernel, const std::array<size_t, 3>& threads) {
  const std::string head = "__kernel void " + kernel + "(";
  const std::string sized = Text("__kernel __attribute__((reqd_work_group_size(", threads[0], ", ", threads[1], ", ",
                                 threads[2], "))) void ", kernel, "(");
  for (size_t at = source.find(head); at != std::string::npos; at = source.find(head, at + sized.size())) {
    source.replace(at, head.size(), sized);
  }
  return source;
}

std::string BuildLog(cl_program program, cl_device_id device) {
  const Api& api = Api::Get();
  size_t size = 0;
  api.GetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, 0, nullptr, &size);
  std::string log(size, '\0');
  if (size != 0) api.GetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, size, &log[0], nullptr);
  return log;
}

std::string Binary(cl_program program) {
  const Api& api = Api::Get();
  size_t size = 0;
  if (api.GetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof(size), &size, nullptr) != CL_SUCCESS) return "";
  std::string binary(size, '\0');
  unsigned char* place = reinterpret_cast<unsigned char*>(&binary[0]);
  if (size == 0 || api.GetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(place), &place, nullptr) != CL_SUCCESS) return "";
  return binary;
}

// The program that an earlier run has kept; nullptr where there is none that the driver takes.
cl_program FromBinary(Device& device, const std::string& binary) {
  const Api& api = Api::Get();
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(binary.data());
  size_t size = binary.size();
  cl_device_id id = device.id();
  cl_int status = CL_SUCCESS, code = CL_SUCCESS;
  cl_program program = api.CreateProgramWithBinary(device.context(), 1, &id, &size, &bytes, &status, &code);
  if (code != CL_SUCCESS) return nullptr;
  if (status == CL_SUCCESS && api.BuildProgram(program, 1, &id, kOptions, nullptr, nullptr) == CL_SUCCESS) return program;
  api.ReleaseProgram(program);
  return nullptr;
}

cl_program FromSource(Device& device, const std::string& kernel, const std::string& source) {
  const Api& api = Api::Get();
  const char* text = source.data();
  size_t size = source.size();
  cl_device_id id = device.id();
  cl_int code = CL_SUCCESS;
  cl_program program = api.CreateProgramWithSource(device.context(), 1, &text, &size, &code);
  Check(code, Text("kernel ", kernel, ": clCreateProgramWithSource"));
  code = api.BuildProgram(program, 1, &id, kOptions, nullptr, nullptr);
  if (code != CL_SUCCESS) {
    std::string reason = FirstError(BuildLog(program, id));
    api.ReleaseProgram(program);
    Fail("kernel ", kernel, ": the driver of ", device.limits.name, " rejects it: ", reason, " (", ErrorName(code), ")");
  }
  return program;
}

class OpenCLModule final : public ffi::ModuleObj {
 public:
  explicit OpenCLModule(const ffi::Bytes& bytes)
      : bytes_(bytes), saved_(bytes.data(), bytes.size(), "the library's opencl module") {
    parts_ = SplitSource(saved_.code);
    for (const KernelInfo& kernel : saved_.kernels) {
      if (parts_.find(kernel.name) == parts_.end()) {
        Fail("the library's opencl module has no text of kernel ", kernel.name, ": compile the library again");
      }
      by_name_[kernel.name] = &kernel;
    }
  }

  ~OpenCLModule() {
    for (auto& entry : built_) {
      if (entry.second != nullptr) Api::Get().ReleaseKernel(entry.second);
    }
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return ffi::String(saved_.code); }
  bool ImplementsFunction(const ffi::String& name) final { return by_name_.count(std::string(name)) != 0; }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto found = by_name_.find(std::string(name));
    if (found == by_name_.end()) return std::nullopt;
    const KernelInfo* info = found->second;
    auto self = ffi::GetObjectPtr<OpenCLModule>(this);
    return ffi::Function::FromPacked([self, info](ffi::PackedArgs args, ffi::Any*) { self->Run(*info, args); });
  }

 private:
  void Run(const KernelInfo& info, ffi::PackedArgs args) {
    Launch launch = info.ReadLaunch(args);
    if (launch.empty()) return;
    Device& device = Devices::Get()[CurrentDevice()];
    cl_kernel kernel = Kernel({&device, &info, {launch.threads[0], launch.threads[1], launch.threads[2]}});
    device.Run(kernel, info, reinterpret_cast<const TVMFFIAny*>(args.data()), launch);
  }

  cl_kernel Kernel(const Variant& variant) {
    std::lock_guard<std::mutex> lock(mutex_);
    cl_kernel& kernel = built_[variant];
    if (kernel == nullptr) kernel = Build(variant);
    return kernel;
  }

  cl_kernel Build(const Variant& variant) {
    const Api& api = Api::Get();
    Device& device = *variant.device;
    const KernelInfo& info = *variant.info;
    const Limits& limits = device.limits;
    CheckThreads(variant);
    CheckArguments(device, info);
    CheckFeatures(device, info);
    std::string source = Sized(parts_.at(info.name), info.name, variant.threads);
    if (IsPoCL(limits)) source = ForPoCL(source);
    std::string identity = Text(limits.platform, "\n", limits.name, "\n", limits.driver, "\n", kOptions, "\n", source);
    bool keeps = KeepsBinaries(limits) && cache_.usable();
    std::optional<std::string> kept = keeps ? cache_.Get(identity) : std::nullopt;
    cl_program program = kept ? FromBinary(device, *kept) : nullptr;
    if (program == nullptr) {
      program = FromSource(device, info.name, source);
      if (keeps) cache_.Put(identity, Binary(program));
    }
    cl_int code = CL_SUCCESS;
    cl_kernel kernel = api.CreateKernel(program, info.name.c_str(), &code);
    api.ReleaseProgram(program);  // the kernel keeps it
    Check(code, Text("kernel ", info.name, ": clCreateKernel"));
    try {
      CheckMemory(device, info, kernel);
    } catch (...) {
      api.ReleaseKernel(kernel);
      throw;
    }
    return kernel;
  }

  static void CheckThreads(const Variant& variant) {
    const Limits& limits = variant.device->limits;
    size_t threads = variant.threads[0] * variant.threads[1] * variant.threads[2];
    if (threads > limits.max_threads) {
      Fail("kernel ", variant.info->name, ": wants groups of ", threads, " threads, ", limits.name, " runs at most ",
           limits.max_threads);
    }
    for (size_t axis = 0; axis < 3; ++axis) {
      if (variant.threads[axis] > limits.max_threads_of[axis]) {
        Fail("kernel ", variant.info->name, ": wants ", variant.threads[axis], " threads along ", "xyz"[axis], ", ",
             limits.name, " allows ", limits.max_threads_of[axis]);
      }
    }
  }

  void CheckFeatures(const Device& device, const KernelInfo& info) const {
    if (!device.limits.float16 && parts_.at(info.name).find("cl_khr_fp16") != std::string::npos) {
      Fail("kernel ", info.name, ": its library computes with float16, which ", device.limits.name,
           " does not (cl_khr_fp16): compile the model with --device opencl");
    }
  }

  static void CheckArguments(const Device& device, const KernelInfo& info) {
    size_t bytes = 0;
    for (DLDataType type : info.types) bytes += IsBuffer(type) ? sizeof(cl_mem) : (type.bits + 7) / 8;
    if (bytes > device.limits.max_argument_bytes) {
      Fail("kernel ", info.name, ": takes ", bytes, " bytes of arguments, ", device.limits.name, " allows ",
           device.limits.max_argument_bytes);
    }
  }

  static void CheckMemory(const Device& device, const KernelInfo& info, cl_kernel kernel) {
    cl_ulong bytes = 0;
    Api::Get().GetKernelWorkGroupInfo(kernel, device.id(), CL_KERNEL_LOCAL_MEM_SIZE, sizeof(bytes), &bytes, nullptr);
    if (bytes > device.limits.shared_memory) {
      Fail("kernel ", info.name, ": wants ", bytes, " bytes of local memory, ", device.limits.name, " has ",
           device.limits.shared_memory);
    }
  }

  const ffi::Bytes bytes_;
  const SavedModule saved_;
  const DiskCache cache_{"opencl"};
  std::map<std::string, std::string> parts_;
  std::map<std::string, const KernelInfo*> by_name_;
  std::mutex mutex_;
  std::map<Variant, cl_kernel> built_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](const ffi::Bytes& bytes) {
    return ffi::Module(ffi::make_object<OpenCLModule>(bytes));
  });
}

}  // namespace
}  // namespace opencl
}  // namespace mlc
