// Invertible image rescaling from C++: the bundles, the LR files and the bytes of the Python package `rescale`.
//
// A small picture is made of a large one such that the large one can be restored from the small one alone:
//
//   HR  uint8 (H, W, 3) RGB      -- downscale -->   LR  uint8 (h, w, 3 or 4), h = ceil(H / scale), w = ceil(W / scale)
//   HR                           <-- upscale ---    LR
//
// Models differ in where the high frequencies travel: -A puts them into a fourth channel of the LR, -M into a latent plane
// beside it, plain ones nowhere. All errors are `rescale::Error`; the message names the file and the reason.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__GNUC__)
#define RESCALE_EXPORT __attribute__((visibility("default")))
#else
#define RESCALE_EXPORT
#endif

namespace rescale {

// Which of the error classes of the Python package it would be there.
// Or, which is an exception of the caller's own there, that a run was cancelled.
enum class Code { input = 1, output, bundle, backend, out_of_memory, lr_file, cancelled = 8 };

// What an LR file is worth; docs/file-format.md explains each.
enum class State { exact, pixels_changed, auxiliary_stripped, foreign, other_model, newer_format, damaged };

// The state's name in files, reports and messages, such as "pixels-changed".
RESCALE_EXPORT const char* to_string(State state);

class RESCALE_EXPORT Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message, State state = State::exact)
      : std::runtime_error(message), code_(code), state_(state) {}
  ~Error() override;
  Code code() const { return code_; }
  // With Code::lr_file: why an LR file was refused. With Code::input: `damaged` where a file was read and holds no whole picture.
  State state() const { return state_; }

 private:
  Code code_;
  State state_;
};

using Bytes = std::vector<std::uint8_t>;

// Largest picture that is decoded unless the caller says otherwise, in pixels.
constexpr std::uint64_t kMaxPixels = 178'956'970;
constexpr int kMaxThreads = 4096;

// Pixels in memory of the caller: rows of `channels` interleaved 8-bit samples.
template <class T>
struct View {
  T* data = nullptr;
  int width = 0;   // pixels
  int height = 0;  // pixels
  int channels = 3;
  std::ptrdiff_t stride = 0;  // bytes from one row to the next; 0: rows follow each other directly
};
using Source = View<const std::uint8_t>;
using Target = View<std::uint8_t>;

struct Size {
  int width = 0;   // pixels
  int height = 0;  // pixels
};

using Settings = std::vector<std::pair<std::string, std::string>>;

struct Options {
  std::string backend = "onnxruntime";  // or "tensorrt", "tensorrt-rtx", where the library was built with them
  std::string precision;                // "fp32", "mixed", "fp16"; empty: mixed on TensorRT, fp32 elsewhere
  int threads = 0;                      // CPU threads; 0: all that this process may use
  std::uint64_t memory = 0;             // bytes for running the network, beside the pictures; 0: half of what is available
  Size tile;                            // LR pixels of a tile, instead of a budget; zero: by the budget
  bool exact = false;                   // tiles see the whole receptive field: what the whole picture would give

  // ONNX Runtime.
  std::string library;           // path of libonnxruntime.so; empty: $RESCALE_ONNXRUNTIME, then the usual names
  std::string provider;          // an execution provider by name, such as "CUDAExecutionProvider"; empty: the CPU
  Settings provider_options;     // by ONNX Runtime's names
  std::string provider_library;  // of a provider that is a library of its own, such as NvTensorRTRTXExecutionProvider

  // TensorRT.
  std::string engines;  // folder of engines from `rescale-engine build`; empty: the bundle's folder in the cache
  int device = 0;       // ordinal of the GPU
};

// How pictures are shown and where they came from: PNG chunks, carried along unchanged (name of four letters, body).
using Chunks = std::vector<std::pair<std::string, Bytes>>;

// An HR picture with all that is carried beside its colours.
struct RESCALE_EXPORT Picture {
  enum class Alpha { refuse, keep };  // what to do with real transparency: refuse the picture, or carry it losslessly

  Size size;
  Bytes pixels;       // RGB, rows follow each other directly
  bool gray = false;  // it was gray, and is written as gray again
  Bytes alpha;        // one byte a pixel, or empty where it is opaque
  Chunks colour;      // iCCP, cICP, gAMA, cHRM, sRGB, pHYs, eXIf; each once

  // `name` is for messages. Refused are files that RGB with 8 bits cannot hold exactly; the message says what to do.
  static Picture from_png(const Bytes& file, const std::string& name, Alpha alpha = Alpha::refuse,
                          std::uint64_t max_pixels = kMaxPixels);
  Bytes to_png() const;
};

// What an LR file says of itself, from its integrity block.
struct Marker {
  std::string model;
  int scale = 0;
  std::uint64_t hr_width = 0, hr_height = 0;  // pixels, before padding
  std::uint64_t lr_width = 0, lr_height = 0;  // pixels, without a strip
  std::string layout;                         // "none", "alpha", "chunk" or "strip"
  std::string source_mode;                    // "rgb" or "gray"
  std::string weights;                        // SHA-256, hexadecimal
};

// A downscaled picture with all that belongs to it. Reading never guesses: see `state`.
struct RESCALE_EXPORT LrPicture {
  struct File {
    Bytes data;
    Bytes sidecar;  // belongs into NAME.rescale beside NAME; with carrier "sidecar" only
  };

