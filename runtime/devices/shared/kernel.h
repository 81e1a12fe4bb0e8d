// What is known of a kernel beside its code, and the arguments of a call.
#pragma once

#include <tvm/ffi/function.h>

#include <cstdint>
#include <string>
#include <vector>

#include "saved_bytes.h"

namespace mlc {

// The function of a module that has all of its kernels built: (number of the device, threads).
constexpr char kBuildKernels[] = "mlc.build_kernels";

// Which of the trailing arguments of a call is which extent: 0-2 number of groups in x, y, z, 3-5 threads of a group.
struct Launch {
  size_t groups[3] = {1, 1, 1};
  size_t threads[3] = {1, 1, 1};

  bool empty() const { return groups[0] == 0 || groups[1] == 0 || groups[2] == 0; }
  size_t group_threads() const { return threads[0] * threads[1] * threads[2]; }
};

struct KernelInfo {
  std::string name;
  std::vector<DLDataType> types;  // of its arguments; a handle is a buffer
  std::vector<std::string> tags;  // "blockIdx.x", "threadIdx.x", ...: one more argument each, an int64

  // The sizes that a call asks for. Throws where it has not the arguments that it should.
  Launch ReadLaunch(tvm::ffi::PackedArgs args) const {
    if (static_cast<size_t>(args.size()) != types.size() + tags.size()) {
      Fail("kernel ", name, ": called with ", args.size(), " arguments, it has ", types.size() + tags.size());
    }
    const TVMFFIAny* extents = reinterpret_cast<const TVMFFIAny*>(args.data()) + types.size();
    Launch launch;
    for (size_t i = 0; i < tags.size(); ++i) {
      int64_t extent = extents[i].v_int64;
      if (extent < 0) Fail("kernel ", name, ": ", tags[i], " is ", extent);
      size_t* extents_of_kind = tags[i][0] == 't' ? launch.threads : launch.groups;
      extents_of_kind[tags[i].back() - 'x'] = static_cast<size_t>(extent);
    }
    return launch;
  }

  // Throws for launch tags that no plug-in knows.
  void CheckTags() const {
    for (const std::string& tag : tags) {
      bool known = false;
      for (const char* axis : {"x", "y", "z"}) {
        known = known || tag == std::string("blockIdx.") + axis || tag == std::string("threadIdx.") + axis;
      }
      if (!known) Fail("kernel ", name, ": launch parameter ", tag, " is unknown: compile the library again");
    }
  }
};

inline bool IsBuffer(DLDataType type) { return type.code == kDLOpaqueHandle; }

// The bits of a number as a kernel of `type` takes it, in the lowest bytes.
inline uint64_t ScalarBits(const KernelInfo& kernel, size_t index, const TVMFFIAny& value) {
  DLDataType type = kernel.types[index];
  bool integer = type.code == kDLInt || type.code == kDLUInt || type.code == kDLBool;
  uint64_t bits = 0;
  if (type.lanes == 1 && integer && (value.type_index == kTVMFFIInt || value.type_index == kTVMFFIBool)) {
    bits = static_cast<uint64_t>(value.v_int64);
  } else if (type.lanes == 1 && type.code == kDLFloat && (type.bits == 32 || type.bits == 64) &&
             (value.type_index == kTVMFFIFloat || value.type_index == kTVMFFIInt)) {
    double number = value.type_index == kTVMFFIFloat ? value.v_float64 : static_cast<double>(value.v_int64);
    float narrow = static_cast<float>(number);
    if (type.bits == 64) std::memcpy(&bits, &number, sizeof(number));
    else std::memcpy(&bits, &narrow, sizeof(narrow));
  } else {
    Fail("kernel ", kernel.name, ": argument ", index, " is of a type that devices do not take");
  }
  return bits;
}

// A module of TVM's own code generators: text or binary code, and its kernels.
//
//   string format; u64 n, n x {string key; string name; types; launch tags; u64 m, m x i32 extra}; string code
struct SavedModule {
  std::string format;
  std::vector<KernelInfo> kernels;
  std::string code;

  SavedModule(const char* data, size_t size, const char* what) {
    SavedBytes reader(data, size, what);
    format = reader.ReadString();
    kernels.resize(reader.ReadCount(8));
    for (KernelInfo& kernel : kernels) {
      reader.ReadString();  // the key is the name again
      kernel.name = reader.ReadString();
      kernel.types = reader.ReadTypes();
      kernel.tags = reader.ReadStrings();
      for (uint64_t extra = reader.ReadCount(sizeof(int32_t)); extra != 0; --extra) reader.Read<int32_t>();
      kernel.CheckTags();
    }
    code = reader.ReadString();
    reader.ExpectEnd();
  }
};

}  // namespace mlc
