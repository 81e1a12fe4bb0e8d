// The devices of a kind, and what TVM asks of each.
#pragma once

#include <tvm/ffi/any.h>
#include <tvm/ffi/string.h>
#include <tvm/runtime/device_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text.h"

namespace mlc {

template <typename Device>
class DeviceList {
 public:
  // `kind` as errors name it: "OpenCL".
  explicit DeviceList(const char* kind) : kind_(kind) {}

  std::vector<std::unique_ptr<Device>> all;
  std::string problem;  // why there is none

  bool Has(int index) const { return index >= 0 && static_cast<size_t>(index) < all.size(); }

  // Throws where there is no such device.
  Device& operator[](int index) {
    if (!Has(index)) {
      Fail(problem.empty() ? Text("there is no ", kind_, " device ", index, ": there are ", all.size()) : problem);
    }
    return *all[static_cast<size_t>(index)];
  }

 private:
  const char* const kind_;
};

// What a device says of itself; zeros and empty texts where it does not. `architecture` is as compilers call it.
struct Attributes {
  std::string name, version, driver, architecture;
  uint64_t max_threads = 0, subgroup = 0, shared_memory = 0, compute_units = 0, clock_khz = 0, cache = 0, memory = 0;
  uint64_t max_threads_of[3] = {0, 0, 0};

  // Answers TVM, for which a missing value is an unknown one.
  void Answer(tvm::runtime::DeviceAttrKind kind, tvm::ffi::Any* result) const {
    switch (kind) {
      case tvm::runtime::kMaxThreadsPerBlock: return Give(max_threads, result);
      case tvm::runtime::kWarpSize: return Give(subgroup, result);
      case tvm::runtime::kMaxSharedMemoryPerBlock: return Give(shared_memory, result);
      case tvm::runtime::kMultiProcessorCount: return Give(compute_units, result);
      case tvm::runtime::kMaxClockRate: return Give(clock_khz, result);
      case tvm::runtime::kL2CacheSizeBytes: return Give(cache, result);
      case tvm::runtime::kTotalGlobalMemory: return Give(memory, result);
      case tvm::runtime::kDeviceName: return Give(name, result);
      case tvm::runtime::kComputeVersion: return Give(architecture.empty() ? version : architecture, result);
      case tvm::runtime::kApiVersion: return Give(version, result);
      case tvm::runtime::kGcnArch: return Give(architecture, result);
      case tvm::runtime::kDriverVersion: return Give(driver, result);
      case tvm::runtime::kMaxThreadDimensions:
        return Give(Text("[", max_threads_of[0], ", ", max_threads_of[1], ", ", max_threads_of[2], "]"), result);
      default: return;
    }
  }

 private:
  static void Give(uint64_t value, tvm::ffi::Any* result) {
    if (value != 0) *result = static_cast<int64_t>(value);
  }
  static void Give(const std::string& value, tvm::ffi::Any* result) {
    if (!value.empty()) *result = tvm::ffi::String(value);
  }
};

}  // namespace mlc
