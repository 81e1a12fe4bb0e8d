// Errors of one line, and JSON for Python to read.
#pragma once

#include <tvm/ffi/error.h>

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

namespace mlc {

// The parts one after another, as text.
template <typename... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Throws an error whose message is the parts one after another: the thing, the value seen, the limit, what to do.
// Names come from drivers and files: what is not printable ASCII becomes a question mark, so that it is one line.
template <typename... Parts>
[[noreturn]] void Fail(const Parts&... parts) {
  std::string message = Text(parts...);
  for (char& c : message) c = c >= 32 && c < 127 ? c : '?';
  TVM_FFI_THROW(RuntimeError) << message;
  __builtin_unreachable();
}

// "12 MiB", "300 bytes": sizes as people read them.
inline std::string Bytes(uint64_t bytes) {
  if (bytes >= (uint64_t{10} << 30)) return Text(bytes >> 30, " GiB");
  if (bytes >= (uint64_t{10} << 20)) return Text(bytes >> 20, " MiB");
  if (bytes >= (uint64_t{10} << 10)) return Text(bytes >> 10, " KiB");
  return Text(bytes, " bytes");
}

// What a compiler or driver wrote, down to one line: the first that says "error", else the first that is not empty.
inline std::string FirstError(const std::string& log) {
  std::istringstream lines(log);
  std::string line, first;
  while (std::getline(lines, line)) {
    size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos) continue;
    line = line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1).substr(0, 300);
    if (line.find("error") != std::string::npos || line.find("Error") != std::string::npos) return line;
    if (first.empty()) first = line;
  }
  return first.empty() ? "it gave no reason" : first;
}

// A JSON object under construction.
class JsonObject {
 public:
  JsonObject& Add(const char* key, const std::string& value) { return Raw(key, Quoted(value)); }
  JsonObject& Add(const char* key, const char* value) { return Raw(key, Quoted(value)); }
  JsonObject& Add(const char* key, uint64_t value) { return Raw(key, std::to_string(value)); }
  JsonObject& Add(const char* key, bool value) { return Raw(key, value ? "true" : "false"); }
  std::string Done() const { return "{" + fields_ + "}"; }

 private:
  JsonObject& Raw(const char* key, const std::string& value) {
    fields_ += (fields_.empty() ? "" : ", ") + Quoted(key) + ": " + value;
    return *this;
  }

  // Names come from drivers: what is not printable ASCII becomes a question mark.
  static std::string Quoted(const std::string& text) {
    std::string quoted = "\"";
    for (char c : text) {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c >= 32 && c < 127 ? c : '?';
    }
    return quoted + '"';
  }

  std::string fields_;
};

// A JSON list of objects.
inline std::string JsonList(const std::vector<JsonObject>& items) {
  std::string list;
  for (const JsonObject& item : items) list += (list.empty() ? "" : ", ") + item.Done();
  return "[" + list + "]";
}

}  // namespace mlc
