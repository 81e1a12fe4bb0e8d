/* Threads of a model library: runs the parallel loops of its kernels, in place of TVM's thread pool.
 *
 * TVM's pool gives every thread one fixed part of a loop and waits for all of them. Beside another busy process that
 * is fatal: whichever thread shares its core has to wait for a time slice, and with it the whole loop, hundreds of
 * times for each token. Here a loop is cut into a few chunks for each thread, and whoever is running takes them:
 *
 *     lane 0 (launcher)   [ 0 1 2 ... 7 ]      a thread takes the chunks of its own lane first, so that it meets the same
 *     lane 1 (worker 1)   [ 8 9 10 ... 15 ]    memory each time, then what is left in the others'; a worker that sleeps
 *                                              or waits for a core is not waited for, unless it is in the middle of some
 *
 * It takes half of what a lane has left: few takings, and small chunks at the end, when the threads wait for each other.
 *
 * Loops take microseconds, and a cache line takes 30 to 300 ns from one core to the other. So each loop moves as few as
 * it can: all that a worker needs to begin comes in the line of its lane, on which it waits, and what it has done goes
 * back in one other line.
 *
 * A worker that kept the launcher waiting in the middle of its chunks shares its core with someone: it is left out for some
 * time, and when it happens again soon after, for twice as long, up to MOST_REST.
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

#ifndef MLC_DEVICE
#define MLC_DEVICE "cpu"
#endif
/* What the library is for, where a runtime finds it before it loads anything: runtime/library.py. */
__attribute__((used)) const char mlc_device[] = "\nmlc-device:" MLC_DEVICE "\n";

#define EXPORTED __attribute__((visibility("default")))
#define CACHE_LINE __attribute__((aligned(64)))
#define LOAD(place) __atomic_load_n(&(place), __ATOMIC_SEQ_CST)
#define STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_SEQ_CST)
#define ACQUIRE(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)
#define RELEASE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELEASE)

enum { MAX_THREADS = 256, MOST_CHUNKS_PER_THREAD = 8, MAX_CHUNKS = 0xffff };
enum { PARTS = 96 }; /* of most loops: builder.py */
enum { SPIN = 20000, HELD_UP = 200000, LEAST_REST = 5000000, MOST_REST = 100000000 }; /* nanoseconds */

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

/* A loop, as each thread sees it. */
typedef struct {
  /* The chunks that are not taken yet: number of the loop << 32 | next chunk << 16 | end. One word, so that a worker that
   * comes late can never take a chunk of a later loop for one of its own. */
  CACHE_LINE uint64_t chunks;
  /* What a chunk is. Stays as it is while any chunk of the loop, of whichever lane, is taken and not done. */
  Body body;
  void *data;
  Loop loop;
  CACHE_LINE uint64_t done; /* number of the loop << 32 | chunks that the thread did */
  int in_chunk;             /* whether the thread is in the middle of one */
  int failed;               /* whether a chunk ever failed */
  int resting;              /* whether the thread is left out for now */
} Lane;

static Lane lanes[MAX_THREADS];
static CACHE_LINE int launcher_sleeps;
static CACHE_LINE int workers_asleep; /* changed under `mutex` */
static int stopping;
static uint32_t loop_number; /* this and what follows are the launcher's */
static int num_resting;
static int64_t rest, rest_end;

static int num_threads = 1, chunks_per_thread = 1;
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

typedef struct {
  int thread; /* 0 for the launcher */
  uint32_t number;
  uint32_t chunks;
} Wait;

static int loop_came(const Wait *wait) {
  return (uint32_t)(ACQUIRE(lanes[wait->thread].chunks) >> 32) != wait->number || ACQUIRE(stopping);
}

static int loop_done(const Wait *wait) {
  uint32_t done = 0;
  for (int i = 0; i < num_threads; ++i) {
    uint64_t of_lane = ACQUIRE(lanes[i].done);
    if (of_lane >> 32 == wait->number) done += (uint32_t)of_lane;
  }
  return done == wait->chunks;
}

