// What rescale-cpp is told on its command line.

#pragma once

#include <rescale/rescale.hpp>

#include <map>
#include <string>
#include <vector>

namespace tool {

extern const char* const kUsage;

// Wrong usage: exit code 2.
struct Usage {
  std::string why;
};

struct Arguments {
  bool help = false;
  std::vector<std::string> paths;
  std::map<std::string, std::string> options;

  bool has(const std::string& name) const { return options.count(name) != 0; }
  std::string get(const std::string& name, const std::string& otherwise) const;
  // `otherwise`, or one of the words in `known`.
  std::string choice(const std::string& name, const std::string& otherwise, const std::vector<std::string>& known) const;
  // `otherwise`, or a whole number of `least` to `most`.
  std::uint64_t number(const std::string& name, std::uint64_t otherwise, std::uint64_t least, std::uint64_t most) const;
  std::uint64_t max_pixels() const { return number("--max-pixels", rescale::kMaxPixels, 1, std::uint64_t{1} << 60); }
};

// Words behind the verb.
Arguments parse(int argc, char** argv);

// The bundle's folder, from the option or the environment.
std::string bundle(const Arguments& a);

// What the bundle is loaded with.
rescale::Options options(const Arguments& a);

}  // namespace tool
