// Counts this program's allocations, frame by frame, outside the backend: allocations SHIM BUNDLE TILE.

#include <rescale/rescale.hpp>

#include <cstdio>
#include <cstdlib>

namespace {
thread_local int inside = 0;
thread_local long count = 0;
}  // namespace

extern "C" {

void backend_entered(int step) { inside += step; }

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) { return count += !inside, __libc_malloc(n); }
void* calloc(size_t n, size_t m) { return count += !inside, __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { return count += !inside, __libc_realloc(p, n); }
void* memalign(size_t a, size_t n) { return count += !inside, __libc_memalign(a, n); }
void* aligned_alloc(size_t a, size_t n) { return count += !inside, __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) { return count += !inside, *p = __libc_memalign(a, n), *p ? 0 : 12; }

}  // extern "C"

int main(int argc, char** argv) try {
  if (argc != 4) return 2;
  rescale::Options options;
  options.library = argv[1];
  options.tile = {std::atoi(argv[3]), std::atoi(argv[3])};
  options.threads = 1;
  const auto net = rescale::Rescaler::load(argv[2], options);
  const rescale::Size hr{75, 51}, lr = net.lr_size(hr), latent = net.latent_size(lr);
  const int channels = net.info().lr_channels;
  const auto bytes = [](rescale::Size s, int c) {
    return rescale::Bytes(std::size_t(s.width) * std::size_t(s.height) * std::size_t(c), 77);
  };
  rescale::Bytes large = bytes(hr, 3), small = bytes(lr, channels), code = bytes(latent, 1);
  for (int frame = 0; frame < 8; frame++) {
    const long before = count;
    const rescale::Target beside =
        net.info().latent ? rescale::Target{code.data(), latent.width, latent.height, 1} : rescale::Target{};
    net.downscale({large.data(), hr.width, hr.height, 3}, {small.data(), lr.width, lr.height, channels}, beside);
    net.upscale({small.data(), lr.width, lr.height, channels}, {large.data(), hr.width, hr.height, 3},
                {beside.data, beside.width, beside.height, beside.channels});
    std::printf("%ld\n", count - before);
  }
} catch (const rescale::Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return 1;
}
