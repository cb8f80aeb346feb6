// In builds without TensorRT's headers: asking for it says how to have it.

#include "runner.hpp"

namespace rescale::detail {

std::unique_ptr<Runner> make_tensorrt(const Bundle&, const std::string&, const Options& options) {
  fail(Code::backend, "backend ", options.backend,
       ": this library was built without it; configure it with -DRESCALE_WITH_TENSORRT=ON");
}

}  // namespace rescale::detail
