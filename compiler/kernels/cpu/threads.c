/* Threads of a model library: runs the parallel loops of its kernels, in place of TVM's thread pool.
 *
 * TVM's pool gives every thread one fixed part of a loop and waits for all of them. Beside another busy process that
 * is fatal: whichever thread shares its core has to wait for a time slice, and with it the whole loop, hundreds of
 * times for each token. Here a loop is cut into a few chunks for each thread, and whoever is running takes them:
 *
 *     lane 0 (launcher)   [ 0 1 2 3 ]      a thread takes the chunks of its own lane first, so that it meets the same
 *     lane 1 (worker 1)   [ 4 5 6 7 ]      memory each time, then what is left in the others'; a worker that sleeps or
 *                                          waits for a core is not waited for, unless it is in the middle of a chunk
 *
 * A worker that kept the launcher waiting in the middle of a chunk shares its core with someone: it is left out for some
 * time, as long as it happens again for longer, up to MOST_REST.
 *
 * A worker that finds nothing to do looks out for the next loop for SPIN, then sleeps: an idle engine takes
 * no processor time. A launcher that waits for the last chunks goes to sleep likewise, and so gives up its core to the
 * worker that needs one.
 *
 * Threads that launch at the same time, and loops inside of loops, run without help. Kernels with barriers between the
 * threads of a loop (TVMBackendParallelBarrier) cannot run here, because chunks do not run at the same time.
 *
 * Both a C and a C++ compiler take this file, with GNU's builtins.
 */
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))
#define CACHE_LINE __attribute__((aligned(64)))
#define LOAD(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)
#define STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_SEQ_CST)

enum { MAX_THREADS = 256, CHUNKS_PER_THREAD = 4, MAX_CHUNKS = 0xffff };
enum { SPIN = 20000, HELD_UP = 200000, LEAST_REST = 10000000, MOST_REST = 100000000 }; /* nanoseconds */

