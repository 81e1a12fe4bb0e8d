// What a kernel's SPIR-V says of itself, as far as the plug-in has to know it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mlc {
namespace vulkan {

struct Shader {
  std::string entry_point;
  uint32_t workgroup[3] = {0, 0, 0};  // zeros where it does not fix it
  std::vector<bool> written;          // of each buffer of set 0, whether it may be written
  uint64_t shared_bytes = 0;          // memory of a workgroup
};

// Reads the instructions of a kernel that has `buffers` buffers. Throws, naming `kernel`, for what is no SPIR-V.
Shader ReadShader(const std::string& kernel, const std::string& code, size_t buffers);

}  // namespace vulkan
}  // namespace mlc
