#include "paths.hpp"

#include <rescale/rescale.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "../src/links.hpp"

namespace tool {
namespace {

namespace fs = std::filesystem;

bool ends_with_png(std::string name) {
  for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return name.size() > 4 && name.compare(name.size() - 4, 4, ".png") == 0;
}

bool is_folder(const std::string& path) {
  struct stat about{};
  return ::stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

std::string folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path().string() : "."; }

}  // namespace

const char* const kStream = "-";

void check_paths(const std::string& source, const std::string& target) {
  using rescale::Code;
  using rescale::Error;
  struct stat from{}, to{};
  if (target != kStream && !ends_with_png(target)) {
    throw Error(Code::input, target + ": this program writes PNG: name it with .png");
  }
  const bool stream = source == kStream;
  if (!stream && ::stat(source.c_str(), &from) != 0) throw Error(Code::input, source + ": no such file");
  if (target == kStream) return;
  const std::string folder = folder_of(target);
  if (!is_folder(folder)) throw Error(Code::output, target + ": the folder " + folder + " does not exist");
  const bool there = ::stat(target.c_str(), &to) == 0;
  if (there && !stream && from.st_dev == to.st_dev && from.st_ino == to.st_ino) {
    throw Error(Code::output, target + ": is the source itself");
  }
  if (there && S_ISDIR(to.st_mode)) throw Error(Code::output, target + ": is a folder; name a file in it");
  if (there && !S_ISREG(to.st_mode)) return;  // a pipe or device is written to as it is
  const std::string behind = folder_of(rescale::detail::followed(target));
  if (!is_folder(behind)) {
    throw Error(Code::output,
                target + ": is a link into the folder " + behind + ", which does not exist; make it, or remove the link");
  }
  if (::access(behind.c_str(), W_OK | X_OK) != 0) {
    throw Error(Code::output,
                target + ": cannot write: the folder " + behind + " takes no new files; choose another, or make it writable");
  }
}

}  // namespace tool
