// Where results take their place: shared by the library and its program, of which it exports nothing.

#pragma once

#include <unistd.h>

#include <string>

namespace rescale::detail {

// Where a file that may be a symbolic link lies, there or not yet.
inline std::string followed(std::string path) {
  constexpr int kMostLinks = 40;  // as Linux has it
  for (int i = 0; i < kMostLinks; i++) {
    char target[4096];
    const ssize_t size = ::readlink(path.c_str(), target, sizeof target);
    if (size < 0) break;
    const std::string to(target, static_cast<std::size_t>(size));
    path = to.rfind('/', 0) == 0 ? to : path.substr(0, path.rfind('/') + 1) + to;
  }
  return path;
}

}  // namespace rescale::detail
