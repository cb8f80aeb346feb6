#pragma once

#include <algorithm>

#include "common.hpp"

namespace rescale::detail {

// All bytes of the file at `place`, told of as `path`, that somebody else made, such as a bundle's; throws `code` where it cannot be
// read (with the text `missing` where there is none), holds more, or is a pipe or device, which could keep the reader waiting for
// ever. Pictures, which the caller names, come through `read_file` from those too.
Bytes read_bounded(const std::string& place, const std::string& path, std::uint64_t most, Code code,
                   const std::string& missing = {});

// Where a path leads whichever folder the program changes to.
std::string absolute(const std::string& path);

bool is_file(const std::string& path);  // regular, or a link to one

// Two files that belong together: neither takes its place before both are on the disk.
void write_both(const std::string& first, const Bytes& a, const std::string& second, const Bytes& b);

}  // namespace rescale::detail
