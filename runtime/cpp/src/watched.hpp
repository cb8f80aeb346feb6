// Work that can be stopped while it runs: in a thread of its own, with the caller's looking after it.

#pragma once

#include <functional>

namespace rescale::detail {

// Does work in another thread, and calls `alive` in this one about ten times a second until it is done. What `alive` throws makes
// `stop` end the work soon, and is passed on; so is what the work throws. Throws Code::backend where no thread can be had.
void watched(const std::function<void()>& work, const std::function<void()>& stop, const std::function<void()>& alive);

}  // namespace rescale::detail
