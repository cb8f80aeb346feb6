// The files that rescale-cpp is given, checked before the work rather than after it.

#pragma once

#include <string>

namespace tool {

extern const char* const kStream;  // standard input or output

// Refuses, as Python's `check_paths` does: a source that is not there; a target that is no PNG by its name, the source itself, or
// in a folder that is not there or takes no new files.
void check_paths(const std::string& source, const std::string& target);

}  // namespace tool
