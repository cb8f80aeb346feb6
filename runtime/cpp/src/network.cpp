#include "network.hpp"

#include "machine.hpp"

namespace rescale::detail {
namespace {

constexpr int kRetries = 4;                     // halvings of the budget after failed allocations
constexpr int kLatentHalo = 2 * kLatentStride;  // LR pixels around a tile that the -M encoder and decoder may look at

template <class T>
T* row(const View<T>& view, int y) {
  const std::ptrdiff_t stride = view.stride ? view.stride : std::ptrdiff_t{view.width} * view.channels;
  return view.data + y * stride;
}

template <class T>
bool is_packed(const View<T>& view) {
  return !view.stride || view.stride == std::ptrdiff_t{view.width} * view.channels;
}

std::size_t area(int height, int width) { return static_cast<std::size_t>(height) * static_cast<std::size_t>(width); }

// A box whose starts are multiples of the latent stride, in latent positions.
Box on_latent(const Box& b) {
  return {b.top / kLatentStride, ceil_div(b.bottom, kLatentStride), b.left / kLatentStride, ceil_div(b.right, kLatentStride)};
}

// Planes (channels, height, width) cut to a part, whose last row and column are repeated up to `rows` x `columns`.
void cut(const float* from, std::int64_t channels, int height, int width, const Box& part, float* to, int rows, int columns) {
  for (std::int64_t c = 0; c < channels; c++, from += area(height, width)) {
    for (int y = 0; y < rows; y++, to += columns) {
      const float* line = from + area(part.top + std::min(y, part.height() - 1), width) + part.left;
      std::copy_n(line, part.width(), to);
      std::fill(to + part.width(), to + columns, line[part.width() - 1]);
    }
  }
}

}  // namespace

std::uint8_t* Buffer::bytes(std::size_t size) {
  if (size > size_) {
    data_.reset();
    size_ = 0;
    data_.reset(new std::uint8_t[size]);
    size_ = size;
  }
  return data_.get();
}

struct Network::Work {
  std::vector<Tile> tiles;
  Buffer hr, lr, z, padded, code;
  const Progress* progress = nullptr;  // of this run, or none
  std::size_t done = 0;                // tiles

