// The kernels of a library: OpenCL C, built by the driver when a kernel first runs, or all of them before.
#include <tvm/ffi/cast.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include <algorithm>
#include <map>

#include "../shared/builds.h"
#include "../shared/disk_cache.h"
#include "../shared/kernel.h"
#include "current_device.h"
#include "device.h"
#include "program.h"

namespace mlc {
namespace opencl {
namespace {

namespace ffi = tvm::ffi;

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
    built_.ForEach([](const Key&, cl_kernel kernel) { Api::Get().ReleaseKernel(kernel); });
  }

  const char* kind() const final { return "opencl"; }
  int GetPropertyMask() const final { return ffi::Module::kBinarySerializable | ffi::Module::kRunnable; }
  ffi::Bytes SaveToBytes() const final { return bytes_; }
  ffi::String InspectSource(const ffi::String&) const final { return ffi::String(saved_.code); }

  ffi::Optional<ffi::Function> GetFunction(const ffi::String& name) final {
    auto self = ffi::GetObjectPtr<OpenCLModule>(this);
    if (name == kBuildKernels) {
      return ffi::Function::FromTyped([self](int device, int threads) { self->BuildAll(device, threads); });
    }
    auto found = by_name_.find(std::string(name));
    if (found == by_name_.end()) return std::nullopt;
    const KernelInfo* info = found->second;
    return ffi::Function::FromPacked([self, info](ffi::PackedArgs args, ffi::Any*) { self->Run(*info, args); });
  }

 private:
  using Key = std::pair<Device*, const KernelInfo*>;

  void Run(const KernelInfo& info, ffi::PackedArgs args) {
    Launch launch = info.ReadLaunch(args);
    if (launch.empty()) return;
    const size_t* threads = parts_.at(info.name).threads;
    if (!std::equal(threads, threads + 3, launch.threads)) {
      Fail("kernel ", info.name, ": called with groups of ", launch.group_threads(), " threads, it was compiled for ",
           threads[0] * threads[1] * threads[2]);
    }
    Device& device = Devices::Get()[CurrentDevice()];
    device.Run(Kernel(device, info), info, reinterpret_cast<const TVMFFIAny*>(args.data()), launch);
  }

  cl_kernel Kernel(Device& device, const KernelInfo& info) {
    return built_.Get({&device, &info}, [&] { return BuildKernel(device, info, parts_.at(info.name), cache_); });
  }

  void BuildAll(int number, int threads) {
    Device& device = Devices::Get()[number];
    OnThreads(saved_.kernels.size(), static_cast<size_t>(std::max(threads, 1)), [&](size_t i) { Kernel(device, saved_.kernels[i]); });
  }

  const ffi::Bytes bytes_;
  const SavedModule saved_;
  const DiskCache cache_{"opencl"};
  std::map<std::string, KernelText> parts_;
  std::map<std::string, const KernelInfo*> by_name_;
  Builds<Key, cl_kernel> built_;
};

TVM_FFI_STATIC_INIT_BLOCK() {
  tvm::ffi::reflection::GlobalDef().def("ffi.Module.load_from_bytes.opencl", [](const ffi::Bytes& bytes) {
    return ffi::Module(ffi::make_object<OpenCLModule>(bytes));
  });
}

}  // namespace
}  // namespace opencl
}  // namespace mlc
