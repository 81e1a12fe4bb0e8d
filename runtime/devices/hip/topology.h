// LLVM's names of AMD's cards, which HIP tells in a structure that differs between its versions: from the kernel driver.
#pragma once

#include <string>

namespace mlc {
namespace hip {

// The architecture of the card at a place on the PCI bus, as "gfx90a"; "" where the kernel driver does not tell.
std::string Architecture(int domain, int bus, int device);

}  // namespace hip
}  // namespace mlc
