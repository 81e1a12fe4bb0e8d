#include "shader.h"

#include <cstring>
#include <map>
#include <set>

#include "../shared/text.h"

namespace mlc {
namespace vulkan {

namespace {

// Numbers of the SPIR-V specification (registry.khronos.org/SPIR-V).
constexpr uint32_t kMagic = 0x07230203;
constexpr size_t kHeaderWords = 5;
enum Op : uint32_t {
  kOpEntryPoint = 15,
  kOpExecutionMode = 16,
  kOpTypeBool = 20,
  kOpTypeInt = 21,
  kOpTypeFloat = 22,
  kOpTypeVector = 23,
  kOpTypeArray = 28,
  kOpTypeStruct = 30,
  kOpTypePointer = 32,
  kOpConstant = 43,
  kOpFunction = 54,
  kOpVariable = 59,
  kOpDecorate = 71,
  kOpMemberDecorate = 72,
};
constexpr uint32_t kLocalSize = 17, kNonWritable = 24, kBinding = 33, kComputeModel = 5, kWorkgroup = 4;

class Reader {
 public:
  Reader(const std::string& kernel, const std::string& code, size_t buffers)
      : kernel_(kernel), words_(code.size() / 4) {
    std::memcpy(words_.data(), code.data(), words_.size() * 4);
    if (code.size() % 4 != 0 || words_.size() < kHeaderWords || words_[0] != kMagic) Damaged();
    shader_.written.resize(buffers);
  }

  Shader Read() {
    for (size_t at = kHeaderWords; at < words_.size();) {
      uint32_t length = words_[at] >> 16, op = words_[at] & 0xffff;
      if (length == 0 || length > words_.size() - at) Damaged();
      if (op == kOpFunction) break;  // whatever is declared comes before
      Declaration(op, &words_[at], length);
      at += length;
    }
    if (shader_.entry_point.empty()) Damaged();
    FindWritten();
    return shader_;
  }

 private:
  void Declaration(uint32_t op, const uint32_t* word, uint32_t length) {
    auto needs = [&](uint32_t words) {
      if (length < words) Damaged();
    };
    switch (op) {
      case kOpEntryPoint: {
        needs(4);
        if (word[1] != kComputeModel) break;
        const char* name = reinterpret_cast<const char*>(word + 3);
        shader_.entry_point.assign(name, strnlen(name, (length - 3) * size_t{4}));
        break;
      }
      case kOpExecutionMode:
        needs(3);
        if (word[2] != kLocalSize) break;
        needs(6);
        std::memcpy(shader_.workgroup, word + 3, sizeof(shader_.workgroup));
        break;
      case kOpTypeBool: needs(2), sizes_[word[1]] = 4; break;
      case kOpTypeInt:
      case kOpTypeFloat: needs(3), sizes_[word[1]] = word[2] / 8; break;
      case kOpTypeVector: needs(4), sizes_[word[1]] = sizes_[word[2]] * word[3]; break;
      case kOpTypeArray: needs(4), sizes_[word[1]] = sizes_[word[2]] * constants_[word[3]]; break;
      case kOpTypeStruct: {
        needs(2);
        uint64_t total = 0;
        for (uint32_t i = 2; i < length; ++i) total += sizes_[word[i]];
        sizes_[word[1]] = total;
        members_[word[1]] = length - 2;
        break;
      }
      case kOpTypePointer: needs(4), pointees_[word[1]] = word[3]; break;
      case kOpConstant: needs(4), constants_[word[2]] = word[3]; break;
      case kOpVariable:
        needs(4);
        variables_[word[2]] = word[1];
        if (word[3] == kWorkgroup) shader_.shared_bytes += sizes_[pointees_[word[1]]];
        break;
      case kOpDecorate:
        needs(3);
        if (word[2] == kNonWritable) read_only_.insert(word[1]);
        if (word[2] == kBinding) needs(4), bindings_[word[1]] = word[3];
        break;
      case kOpMemberDecorate:
        needs(4);
        if (word[3] == kNonWritable) read_only_members_[word[1]].insert(word[2]);
        break;
      default: break;
    }
  }

  // A buffer is read only where each variable for it, or every member of that's structure, is decorated so.
  void FindWritten() {
    for (const auto& [variable, binding] : bindings_) {
      if (binding >= shader_.written.size()) Damaged();
      uint32_t type = pointees_[variables_[variable]];
      bool members = members_.count(type) != 0 && members_[type] != 0 &&
                     read_only_members_[type].size() == members_[type];
      if (read_only_.count(variable) == 0 && !members) shader_.written[binding] = true;
    }
  }

  [[noreturn]] void Damaged() const { Fail("kernel ", kernel_, ": its SPIR-V is damaged: compile the library again"); }

  const std::string& kernel_;
  std::vector<uint32_t> words_;
  Shader shader_;
  std::map<uint32_t, uint64_t> sizes_, constants_;
  std::map<uint32_t, uint32_t> pointees_, variables_, bindings_, members_;
  std::set<uint32_t> read_only_;
  std::map<uint32_t, std::set<uint32_t>> read_only_members_;
};

}  // namespace

Shader ReadShader(const std::string& kernel, const std::string& code, size_t buffers) {
  return Reader(kernel, code, buffers).Read();
}

}  // namespace vulkan
}  // namespace mlc
