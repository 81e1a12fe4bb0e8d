// Freed device memory, kept for the next request of about the same size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace mlc {

// `Block` has a field `bytes`. Not locked: whoever uses a pool holds the lock of its device.
template <typename Block>
class Pool {
 public:
  explicit Pool(size_t keeps_bytes) : keeps_bytes_(keeps_bytes) {}

  // How many bytes to keep of a device's memory.
  static size_t MostOf(uint64_t memory) {
    return static_cast<size_t>(std::max<uint64_t>(memory / 16, uint64_t{64} << 20));
  }

  // What to allocate for a request: small sizes in steps of an eighth, so that different ones can share a block.
  static size_t Rounded(size_t bytes) {
    if (bytes <= 256) return 256;
    if (bytes > kSmall) return (bytes + kStep - 1) / kStep * kStep;
    size_t power = 256;
    while (power * 2 < bytes) power *= 2;
    size_t step = power / 8;
    return (bytes + step - 1) / step * step;
  }

  // A block of at least `bytes` that wastes no more than an eighth; nullptr if there is none.
  Block* Take(size_t bytes) {
    auto found = free_.lower_bound(bytes);
    if (found == free_.end() || found->first > bytes + bytes / 8) return nullptr;
    Block* block = found->second;
    kept_bytes_ -= found->first;
    free_.erase(found);
    return block;
  }

  // Keeps a block. What comes back is over the limit: the caller releases it.
  std::vector<Block*> Give(Block* block) {
    free_.emplace(block->bytes, block);
    kept_bytes_ += block->bytes;
    std::vector<Block*> over;
    while (kept_bytes_ > keeps_bytes_) over.push_back(TakeLargest());
    return over;
  }

  // All blocks, which the caller releases.
  std::vector<Block*> Empty() {
    std::vector<Block*> all;
    while (!free_.empty()) all.push_back(TakeLargest());
    return all;
  }

 private:
  static constexpr size_t kSmall = size_t{1} << 20, kStep = size_t{64} << 10;

  Block* TakeLargest() {
    auto last = std::prev(free_.end());
    Block* block = last->second;
    kept_bytes_ -= last->first;
    free_.erase(last);
    return block;
  }

  std::multimap<size_t, Block*> free_;
  size_t kept_bytes_ = 0;
  const size_t keeps_bytes_;
};

}  // namespace mlc
