#pragma once

namespace mlc {
namespace opencl {

// The device that this thread's next kernels run on: compiled code sets it before it calls them.
int CurrentDevice();

}  // namespace opencl
}  // namespace mlc
