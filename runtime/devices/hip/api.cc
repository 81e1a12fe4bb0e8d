#include "api.h"

#include "../shared/driver_library.h"
#include "../shared/text.h"

namespace mlc {
namespace hip {

const Api& Api::Get() {
  static const Api* api = new Api();  // never destroyed: tensors are freed until the process ends
  return *api;
}

Api::Api() {
  DriverLibrary library{"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so"};
  if (!library.opened()) {
    problem = "no ROCm: libamdhip64.so is not there; install AMD's ROCm 6 or newer (its HIP runtime is enough)";
    return;
  }
#define MLC_HIP_FIND(name, parameters)                                                                      \
  if (!library.Find("hip" #name, this->name)) {                                                             \
    problem = "no ROCm that will do: libamdhip64.so has no function hip" #name "; install ROCm 6 or newer"; \
  }
  MLC_HIP_FUNCTIONS(MLC_HIP_FIND)
#undef MLC_HIP_FIND
  library.Find("hipGetErrorName", GetErrorName);
}

std::string ErrorName(hipError_t code) {
  const Api& api = Api::Get();
  const char* name = api.GetErrorName != nullptr ? api.GetErrorName(code) : nullptr;
  return name != nullptr ? name : Text("HIP error ", code);
}

void Check(hipError_t code, const std::string& what) {
  if (code != hipSuccess) Fail(what, ": ", ErrorName(code));
}

}  // namespace hip
}  // namespace mlc
