/* For call_clock.py: a clock for the calls of TVM's virtual machine, and what the processor can do at most.
 *
 * The virtual machine calls a function before and after each of its calls. One in Python takes so long that the worker
 * threads of the kernels fall asleep meanwhile, which adds tens of microseconds to the next kernel. This one takes the
 * time and nothing else. Kernels start their parallel loops by a pointer in the library, in which `timed_launch` is put. */
#include <stdint.h>
#include <time.h>

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif

enum { MOST_TIMES = 1 << 16, CHAINS = 12 }; /* of sums, so that none waits for the one before */

/* TVM's interface, c_api.h of tvm_ffi. */
typedef struct {
  int32_t type;
  uint32_t padding;
  int64_t integer;
} Any;

typedef int (*Launch)(void *body, void *data, int chunks);

int64_t call_times[MOST_TIMES]; /* nanoseconds, before and after each call in turn */
int64_t loop_times[MOST_TIMES]; /* nanoseconds in parallel loops, where call_times has the end of their call */
int64_t num_call_times;
Launch launch; /* what the library calls otherwise */

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int take_time(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self, (void)arguments, (void)count;
  result->type = 0;
  if (num_call_times == MOST_TIMES) return 0;
  call_times[num_call_times++] = nanoseconds();
  if (num_call_times < MOST_TIMES) loop_times[num_call_times] = 0;
  return 0;
}

int timed_launch(void *body, void *data, int chunks) {
  int64_t begin = nanoseconds();
  int result = launch(body, data, chunks);
  if (num_call_times < MOST_TIMES) loop_times[num_call_times] += nanoseconds() - begin;
  return result;
}

/* One of two threads, 0 and 1, that hand a cache line to each other `rounds` times. */
void exchange(int thread, int64_t rounds) {
  static int64_t line __attribute__((aligned(128)));
  for (int64_t round = 0; round < rounds; ++round) {
    while ((__atomic_load_n(&line, __ATOMIC_ACQUIRE) & 1) != thread) continue;
    __atomic_fetch_add(&line, 1, __ATOMIC_RELEASE);
  }
}

/* Multiply and add float32 in registers. Returns how many operations that were. */
int64_t multiply_float32(int64_t rounds) {
  typedef float Vector __attribute__((vector_size(BYTES)));
  volatile float start = 0.5f;
  Vector factor = {0}, sums[CHAINS];
  factor += start;
  for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = factor;
  for (int64_t round = 0; round < rounds; ++round)
    for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = sums[chain] * factor + factor;
  for (int chain = 0; chain < CHAINS; ++chain) start = sums[chain][0];
  return rounds * CHAINS * (BYTES / 4) * 2;
}

/* The same with 8-bit numbers and vpdpbusd; 0 where the processor lacks it. */
int64_t multiply_int8(int64_t rounds) {
#if defined(__AVX512VNNI__)
  volatile int start = 1;
  __m512i factor = _mm512_set1_epi32(start), sums[CHAINS];
  for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = factor;
  for (int64_t round = 0; round < rounds; ++round)
    for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = _mm512_dpbusd_epi32(sums[chain], factor, factor);
  for (int chain = 0; chain < CHAINS; ++chain) start = _mm512_cvtsi512_si32(sums[chain]);
  return rounds * CHAINS * 64 * 2;
#else
  (void)rounds;
  return 0;
#endif
}
