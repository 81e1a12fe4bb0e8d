// What a driver made of kernels, kept in the user's cache folder from one run to the next.
#pragma once

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text.h"

namespace mlc {

// FNV-1a, 64 bits: Fowler, Noll, Vo.
inline uint64_t Hash(const std::string& text, uint64_t hash = 0xcbf29ce484222325) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

class DiskCache {
 public:
  // `kind` names the folder in the cache folder of mlc_llm. Where there is no place, nothing is kept.
  explicit DiskCache(const char* kind) {
    const char* own = std::getenv("MLC_LLM_HOME");
    const char* shared = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    std::string base;
    if (own != nullptr && *own != 0) base = own;
    else if (shared != nullptr && *shared != 0) base = std::string(shared) + "/mlc_llm";
    else if (home != nullptr && *home != 0) base = std::string(home) + "/.cache/mlc_llm";
    if (base.empty() || base[0] != '/') return;
    folder_ = base + "/kernels/" + kind;
  }

  bool usable() const { return !folder_.empty(); }

  // What was kept for `identity`; nothing where there is no file, or one that is damaged or of something else.
  std::optional<std::string> Get(const std::string& identity) const {
    if (!usable()) return std::nullopt;
    std::ifstream file(Path(identity), std::ios::binary);
    if (!file) return std::nullopt;
    std::string found((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::string head = Head(identity);
    if (found.size() < head.size() + sizeof(uint64_t) || found.compare(0, head.size(), head) != 0) return std::nullopt;
    std::string kept = found.substr(head.size(), found.size() - head.size() - sizeof(uint64_t));
    if (found.compare(found.size() - sizeof(uint64_t), sizeof(uint64_t), Sum(kept)) != 0) return std::nullopt;
    return kept;
  }

  // Keeps `bytes` for `identity`, whole or not at all. That it cannot be written is no error: the next run builds again.
  void Put(const std::string& identity, const std::string& bytes) const {
    if (!usable() || bytes.empty()) return;
    for (size_t slash = folder_.find('/', 1); slash != std::string::npos; slash = folder_.find('/', slash + 1)) {
      mkdir(folder_.substr(0, slash).c_str(), 0755);
    }
    mkdir(folder_.c_str(), 0755);
    Prune();
    std::string path = Path(identity), temporary = path + ".XXXXXX";
    int handle = mkstemp(&temporary[0]);
    if (handle < 0) return;
    bool written = Write(handle, Head(identity)) && Write(handle, bytes) && Write(handle, Sum(bytes));
    written = close(handle) == 0 && written;
    if (!written || rename(temporary.c_str(), path.c_str()) != 0) unlink(temporary.c_str());
  }

 private:
  static constexpr size_t kMostFiles = 4096;

  // Removes the half that was written first where there are too many files.
  void Prune() const {
    std::vector<std::pair<int64_t, std::string>> files;
    DIR* folder = opendir(folder_.c_str());
    if (folder == nullptr) return;
    while (dirent* entry = readdir(folder)) {
      std::string path = folder_ + "/" + entry->d_name;
      struct stat status;
      if (stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode)) files.emplace_back(status.st_mtime, path);
    }
    closedir(folder);
    if (files.size() < kMostFiles) return;
    std::sort(files.begin(), files.end());
    for (size_t i = 0; i < files.size() / 2; ++i) unlink(files[i].second.c_str());
  }

  static std::string Raw(uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), sizeof(value)); }
  static std::string Sum(const std::string& bytes) { return Raw(Hash(bytes)); }

  // The whole identity stands in the file: two that share a hash are told apart.
  static std::string Head(const std::string& identity) { return "MLCKERN1" + Raw(identity.size()) + identity; }

  static bool Write(int handle, const std::string& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      ssize_t count = write(handle, bytes.data() + done, bytes.size() - done);
      if (count <= 0) return false;
      done += static_cast<size_t>(count);
    }
    return true;
  }

  std::string Path(const std::string& identity) const {
    char name[36];
    std::snprintf(name, sizeof(name), "%016llx%016llx", static_cast<unsigned long long>(Hash(identity)),
                  static_cast<unsigned long long>(Hash(identity, 0x9ae16a3b2f90404f)));
    return folder_ + "/" + name;
  }

  std::string folder_;
};

}  // namespace mlc
