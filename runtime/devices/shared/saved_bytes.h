// Reads what compilers save in a library: little endian, lengths of 8 bytes. Nothing is read beyond the end.
#pragma once

#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "text.h"

namespace mlc {

class SavedBytes {
 public:
  // `what` is named in errors, as "the library's opencl module". The bytes have to outlive the reader.
  SavedBytes(const char* data, size_t size, const char* what) : next_(data), end_(data + size), what_(what) {}

  template <typename Number>
  Number Read() {
    Number value;
    std::memcpy(&value, Take(sizeof(Number)), sizeof(Number));
    return value;
  }

  std::string ReadString() {
    uint64_t size = ReadCount(1);
    return std::string(Take(size), size);
  }

  std::vector<std::string> ReadStrings() {
    std::vector<std::string> items(ReadCount(sizeof(uint64_t)));
    for (std::string& item : items) item = ReadString();
    return items;
  }

  // Data types: a byte for the code, one for the bits, two for the lanes.
  std::vector<DLDataType> ReadTypes() {
    static_assert(sizeof(DLDataType) == 4, "as TVM saves it");
    std::vector<DLDataType> items(ReadCount(sizeof(DLDataType)));
    for (DLDataType& item : items) item = Read<DLDataType>();
    return items;
  }

  // A length; refused where that many items of at least `item_bytes` are not there.
  uint64_t ReadCount(size_t item_bytes) {
    uint64_t count = Read<uint64_t>();
    if (count > left() / item_bytes) Damaged();
    return count;
  }

  void ExpectEnd() const {
    if (left() != 0) Damaged();
  }

 private:
  size_t left() const { return static_cast<size_t>(end_ - next_); }

  const char* Take(size_t size) {
    if (size > left()) Damaged();
    const char* taken = next_;
    next_ += size;
    return taken;
  }

  [[noreturn]] void Damaged() const { Fail(what_, " is damaged: compile the library again"); }

  const char* next_;
  const char* end_;
  const char* what_;
};

}  // namespace mlc
