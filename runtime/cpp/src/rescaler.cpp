// The two verbs: a large picture to a small one, and back.

#include <limits>

#include "lr_picture.hpp"
#include "network.hpp"
#include "sha256.hpp"

namespace rescale {

using namespace detail;

namespace {

constexpr int kMaxRestored = 1 << 28;  // longest side of a restored picture: no sum of pixels overflows an int

// Shared by all that run it.
struct Loaded {
  Bundle bundle;
  std::unique_ptr<Runner> runner;
  std::unique_ptr<Network> network;
  Info info;

  explicit Loaded(const std::string& path) : bundle(path) {}
};

}  // namespace

struct Rescaler::Impl {
  std::shared_ptr<const Loaded> loaded;
  Progress progress;

  // Refuses a view of another size than `wanted`, of other channels (with a way out), or whose rows overlap.
  template <class T>
  static void check(const char* what, const View<T>& v, Size wanted, std::initializer_list<int> channels,
                    const char* way_out = "") {
    bool known = false;
    std::string list;
    for (const int c : channels) {
      known = known || c == v.channels;
      list += cat(list.empty() ? "" : " or ", c);
    }
    if (!v.data) fail(Code::input, what, ": no memory was given");
    if (v.width != wanted.width || v.height != wanted.height || !known) {
      fail(Code::input, what, ": ", v.width, "x", v.height, " with ", v.channels, " channels, wanted ", wanted.width, "x",
           wanted.height, " with ", list, known ? "" : way_out);
    }
    check_rows(what, {v.data, v.width, v.height, v.channels, v.stride});
  }

