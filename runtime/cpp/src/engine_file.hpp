// Engine files: NAME.engine, what TensorRT wrote, and NAME.engine.json, the sidecar with everything that makes it valid. Written by
// `rescale-engine build`; no reader repairs one, it is built again.

#pragma once

#include "bundle.hpp"

namespace rescale::detail {

struct EngineInfo {
  std::string path, backend, library, graph, precision, model, size, weights, onnx_sha256, engine_sha256;
  int scale = 0;
  std::uint64_t bytes = 0;
  std::int64_t low[3] = {}, high[3] = {};  // smallest and largest batch, height and width, in HR pixels
  std::string device;                      // the GPU that it is bound to, or empty
  std::vector<TensorInfo> inputs, outputs;
};

// `folder`, or where the bundle's engines are in $RESCALE_CACHE or the user's cache.
std::string engines_folder(const Bundle& bundle, const std::string& folder);

// Engines of a bundle's graph in a folder, the smallest largest size first; those of other bundles are left out. Throws where a
// sidecar that goes by this graph's name is damaged. Bytes are not read yet.
std::vector<EngineInfo> find_engines(const std::string& folder, const Bundle& bundle, const std::string& backend,
                                     const std::string& precision, GraphId graph);

// The engine's bytes, whole and unchanged.
Bytes read_engine(const EngineInfo& info);

}  // namespace rescale::detail
