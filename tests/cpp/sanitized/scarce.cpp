// Memory that runs out: each allocation of an operation fails once, in turn. scarce LR.png PICTURE.png FOLDER
// Nothing may leave the library but its own error, which says so; the sanitizers see what is lost on the way.

#include <rescale/rescale.hpp>

#include <rescale/rescale.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>

namespace {
long left = -1;  // allocations until one fails; negative: none does

void* allocated(std::size_t size) {
  if (left >= 0 && left-- == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return allocated(size); }
void* operator new[](std::size_t size) { return allocated(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// How many allocations an operation takes, each of which failed once.
long starve(const char* what, const std::function<void()>& operation) {
  for (long n = 0;; n++) {
    try {
      left = n;
      operation();
      const bool whole = left >= 0;  // nothing failed: it takes no more
      left = -1;
      if (whole) return n;
    } catch (const rescale::Error& e) {
      left = -1;
      if (e.code() == rescale::Code::out_of_memory) continue;
      std::printf("%s: allocation %ld: code %d: %s\n", what, n, static_cast<int>(e.code()), e.what());
      std::exit(1);
    } catch (const std::exception& e) {
      left = -1;
      std::printf("%s: allocation %ld: not the library's error: %s\n", what, n, e.what());
      std::exit(1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string lr_path = argv[1], folder = argv[3];
  const rescale::Bytes lr = rescale::read_file(lr_path), picture = rescale::read_file(argv[2]);
  const auto small = rescale::LrPicture::from_png(lr, "small");
  const auto large = rescale::Picture::from_png(picture, "large", rescale::Picture::Alpha::keep);
  const std::string out = folder + "/out.png", title(100, '\x1b'), model = "another", weights(64, 'a');
  const std::pair<const char*, std::function<void()>> operations[] = {
      {"read_file", [&] { rescale::read_file(lr_path); }},
      {"write_file", [&] { rescale::write_file(out, lr); }},
      {"Picture::from_png", [&] { rescale::Picture::from_png(picture, "large", rescale::Picture::Alpha::keep); }},
      {"Picture::to_png", [&] { large.to_png(); }},
      {"LrPicture::from_png", [&] { rescale::LrPicture::from_png(lr, "small"); }},
      {"LrPicture::open", [&] { rescale::LrPicture::open(lr_path); }},
      {"LrPicture::to_png", [&] { small.to_png("chunk", "chunk"); }},
      {"LrPicture::save", [&] { small.save(out, "strip", "sidecar"); }},
      {"LrPicture::open with a side-car", [&] { rescale::LrPicture::open(out); }},
      {"LrPicture::verdict", [&] { small.verdict(model, 4, weights); }},
      {"printable", [&] { rescale::printable(title); }},
  };
  for (const auto& [what, operation] : operations) std::printf("%s: %ld\n", what, starve(what, operation));

  // Through the C ABI.
  long n = 0;
  for (rescale_status status = RESCALE_OUT_OF_MEMORY; status != RESCALE_OK; n++) {
    rescale_lr* read = nullptr;
    rescale_buffer png{}, sidecar{};
    left = n;
    status = rescale_lr_read(lr.data(), lr.size(), "small", 0, nullptr, 0, &read);
    if (status == RESCALE_OK) status = rescale_lr_write(read, "strip", "sidecar", &png, &sidecar);
    left = -1;
    rescale_buffer_free(&png);
    rescale_buffer_free(&sidecar);
    rescale_lr_free(read);
    if (status == RESCALE_OK || status == RESCALE_OUT_OF_MEMORY) continue;
    std::printf("C: allocation %ld: status %d: %s\n", n, static_cast<int>(status), rescale_last_error());
    return 1;
  }
  std::printf("C: %ld\n", n);
}
