// What PoCL gets wrong, and how kernels are written for it. Other drivers get them as they are.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "device.h"

namespace mlc {
namespace opencl {

inline bool IsPoCL(const Limits& limits) {
  return limits.platform.find("Portable Computing Language") != std::string::npos;
}

// The text of a kernel with a barrier at the end of each condition that has one inside.
//
// In   if (for_all) { ...; barrier(...); ...; if (a) { ...; if (b) { ... } } }   PoCL 3.1 tests `a` for the first thread
// of a group only: where that one goes in, all do, and write beyond what is theirs. A barrier after `if (a) {...}` ends
// what it confuses. All threads come to it, since they came to the one before.
inline std::string ForPoCL(const std::string& source) {
  struct Block {
    bool condition, barrier;
  };
  std::vector<Block> blocks;
  std::istringstream lines(source);
  std::string text;
  for (std::string line; std::getline(lines, line); text += line + "\n") {
    size_t first = line.find_first_not_of(' ');
    if (first == std::string::npos) continue;
    if (line[first] == '}' && !blocks.empty()) {
      Block closed = blocks.back();
      blocks.pop_back();
      if (closed.condition && closed.barrier) text += "barrier(CLK_LOCAL_MEM_FENCE);\n";
      if (closed.barrier && !blocks.empty()) blocks.back().barrier = true;
    }
    if (line.back() == '{') {
      bool condition = line.compare(first, 4, "if (") == 0 || line.compare(first, 6, "} else") == 0;
      blocks.push_back({condition, false});
    } else if (line.compare(first, 8, "barrier(") == 0 && !blocks.empty()) {
      blocks.back().barrier = true;
    }
  }
  return text;
}

}  // namespace opencl
}  // namespace mlc