  Size size;
  Bytes rgb;
  Bytes alpha;             // -A: codes 1 to 255, one a pixel, 128 neutral; only if they are verified
  Bytes latent;            // -M: codes, four planes of ceil(h / 4) rows of ceil(w / 4); only if they are verified
  Bytes source_alpha;      // transparency of the HR picture, if it was kept
  Bytes unverified_alpha;  // codes of a foreign, changed or stripped picture's alpha channel; -A's, or anything
  Chunks colour;
  State state = State::exact;
  std::string detail;  // why the state is not exact
  std::string name = "LR picture";
  bool has_marker = false;
  Marker marker;  // if has_marker
  Chunks sections;
  std::uint8_t rgb_digest[32] = {}, auxiliary_digest[32] = {};

  // Reads any PNG; a damaged or foreign one says so in `state`. `sidecar`: bytes of NAME.rescale, or nullptr.
  // Throws where the file is no readable picture at all, or it or the HR transparency it carries is larger than `max_pixels`.
  static LrPicture from_png(const Bytes& file, const std::string& name, std::uint64_t max_pixels = kMaxPixels,
                            const Bytes* sidecar = nullptr);
  // The same from a file, with its side-car if one lies beside it and is needed.
  static LrPicture open(const std::string& path, std::uint64_t max_pixels = kMaxPixels);
  // layout: "alpha", "chunk" or "strip" (-A); carrier: "chunk", "text" or "sidecar". The result was read back and compared.
  File to_png(const std::string& layout = "alpha", const std::string& carrier = "chunk") const;
  void save(const std::string& path, const std::string& layout = "alpha", const std::string& carrier = "chunk") const;

  // The state for one model, and why.
  std::pair<State, std::string> verdict(const std::string& model, int scale, const std::string& weights) const;
};

struct Restoring {
  // Refuse what cannot be restored exactly; false restores it without its auxiliary data. A picture whose marker names another
  // scale is refused all the same: what came out would have another size than its original.
  bool strict = true;
  // Restore a picture without marker, or with changed pixels or alpha channel, by the alpha channel it has, unverified.
  bool trust_alpha = false;
};

// What was loaded.
struct Info {
  std::string model, size, weights, title;
  std::string runner;            // backend, version, device
  int scale = 0;                 // HR pixels per LR pixel along an axis
  int lr_channels = 3;           // 4: -A
  bool latent = false;           // -M
  int halo = 0;                  // LR pixels around a tile
  int receptive_field = 0;       // LR pixels
  std::uint64_t z_channels = 0;  // -M
};

// A tensor in device memory, C-contiguous, aligned to 256 bytes.
struct DeviceTensor {
  const char* name;
  void* data;
  std::int64_t shape[4];
};

// How far a run is: tiles that are done, and all of them. It is called in the thread that asked for the run: before the first tile,
// after each, and about ten times a second while one runs (on ONNX Runtime). Returning true cancels the run at once: it throws
// Code::cancelled, and what its targets hold then is worth nothing. What it throws does the same, and reaches the caller. Where
// memory was short, a run begins again from 0 with more tiles.
using Progress = std::function<bool(std::uint64_t done, std::uint64_t total)>;

// A bundle ready to run. Thread-safe: any number of threads may call the const functions of one object.
class RESCALE_EXPORT Rescaler {
 public:
  static Rescaler load(const std::string& bundle, const Options& options = {});
  Rescaler(Rescaler&&) noexcept;
  Rescaler& operator=(Rescaler&&) noexcept;
  ~Rescaler();

  // The same loaded bundle, whose runs tell how far they are: one for each job, at no cost. It may outlive the one it came from.
  Rescaler with_progress(Progress progress) const;

  const Info& info() const;
  Size lr_size(Size hr) const;      // ceil(HR / scale)
  Size latent_size(Size lr) const;  // -M: the four planes, one below the other

  // Frames: nothing is checked that a frame cannot carry, and after the first frame of a size nothing is allocated outside
  // the backend.
  //   hr:     RGB; gray is given as three equal channels, and transparency travels beside it: see `Picture`
  //   lr:     as `rescale down --raw` writes it: RGB, or RGBA (-A) with the alpha code as in an LR file
  //   latent: -M: one channel, of `latent_size`; upscaling without it takes z = 0
  void downscale(Source hr, Target lr, Target latent = {}) const;
  void upscale(Source lr, Target hr, Source latent = {}) const;

  // Pictures with markers.
  LrPicture downscale(const Picture& picture) const;
  Picture restore(const LrPicture& small, const Restoring& how = {}) const;
  // Its pixels alone, to memory of the caller: three channels, of `restored_size`.
  void restore(const LrPicture& small, Target hr, const Restoring& how = {}) const;
  Size restored_size(const LrPicture& small) const;  // the original's; scale times the LR's without a marker that fits it

  // TensorRT only: a graph on device memory, in the order of a CUDA stream of the caller; returns at once.
  void run_device(const std::string& graph, const std::vector<DeviceTensor>& inputs, const std::vector<DeviceTensor>& outputs,
                  void* stream) const;

 private:
  struct Impl;
  explicit Rescaler(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// All bytes of a file; refuses empty ones and those above 2 GiB.
RESCALE_EXPORT Bytes read_file(const std::string& path);
// Writes beside `path` and renames: an interruption leaves the old file or none.
RESCALE_EXPORT void write_file(const std::string& path, const Bytes& data);

// Text on one line, with control characters and bytes that are not UTF-8 escaped as Python does it. Messages of `Error` and fields
// of `LrPicture` and `Info` quote files that anybody may have written: what goes to a terminal or a log goes through this.
RESCALE_EXPORT std::string printable(const std::string& text);

RESCALE_EXPORT const char* version();

}  // namespace rescale
