// CUDA's language for a processor: kernels of TVM's CUDA source run here, a block at a time. Threads are fibers that are
// switched at barriers and shuffles; a warp has 32 lanes and no lockstep. The tensor cores' fragments are whole matrices
// of which every lane has a copy, and stores write a lane's share only.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

struct Extents { unsigned x, y, z; };
static Extents threadIdx, blockIdx, blockDim, gridDim;

template <class T> struct Vec1 { T x; };
template <class T> struct alignas(2 * sizeof(T)) Vec2 { T x, y; };
template <class T> struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) Vec4 { T x, y, z, w; };
#define VECTORS(name, type)                                                        \
  using name##1 = Vec1<type>; using name##2 = Vec2<type>; using name##4 = Vec4<type>; \
  static inline name##2 make_##name##2(type x, type y) { return {x, y}; }          \
  static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
VECTORS(float, float) VECTORS(double, double) VECTORS(int, int) VECTORS(uint, unsigned) VECTORS(short, short)
VECTORS(ushort, unsigned short) VECTORS(char, signed char) VECTORS(uchar, unsigned char) VECTORS(longlong, long long)
#undef VECTORS

using half = _Float16;
using __half = _Float16;
using half2 = Vec2<half>;
using __half2 = half2;
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline bool __hgt(half a, half b) { return a > b; }
static inline bool __hlt(half a, half b) { return a < b; }
static inline float __half2float(half x) { return (float)x; }
static inline half __float2half(float x) { return (half)x; }
static inline half __float2half_rn(float x) { return (half)x; }

template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
#define __logf logf
#define __cosf cosf
#define __sinf sinf
#define __powf powf

namespace cpu {
constexpr int kWarp = 32;
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

static inline void __syncthreads() { cpu::block.wait((unsigned)cpu::fibers.size()); }
static inline void __syncwarp(unsigned = 0xffffffffu) { cpu::sync_warp(); }
static inline unsigned __activemask() { return 0xffffffffu; }
template <class T> static inline T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  int self = cpu::current % cpu::kWarp;
  return cpu::from_lane(value, (self & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return __shfl_sync(mask, value, (cpu::current % width) ^ lanes, width);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  unsigned self = cpu::current % width, from = self + delta;
  return __shfl_sync(mask, value, from < (unsigned)width ? from : self, width);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  unsigned self = cpu::current % width;
  return __shfl_sync(mask, value, self >= delta ? self - delta : self, width);
}

namespace nvcuda { namespace wmma {
struct matrix_a; struct matrix_b; struct accumulator; struct row_major; struct col_major;
enum layout_t { mem_row_major, mem_col_major };
template <class Use, int M, int N, int K, class T, class Layout = row_major> struct fragment {
  static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M;
  static constexpr int columns = std::is_same<Use, matrix_a>::value ? K : N;
  T at[rows][columns];
};
template <class F, class T> static inline void fill_fragment(F& f, T value) {
  for (auto& row : f.at) for (auto& x : row) x = value;
}
template <class Use, int M, int N, int K, class T, class Layout>
static inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const T* from, unsigned stride) {
  if ((uintptr_t)from % 32 || stride * sizeof(T) % 16) fprintf(stderr, "a misaligned fragment\n"), abort();
  for (int i = 0; i < f.rows; ++i)
    for (int j = 0; j < f.columns; ++j)
      f.at[i][j] = std::is_same<Layout, row_major>::value ? from[i * stride + j] : from[j * stride + i];
}
template <int M, int N, int K, class T>
static inline void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  if ((uintptr_t)to % 32 || stride * sizeof(T) % 16) fprintf(stderr, "a misaligned fragment\n"), abort();
  for (int i = cpu::current % cpu::kWarp; i < M * N; i += cpu::kWarp)
    to[layout == mem_row_major ? i / N * stride + i % N : i % N * stride + i / N] = f.at[i / N][i % N];
}
template <class D, class A, class B> static inline void mma_sync(D& d, const A& a, const B& b, const D& c) {
  for (int i = 0; i < d.rows; ++i) {
    float sums[d.columns];
    for (int j = 0; j < d.columns; ++j) sums[j] = c.at[i][j];
    for (int k = 0; k < a.columns; ++k)
      for (int j = 0; j < d.columns; ++j) sums[j] += (float)a.at[i][k] * (float)b.at[k][j];
    for (int j = 0; j < d.columns; ++j) d.at[i][j] = sums[j];
  }
}
}}  // namespace nvcuda::wmma
