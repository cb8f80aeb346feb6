// Tables in JSON: strict about types, so that a damaged file says which field is wrong.

#pragma once

#include <nlohmann/json.hpp>

#include "bundle.hpp"
#include "sha256.hpp"

namespace rescale::detail {

using Json = nlohmann::json;

// What is wrong with a table, in words; the reader adds the file's name.
struct DamagedTable {
  std::string why;
};

inline Json parse_json(const Bytes& text) {
  Json value = Json::parse(text.begin(), text.end(), nullptr, false);
  if (!value.is_object()) throw DamagedTable{"not a JSON object"};
  return value;
}

inline const Json& field(const Json& table, const char* name) {
  const auto found = table.is_object() ? table.find(name) : table.end();
  if (!table.is_object() || found == table.end()) throw DamagedTable{cat("'", name, "' is missing")};
  return *found;
}

inline std::string string_field(const Json& table, const char* name) {
  const Json& value = field(table, name);
  if (!value.is_string()) throw DamagedTable{cat("'", name, "' is not a string")};
  return value.get<std::string>();
}

// A whole number from `least` to 2^53.
inline std::int64_t number(const Json& value, const char* name, std::int64_t least) {
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  const bool big = value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMost);
  if (!value.is_number_integer() || big || value.get<std::int64_t>() < least || value.get<std::int64_t>() > kMost) {
    throw DamagedTable{cat("'", name, "' is not a whole number of at least ", least)};
  }
  return value.get<std::int64_t>();
}

inline std::int64_t number_field(const Json& table, const char* name, std::int64_t least) {
  return number(field(table, name), name, least);
}

inline std::string sha256_field(const Json& table, const char* name) {
  std::string value = string_field(table, name);
  if (!is_sha256(value)) throw DamagedTable{cat("'", name, "' is not 64 hexadecimal digits")};
  return value;
}

inline std::vector<TensorInfo> tensors_field(const Json& table, const char* name) {
  const Json& list = field(table, name);
  if (!list.is_array()) throw DamagedTable{cat("'", name, "' is not a list")};
  std::vector<TensorInfo> out;
  for (const Json& entry : list) {
    TensorInfo t{string_field(entry, "name"), string_field(entry, "dtype"), {}};
    const Json& axes = field(entry, "axes");
    if (!axes.is_array()) throw DamagedTable{"'axes' is not a list"};
    for (const Json& axis : axes) {
      t.axes.push_back(axis.is_string() ? Axis{axis.get<std::string>(), 0} : Axis{"", number(axis, "axes", 1)});
    }
    out.push_back(std::move(t));
  }
  return out;
}

}  // namespace rescale::detail
