// ONNX files at the level of protobuf: what a graph would have ONNX Runtime read from elsewhere.
//
// The library's own option for the folder of such data does not do: it follows `..` and absolute paths, and versions before 1.18 do
// not have it.

#include "onnx_file.hpp"

namespace rescale::detail {
namespace {

enum class Message { model, graph, node, attribute, tensor, sparse, function, training };

// A field that holds a message in which a tensor can lie, by onnx.proto.
struct Nested {
  Message in;
  std::uint64_t field;
  Message is;
};
constexpr Nested kNested[] = {
    {Message::model, 7, Message::graph},       {Message::model, 20, Message::training},   {Message::model, 25, Message::function},
    {Message::graph, 1, Message::node},        {Message::graph, 5, Message::tensor},      {Message::graph, 15, Message::sparse},
    {Message::node, 5, Message::attribute},    {Message::attribute, 5, Message::tensor},  {Message::attribute, 6, Message::graph},
    {Message::attribute, 10, Message::tensor}, {Message::attribute, 11, Message::graph},  {Message::attribute, 22, Message::sparse},
    {Message::attribute, 23, Message::sparse}, {Message::sparse, 1, Message::tensor},     {Message::sparse, 2, Message::tensor},
    {Message::function, 7, Message::node},     {Message::function, 11, Message::attribute}, {Message::training, 1, Message::graph},
    {Message::training, 2, Message::graph}};
constexpr std::uint64_t kOperator = 4;                            // of a node
constexpr std::uint64_t kExternalData = 13, kDataLocation = 14;    // of a tensor
constexpr std::string_view kCompiled = "EPContext";               // an operator that can name a file which a provider loads
constexpr int kMostLevels = 100;                                  // protobuf's own limit
constexpr std::uint64_t kMostFields = 1 << 20;                    // far above the 10,000 or so of our largest graphs
constexpr std::uint64_t kVarint = 0, kEightBytes = 1, kBytes = 2, kFourBytes = 5;

// What is not to be in a graph, in words.
struct Strange {
  std::string what;
};
// Bytes that are no protobuf. They are not left to ONNX Runtime, whose decoder might see more in them than this one.
struct Broken {};

struct Reader {
  const std::uint8_t *at, *end;

  std::uint64_t number() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70 && at != end; shift += 7) {
      const std::uint8_t byte = *at++;
      value |= std::uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) return value;
    }
    throw Broken{};
  }
  Reader piece(std::uint64_t size) {
    if (size > static_cast<std::uint64_t>(end - at)) throw Broken{};
    const Reader out{at, at + size};
    at += size;
    return out;
  }
  std::string_view text() const { return {reinterpret_cast<const char*>(at), static_cast<std::size_t>(end - at)}; }
};

void check(Reader reader, Message kind, int level, std::uint64_t& fields) {
  if (level > kMostLevels) throw Broken{};
  while (reader.at != reader.end) {
    if (++fields > kMostFields) throw Strange{cat("a graph of more than ", kMostFields, " fields")};
    const std::uint64_t tag = reader.number(), field = tag >> 3, wire = tag & 7;
    if (wire == 3 || wire == 4 || tag >> 32 != 0) {
      throw Strange{cat("a field ", field, " of wire type ", wire, ", which no ONNX file has")};
    }
    const std::uint64_t value = wire == kVarint || wire == kBytes ? reader.number() : 0;
    if (wire > kFourBytes || field == 0) throw Broken{};
    const Reader inner = reader.piece(wire == kBytes ? value : wire == kEightBytes ? 8 : wire == kFourBytes ? 4 : 0);
    // Decoders skip a field whose wire type is not its own; that is no reason to let one of these pass.
    const bool elsewhere = field == kExternalData || (field == kDataLocation && (value != 0 || wire != kVarint));
    if (kind == Message::tensor && elsewhere) {
      throw Strange{"a tensor's values are in another file, which no SHA-256 of the manifest covers"};
    }
    if (wire != kBytes) continue;
    if (kind == Message::node && field == kOperator && inner.text() == kCompiled) {
      throw Strange{"a part is compiled for a provider and may be in another file, which no SHA-256 of the manifest covers"};
    }
    for (const Nested& n : kNested) {
      if (n.in == kind && n.field == field) check(inner, n.is, level + 1, fields);
    }
  }
}

}  // namespace

void check_self_contained(const Bytes& model, const std::string& file, const std::string& what) {
  try {
    std::uint64_t fields = 0;
    check({model.data(), model.data() + model.size()}, Message::model, 0, fields);
  } catch (const Strange& e) {
    fail(Code::bundle, file, ": ", e.what, "; export the bundle again");
  } catch (const Broken&) {
    fail(Code::backend, what, ": not a whole ONNX file; export the bundle again");
  }
}

}  // namespace rescale::detail
