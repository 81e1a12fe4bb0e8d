// Kernels that drivers build: each once, and many by several threads at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace mlc {

// What was built, by key. Any thread may ask: one builds, others that want the same wait for it.
template <typename Key, typename Built>
class Builds {
 public:
  // What `build()` makes for `key`; it is called where that has not been built yet. Throws what `build` throws, and
  // builds again the next time.
  template <typename Build>
  const Built& Get(const Key& key, Build build) {
    std::unique_lock<std::mutex> lock(mutex_);
    Entry& entry = entries_[key];
    changed_.wait(lock, [&] { return entry.state != State::kUnderWay; });
    if (entry.state == State::kDone) return entry.built;
    entry.state = State::kUnderWay;
    lock.unlock();
    try {
      Built built = build();
      lock.lock();
      entry.built = built;
      entry.state = State::kDone;
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      entry.state = State::kNotBuilt;
      changed_.notify_all();
      throw;
    }
    changed_.notify_all();
    return entry.built;
  }

  // Calls `release` with what was built for `key`, if anything, and forgets it. Nobody may be building it.
  template <typename Release>
  void Forget(const Key& key, Release release) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end()) return;
    if (found->second.state == State::kDone) release(found->second.built);
    entries_.erase(found);
  }

  bool Has(const Key& key) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = entries_.find(key);
    return found != entries_.end() && found->second.state == State::kDone;
  }

  // Calls `visit` with each key and what was built for it.
  template <typename Visit>
  void ForEach(Visit visit) const {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [key, entry] : entries_) {
      if (entry.state == State::kDone) visit(key, entry.built);
    }
  }

 private:
  enum class State { kNotBuilt, kUnderWay, kDone };
  struct Entry {
    State state = State::kNotBuilt;
    Built built{};
  };

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, Entry> entries_;  // references to entries stay valid
};

// Calls `work(i)` for 0 <= i < count on up to `threads` threads. After an error no more is begun, and it is thrown again:
// that of the lowest number, if there are several.
template <typename Work>
void OnThreads(size_t count, size_t threads, Work work) {
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> errors(count);
  auto run = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        errors[i] = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace mlc