/* Look out for something to become true, for SPIN. Returns whether it did. */
static int soon(int (*event)(const Wait *), const Wait *wait) {
  int64_t end = 0;
  for (int round = 1; !event(wait); ++round) {
    relax();
    if (round % 64 == 0) {
      int64_t now = nanoseconds();
      if (end == 0) end = now + SPIN;
      if (now >= end) return 0;
    }
  }
  return 1;
}

/* Take half of the chunks that a lane has left of loop `number`. Returns how many, and the first of them. */
static int take(Lane *lane, uint32_t number, int *first) {
  uint64_t chunks = ACQUIRE(lane->chunks);
  for (;;) {
    int next = (int)(chunks >> 16 & 0xffff), end = (int)(chunks & 0xffff);
    if (chunks >> 32 != number || next >= end) return 0;
    int count = (end - next + 1) / 2;
    if (__atomic_compare_exchange_n(&lane->chunks, &chunks, chunks + ((uint64_t)count << 16), 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
      *first = next;
      return count;
    }
  }
}

static void run_chunks(Lane *own, int first, int count) {
  RELEASE(own->in_chunk, 1);
  for (int i = 0; i < count; ++i)
    if (own->body(first + i, &own->loop, own->data) != 0) STORE(own->failed, 1);
  RELEASE(own->in_chunk, 0);
}

/* Do chunks of loop `number` until none is left; `done` have been done before. */
static void work(int thread, uint32_t number, uint32_t done) {
  Lane *own = &lanes[thread];
  int threads = num_threads, first;
  for (int i = 0; i < threads; ++i) {
    Lane *lane = &lanes[(thread + i) % threads];
    for (int count; (count = take(lane, number, &first)) > 0; done += (uint32_t)count) run_chunks(own, first, count);
  }
  if (done > 0) RELEASE(own->done, (uint64_t)number << 32 | done);
}

static void wake_launcher(void) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST); /* either this sees that the launcher sleeps, or the launcher what was done */
  if (!LOAD(launcher_sleeps)) return;
  pthread_mutex_lock(&mutex);
  pthread_cond_signal(&work_done);
  pthread_mutex_unlock(&mutex);
}

static void *run_worker(void *argument) {
  Wait wait = {(int)(intptr_t)argument, 0, 0};
  Lane *lane = &lanes[wait.thread];
  inside_loop = 1;
  while (!LOAD(stopping)) {
    if (LOAD(lane->resting)) {
      pthread_mutex_lock(&mutex);
      while (LOAD(lane->resting) && !LOAD(stopping)) pthread_cond_wait(&rest_over, &mutex);
      pthread_mutex_unlock(&mutex);
      continue;
    }
    if (!soon(loop_came, &wait)) {
      pthread_mutex_lock(&mutex);
      STORE(workers_asleep, workers_asleep + 1);
      while (!loop_came(&wait)) pthread_cond_wait(&work_came, &mutex);
      STORE(workers_asleep, workers_asleep - 1);
      pthread_mutex_unlock(&mutex);
    }
    wait.number = (uint32_t)(ACQUIRE(lane->chunks) >> 32);
    work(wait.thread, wait.number, 0);
    wake_launcher();
  }
  return 0;
}

