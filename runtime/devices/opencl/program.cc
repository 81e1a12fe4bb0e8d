#include "program.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "pocl.h"

namespace mlc {
namespace opencl {
namespace {

const char* const kOptions = "";

// Whether to keep what the driver made of a kernel. PoCL keeps it itself, and compiles once more to hand it out.
bool KeepsBinaries(const Limits& limits) {
  const char* wish = std::getenv("MLC_OPENCL_CACHE");
  if (wish != nullptr && *wish != '\0') return std::string(wish) != "0";
  return !IsPoCL(limits);
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

void CheckThreads(const Limits& limits, const KernelInfo& info, const size_t threads_of[3]) {
  size_t threads = threads_of[0] * threads_of[1] * threads_of[2];
  if (threads > limits.max_threads) {
    Fail("kernel ", info.name, ": wants groups of ", threads, " threads, ", limits.name, " runs at most ",
         limits.max_threads);
  }
  for (size_t axis = 0; axis < 3; ++axis) {
    if (threads_of[axis] > limits.max_threads_of[axis]) {
      Fail("kernel ", info.name, ": wants ", threads_of[axis], " threads along ", "xyz"[axis], ", ",
           limits.name, " allows ", limits.max_threads_of[axis]);
    }
  }
}

void CheckFeatures(const Device& device, const KernelInfo& info, const std::string& source) {
  if (!device.limits.float16 && source.find("cl_khr_fp16") != std::string::npos) {
    Fail("kernel ", info.name, ": its library computes with float16, which ", device.limits.name,
         " does not (cl_khr_fp16): compile the model with --device opencl");
  }
}

void CheckArguments(const Device& device, const KernelInfo& info) {
  size_t bytes = 0;
  for (DLDataType type : info.types) bytes += IsBuffer(type) ? sizeof(cl_mem) : (type.bits + 7) / 8;
  if (bytes > device.limits.max_argument_bytes) {
    Fail("kernel ", info.name, ": takes ", bytes, " bytes of arguments, ", device.limits.name, " allows ",
         device.limits.max_argument_bytes);
  }
}

void CheckMemory(const Device& device, const KernelInfo& info, cl_kernel kernel) {
  cl_ulong bytes = 0;
  Api::Get().GetKernelWorkGroupInfo(kernel, device.id(), CL_KERNEL_LOCAL_MEM_SIZE, sizeof(bytes), &bytes, nullptr);
  if (bytes > device.limits.shared_memory) {
    Fail("kernel ", info.name, ": wants ", bytes, " bytes of local memory, ", device.limits.name, " has ",
         device.limits.shared_memory);
  }
}

// The threads of a group in the declaration of a kernel: `__kernel __attribute__((reqd_work_group_size(64, 1, 1))) void`.
// Without them a driver that has to guess may use so many registers that a group of that size does not fit.
bool ReadThreads(const std::string& source, const std::string& kernel, size_t threads[3]) {
  const std::string attribute = "reqd_work_group_size(";
  size_t name = source.find(" void " + kernel + "("), at = source.rfind(attribute, name);
  if (name == std::string::npos || at == std::string::npos) return false;
  int size[3] = {0, 0, 0}, end = 0;
  const char* text = source.c_str() + at + attribute.size();
  int read = std::sscanf(text, "%9d, %9d, %9d)))%n", &size[0], &size[1], &size[2], &end);
  if (read != 3 || at + attribute.size() + static_cast<size_t>(end) != name) return false;
  std::copy_n(size, 3, threads);
  return *std::min_element(size, size + 3) > 0;
}

}  // namespace

std::map<std::string, KernelText> SplitSource(const std::string& source) {
  const std::string mark = "// Function: ";  // a comment before each part that names its kernel
  std::map<std::string, KernelText> parts;
  for (size_t at = source.find(mark); at != std::string::npos;) {
    size_t name = at + mark.size(), end_of_line = source.find('\n', name);
    if (end_of_line == std::string::npos) break;
    size_t next = source.find(mark, end_of_line);
    size_t length = next == std::string::npos ? std::string::npos : next - end_of_line;
    std::string kernel = source.substr(name, end_of_line - name);
    KernelText& text = parts[kernel];
    text.source = source.substr(end_of_line, length);
    if (!ReadThreads(text.source, kernel, text.threads)) {
      Fail("the library's opencl module does not say how many threads kernel ", kernel,
           " is for: compile the library again");
    }
    at = next;
  }
  return parts;
}

cl_kernel BuildKernel(Device& device, const KernelInfo& info, const KernelText& text, const DiskCache& cache) {
  const Api& api = Api::Get();
  const Limits& limits = device.limits;
  CheckThreads(limits, info, text.threads);
  CheckArguments(device, info);
  CheckFeatures(device, info, text.source);
  std::string source = IsPoCL(limits) ? ForPoCL(text.source) : text.source;
  std::string identity = Text(limits.platform, "\n", limits.name, "\n", limits.driver, "\n", kOptions, "\n", source);
  bool keeps = KeepsBinaries(limits) && cache.usable();
  std::optional<std::string> kept = keeps ? cache.Get(identity) : std::nullopt;
  cl_program program = kept ? FromBinary(device, *kept) : nullptr;
  if (program == nullptr) {
    program = FromSource(device, info.name, source);
    if (keeps) cache.Put(identity, Binary(program));
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

}  // namespace opencl
}  // namespace mlc
