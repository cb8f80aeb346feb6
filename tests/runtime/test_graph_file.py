"""Graphs whose values are not in them: refused before anything runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale import graph_file
from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError
from rescale.graph_file import require_self_contained

FRAME = {"hr": np.zeros((1, 8, 8, 3), np.uint8)}
BundleOf = Callable[[str, int], Path]
Alter = Callable[..., Path]


def outside(tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
    """The same tensor with its values in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def small(name: str = "t") -> onnx.TensorProto:
    return outside(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [1.0]), "x")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["values.bin", "../../values.bin", "/dev/zero", "*/_ORT_MEM_ADDR_/*"])
def test_a_graph_with_values_in_another_file_is_not_run(bundle: BundleOf, altered: Alter, location: str, backend: str) -> None:
    pytest.importorskip(backend)

    def change(_: str, data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        outside(max(model.graph.initializer, key=lambda t: len(t.raw_data)), location)
        return bytes(model.SerializeToString())

    runner = create(Bundle(altered(bundle("irn", 2), change, "downscale.onnx")), backend)
    with pytest.raises(BundleError, match=r"downscale\.onnx: a tensor's values are in another file.*export the bundle again"):
        runner.run("downscale", FRAME)


def test_such_a_tensor_is_found_wherever_it_is() -> None:
    helper = onnx.helper
    inner = helper.make_graph([], "inner", [], [], initializer=[small()])
    values, indices = small(), helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[4])
    for attribute in ({"t": small()}, {"ts": [small()]}, {"g": inner}, {"gs": [inner]}, {"s": sparse}):
        node = helper.make_node("X", [], ["y"], **attribute)
        model = helper.make_model(helper.make_graph([node], "outer", [], []))
        with pytest.raises(BundleError, match="another file"):
            require_self_contained(model.SerializeToString(), "x")
        function = helper.make_function("d", "f", [], ["y"], [node], [helper.make_opsetid("", 17)])
        model = helper.make_model(helper.make_graph([], "outer", [], []), functions=[function])
        with pytest.raises(BundleError, match="another file"):
            require_self_contained(model.SerializeToString(), "x")


def test_what_a_provider_loads_is_refused() -> None:
    node = onnx.helper.make_node("EPContext", [], ["y"], embed_mode=0, ep_cache_context="x.bin", domain="com.microsoft")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    with pytest.raises(BundleError, match="a part is compiled for a provider and may be in another file"):
        require_self_contained(model.SerializeToString(), "x")


def test_every_way_to_a_tensor_is_known() -> None:
    """The table is that of the installed version of ONNX: of a field that it does not list, nobody looked inside."""
    ways: dict[str, dict[int, str]] = {}
    reached = {"TensorProto"}
    while True:
        more = {
            name
            for name, message in onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name.items()
            if any(f.message_type is not None and f.message_type.name in reached for f in message.fields)
        }
        if more <= reached:
            break
        reached |= more
    for name in reached:
        fields = onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name[name].fields
        ways[name] = {
            f.number: f.message_type.name for f in fields if f.message_type is not None and f.message_type.name in reached
        }
    assert ways == graph_file._MESSAGES
    tensor = onnx.TensorProto.DESCRIPTOR.fields_by_name
    assert (tensor["external_data"].number, tensor["data_location"].number) == (13, 14)


def test_graphs_of_ours_pass(bundle: BundleOf) -> None:
    for path in bundle("irn", 2).glob("*.onnx"):
        require_self_contained(path.read_bytes(), path.name)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    """What protobuf reads and has such a tensor is refused, whatever else is."""
    try:
        require_self_contained(data, "x")
    except (BundleError, ValueError):
        return
    try:
        model = onnx.load_model_from_string(data)
    except Exception:
        return
    assert not any(t.data_location or t.external_data for t in model.graph.initializer)


def test_what_no_onnx_file_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, message in (
        (b"\x0b\x0c", "a field 1 of wire type 3"),  # a group
        (b"\xba\x80\x80\x80\x80\x01\x00", "a field .* of wire type 2"),  # field 7 and a bit that some readers drop
    ):
        with pytest.raises(BundleError, match=f"g: {message}, which no ONNX file has"):
            require_self_contained(data, "g")
    for data in (b"\x3a\x05abc", b"\x3a", b"\x08" + b"\xff" * 11, b"not an onnx file"):
        with pytest.raises(ValueError, match="not a whole ONNX file; export the bundle again"):
            require_self_contained(data, "g")
    monkeypatch.setattr(graph_file, "MAX_FIELDS", 3)
    with pytest.raises(BundleError, match="more than 3 fields"):
        require_self_contained(b"\x08\x01" * 4, "g")


@pytest.mark.parametrize("fails", ["when it runs", "when it is loaded"])
def test_a_name_in_a_graph_does_not_reach_the_terminal(
    bundle: BundleOf, altered: Alter, capfd: pytest.CaptureFixture[str], fails: str
) -> None:
    def change(_: str, data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        last = model.graph.node[-1]
        out, last.output[0] = last.output[0], "before"
        shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [1, 7, 7, 4])
        model.graph.initializer.append(shape)
        kind = "Reshape" if fails == "when it runs" else "Nothing\x1b[2J"
        model.graph.node.append(onnx.helper.make_node(kind, ["before", "shape"], [out], name="\x1b[31mEVIL\n\x07"))
        return bytes(model.SerializeToString())

    runner = create(Bundle(altered(bundle("irn", 2), change, "downscale.onnx")), "onnxruntime")
    with pytest.raises(BackendError, match=r"downscale (failed in|cannot be loaded by) .*\\x1b") as caught:
        runner.run("downscale", FRAME)
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")