/* Only the forking thread lives on in a child. */
static void after_fork(void) {
  num_workers = workers_asleep = launcher_sleeps = inside_loop = num_resting = 0;
  for (int i = 0; i < MAX_THREADS; ++i) lanes[i].resting = 0;
  pthread_mutex_init(&launching, 0);
  pthread_mutex_init(&mutex, 0);
  /* Threads that waited in the parent would be waited for. */
  pthread_cond_init(&work_came, 0);
  pthread_cond_init(&work_done, 0);
  pthread_cond_init(&rest_over, 0);
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
  /* Soon after a rest: somebody stays on the core. Bursts, as of an event loop after each step, stay apart. */
  int again = rest_end != 0 && now - rest_end < 2 * LEAST_REST;
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

/* Wait for the chunks that other threads are in the middle of. The launcher began its own at `start`. */
static void wait_for_workers(const Wait *wait, int64_t start) {
  if (soon(loop_done, wait)) return;
  int64_t own_end = nanoseconds();
  uint32_t own_chunks = (uint32_t)lanes[0].done;
  int64_t own_chunk = own_chunks > 0 ? (own_end - start) / own_chunks : 0;
  char late[MAX_THREADS];
  for (int i = 1; i < num_threads; ++i) late[i] = (char)LOAD(lanes[i].in_chunk);
  pthread_mutex_lock(&mutex);
  STORE(launcher_sleeps, 1);
  while (!loop_done(wait)) pthread_cond_wait(&work_done, &mutex);
  STORE(launcher_sleeps, 0);
  pthread_mutex_unlock(&mutex);
  if (nanoseconds() - own_end > HELD_UP + 2 * own_chunk) let_rest(late);
}

/* Begin loop `number`, of which the launcher has the first chunks to itself. Returns how many. */
static uint32_t publish(uint32_t number, Body f, void *data, int chunks) {
  uint32_t own = 0;
  for (int i = 0; i < num_threads; ++i) {
    uint64_t next = (uint64_t)(chunks * i / num_threads), end = (uint64_t)(chunks * (i + 1) / num_threads);
    if (i == 0) next = own = (uint32_t)(end + 1) / 2;
    lanes[i].body = f;
    lanes[i].data = data;
    lanes[i].loop.num_task = chunks;
    RELEASE(lanes[i].chunks, (uint64_t)number << 32 | next << 16 | end);
  }
  /* A worker that falls asleep at this moment may be overlooked, without harm: the others do its chunks. */
  if (ACQUIRE(workers_asleep) > 0) {
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&work_came);
    pthread_mutex_unlock(&mutex);
  }
  return own;
}

/* Whether a chunk of the loop has failed. */
static int take_failures(void) {
  int failed = 0;
  for (int i = 0; i < num_threads; ++i) {
    failed |= lanes[i].failed;
    if (lanes[i].failed) lanes[i].failed = 0;
  }
  return failed;
}

/* TVMBackendParallelLaunch: run `f` once for each part of a loop. TVM cuts the loop into `num_task` parts, 0 for any
 * number. Returns 0, or -1 with an error raised. */
static int launch(Body f, void *data, int num_task) {
  if (inside_loop || pthread_mutex_trylock(&launching) != 0) return run_alone(f, data);
  int threads = num_threads; /* stays as it is while `launching` is held */
  int chunks = num_task > 0 ? num_task : threads * chunks_per_thread;
  if (threads == 1 || chunks == 1 || chunks > MAX_CHUNKS) {
    pthread_mutex_unlock(&launching);
    return run_alone(f, data);
  }
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
  Wait wait = {0, ++loop_number, (uint32_t)chunks};
  uint32_t own = publish(wait.number, f, data, chunks);
  run_chunks(&lanes[0], 0, (int)own);
  work(0, wait.number, own);
  wait_for_workers(&wait, start);
  int failed = take_failures();
  inside_loop = 0;
  pthread_mutex_unlock(&launching);
  if (failed && __TVMFFIErrorSetRaisedFromCStr) __TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a kernel failed");
  return failed ? -1 : 0;
}

/* The function "set_num_threads" of the library: how many threads run the loops, the caller's included. Until it is
 * called kernels use TVM's pool. Waits for a loop that another thread runs; not from inside of a loop. */
EXPORTED int __tvm_ffi_set_num_threads(void *self, const Any *arguments, int32_t count, Any *result) {
  (void)self;
  if (count != 1 || arguments[0].type != TYPE_INTEGER || arguments[0].integer < 1) {
    if (__TVMFFIErrorSetRaisedFromCStr)
      __TVMFFIErrorSetRaisedFromCStr("ValueError", "set_num_threads takes the number of threads, at least 1");
    return -1;
  }
  pthread_mutex_lock(&launching);
  stop_workers();
  end_rest();
  num_threads = arguments[0].integer < MAX_THREADS ? (int)arguments[0].integer : MAX_THREADS;
  chunks_per_thread = MOST_CHUNKS_PER_THREAD;
  while (chunks_per_thread > 1 && PARTS % (num_threads * chunks_per_thread) != 0) --chunks_per_thread;
  if (chunks_per_thread == 1) chunks_per_thread = MOST_CHUNKS_PER_THREAD / 2;
  __TVMBackendParallelLaunch = launch;
  pthread_mutex_unlock(&launching);
  result->type = TYPE_NONE;
  return 0;
}

#if defined(__cplusplus)
}
#endif
