// The C ABI over the C++ one.

#include "rescale/rescale.h"

#include <algorithm>
#include <cstdlib>

#include "lr_picture.hpp"

using rescale::Bytes;
using rescale::Code;
using rescale::detail::fail;

struct rescale_session {
  rescale::Rescaler net;
};
struct rescale_lr {
  rescale::LrPicture picture;
  std::vector<rescale_chunk> chunks;  // of the picture, for C

  explicit rescale_lr(rescale::LrPicture from) : picture(std::move(from)) {
    for (const auto& [name, data] : picture.colour) chunks.push_back({name.c_str(), data.data(), data.size()});
  }
};

namespace {

static_assert(static_cast<int>(Code::lr_file) == RESCALE_LR_FILE && static_cast<int>(Code::input) == RESCALE_INPUT);
static_assert(static_cast<int>(Code::cancelled) == RESCALE_CANCELLED);
static_assert(static_cast<int>(rescale::State::damaged) == RESCALE_DAMAGED);

thread_local std::string last_error;

void remember(const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
}

template <class Work>
rescale_status guarded(const Work& work) noexcept {
  try {
    work();
    return RESCALE_OK;
  } catch (const rescale::Error& e) {
    remember(e.what());
    return static_cast<rescale_status>(e.code());
  } catch (const std::bad_alloc&) {
    remember("not enough memory");
    return RESCALE_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    remember(e.what());
  } catch (...) {
    remember("an unknown fault");
  }
  return RESCALE_INTERNAL;
}

template <class T>
T& required(T* pointer, const char* what) {
  if (!pointer) fail(Code::input, what, " is NULL");
  return *pointer;
}

// The caller's structure in the layout of this version: fields that it does not know are zero.
template <class T>
T taken(const T& given) {
  if (given.struct_size < sizeof(size_t))
    fail(Code::input, "struct_size is ", given.struct_size, ": it is to be set to the structure's size");
  T out{};
  std::memcpy(&out, &given, std::min(given.struct_size, sizeof(T)));
  return out;
}

// Fills as much of a structure as the caller knows of; what only the caller knows becomes zero.
template <class T>
void give(T* target, T filled) {
  const std::size_t size = required(target, "info").struct_size;
  if (size < sizeof(size_t)) fail(Code::input, "struct_size is ", size, ": it is to be set to the structure's size");
  filled.struct_size = size;
  std::memcpy(target, &filled, std::min(size, sizeof(T)));
  if (size > sizeof(T)) std::memset(reinterpret_cast<char*>(target) + sizeof(T), 0, size - sizeof(T));
}

std::string text(const char* given, const char* otherwise = "") { return given ? given : otherwise; }

std::uint64_t limit(std::uint64_t max_pixels) { return max_pixels ? max_pixels : rescale::kMaxPixels; }

rescale::Target view(const rescale_image* image) {
  if (!image) return {};
  return {image->data, image->width, image->height, image->channels, image->stride};
}
rescale::Source source(const rescale_image* image) {
  const rescale::Target v = view(image);
  return {v.data, v.width, v.height, v.channels, v.stride};
}

void hand_over(const Bytes& data, rescale_buffer* out) {
  auto* copy = static_cast<std::uint8_t*>(std::malloc(std::max<std::size_t>(1, data.size())));
  if (!copy) throw std::bad_alloc();
  std::copy(data.begin(), data.end(), copy);
  *out = {copy, data.size()};
}

Bytes bytes(const std::uint8_t* data, std::size_t size) {
  if (!data && size) fail(Code::input, "data is NULL");
  return data ? Bytes(data, data + size) : Bytes();
}

// Rows of an image, one directly behind the other.
Bytes packed(const rescale_image& image, int channels, const char* what) {
  const auto row = static_cast<std::size_t>(image.width) * static_cast<unsigned>(channels);
  const auto rows = static_cast<std::size_t>(image.height);
  if (!image.data) fail(Code::input, what, ": no memory was given");
  if (image.channels != channels) {
    fail(Code::input, what, ": ", image.channels, " channels, wanted ", channels, channels == 3 ? rescale::detail::kRgbOnly : "");
  }
  rescale::detail::check_rows(what, source(&image));
  const auto stride = image.stride ? image.stride : static_cast<std::ptrdiff_t>(row);
  Bytes out(row * rows);
  for (std::size_t y = 0; y < rows; y++) {
    std::memcpy(out.data() + y * row, image.data + static_cast<std::ptrdiff_t>(y) * stride, row);
  }
  return out;
}

rescale::Picture picture_of(const rescale_image& hr, const rescale_extras* extras) {
  rescale::Picture out;
  out.size = {hr.width, hr.height};
  rescale::detail::check_sides(out.size, rescale::detail::kMaxSide);
  out.pixels = packed(hr, 3, "HR picture");
  if (!extras) return out;
  const rescale_extras given = taken(*extras);
  out.gray = given.gray != 0;
  if (given.alpha) {
    if (given.alpha->width != hr.width || given.alpha->height != hr.height) fail(Code::input, "alpha: not of the picture's size");
    out.alpha = packed(*given.alpha, 1, "alpha");
  }
  if (given.chunk_count) required(given.chunks, "chunks");
  for (std::size_t i = 0; i < given.chunk_count; i++) {
    const rescale_chunk& chunk = given.chunks[i];
    out.colour.emplace_back(&required(chunk.name, "the name of a chunk"), bytes(chunk.data, chunk.size));
  }
  return out;
}

// Both, or neither.
void hand_over(const rescale::LrPicture::File& file, rescale_buffer* png, rescale_buffer* sidecar) {
  if (!file.sidecar.empty()) hand_over(file.sidecar, &required(sidecar, "sidecar"));
  try {
    hand_over(file.data, png);
  } catch (...) {
    rescale_buffer_free(sidecar);
    throw;
  }
}

std::vector<rescale::DeviceTensor> tensors(const rescale_device_tensor* given, std::size_t count, const char* what) {
  if (count) required(given, what);
  std::vector<rescale::DeviceTensor> out(count);
  for (std::size_t i = 0; i < count; i++) {
    out[i].name = given[i].name;
    out[i].data = given[i].data;
    std::copy_n(given[i].shape, 4, out[i].shape);
  }
  return out;
}

const std::uint8_t* plane(const Bytes& data) { return data.empty() ? nullptr : data.data(); }

}  // namespace