  // Asks whether to go on.
  void tell() const {
    if (progress && (*progress)(done, tiles.size())) fail(Code::cancelled, "cancelled by the program's progress function");
  }
};

// Memory of a run, from those that are idle.
class Network::Lease {
 public:
  explicit Lease(Network& net) : net_(net) {
    const std::lock_guard<std::mutex> guard(net.lock_);
    if (net.idle_.empty()) {
      net.idle_.reserve(++net.made_);  // giving back must not allocate
      work_ = std::make_unique<Work>();
    } else {
      work_ = std::move(net.idle_.back());
      net.idle_.pop_back();
    }
  }
  ~Lease() {
    const std::lock_guard<std::mutex> guard(net_.lock_);
    net_.idle_.push_back(std::move(work_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Work& operator*() { return *work_; }

 private:
  Network& net_;
  std::unique_ptr<Work> work_;
};

Network::Network(const Bundle& bundle, Runner& runner, const Options& options)
    : bundle_(bundle),
      runner_(runner),
      variant_(bundle.variant),
      scale_(bundle.scale),
      down_{options.exact ? bundle.receptive_field : bundle.halo, bundle.memory(GraphId::downscale)},
      up_{options.exact ? bundle.upscale_receptive_field : bundle.upscale_halo, bundle.memory(GraphId::upscale)},
      tile_(options.tile),
      memory_(options.memory),
      z_channels_(bundle.variant.latent ? static_cast<std::int64_t>(bundle.z_channels()) : 0) {}

Network::~Network() = default;

void Network::tiles(int height, int width, const Reach& reach, std::uint64_t budget, std::vector<Tile>& out) const {
  const int align = variant_.latent ? kLatentStride : 1;
  const int halo = reach.halo + (variant_.latent ? kLatentHalo : 0);
  Size size = tile_;
  if (!size.width) {
    // Alignment moves a region's edges outwards by less than one stride each.
    const int around = halo + align - 1;
    if (!memory_) budget = std::max(budget, least_budget(around, reach.cost));  // nobody asked for a limit, so nobody is refused
    size = choose_tile(height, width, around, reach.cost, budget);
  }
  plan(height, width, {std::max(size.width, align), std::max(size.height, align)}, halo, align, out);
}

// Runs with the budget; if the backend finds no memory, again with half of it, unless the tile is the caller's.
template <class Run>
void Network::within_memory(const Run& run) {
  std::uint64_t budget = memory_ ? memory_ : default_budget();
  std::unique_ptr<Error> failed;
  for (int i = 0; i <= kRetries; i++) {
    try {
      Lease work(*this);
      return run(*work, budget);
    } catch (const Error& e) {
      if (e.code() == Code::input && failed) break;  // smaller than the smallest tile
      if (e.code() != Code::out_of_memory || tile_.width) throw;
      failed = std::make_unique<Error>(e);
    } catch (const std::bad_alloc&) {
      if (tile_.width) throw;
      failed = std::make_unique<Error>(Code::out_of_memory, cat(bundle_.path, ": not enough memory"));
    }
    budget = kFixedBytes + (budget > kFixedBytes ? (budget - kFixedBytes) / 2 : 0);
  }
  throw Error(*failed);
}

template <class Run>
void Network::each_tile(Work& work, const Progress& progress, const Run& run) {
  work.progress = progress ? &progress : nullptr;
  work.done = 0;
  work.tell();
  for (const Tile& tile : work.tiles) {
    run(tile);
    work.done++;
    work.tell();
  }
}

void Network::run(const Work& work, GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs,
                  std::size_t output_count) {
  if (!work.progress) return runner_.run(graph, inputs, input_count, outputs, output_count);
  runner_.run_watched(graph, inputs, input_count, outputs, output_count, [&] { work.tell(); });
}

void Network::down(Source hr, Target lr, Target latent, const Progress& progress) {
  within_memory([&](Work& work, std::uint64_t budget) {
    tiles(lr.height, lr.width, down_, budget, work.tiles);
    each_tile(work, progress, [&](const Tile& tile) { down_tile(work, tile, hr, lr, latent); });
  });
}

void Network::up(Source lr, Target hr, Source latent, const Progress& progress) {
  within_memory([&](Work& work, std::uint64_t budget) {
    tiles(lr.height, lr.width, up_, budget, work.tiles);
    each_tile(work, progress, [&](const Tile& tile) { up_tile(work, tile, lr, hr, latent); });
  });
}

Tensor Network::image(const char* name, const std::uint8_t* data, int height, int width, int channels) const {
  return {name, false, const_cast<std::uint8_t*>(data), {1, height, width, channels}};
}

Tensor Network::z(const float* data, int height, int width) const {
  return {"z", true, const_cast<float*>(data), {1, z_channels_, height, width}};
}

Tensor Network::code(const std::uint8_t* data, int height, int width) const {
  return {"code", false, const_cast<std::uint8_t*>(data), {1, kLatentChannels, height, width}};
}

void Network::down_tile(Work& work, const Tile& tile, Source hr, Target lr, Target latent) {
  const Box &region = tile.region, &core = tile.core;
  const int rows = region.height() * scale_, columns = region.width() * scale_, channels = lr.channels;
  const bool whole = region.height() == lr.height && region.width() == lr.width;

  // The region of the HR picture; what lies beyond its bottom or right repeats the last row or column.
  const std::uint8_t* from = hr.data;
  if (!whole || !is_packed(hr) || rows != hr.height || columns != hr.width) {
    std::uint8_t* to = work.hr.bytes(area(rows, columns) * 3);
    from = to;
    const int left = region.left * scale_, have = std::min(columns, hr.width - left);
    for (int y = 0; y < rows; y++, to += columns * std::ptrdiff_t{3}) {
      const std::uint8_t* line = row(hr, std::min(region.top * scale_ + y, hr.height - 1)) + left * std::ptrdiff_t{3};
      std::memcpy(to, line, static_cast<std::size_t>(have) * 3);
      for (int x = have; x < columns; x++) std::memcpy(to + x * std::ptrdiff_t{3}, line + (have - 1) * std::ptrdiff_t{3}, 3);
    }
  }

  // Only a single tile may write to the caller's memory: a region holds what is other tiles' to give.
  const bool direct = core.height() == lr.height && core.width() == lr.width && is_packed(lr);
  std::uint8_t* small = direct ? lr.data : work.lr.bytes(area(region.height(), region.width()) * static_cast<unsigned>(channels));
  Tensor in[] = {image("hr", from, rows, columns, 3)};
  Tensor out[2] = {image("lr", small, region.height(), region.width(), channels), {}};
  float* high = nullptr;
  if (variant_.latent) {
    high = work.z.floats(area(region.height(), region.width()) * static_cast<std::size_t>(z_channels_));
    out[1] = z(high, region.height(), region.width());
  }
  run(work, GraphId::downscale, in, 1, out, variant_.latent ? 2 : 1);

  const std::ptrdiff_t pixel = channels;
  for (int y = core.top; y < core.bottom; y++) {
    std::uint8_t* to = row(lr, y) + core.left * pixel;
    if (!direct) {
      const std::uint8_t* line = small + ((y - region.top) * std::ptrdiff_t{region.width()} + core.left - region.left) * pixel;
      std::memcpy(to, line, static_cast<std::size_t>(core.width() * pixel));
    }
    if (channels == 4) {
      for (int x = 0; x < core.width(); x++) to[4 * x + 3] = kZigzag.store[to[4 * x + 3]];
    }
  }
  if (!variant_.latent) return;

  const Box near = grow(core, kLatentHalo, kLatentStride, lr.height, lr.width);
  const Box part{near.top - region.top, near.bottom - region.top, near.left - region.left, near.right - region.left};
  const Box coded = on_latent(near), own = on_latent(core);
  const int z_rows = coded.height() * kLatentStride, z_columns = coded.width() * kLatentStride;
  float* padded = work.padded.floats(area(z_rows, z_columns) * static_cast<std::size_t>(z_channels_));
  cut(high, z_channels_, region.height(), region.width(), part, padded, z_rows, z_columns);
  std::uint8_t* codes = work.code.bytes(area(coded.height(), coded.width()) * kLatentChannels);
  Tensor encoder_in[] = {z(padded, z_rows, z_columns)};
  Tensor encoder_out[] = {code(codes, coded.height(), coded.width())};
  run(work, GraphId::encoder, encoder_in, 1, encoder_out, 1);
  const int plane_rows = latent.height / kLatentChannels;
  for (int c = 0; c < kLatentChannels; c++) {
    for (int y = own.top; y < own.bottom; y++) {
      const std::uint8_t* line = codes + area(c * coded.height() + y - coded.top, coded.width()) + own.left - coded.left;
      std::memcpy(row(latent, c * plane_rows + y) + own.left, line, static_cast<std::size_t>(own.width()));
    }
  }
}

// z of a region: decoded with a halo of its own, or zero.
const float* Network::z_of(Work& work, const Box& region, Source latent, int height, int width) {
  const std::size_t count = area(region.height(), region.width()) * static_cast<std::size_t>(z_channels_);
  if (!latent.data) {
    float* zero = work.padded.floats(count);
    std::fill(zero, zero + count, 0.0F);
    return zero;
  }
  const Box near = grow(region, kLatentHalo, kLatentStride, height, width), coded = on_latent(near);
  std::uint8_t* codes = work.code.bytes(area(coded.height(), coded.width()) * kLatentChannels);
  std::uint8_t* to = codes;
  for (int c = 0; c < kLatentChannels; c++) {
    for (int y = coded.top; y < coded.bottom; y++, to += coded.width()) {
      std::memcpy(to, row(latent, c * (latent.height / kLatentChannels) + y) + coded.left, static_cast<std::size_t>(coded.width()));
    }
  }
  const int rows = coded.height() * kLatentStride, columns = coded.width() * kLatentStride;
  float* decoded = work.z.floats(area(rows, columns) * static_cast<std::size_t>(z_channels_));
  Tensor in[] = {code(codes, coded.height(), coded.width())};
  Tensor out[] = {z(decoded, rows, columns)};
  run(work, GraphId::decoder, in, 1, out, 1);
  if (rows == region.height() && columns == region.width()) return decoded;
  float* cropped = work.padded.floats(count);
  const Box part{region.top - near.top, region.bottom - near.top, region.left - near.left, region.right - near.left};
  cut(decoded, z_channels_, rows, columns, part, cropped, region.height(), region.width());
  return cropped;
}

void Network::up_tile(Work& work, const Tile& tile, Source lr, Target hr, Source latent) {
  const Box &region = tile.region, &core = tile.core;
  const int channels = variant_.lr_channels();
  const bool whole = region.height() == lr.height && region.width() == lr.width;

  const std::uint8_t* from = lr.data;
  if (!whole || !is_packed(lr) || channels == 4 || lr.channels != channels) {
    std::uint8_t* to = work.lr.bytes(area(region.height(), region.width()) * static_cast<unsigned>(channels));
    from = to;
    for (int y = region.top; y < region.bottom; y++) {
      const std::uint8_t* line = row(lr, y) + region.left * std::ptrdiff_t{lr.channels};
      for (int x = 0; x < region.width(); x++, to += channels, line += lr.channels) {
        std::memcpy(to, line, 3);
        if (channels == 4) to[3] = lr.channels == 4 ? kZigzag.load[line[3]] : kNeutral;
      }
    }
  }

  const int rows = region.height() * scale_, columns = region.width() * scale_;
  const bool alone = core.height() == lr.height && core.width() == lr.width;
  const bool direct = alone && is_packed(hr) && hr.height == rows && hr.width == columns;
  std::uint8_t* large = direct ? hr.data : work.hr.bytes(area(rows, columns) * 3);
  Tensor in[2] = {image("lr", from, region.height(), region.width(), channels), {}};
  if (variant_.latent) in[1] = z(z_of(work, region, latent, lr.height, lr.width), region.height(), region.width());
  Tensor out[] = {image("hr", large, rows, columns, 3)};
  run(work, GraphId::upscale, in, variant_.latent ? 2 : 1, out, 1);
  if (direct) return;
  const int left = core.left * scale_, bottom = std::min(core.bottom * scale_, hr.height);
  const int width = std::min(core.right * scale_, hr.width) - left;
  for (int y = core.top * scale_; y < bottom; y++) {
    const std::uint8_t* line = large + ((y - region.top * scale_) * std::ptrdiff_t{columns} + left - region.left * scale_) * 3;
    std::memcpy(row(hr, y) + left * std::ptrdiff_t{3}, line, static_cast<std::size_t>(width) * 3);
  }
}

}  // namespace rescale::detail
