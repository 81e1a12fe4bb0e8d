// The threads of kernels in Metal's language, of which clang makes the code: this is for any compiler of C++.
#include "../threads_on_cpu.h"
#include "metal_on_cpu.h"

void cpu_run(const unsigned* blocks, const unsigned* threads, void (*kernel)(void*), void* context) {
  cpu::run(blocks, threads, [=] { kernel(context); });
}
Indices cpu_indices() {
  return {{blockIdx.x, blockIdx.y, blockIdx.z}, {threadIdx.x, threadIdx.y, threadIdx.z}};
}
void cpu_barrier() { cpu::block.wait((unsigned)cpu::fibers.size()); }
void cpu_warp_barrier() { cpu::sync_warp(); }
int cpu_lane() { return cpu::current % cpu::kWarp; }
void cpu_exchange(const void* mine, void* theirs, unsigned long bytes, int lane) {
  memcpy(cpu::exchanged[cpu::current], mine, bytes);
  cpu::sync_warp();
  unsigned first = cpu::current / cpu::kWarp * cpu::kWarp;
  memcpy(theirs, cpu::exchanged[first + (lane & (cpu::kWarp - 1))], bytes);
  cpu::sync_warp();
}
