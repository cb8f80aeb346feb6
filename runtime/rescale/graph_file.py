"""What of an ONNX file can be told without a library for it: whether all of it is in it.

ONNX lets a tensor name a file that its values are in, and ONNX Runtime looks for that file from the current folder on: what a
graph computes would hang on bytes that no SHA-256 of the manifest covers. Read as protobuf's wire format, of which fields with a
number and bytes are all there is.
"""

from __future__ import annotations

from rescale.errors import BundleError

MAX_FIELDS = 1 << 20
"""Far above the 10,000 or so of our largest graphs; of a hostile file they decide the time."""

_BROKEN = "not a whole ONNX file; export the bundle again"

_MESSAGES = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: "TensorProto", 10: "TensorProto", 22: "SparseTensorProto", 23: "SparseTensorProto"}
    | {6: "GraphProto", 11: "GraphProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
"""Every way from a model to a tensor: the messages in a message, by field number."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Fields of a TensorProto: where its values are, and that they are elsewhere."""

_OPERATOR, _COMPILED = 4, b"EPContext"
"""Field of a NodeProto: what it does; and what names a file that a provider loads."""

_VARINT, _EIGHT_BYTES, _BYTES, _GROUP, _GROUP_END, _FOUR_BYTES = range(6)
"""Protobuf's wire types."""


def require_self_contained(data: bytes, name: str) -> None:
    """Check that nothing of an ONNX file is in another file.

    Raises:
        BundleError: something is, or there is what no ONNX file has. `name` begins the message.
        ValueError: the bytes are no whole protobuf. They are not left to a decoder that might see more in them.
    """
    try:
        strange = _strange(data)
    except IndexError:
        raise ValueError(_BROKEN) from None
    if strange:
        raise BundleError(f"{name}: {strange}; export the bundle again")


def _strange(data: bytes) -> str:
    """What is not to be in a graph; empty if it is in order.

    Raises:
        IndexError, ValueError: the bytes are no whole protobuf.
    """
    # With a list of what is to do, not by recursion: how deep messages are nested is up to the file.
    todo, fields = [("ModelProto", 0, len(data))], 0
    while todo:
        message, at, end = todo.pop()
        inner = _MESSAGES[message]
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                return f"a graph of more than {MAX_FIELDS} fields"
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire in (_GROUP, _GROUP_END) or tag >> 32:
                return f"a field {number} of wire type {wire}, which no ONNX file has"
            start, value = at, 0
            if wire in (_VARINT, _BYTES):
                value, start = _varint(data, at)
            at = start + {_VARINT: 0, _EIGHT_BYTES: 8, _BYTES: value}.get(wire, 4)
            if at > end or wire > _FOUR_BYTES or not number:
                raise ValueError(_BROKEN)
            # Protobuf skips a field whose wire type is not its own; that is no reason to let one of these pass.
            if message == "TensorProto" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (value or wire != _VARINT))):
                return "a tensor's values are in another file, which no SHA-256 of the manifest covers"
            if message == "NodeProto" and number == _OPERATOR and data[start:at] == _COMPILED:
                return "a part is compiled for a provider and may be in another file, which no SHA-256 of the manifest covers"
            if wire == _BYTES and number in inner:
                todo.append((inner[number], start, at))
    return ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, at most 10 of them, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(_BROKEN)
