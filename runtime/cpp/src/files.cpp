// Files, read whole and written so that an interruption leaves the old file or none.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <random>

#include "files.hpp"
#include "links.hpp"
#include "sha256.hpp"

namespace rescale {

using detail::fail;

namespace detail {

namespace {

// Descriptor of a file that is open for reading, told of as `path`; closed at the end of a block.
struct Opened {
  int file;
  Opened(const std::string& place, const std::string& path, int flags, Code code, const std::string& missing)
      : file(::open(place.c_str(), O_RDONLY | O_CLOEXEC | flags)) {
    if (file >= 0) return;
    if (errno == ENOENT && !missing.empty()) fail(code, missing);
    fail(code, path, errno == ENOENT ? ": no such file" : cat(": cannot read: ", std::strerror(errno)));
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() { ::close(file); }
};

Bytes read_all(const Opened& opened, const std::string& path, std::uint64_t most, Code code) {
  Bytes data;
  struct stat about{};
  if (::fstat(opened.file, &about) == 0 && about.st_size > 0 && static_cast<std::uint64_t>(about.st_size) <= most) {
    data.reserve(static_cast<std::size_t>(about.st_size) + 1);
  }
  constexpr std::size_t kPiece = 1 << 20;
  for (;;) {
    const std::size_t had = data.size();
    data.resize(had + (data.capacity() > had ? std::min(data.capacity() - had, kPiece) : kPiece));
    const ssize_t got = ::read(opened.file, data.data() + had, data.size() - had);
    if (got < 0 && errno == EINTR) {
      data.resize(had);
      continue;
    }
    if (got < 0) fail(code, path, ": cannot read: ", std::strerror(errno));
    data.resize(had + static_cast<std::size_t>(got));
    if (data.size() > most) fail(code, path, ": larger than ", most, " bytes");
    if (got == 0) return data;
  }
}

}  // namespace

Bytes read_bounded(const std::string& place, const std::string& path, std::uint64_t most, Code code, const std::string& missing) {
  // Opening a pipe would wait for a writer, who may never come.
  const Opened opened(place, path, O_NONBLOCK, code, missing);
  struct stat about{};
  // Reading a folder says what it is.
  if (::fstat(opened.file, &about) == 0 && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) {
    fail(code, path, ": a pipe or a device; a regular file is wanted: put the file itself there");
  }
  return read_all(opened, path, most, code);
}

std::string absolute(const std::string& path) {
  std::error_code failed;
  const std::filesystem::path place = std::filesystem::absolute(path, failed);
  return failed ? path : place.string();  // no folder to begin at: the path is as good
}

bool is_file(const std::string& path) {
  struct stat about{};
  return ::stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode);
}

namespace {

// By chance alone: in containers all processes have the same number, and one that was killed leaves its file.
std::string temporary_name() {
  std::random_device source;
  std::uint8_t chance[8];
  for (std::uint8_t& byte : chance) byte = static_cast<std::uint8_t>(source());
  return cat(".rescale.", hexadecimal(chance, sizeof chance), ".tmp");
}

// A new file beside `path` that vanishes unless it takes the place of it, or of what it links to. A pipe or device has no place to
// take: it is written to as it is.
class Pending {
 public:
  explicit Pending(const std::string& path) : path_(path) {
    struct stat about{};
    special_ = ::stat(path.c_str(), &about) == 0 && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode);
    place_ = special_ ? path : followed(path);
    // Not the target's name with something added: that could be too long.
    name_ = special_ ? path : place_.substr(0, place_.rfind('/') + 1) + temporary_name();
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  ~Pending() {
    if (file_ >= 0) ::close(file_);
    if (made_) ::unlink(name_.c_str());
  }
  void write(const Bytes& data) {
    file_ = ::open(name_.c_str(), O_WRONLY | O_CLOEXEC | (special_ ? 0 : O_CREAT | O_EXCL), 0666);
    check(file_ >= 0);
    made_ = !special_;
    for (std::size_t at = 0; at < data.size();) {
      const ssize_t done = ::write(file_, data.data() + at, data.size() - at);
      if (done < 0 && errno == EINTR) continue;
      check(done >= 0);
      at += static_cast<std::size_t>(done);
    }
    keep_mode();
    check(special_ || ::fsync(file_) == 0);
    const int file = file_;
    file_ = -1;
    check(::close(file) == 0);
  }
  void place() {
    check(special_ || ::rename(name_.c_str(), place_.c_str()) == 0);
    made_ = false;
  }

 private:
  // Of the file that is replaced: what its owner closed stays closed.
  void keep_mode() const {
    struct stat old{};
    if (!special_ && ::stat(place_.c_str(), &old) == 0) static_cast<void>(::fchmod(file_, old.st_mode & 0777));
  }
  void check(bool good) const {
    if (!good) fail(Code::output, path_, ": cannot write: ", std::strerror(errno));
  }
  std::string path_, place_, name_;
  int file_ = -1;
  bool special_ = false, made_ = false;
};

}  // namespace

void write_both(const std::string& first, const Bytes& a, const std::string& second, const Bytes& b) {
  Pending one(first), two(second);
  one.write(a);
  two.write(b);
  one.place();
  two.place();
}

}  // namespace detail

Bytes read_file(const std::string& path) {
  return detail::translated([&] {
    const detail::Opened opened(path, path, 0, Code::input, {});
    Bytes data = detail::read_all(opened, path, std::uint64_t{2} << 30, Code::input);
    if (data.empty()) detail::damaged(path, ": empty");
    return data;
  });
}

void write_file(const std::string& path, const Bytes& data) {
  detail::translated([&] {
    detail::Pending file(path);
    file.write(data);
    file.place();
  });
}

}  // namespace rescale