extern "C" {

uint32_t rescale_abi_version(void) { return RESCALE_ABI_VERSION; }
const char* rescale_version(void) { return rescale::version(); }
const char* rescale_last_error(void) { return last_error.c_str(); }

void rescale_buffer_free(rescale_buffer* buffer) {
  if (!buffer) return;
  std::free(buffer->data);
  *buffer = {nullptr, 0};
}

rescale_status rescale_printable(const char* text, rescale_buffer* line) {
  return guarded([&] {
    required(line, "line") = {nullptr, 0};
    const std::string shown = rescale::printable(&required(text, "text"));
    hand_over(Bytes(shown.c_str(), shown.c_str() + shown.size() + 1), line);
    line->size = shown.size();
  });
}

rescale_status rescale_load(const char* bundle, const rescale_options* options, rescale_session** session) {
  return guarded([&] {
    required(session, "session") = nullptr;
    rescale::Options o;
    if (options) {
      const rescale_options given = taken(*options);
      o.backend = text(given.backend, "onnxruntime");
      o.precision = text(given.precision);
      o.library = text(given.library);
      o.provider = text(given.provider);
      for (const char* const* pair = given.provider_options; pair && pair[0]; pair += 2) {
        o.provider_options.emplace_back(pair[0], &required(pair[1], "the value of a provider option"));
      }
      o.provider_library = text(given.provider_library);
      o.engines = text(given.engines);
      o.memory = given.memory;
      o.threads = given.threads;
      o.tile = {given.tile_width, given.tile_height};
      o.exact = given.exact != 0;
      o.device = given.device;
    }
    *session = new rescale_session{rescale::Rescaler::load(&required(bundle, "bundle"), o)};
  });
}

rescale_status rescale_with_progress(const rescale_session* session, rescale_progress progress, void* user,
                                     rescale_session** watched) {
  return guarded([&] {
    required(watched, "watched") = nullptr;
    if (!progress) fail(Code::input, "progress is NULL");
    const auto tell = [progress, user](std::uint64_t done, std::uint64_t total) { return progress(user, done, total) != 0; };
    *watched = new rescale_session{required(session, "session").net.with_progress(tell)};
  });
}

void rescale_free(rescale_session* session) { delete session; }

rescale_status rescale_get_info(const rescale_session* session, rescale_info* info) {
  return guarded([&] {
    const rescale::Info& i = required(session, "session").net.info();
    give(info, rescale_info{0, i.scale, i.lr_channels, i.latent, i.halo, i.receptive_field, i.model.c_str(), i.size.c_str(),
                            i.weights.c_str(), i.runner.c_str()});
  });
}

rescale_status rescale_downscale(const rescale_session* session, const rescale_image* hr, const rescale_image* lr,
                                 const rescale_image* latent) {
  return guarded([&] { required(session, "session").net.downscale(source(hr), view(lr), view(latent)); });
}

rescale_status rescale_upscale(const rescale_session* session, const rescale_image* lr, const rescale_image* latent,
                               const rescale_image* hr) {
  return guarded([&] { required(session, "session").net.upscale(source(lr), view(hr), source(latent)); });
}

rescale_status rescale_downscale_png(const rescale_session* session, const uint8_t* png, size_t size, int32_t keep_alpha,
                                     uint64_t max_pixels, const char* layout, const char* carrier, rescale_buffer* lr,
                                     rescale_buffer* sidecar) {
  return guarded([&] {
    const auto& net = required(session, "session").net;
    required(lr, "lr") = {nullptr, 0};
    if (sidecar) *sidecar = {nullptr, 0};
    const auto rule = keep_alpha ? rescale::Picture::Alpha::keep : rescale::Picture::Alpha::refuse;
    const auto small = net.downscale(rescale::Picture::from_png(bytes(png, size), "bytes", rule, limit(max_pixels)));
    hand_over(small.to_png(text(layout, "alpha"), text(carrier, "chunk")), lr, sidecar);
  });
}

rescale_status rescale_restore_png(const rescale_session* session, const rescale_lr* lr, int32_t force, int32_t trust_alpha,
                                   rescale_buffer* hr) {
  return guarded([&] {
    required(hr, "hr") = {nullptr, 0};
    const auto& net = required(session, "session").net;
    hand_over(net.restore(required(lr, "lr").picture, {force == 0, trust_alpha != 0}).to_png(), hr);
  });
}

rescale_status rescale_downscale_lr(const rescale_session* session, const rescale_image* hr, const rescale_extras* extras,
                                    rescale_lr** lr) {
  return guarded([&] {
    required(lr, "lr") = nullptr;
    const auto& net = required(session, "session").net;
    *lr = new rescale_lr(net.downscale(picture_of(required(hr, "hr"), extras)));
  });
}

rescale_status rescale_restore(const rescale_session* session, const rescale_lr* lr, int32_t force, int32_t trust_alpha,
                               const rescale_image* hr) {
  return guarded([&] {
    const auto& net = required(session, "session").net;
    net.restore(required(lr, "lr").picture, view(&required(hr, "hr")), {force == 0, trust_alpha != 0});
  });
}

rescale_status rescale_lr_write(const rescale_lr* lr, const char* layout, const char* carrier, rescale_buffer* png,
                                rescale_buffer* sidecar) {
  return guarded([&] {
    required(png, "png") = {nullptr, 0};
    if (sidecar) *sidecar = {nullptr, 0};
    hand_over(required(lr, "lr").picture.to_png(text(layout, "alpha"), text(carrier, "chunk")), png, sidecar);
  });
}

rescale_status rescale_lr_save(const rescale_lr* lr, const char* path, const char* layout, const char* carrier) {
  return guarded([&] {
    required(lr, "lr").picture.save(&required(path, "path"), text(layout, "alpha"), text(carrier, "chunk"));
  });
}

rescale_status rescale_lr_read(const uint8_t* png, size_t size, const char* name, uint64_t max_pixels, const uint8_t* sidecar,
                               size_t sidecar_size, rescale_lr** lr) {
  return guarded([&] {
    required(lr, "lr") = nullptr;
    const Bytes beside = bytes(sidecar, sidecar_size);
    *lr = new rescale_lr(
        rescale::LrPicture::from_png(bytes(png, size), text(name, "LR picture"), limit(max_pixels), sidecar ? &beside : nullptr));
  });
}

rescale_status rescale_lr_open(const char* path, uint64_t max_pixels, rescale_lr** lr) {
  return guarded([&] {
    required(lr, "lr") = nullptr;
    *lr = new rescale_lr(rescale::LrPicture::open(&required(path, "path"), limit(max_pixels)));
  });
}

void rescale_lr_free(rescale_lr* lr) { delete lr; }

rescale_status rescale_lr_get_info(const rescale_lr* lr, rescale_lr_info* info) {
  return guarded([&] {
    const rescale::LrPicture& p = required(lr, "lr").picture;
    const rescale::Marker& m = p.marker;
    rescale_lr_info out{};
    out.state = static_cast<std::int32_t>(p.state);
    out.has_marker = p.has_marker;
    out.width = p.size.width, out.height = p.size.height;
    out.hr_width = m.hr_width, out.hr_height = m.hr_height;
    out.scale = m.scale;
    out.state_name = rescale::to_string(p.state), out.detail = p.detail.c_str();
    out.model = m.model.c_str(), out.weights = m.weights.c_str();
    out.layout = m.layout.c_str(), out.source_mode = m.source_mode.c_str();
    out.rgb = plane(p.rgb), out.alpha = plane(p.alpha), out.latent = plane(p.latent);
    out.source_alpha = plane(p.source_alpha), out.unverified_alpha = plane(p.unverified_alpha);
    out.chunks = lr->chunks.data(), out.chunk_count = lr->chunks.size();
    give(info, out);
  });
}

rescale_status rescale_lr_verdict(const rescale_lr* lr, const rescale_session* session, int32_t* state, const char** detail) {
  return guarded([&] {
    const rescale::Info& i = required(session, "session").net.info();
    auto [found, why] = required(lr, "lr").picture.verdict(i.model, i.scale, i.weights);
    last_error = std::move(why);
    required(state, "state") = static_cast<std::int32_t>(found);
    required(detail, "detail") = last_error.c_str();
  });
}

rescale_status rescale_run_device(const rescale_session* session, const char* graph, const rescale_device_tensor* inputs,
                                  size_t input_count, const rescale_device_tensor* outputs, size_t output_count, void* stream) {
  return guarded([&] {
    const auto& net = required(session, "session").net;
    net.run_device(&required(graph, "graph"), tensors(inputs, input_count, "inputs"), tensors(outputs, output_count, "outputs"),
                   stream);
  });
}

}  // extern "C"
