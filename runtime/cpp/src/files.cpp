// Files, read whole and written so that an interruption leaves the old file or none.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "files.hpp"

namespace rescale {

using detail::fail;

namespace detail {

Bytes read_bounded(const std::string& path, std::uint64_t most, Code code, const std::string& missing) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (errno == ENOENT && !missing.empty()) fail(code, missing);
    fail(code, path, errno == ENOENT ? ": no such file" : cat(": cannot read: ", std::strerror(errno)));
  }
  struct Closer {
    int file;
    ~Closer() { ::close(file); }
  } closer{file};
  Bytes data;
  struct stat about{};
  if (::fstat(file, &about) == 0 && about.st_size > 0 && static_cast<std::uint64_t>(about.st_size) <= most) {
    data.reserve(static_cast<std::size_t>(about.st_size) + 1);
  }
  constexpr std::size_t kPiece = 1 << 20;
  for (;;) {
    const std::size_t had = data.size();
    data.resize(had + (data.capacity() > had ? std::min(data.capacity() - had, kPiece) : kPiece));
    const ssize_t got = ::read(file, data.data() + had, data.size() - had);
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

bool exists(const std::string& path) {
  struct stat about{};
  return ::stat(path.c_str(), &about) == 0;
}

namespace {

// A new file beside `path` that vanishes unless it takes the place of it.
class Pending {
 public:
  explicit Pending(const std::string& path) : path_(path) {
    static std::atomic<unsigned> count{0};
    const std::size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "" : path.substr(0, slash + 1);
    // Not the target's name with something added: that could be too long.
    name_ = cat(folder, ".rescale.", static_cast<long>(::getpid()), "-", count++, ".tmp");
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;
  ~Pending() {
    if (file_ >= 0) ::close(file_);
    if (made_) ::unlink(name_.c_str());
  }
  void write(const Bytes& data) {
    file_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    check(file_ >= 0);
    made_ = true;
    for (std::size_t at = 0; at < data.size();) {
      const ssize_t done = ::write(file_, data.data() + at, data.size() - at);
      if (done < 0 && errno == EINTR) continue;
      check(done >= 0);
      at += static_cast<std::size_t>(done);
    }
    check(::fsync(file_) == 0);
    const int file = file_;
    file_ = -1;
    check(::close(file) == 0);
  }
  void place() {
    check(::rename(name_.c_str(), path_.c_str()) == 0);
    made_ = false;
  }

 private:
  void check(bool good) const {
    if (!good) fail(Code::output, path_, ": cannot write: ", std::strerror(errno));
  }
  std::string path_, name_;
  int file_ = -1;
  bool made_ = false;
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
  Bytes data = detail::read_bounded(path, std::uint64_t{2} << 30, Code::input);
  if (data.empty()) fail(Code::input, path, ": empty");
  return data;
}

void write_file(const std::string& path, const Bytes& data) {
  detail::Pending file(path);
  file.write(data);
  file.place();
}

}  // namespace rescale
