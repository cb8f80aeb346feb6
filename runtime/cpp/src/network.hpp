// A bundle's graphs on pictures of any size: whole, or in tiles with a halo.

#pragma once

#include <mutex>

#include "runner.hpp"
#include "tiling.hpp"

namespace rescale::detail {

// Memory that grows to what was needed and stays.
class Buffer {
 public:
  std::uint8_t* bytes(std::size_t size);
  float* floats(std::size_t count) { return reinterpret_cast<float*>(bytes(count * sizeof(float))); }

 private:
  std::unique_ptr<std::uint8_t[]> data_;
  std::size_t size_ = 0;
};

class Network {
 public:
  Network(const Bundle& bundle, Runner& runner, const Options& options);
  ~Network();

  // All sizes were checked. LR pixels are in the form of a file: RGB, or RGBA with stored alpha codes. `progress` may be empty.
  void down(Source hr, Target lr, Target latent, const Progress& progress);
  void up(Source lr, Target hr, Source latent, const Progress& progress);

  // What one direction's tiles depend on.
  struct Reach {
    int halo;            // LR pixels
    std::uint64_t cost;  // bytes per LR pixel
  };
  void tiles(int height, int width, const Reach& reach, std::uint64_t budget, std::vector<Tile>& out) const;

 private:
  struct Work;  // memory of one run, and how far it is
  class Lease;
  template <class Run>
  void within_memory(const Run& run);
  template <class Run>
  void each_tile(Work& work, const Progress& progress, const Run& run);
  void run(const Work& work, GraphId graph, const Tensor* inputs, std::size_t input_count, Tensor* outputs,
           std::size_t output_count);
  void down_tile(Work& work, const Tile& tile, Source hr, Target lr, Target latent);
  void up_tile(Work& work, const Tile& tile, Source lr, Target hr, Source latent);
  const float* z_of(Work& work, const Box& region, Source latent, int height, int width);
  Tensor image(const char* name, const std::uint8_t* data, int height, int width, int channels) const;
  Tensor z(const float* data, int height, int width) const;
  Tensor code(const std::uint8_t* data, int height, int width) const;

  const Bundle& bundle_;
  Runner& runner_;
  const Variant variant_;
  const int scale_;
  const Reach down_, up_;
  const Size tile_;
  const std::uint64_t memory_;  // bytes
  const std::int64_t z_channels_;
  std::mutex lock_;
  std::vector<std::unique_ptr<Work>> idle_;
  std::size_t made_ = 0;
};

}  // namespace rescale::detail
