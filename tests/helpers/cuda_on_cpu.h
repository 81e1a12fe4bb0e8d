// CUDA's language for a processor: kernels of TVM's CUDA source run here. The tensor cores' fragments are whole matrices
// of which every lane has a copy, and stores write a lane's share only.
#pragma once
#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "threads_on_cpu.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

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

// What a device of Vulkan says: its subgroups are any of a workgroup's.
static inline int subgroup_id() { return (int)(cpu::fibers.size() - 1 - cpu::current) / cpu::kWarp; }

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
