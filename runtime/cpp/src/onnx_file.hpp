#pragma once

#include "common.hpp"

namespace rescale::detail {

// Refuses an ONNX file that is not whole by itself, as Code::bundle. Its SHA-256 covers nothing that it refers to: weights in a
// file beside it or anywhere else, compiled graphs of a provider. What is no ONNX at all is Code::backend, behind `what`.
void check_self_contained(const Bytes& model, const std::string& file, const std::string& what);

}  // namespace rescale::detail
