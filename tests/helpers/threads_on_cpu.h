// Threads of a device on a processor: a block at a time, threads as fibers that are switched at barriers and exchanges.
// A warp has no lockstep; its lanes are 32 unless something else is said.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

struct Extents { unsigned x, y, z; };
static Extents threadIdx, blockIdx, blockDim, gridDim;

namespace cpu {
#ifndef LANES_OF_A_WARP
#define LANES_OF_A_WARP 32
#endif
constexpr int kWarp = LANES_OF_A_WARP;
struct Fiber { ucontext_t context; bool finished; };
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::function<void()> body;
static unsigned current, progress;

struct Barrier {
  unsigned arrived = 0, generation = 0;
  void wait(unsigned members) {
    if (++arrived == members) {
      arrived = 0, ++generation, ++progress;
      return;
    }
    for (unsigned mine = generation; mine == generation;) swapcontext(&fibers[current].context, &scheduler);
  }
};
static Barrier block, warps[kWarp];
static char exchanged[1024][16];

static inline void sync_warp() {
  unsigned first = current / kWarp * kWarp, rest = (unsigned)fibers.size() - first;
  warps[current / kWarp].wait(rest < kWarp ? rest : kWarp);
}
template <class T> static inline T from_lane(T value, int lane) {
  memcpy(exchanged[current], &value, sizeof(T));
  sync_warp();
  T result;
  memcpy(&result, exchanged[current / kWarp * kWarp + lane], sizeof(T));
  sync_warp();
  return result;
}
static void enter() {
  body();
  fibers[current].finished = true, ++progress;
  swapcontext(&fibers[current].context, &scheduler);
}
static void run_block(unsigned threads, std::vector<char>& stacks, size_t stack, bool reversed) {
  fibers.assign(threads, Fiber());
  block = Barrier();
  for (Barrier& warp : warps) warp = Barrier();
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = &stacks[i * stack];
    fibers[i].context.uc_stack.ss_size = stack;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (unsigned before = 0, first = 1;; first = 0) {
    bool any = false;
    before = progress;
    for (unsigned i = 0; i < threads; ++i) {
      current = reversed ? threads - 1 - i : i;
      if (fibers[current].finished) continue;
      any = true;
      threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y, current / blockDim.x / blockDim.y};
      swapcontext(&scheduler, &fibers[current].context);
    }
    if (!any) return;
    if (before == progress && !first) fprintf(stderr, "threads wait at a barrier that not all of them reach\n"), abort();
  }
}
static void run(const unsigned* grid, const unsigned* threads, const std::function<void()>& kernel) {
  const size_t stack = 64 << 10;
  unsigned count = threads[0] * threads[1] * threads[2];
  static std::vector<char> stacks;
  stacks.resize(count * stack > stacks.size() ? count * stack : stacks.size());
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  body = kernel;
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        run_block(count, stacks, stack, x % 2);
      }
}
}  // namespace cpu
