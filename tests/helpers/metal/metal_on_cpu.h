// What a kernel in Metal's language asks of metal_on_cpu.cc, and how it is called from there.
#pragma once
extern "C" {
struct Argument { int type_index; unsigned rest; union { long number; double real; void* pointer; }; };  // of tvm-ffi
struct Indices { unsigned group[3], place[3]; };

void cpu_run(const unsigned* blocks, const unsigned* threads, void (*kernel)(void*), void* context);
Indices cpu_indices();
void cpu_barrier();
void cpu_warp_barrier();
int cpu_lane();
void cpu_exchange(const void* mine, void* theirs, unsigned long bytes, int lane);
}

// A number as it lies in the structure of a kernel's numbers.
template <class T> inline long cpu_slot(const Argument& given) {
  T value = __is_same(T, float) ? (T)given.real : (T)given.number;
  long slot = 0;
  __builtin_memcpy(&slot, &value, sizeof(T));
  return slot;
}
