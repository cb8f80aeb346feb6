// ONNX Runtime's library, loaded when it is asked for: one build runs with any version at or above API 12.

#pragma once

#include <onnxruntime_c_api.h>

#include <mutex>

#include "common.hpp"

namespace rescale::detail {

// All that it logs as an error comes as a status too; the log would show names in a graph raw, over several lines, before our
// error.
constexpr OrtLoggingLevel kSilent = ORT_LOGGING_LEVEL_FATAL;

struct OrtLibrary {
  const OrtApi* api = nullptr;  // of `version`; only functions up to that version are there
  std::uint32_t version = 0;    // the header's or the library's, whichever is older
  std::string name;             // the library's version in words, such as 1.21.0
  std::string path;
  OrtEnv* env = nullptr;
  std::mutex lock;  // for the environment's registry of providers

  // Throws Code::backend, or Code::out_of_memory, with the library's message on one line behind `what`; frees the status.
  void check(OrtStatus* status, const std::string& what) const;
};

// A library by path; empty: $RESCALE_ONNXRUNTIME, then the usual names. Once per process and path; never unloaded, because its
// threads may outlive whoever asked for it.
OrtLibrary& load_onnxruntime(const std::string& path);

}  // namespace rescale::detail
