#include "png_pixels.hpp"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <new>

namespace rescale::detail {
namespace {

// What libpng said before it jumped.
struct Fault {
  char why[128] = "";
};

[[noreturn]] void on_error(png_structp png, png_const_charp why) {
  std::strncpy(static_cast<Fault*>(png_get_error_ptr(png))->why, why, sizeof(Fault::why) - 1);
  png_longjmp(png, 1);
}
void on_warning(png_structp, png_const_charp) {}

// Whether `body` ran to its end. libpng's errors jump out of it, past destructors: it may hold plain values only.
template <class Body>
bool finishes(png_structp png, const Body& body) {
  if (setjmp(png_jmpbuf(png))) return false;
  body();
  return true;
}

// The critical chunks one behind the other, as a file.
class CriticalOnly {
 public:
  explicit CriticalOnly(const std::vector<Chunk>& chunks) : chunks_(chunks) {
    std::size_t largest = 0;
    for (const Chunk& c : chunks) largest = wanted(c.kind) ? std::max(largest, c.data.size()) : largest;
    // Here, not in `read`: an exception may not pass through libpng.
    piece_.reserve(largest + 12);  // its size, kind and checksum
  }

  static void read(png_structp png, png_bytep out, std::size_t size) {
    auto* self = static_cast<CriticalOnly*>(png_get_io_ptr(png));
    while (size) {
      if (self->at_ == self->piece_.size() && !self->next()) png_error(png, "the file ends early");
      const std::size_t n = std::min(size, self->piece_.size() - self->at_);
      std::memcpy(out, self->piece_.data() + self->at_, n);
      self->at_ += n, out += n, size -= n;
    }
  }

 private:
  static bool wanted(const std::string& k) { return k == "IHDR" || k == "PLTE" || k == "tRNS" || k == "IDAT" || k == "IEND"; }
  bool next() {
    while (index_ < chunks_.size() && !wanted(chunks_[index_].kind)) index_++;
    piece_.clear();
    at_ = 0;
    if (!started_) {
      for (const int b : {0x89, 'P' + 0, 'N' + 0, 'G' + 0, 13, 10, 26, 10}) piece_.push_back(static_cast<std::uint8_t>(b));
      started_ = true;
      return true;
    }
    if (index_ == chunks_.size()) return false;
    const Chunk& chunk = chunks_[index_++];
    put_big32(piece_, static_cast<std::uint32_t>(chunk.data.size()));
    append(piece_, chunk.kind);
    append(piece_, chunk.data);
    if (chunk.kind == "IHDR" && chunk.data.size() == 13) {
      // Python's decoder does not look at the compression method, and takes any interlace method for the one there is.
      piece_[8 + 10] = 0;
      piece_[8 + 12] = chunk.data[12] != 0;
    }
    put_big32(piece_, 0);  // the CRC was checked when the chunks were read
    return true;
  }

  const std::vector<Chunk>& chunks_;
  std::size_t index_ = 0, at_ = 0;
  bool started_ = false;
  Bytes piece_;
};

struct Reader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};
struct Writer {
  png_structp png = nullptr;
  png_infop info = nullptr;
  ~Writer() { png_destroy_write_struct(&png, &info); }
};

// Deflate makes nothing smaller than a 1032nd: a header that promises more is refused before memory is taken for it.
void check_promise(const std::vector<Chunk>& chunks, const Header& h, const std::string& name) {
  std::uint64_t coded = 0;
  for (const Chunk& c : chunks) coded += c.kind == "IDAT" ? c.data.size() : 0;
  const std::uint64_t samples = h.colour == 2 ? 3 : h.colour == 6 ? 4 : h.colour == 4 ? 2 : 1;
  const std::uint64_t wanted = (h.width * samples * static_cast<unsigned>(h.depth) + 7) / 8 * h.height;
  if (wanted / 1032 > coded) {
    damaged(name, ": truncated or damaged picture: ", coded, " bytes of pixels for ", by(h.width, h.height));
  }
}

}  // namespace

