#include "topology.h"

#include <cstdint>
#include <cstdio>
#include <fstream>

#include "../shared/text.h"

namespace mlc {
namespace hip {

std::string Architecture(int domain, int bus, int device) {
  for (int node = 0; node < 256; ++node) {
    std::ifstream file(Text("/sys/class/kfd/kfd/topology/nodes/", node, "/properties"));
    if (!file) break;
    uint64_t value = 0, version = 0, location = 0, its_domain = 0;
    for (std::string name; file >> name >> value;) {
      if (name == "gfx_target_version") version = value;
      if (name == "location_id") location = value;  // bus, then 5 bits of device, then 3 of function
      if (name == "domain") its_domain = value;
    }
    bool same = static_cast<int>(location >> 8) == bus && static_cast<int>(location >> 3 & 31) == device;
    if (version == 0 || !same || static_cast<int>(its_domain) != domain) continue;
    // two decimal digits for each part; the name has the last two parts as one hexadecimal digit each
    char text[32];
    std::snprintf(text, sizeof(text), "gfx%u%x%x", static_cast<unsigned>(version / 10000),
                  static_cast<unsigned>(version / 100 % 100), static_cast<unsigned>(version % 100));
    return text;
  }
  return "";
}

}  // namespace hip
}  // namespace mlc
