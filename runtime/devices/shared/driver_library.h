// A driver's shared library, opened at run time: nothing of it is needed to build a plug-in or to load it.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <string>

namespace mlc {

class DriverLibrary {
 public:
  // Opens the first of `names` that there is; afterwards `problem()` says why none could be opened.
  explicit DriverLibrary(std::initializer_list<const char*> names) {
    for (const char* name : names) {
      handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
      const char* reason = dlerror();
      if (problem_.empty()) problem_ = reason != nullptr ? reason : name;
    }
  }

  bool opened() const { return handle_ != nullptr; }
  const std::string& problem() const { return problem_; }

  // Points `function` to the function of that name; false if the library has none.
  template <typename Function>
  bool Find(const char* name, Function*& function) const {
    function = handle_ == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle_, name));
    return function != nullptr;
  }

 private:
  void* handle_ = nullptr;  // never closed: drivers have threads of their own
  std::string problem_;
};

}  // namespace mlc