  // What an LR picture is restored from; throws where it is refused.
  struct Basis {
    const Bytes* alpha = nullptr;  // codes, or none
    bool latent = false;           // by the picture's latent
  };
  Basis basis(const LrPicture& small, const Restoring& how) const;
  void run(const LrPicture& small, const Basis& basis, Size wanted, Target hr) const;
};

namespace {

// What else to do where there is an alpha channel to trust.
constexpr const char* kTrust =
    "; if `rescale down` made it and a tool saved it again, --trust-alpha restores it with the alpha channel as it is, unchecked";

// States in which an alpha channel may still be -A's, or nearly so.
bool may_be_trusted(State state) {
  return state == State::pixels_changed || state == State::auxiliary_stripped || state == State::foreign;
}

const char* advice(State state) {
  switch (state) {
    case State::pixels_changed:
      return "it was resized, re-encoded or edited after downscaling; take the original LR file";
    case State::auxiliary_stripped:
      return "a tool removed or altered the alpha channel or metadata; take the original LR file";
    case State::foreign:
      return "only pictures made by `rescale down` can be restored; this is not super-resolution";
    case State::other_model:
      return "take the bundle that made it";
    case State::newer_format:
      return "update rescale-toolkit";
    default:
      return "take an undamaged copy";
  }
}

Target view(Bytes& data, Size size, int channels) { return {data.data(), size.width, size.height, channels, 0}; }
Source view(const Bytes& data, Size size, int channels) { return {data.data(), size.width, size.height, channels, 0}; }

std::size_t area(Size size) { return static_cast<std::size_t>(size.width) * static_cast<std::size_t>(size.height); }

}  // namespace

Rescaler::Impl::Basis Rescaler::Impl::basis(const LrPicture& small, const Restoring& how) const {
  const Info& info = loaded->info;
  const auto [state, detail] = small.verdict(info.model, info.scale, info.weights);
  const bool exact = state == State::exact;
  const bool trustable = may_be_trusted(state) && info.lr_channels == 4 && !small.unverified_alpha.empty();
  const bool trusted = how.trust_alpha && trustable;
  const bool other_scale = small.has_marker && small.marker.scale != info.scale;
  if ((how.strict && !exact && !trusted) || other_scale) {
    const bool plain = info.lr_channels != 4 && !info.latent;
    const char* forced = other_scale ? " (--force does not help: another scale gives another size)"
                         : plain     ? " (--force restores from its pixels, unverified)"
                                     : " (--force restores without its auxiliary data)";
    refuse(state, small.name, ": ", detail, ": ", advice(state), trustable ? kTrust : "", forced);
  }
  Basis out;
  // A marker of a model without alpha may lie on a picture with one.
  if (info.lr_channels == 4 && trusted) out.alpha = &small.unverified_alpha;
  if (info.lr_channels == 4 && !trusted && exact && !small.alpha.empty()) out.alpha = &small.alpha;
  out.latent = exact && info.latent && !small.latent.empty();
  return out;
}

void Rescaler::Impl::run(const LrPicture& small, const Basis& basis, Size wanted, Target hr) const {
  check("HR picture", hr, wanted, {3}, kRgbOnly);
  Bytes pixels;
  if (basis.alpha) {
    pixels.resize(area(small.size) * 4);
    for (std::size_t i = 0; i < basis.alpha->size(); i++) {
      std::copy_n(&small.rgb[3 * i], 3, &pixels[4 * i]);
      pixels[4 * i + 3] = kZigzag.store[(*basis.alpha)[i]];
    }
  }
  const Size latent{ceil_div(small.size.width, kLatentStride), kLatentChannels * ceil_div(small.size.height, kLatentStride)};
  loaded->network->up(view(basis.alpha ? pixels : small.rgb, small.size, basis.alpha ? 4 : 3), hr,
                      basis.latent ? view(small.latent, latent, 1) : Source{}, progress);
}

void detail::check_rows(const char* what, Source view) {
  const std::ptrdiff_t row = std::ptrdiff_t{view.width} * view.channels;
  const std::ptrdiff_t most = std::numeric_limits<std::ptrdiff_t>::max() / view.height, stride = view.stride;
  if (stride && ((-row < stride && stride < row) || most < stride || stride < -most)) {
    fail(Code::input, what, ": a stride of ", stride, " bytes for rows of ", row);
  }
}

void detail::check_sides(Size hr, int most) {
  if (hr.width < 1 || hr.height < 1 || hr.width > most || hr.height > most) {
    fail(Code::input, "sides of 1 to ", most, " pixels were expected, got ", hr.width, "x", hr.height,
         "; cut a larger picture into parts");
  }
}

Error::~Error() = default;

Rescaler Rescaler::load(const std::string& path, const Options& options) {
  return translated([&] {
    if (options.threads < 0) fail(Code::backend, "threads: at least 1, got ", options.threads);
    if (options.threads > kMaxThreads) fail(Code::backend, "threads: at most ", kMaxThreads, ", got ", options.threads);
    if (options.provider.empty() && !options.provider_options.empty()) {
      fail(Code::backend, "provider_options are for an execution provider: name it");
    }
    if (options.tile.width < 0 || options.tile.height < 0 || !options.tile.width != !options.tile.height) {
      fail(Code::input, "tiles of ", options.tile.width, "x", options.tile.height, " LR pixels: both sides are wanted, or none");
    }
    auto loaded = std::make_shared<Loaded>(path);
    const Bundle& b = loaded->bundle;
    const bool engines = options.backend == "tensorrt" || options.backend == "tensorrt-rtx";
    if (engines && !options.provider.empty()) {
      fail(Code::backend, "provider ", options.provider, ": only the onnxruntime backend has providers, not ", options.backend);
    }
    const std::string precision = !options.precision.empty() ? options.precision : engines ? "mixed" : "fp32";
    if (engines) {
      loaded->runner = make_tensorrt(b, precision, options);
    } else if (options.backend == "onnxruntime" || options.backend == "auto") {
      loaded->runner = make_onnxruntime(b, precision, options);
    } else {
      fail(Code::backend, "unknown backend '", options.backend, "': choose auto or one of onnxruntime, tensorrt, tensorrt-rtx");
    }
    loaded->network = std::make_unique<Network>(b, *loaded->runner, options);
    Info& info = loaded->info;
    info.model = b.variant.name, info.size = b.size, info.weights = b.weights, info.title = b.title();
    info.runner = loaded->runner->name();
    info.scale = b.scale, info.lr_channels = b.variant.lr_channels(), info.latent = b.variant.latent;
    info.halo = b.halo, info.receptive_field = b.receptive_field;
    info.z_channels = b.variant.latent ? b.z_channels() : 0;
    return Rescaler(std::make_unique<Impl>(Impl{std::move(loaded), {}}));
  });
}

Rescaler::Rescaler(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Rescaler::Rescaler(Rescaler&&) noexcept = default;
Rescaler& Rescaler::operator=(Rescaler&&) noexcept = default;
Rescaler::~Rescaler() = default;

Rescaler Rescaler::with_progress(Progress progress) const {
  return translated([&] { return Rescaler(std::make_unique<Impl>(Impl{impl_->loaded, std::move(progress)})); });
}

const Info& Rescaler::info() const { return impl_->loaded->info; }

Size Rescaler::lr_size(Size hr) const { return {ceil_div(hr.width, info().scale), ceil_div(hr.height, info().scale)}; }

Size Rescaler::latent_size(Size lr) const {
  return {ceil_div(lr.width, kLatentStride), kLatentChannels * ceil_div(lr.height, kLatentStride)};
}

void Rescaler::downscale(Source hr, Target lr, Target latent) const {
  check_sides({hr.width, hr.height}, kMaxSide);
  Impl::check("HR picture", hr, {hr.width, hr.height}, {3}, kRgbOnly);
  Impl::check("LR picture", lr, lr_size({hr.width, hr.height}), {info().lr_channels});
  if (info().latent) Impl::check("latent", latent, latent_size({lr.width, lr.height}), {1});
  translated([&] { impl_->loaded->network->down(hr, lr, latent, impl_->progress); });
}

void Rescaler::upscale(Source lr, Target hr, Source latent) const {
  check_sides({hr.width, hr.height}, kMaxRestored);
  Impl::check("HR picture", hr, {hr.width, hr.height}, {3}, kRgbOnly);
  Impl::check("LR picture", lr, lr_size({hr.width, hr.height}), {3, info().lr_channels});
  if (info().latent && latent.data) Impl::check("latent", latent, latent_size({lr.width, lr.height}), {1});
  translated([&] { impl_->loaded->network->up(lr, hr, latent, impl_->progress); });
}

LrPicture Rescaler::downscale(const Picture& picture) const {
  return translated([&] {
    const Info& info = impl_->loaded->info;
    check_planes(picture);
    LrPicture out;
    out.size = lr_size(picture.size);
    const Size latent = latent_size(out.size);
    Bytes pixels(area(out.size) * static_cast<unsigned>(info.lr_channels));
    if (info.latent) out.latent.resize(area(latent));
    if (picture.pixels.size() != area(picture.size) * 3)
      fail(Code::input, "HR picture: ", picture.pixels.size(), " bytes of pixels");
    downscale(view(picture.pixels, picture.size, 3), view(pixels, out.size, info.lr_channels), view(out.latent, latent, 1));
    if (info.lr_channels == 4) {
      out.rgb.resize(area(out.size) * 3);
      out.alpha.resize(area(out.size));
      for (std::size_t i = 0; i < out.alpha.size(); i++) {
        std::copy_n(&pixels[4 * i], 3, &out.rgb[3 * i]);
        out.alpha[i] = kZigzag.load[pixels[4 * i + 3]];
      }
    } else {
      out.rgb = std::move(pixels);
    }
    out.source_alpha = picture.alpha;
    out.colour = picture.colour;
    out.has_marker = true;
    Marker& m = out.marker;
    m.model = info.model, m.scale = info.scale, m.weights = info.weights;
    m.hr_width = static_cast<std::uint64_t>(picture.size.width), m.hr_height = static_cast<std::uint64_t>(picture.size.height);
    m.lr_width = static_cast<std::uint64_t>(out.size.width), m.lr_height = static_cast<std::uint64_t>(out.size.height);
    m.layout = out.alpha.empty() ? "none" : "alpha";
    m.source_mode = picture.gray ? "gray" : "rgb";
    const Digest rgb = sha256(out.rgb.data(), out.rgb.size());
    const Bytes& plane = out.alpha.empty() ? out.latent : out.alpha;
    const Digest auxiliary = sha256(plane.data(), plane.size());
    std::copy(rgb.begin(), rgb.end(), out.rgb_digest);
    std::copy(auxiliary.begin(), auxiliary.end(), out.auxiliary_digest);
    return out;
  });
}

Size Rescaler::restored_size(const LrPicture& small) const {
  return translated([&] {
    check_planes(small);
    const int scale = info().scale;
    if (std::max(small.size.width, small.size.height) > kMaxRestored / scale) {
      fail(Code::input, small.name, ": ",
           by(static_cast<std::uint64_t>(small.size.width), static_cast<std::uint64_t>(small.size.height)),
           " is too large to be restored");
    }
    const Marker& m = small.marker;
    const Size known{static_cast<int>(m.hr_width), static_cast<int>(m.hr_height)};
    const bool fitting = small.has_marker && m.scale == scale && fits(m, small.size);
    return fitting ? known : Size{small.size.width * scale, small.size.height * scale};
  });
}

void Rescaler::restore(const LrPicture& small, Target hr, const Restoring& how) const {
  translated([&] {
    const Impl::Basis basis = impl_->basis(small, how);
    impl_->run(small, basis, restored_size(small), hr);
  });
}

Picture Rescaler::restore(const LrPicture& small, const Restoring& how) const {
  return translated([&] {
    const Impl::Basis basis = impl_->basis(small, how);
    Picture out;
    out.size = restored_size(small);
    out.pixels.resize(area(out.size) * 3);
    impl_->run(small, basis, out.size, view(out.pixels, out.size, 3));
    out.gray = small.has_marker && small.marker.source_mode == "gray";
    if (small.source_alpha.size() == area(out.size)) out.alpha = small.source_alpha;
    out.colour = small.colour;
    return out;
  });
}

void Rescaler::run_device(const std::string& graph, const std::vector<DeviceTensor>& inputs,
                          const std::vector<DeviceTensor>& outputs, void* stream) const {
  for (int i = 0; i < 4; i++) {
    if (graph == kGraphNames[i]) return impl_->loaded->runner->run_device(static_cast<GraphId>(i), inputs, outputs, stream);
  }
  fail(Code::input, "unknown graph '", graph, "'");
}

const char* version() { return RESCALE_VERSION; }

}  // namespace rescale