void check_pixels(std::uint64_t width, std::uint64_t height, std::uint64_t most, const std::string& name) {
  if (width * height > most) {  // both are below 2^32
    fail(Code::input, name, ": ", by(width, height), " is above the limit of ", most, " pixels; raise it with --max-pixels");
  }
}

Pixels decode_pixels(const std::vector<Chunk>& chunks, const std::string& name, std::uint64_t max_pixels) {
  const Header header = read_header(chunks, name);
  check_pixels(header.width, header.height, max_pixels, name);
  if (header.colour == 0 && header.depth == 16) fail(Code::input, name, ": I;16 samples; an LR picture has 8 bits");
  check_promise(chunks, header, name);
  CriticalOnly source(chunks);
  Fault fault;
  Reader reader;
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &fault, on_error, on_warning);
  reader.info = reader.png ? png_create_info_struct(reader.png) : nullptr;
  if (!reader.info) throw std::bad_alloc();
  const png_structp png = reader.png;
  const auto broken = [&] { damaged(name, ": truncated or damaged picture: ", std::string(fault.why)); };
  Pixels out{static_cast<int>(header.width), static_cast<int>(header.height), 0, {}};
  int passes = 1;
  const bool begun = finishes(png, [&] {
    png_set_read_fn(png, &source, CriticalOnly::read);
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff);
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_read_info(png, reader.info);
    png_set_expand(png);
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    passes = png_set_interlace_handling(png);
    png_read_update_info(png, reader.info);
  });
  if (!begun) broken();
  out.channels = png_get_channels(png, reader.info);
  const std::size_t row = png_get_rowbytes(png, reader.info);
  if (row != static_cast<std::size_t>(header.width) * static_cast<unsigned>(out.channels) || out.channels < 3) {
    damaged(name, ": damaged PNG: an unknown kind of pixels");
  }
  out.data.resize(row * header.height);
  const bool done = finishes(png, [&] {
    for (int pass = 0; pass < passes; pass++) {
      for (std::uint32_t y = 0; y < header.height; y++) png_read_row(png, out.data.data() + y * row, nullptr);
    }
  });
  if (!done) broken();
  return out;
}

Bytes encode_pixels(const std::uint8_t* data, std::size_t width, std::size_t height, int channels, int level) {
  static constexpr int kKinds[] = {PNG_COLOR_TYPE_GRAY, PNG_COLOR_TYPE_GRAY_ALPHA, PNG_COLOR_TYPE_RGB, PNG_COLOR_TYPE_RGBA};
  struct Sink {
    Bytes out;
    bool starved = false;
    static void write(png_structp png, png_bytep p, std::size_t n) {
      auto& sink = *static_cast<Sink*>(png_get_io_ptr(png));
      try {
        sink.out.insert(sink.out.end(), p, p + n);
        return;
      } catch (const std::bad_alloc&) {  // it may not pass through libpng
        sink.starved = true;
      }
      png_error(png, "not enough memory");
    }
  } sink;
  Fault fault;
  Writer writer;
  writer.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &fault, on_error, on_warning);
  writer.info = writer.png ? png_create_info_struct(writer.png) : nullptr;
  if (!writer.info) throw std::bad_alloc();
  const png_structp png = writer.png;
  const bool done = finishes(png, [&] {
    png_set_write_fn(png, &sink, Sink::write, nullptr);
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff);
    png_set_compression_level(png, level);
    png_set_IHDR(png, writer.info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8, kKinds[channels - 1],
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, writer.info);
    const std::size_t row = width * static_cast<unsigned>(channels);
    for (std::size_t y = 0; y < height; y++) png_write_row(png, data + y * row);
    png_write_end(png, nullptr);
  });
  if (sink.starved) throw std::bad_alloc();
  if (!done) fail(Code::output, "a picture of ", by(width, height), " cannot be written as PNG: ", std::string(fault.why));
  return std::move(sink.out);
}

}  // namespace rescale::detail