#if defined(__cplusplus)
extern "C" {
#endif

/* TVM's interfaces: c_backend_api.h of the runtime, c_api.h of tvm_ffi. */
typedef struct {
  void *sync_handle;
  int32_t num_task;
} Loop;
typedef int (*Body)(int task, Loop *loop, void *data);
typedef struct {
  int32_t type;
  uint32_t padding;
  int64_t integer;
} Any;
enum { TYPE_NONE = 0, TYPE_INTEGER = 1 };

/* TVM's runtime sets these two when it loads the library; the first is what kernels call. */
EXPORTED __attribute__((weak)) int (*__TVMBackendParallelLaunch)(Body, void *, int);
EXPORTED __attribute__((weak)) void (*__TVMFFIErrorSetRaisedFromCStr)(const char *, const char *);

/* The chunks of a lane that are not taken yet: number of the loop << 32 | next chunk << 16 | end. One word, so that a
 * worker that comes late can never take a chunk of a later loop for one of its own. */
typedef struct {
  CACHE_LINE uint64_t chunks;
  int in_chunk; /* whether the thread of the lane is in the middle of one */
  int resting;  /* whether it is left out for now */
} Lane;

static Lane lanes[MAX_THREADS];
static CACHE_LINE uint32_t loop_number;
static CACHE_LINE int chunks_done;
static CACHE_LINE int launcher_sleeps;
static CACHE_LINE int workers_asleep; /* changed under `mutex` */
static int stopping;
static int num_resting; /* this and the next two are the launcher's */
static int64_t rest, rest_end;
/* The loop that runs. Stays as it is while any of its chunks is taken and not done. */
static Body body;
static void *body_data;
static Loop loop = {0, 1};
static int body_failed;

static int num_threads = 1;
static int num_workers; /* started; worker i is workers[i], from 1 on */
static pthread_t workers[MAX_THREADS];
static pthread_mutex_t launching = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_came = PTHREAD_COND_INITIALIZER;
static pthread_cond_t work_done = PTHREAD_COND_INITIALIZER;
static pthread_cond_t rest_over = PTHREAD_COND_INITIALIZER;
static __thread int inside_loop;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int loop_came(uint32_t seen) { return LOAD(loop_number) != seen || LOAD(stopping); }

static int loop_done(uint32_t chunks) { return LOAD(chunks_done) == (int)chunks; }

/* Look out for something to become true, for SPIN. Returns whether it did. */
static int soon(int (*event)(uint32_t), uint32_t argument) {
  int64_t end = 0;
  for (int round = 1; !event(argument); ++round) {
    relax();
    if (round % 64 == 0) {
      int64_t now = nanoseconds();
      if (end == 0) end = now + SPIN;
      if (now >= end) return 0;
    }
  }
  return 1;
}

/* Take the next chunk of a lane, if there is one left of loop `number`. Returns it, or -1. */
static int take(Lane *lane, uint32_t number) {
  uint64_t chunks = LOAD(lane->chunks);
  while (chunks >> 32 == number && (chunks >> 16 & 0xffff) < (chunks & 0xffff)) {
    if (__atomic_compare_exchange_n(&lane->chunks, &chunks, chunks + (1 << 16), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      return (int)(chunks >> 16 & 0xffff);
  }
  return -1;
}

/* Do chunks of loop `number` until none is left. Returns how many. */
static int work(int thread, uint32_t number) {
  int threads = LOAD(num_threads), done = 0;
  for (int i = 0; i < threads; ++i) {
    Lane *lane = &lanes[(thread + i) % threads];
    for (int chunk; (chunk = take(lane, number)) >= 0; ++done) {
      STORE(lanes[thread].in_chunk, 1);
      if (body(chunk, &loop, body_data) != 0) STORE(body_failed, 1);
      STORE(lanes[thread].in_chunk, 0);
      int chunks = loop.num_task; /* the launcher may return, and begin another loop, as soon as this one counts */
      if (__atomic_add_fetch(&chunks_done, 1, __ATOMIC_SEQ_CST) == chunks && LOAD(launcher_sleeps)) {
        pthread_mutex_lock(&mutex);
        pthread_cond_signal(&work_done);
        pthread_mutex_unlock(&mutex);
      }
    }
  }
  return done;
}

static void *run_worker(void *argument) {
  int thread = (int)(intptr_t)argument;
  uint32_t seen = 0;
  inside_loop = 1;
  while (!LOAD(stopping)) {
    if (LOAD(lanes[thread].resting)) {
      pthread_mutex_lock(&mutex);
      while (LOAD(lanes[thread].resting) && !LOAD(stopping)) pthread_cond_wait(&rest_over, &mutex);
      pthread_mutex_unlock(&mutex);
      continue;
    }
    if (!soon(loop_came, seen)) {
      pthread_mutex_lock(&mutex);
      STORE(workers_asleep, workers_asleep + 1);
      while (!loop_came(seen)) pthread_cond_wait(&work_came, &mutex);
      STORE(workers_asleep, workers_asleep - 1);
      pthread_mutex_unlock(&mutex);
    }
    seen = LOAD(loop_number);
    work(thread, seen);
  }
  return 0;
}

/* Only the forking thread lives on in a child. */
static void after_fork(void) {
  num_workers = workers_asleep = inside_loop = num_resting = 0;
  for (int i = 0; i < MAX_THREADS; ++i) lanes[i].resting = 0;
  pthread_mutex_init(&launching, 0);
  pthread_mutex_init(&mutex, 0);
  pthread_cond_init(&work_came, 0);
}

static void start_workers(void) {
  static int prepared;
  if (!prepared) prepared = pthread_atfork(0, 0, after_fork) == 0;
  /* Where the system gives no more threads, those that there are do the work. */
  while (num_workers < num_threads - 1 &&
         pthread_create(&workers[num_workers + 1], 0, run_worker, (void *)(intptr_t)(num_workers + 1)) == 0)
    ++num_workers;
}

/* Also when the library is unloaded, and with it the code that the workers run. */
__attribute__((destructor)) static void stop_workers(void) {
  pthread_mutex_lock(&mutex);
  STORE(stopping, 1);
  pthread_cond_broadcast(&work_came);
  pthread_cond_broadcast(&rest_over);
  pthread_mutex_unlock(&mutex);
  for (; num_workers > 0; --num_workers) pthread_join(workers[num_workers], 0);
  STORE(stopping, 0);
}

static int run_alone(Body f, void *data) {
  Loop whole = {0, 1};
  return f(0, &whole, data);
}

/* Leave out, for a time, the workers that are `late`. */
static void let_rest(const char *late) {
  int64_t now = nanoseconds();
  int again = rest_end != 0 && now - rest_end < 4 * rest;
  rest *= 2;
  if (!again) rest = LEAST_REST;
  if (rest > MOST_REST) rest = MOST_REST;
  rest_end = now + rest;
  for (int i = 1; i < num_threads; ++i) {
    if (!late[i] || LOAD(lanes[i].resting)) continue;
    STORE(lanes[i].resting, 1);
    ++num_resting;
  }
}

static void end_rest(void) {
  pthread_mutex_lock(&mutex);
  for (int i = 1; i < num_threads; ++i) STORE(lanes[i].resting, 0);
  num_resting = 0;
  pthread_cond_broadcast(&rest_over);
  pthread_mutex_unlock(&mutex);
}

/* Wait for the chunks that other threads are in the middle of; the launcher's own took `own_chunk` nanoseconds each. */
static void wait_for_workers(uint32_t chunks, int64_t own_chunk) {
  if (soon(loop_done, chunks)) return;
  int64_t start = nanoseconds();
  char late[MAX_THREADS];
  for (int i = 1; i < num_threads; ++i) late[i] = (char)LOAD(lanes[i].in_chunk);
  pthread_mutex_lock(&mutex);
  STORE(launcher_sleeps, 1);
  while (!loop_done(chunks)) pthread_cond_wait(&work_done, &mutex);
  STORE(launcher_sleeps, 0);
  pthread_mutex_unlock(&mutex);
  if (nanoseconds() - start > HELD_UP + 2 * own_chunk) let_rest(late);
}

/* TVMBackendParallelLaunch: run `f` once for each part of a loop. TVM cuts the loop into `num_task` parts, 0 for any
 * number. Returns 0, or -1 with an error raised. */
static int launch(Body f, void *data, int num_task) {
  int threads = num_threads;
  int chunks = num_task > 0 ? num_task : threads * CHUNKS_PER_THREAD;
  if (threads == 1 || chunks == 1 || chunks > MAX_CHUNKS || inside_loop || pthread_mutex_trylock(&launching) != 0)
    return run_alone(f, data);
  int64_t start = nanoseconds();
  if (num_resting > 0) {
    if (start >= rest_end) {
      end_rest();
    } else if (num_resting == threads - 1) {
      int result = run_alone(f, data);
      pthread_mutex_unlock(&launching);
      return result;
    }
  }
  if (num_workers < threads - 1) start_workers();
  inside_loop = 1;
  body = f;
  body_data = data;
  loop.num_task = chunks;
  body_failed = 0;
  STORE(chunks_done, 0);
  uint32_t number = loop_number + 1;
  for (int i = 0; i < threads; ++i) {
    uint64_t first = (uint64_t)(chunks * i / threads), end = (uint64_t)(chunks * (i + 1) / threads);
    STORE(lanes[i].chunks, (uint64_t)number << 32 | first << 16 | end);
  }
  STORE(loop_number, number);
  if (LOAD(workers_asleep) > 0) {
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&work_came);
    pthread_mutex_unlock(&mutex);
  }
  int done = work(0, number);
  wait_for_workers((uint32_t)chunks, done > 0 ? (nanoseconds() - start) / done : 0);
  int failed = body_failed;
  inside_loop = 0;
  pthread_mutex_unlock(&launching);
  if (failed && __TVMFFIErrorSetRaisedFromCStr) __TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel failed");
  return failed ? -1 : 0;
}

/* The function "set_num_threads" of the library: how many threads run the loops, the caller's included. Until it is
 * called kernels use TVM's pool. Not while a kernel runs. */
EXPORTED int __tvm_ffi_set_num_threads(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self;
  if (count != 1 || arguments[0].type != TYPE_INTEGER || arguments[0].integer < 1) {
    if (__TVMFFIErrorSetRaisedFromCStr)
      __TVMFFIErrorSetRaisedFromCStr("ValueError", "set_num_threads takes the number of threads, at least 1");
    return -1;
  }
  stop_workers();
  end_rest();
  num_threads = arguments[0].integer < MAX_THREADS ? (int)arguments[0].integer : MAX_THREADS;
  __TVMBackendParallelLaunch = launch;
  result->type = TYPE_NONE;
  return 0;
}

#if defined(__cplusplus)
}
#endif
