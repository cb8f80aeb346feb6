// The bundle: a folder of graphs with a manifest. docs/bundle.md is the contract.

#pragma once

#include <map>

#include "common.hpp"

namespace rescale::detail {

enum class GraphId { downscale, upscale, encoder, decoder };
constexpr const char* kGraphNames[] = {"downscale", "upscale", "encoder", "decoder"};
constexpr const char* name_of(GraphId id) { return kGraphNames[static_cast<int>(id)]; }

struct Axis {
  std::string name;       // of a dynamic size, or empty
  std::int64_t size = 0;  // of a fixed one
  bool operator==(const Axis& o) const { return name == o.name && size == o.size; }
};

struct TensorInfo {
  std::string name, dtype;
  std::vector<Axis> axes;
  bool operator==(const TensorInfo& o) const { return name == o.name && dtype == o.dtype && axes == o.axes; }
};

// One ONNX file.
struct Graph {
  std::string file, sha256;
  std::uint64_t memory = 0;  // bytes of live tensors per LR pixel at the widest point
  std::vector<TensorInfo> inputs, outputs;
};

// A verified manifest. Graph files are verified when they are read.
struct Bundle {
  explicit Bundle(const std::string& folder);

  std::string title() const { return cat(variant.name, " x", scale, " ", size); }
  const Graph& graph(GraphId id, const std::string& precision) const;
  Bytes read_graph(GraphId id, const std::string& precision) const;
  std::uint64_t memory(GraphId direction) const;  // bytes of live tensors per LR pixel of the costlier graph of a direction
  std::uint64_t z_channels() const;

  std::string path;   // as it was given
  std::string place;  // the same folder whichever one the program changes to: graphs are read when they first run
  Variant variant{};
  int scale = 0;
  std::string size;
  std::string weights;  // SHA-256 of the flow's weights, which LR files name
  std::string network;  // SHA-256 of all weights, those of corrections included
  int receptive_field = 0, halo = 0;                  // LR pixels
  int upscale_receptive_field = 0, upscale_halo = 0;  // the same when restoring only
  std::map<std::string, std::map<std::string, Graph>> precisions;
};

}  // namespace rescale::detail
