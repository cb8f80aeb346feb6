"""What the real parser and builder make of what they should not get: every error is ours, names its cause, and has no noise."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from rescale.bundle import Bundle
from rescale.contract import Tensor
from rescale.errors import ConfigError, EngineError
from rescale.flavour import collected, device_count, errors, logger
from rescale_engines.census import Layer, count, part, require_precision
from rescale_engines.network import capability_enum, check_interface, parse, serialize
from rescale_engines.profiles import parse_profile

AXES = ["n", "h", "w", 3]


def model(nodes, weights=(), inputs=(("hr", TensorProto.UINT8, AXES),), outputs=(("lr", TensorProto.FLOAT, None),)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def cast(source, target, to, name="widen"):
    return helper.make_node("Cast", [source], [target], name=name, to=to)


def refused(rtx, data):
    with pytest.raises(EngineError) as caught:
        parse(rtx, data, "x.onnx")
    text = str(caught.value)
    assert text.startswith("x.onnx: ")
    assert "cudaError" not in text
    return text


def test_truncated_graph(rtx, full_bundle):
    data = full_bundle("irn", 2).read_graph("downscale")
    for size in (1, len(data) // 2, len(data) - 1):
        assert "cannot parse it" in refused(rtx, data[:size])
    assert "not an ONNX graph" in refused(rtx, b"")


def test_garbage_that_the_parser_takes_for_an_empty_graph(rtx):
    assert refused(rtx, b"hello") == "x.onnx: not an ONNX graph: 0 layers, 0 outputs in it"
    assert "not an ONNX graph" in refused(rtx, b"x" * 500)
    assert "cannot parse it" in refused(rtx, b"# a readme\n")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(rtx, data):
    refused(rtx, data)


def test_unknown_operator_is_named_with_its_node(rtx):
    nodes = [cast("hr", "a", TensorProto.FLOAT), helper.make_node("Teleport", ["a"], ["lr"], name="level0.jump", domain="ours")]
    text = refused(rtx, model(nodes))
    assert "node level0.jump (Teleport)" in text
    assert "Plugin not found" in text


def test_sum_of_two_dtypes(rtx):
    nodes = [
        cast("hr", "a", TensorProto.FLOAT),
        cast("a", "b", TensorProto.FLOAT16, "narrow"),
        helper.make_node("Add", ["a", "b"], ["lr"], name="level0.block0.low"),
    ]
    text = refused(rtx, model(nodes))
    assert "level0.block0.low" in text
    assert "must have same input types" in text


def test_convolution_of_float_by_half(rtx):
    nodes = [cast("hr", "a", TensorProto.FLOAT), helper.make_node("Conv", ["a", "w"], ["lr"], name="level0.haar")]
    shape = [("hr", TensorProto.UINT8, ["n", 3, "h", "w"])]
    text = refused(rtx, model(nodes, [("w", np.ones((3, 3, 1, 1), np.float16))], shape))
    assert "level0.haar" in text


def test_bytes_in_any_other_place_than_a_cast(rtx):
    whole = [("lr", TensorProto.UINT8, None)]
    add = [helper.make_node("Add", ["hr", "hr"], ["lr"], name="double")]
    assert "double" in refused(rtx, model(add, outputs=whole))
    # What an output of ours would be if it were copied to its name.
    copy = [
        cast("hr", "a", TensorProto.FLOAT),
        cast("a", "b", TensorProto.UINT8, "lr.cast"),
        helper.make_node("Identity", ["b"], ["lr"], name="lr"),
    ]
    assert "node lr.cast (Cast)" in refused(rtx, model(copy, outputs=whole))


# The builder, given shapes that no profile of ours would let through.


@pytest.fixture(scope="module")
def down(full_bundle):
    return full_bundle("irn_a", 2)


def build(rtx, bundle, shapes, graph="downscale", **options):
    return serialize(parse(rtx, bundle.read_graph(graph), "x.onnx"), shapes, "x.onnx", **options)


def fixed(*shape):
    return shape, shape, shape


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "no optimization profile has been defined"),
        ({"hr": fixed(1, 64, 64, 4)}, "Dimension mismatch for tensor hr"),
        ({"hr": ((1, 64, 64, 3), (1, 32, 64, 3), (1, 64, 64, 3))}, "profile refused"),
        ({"picture": fixed(1, 64, 64, 3)}, "hr is missing dimensions"),
    ],
    ids=["no profile", "channels", "order", "name"],
)
def test_profiles_that_the_builder_refuses(rtx, down, shapes, message):
    with pytest.raises(EngineError, match=message) as caught:
        build(rtx, down, shapes)
    assert "cudaError" not in str(caught.value)
    assert str(caught.value).startswith("x.onnx: ")


def test_sizes_that_contradict_each_other(rtx, full_bundle):
    shapes = {"lr": fixed(1, 32, 32, 3), "z": fixed(1, 9, 33, 32)}
    with pytest.raises(EngineError, match="lr_height: Input dimensions with this name"):
        build(rtx, full_bundle("irn_m", 2), shapes, "upscale")


def test_an_odd_size_is_ours_to_refuse(rtx, down):
    # The builder takes it: a convolution of stride 2 drops the last row, and nothing would tell the user.
    data, _ = build(rtx, down, {"hr": fixed(1, 65, 64, 3)})
    assert data
    with pytest.raises(ConfigError, match="height 65 is not a multiple of 2"):
        parse_profile("65x64", 2)


def test_workspace_that_is_too_small(rtx, down):
    with pytest.raises(EngineError, match="cannot build it"):
        build(rtx, down, {"hr": fixed(1, 512, 512, 3)}, workspace=1)


def test_compute_capabilities(rtx, down):
    from rescale.engine_file import read_header

    data, _ = build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, capabilities=["8.9"])
    assert read_header(data).capabilities == ("8.9",)
    data, _ = build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, capabilities=["7.5", "120"])
    assert read_header(data).capabilities == ("7.5", "12.0")
    # An H200 is a 9.0: not a target of this library.
    with pytest.raises(ConfigError, match=r"compute capability '9.0': tensorrt-rtx .* can target 7.5, 8.0, 8.6, 8.9"):
        build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, capabilities=["9.0"])
    for bad in ("", "CURRENT", "NONE", "8.9; drop", "8..9", "8.9.", ".89"):
        with pytest.raises(ConfigError, match="compute capability"):
            capability_enum(rtx, bad)
    with pytest.raises(ConfigError, match="tensorrt builds for the GPU it runs on"):
        capability_enum(replace(rtx, name="tensorrt"), "8.9")


def test_progress_is_told_in_order_and_ends(rtx, down):
    told = []
    build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, progress=lambda *step: told.append(step))
    assert told[0] == ("Building engine", 0, told[0][2])
    assert told[-1][1] == told[-1][2] > 0
    assert all(0 <= done <= steps for _, done, steps in told)


def test_cancelling(rtx, down):
    stop = threading.Event()
    steps = []

    def progress(phase, done, total):
        steps.append(phase)
        if len(steps) == 20:
            stop.set()

    with pytest.raises(EngineError, match=r"^x.onnx: build cancelled; nothing was written$"):
        build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, progress=progress, cancel=stop)
    assert len(steps) < 60


def test_an_error_in_the_callback_ends_the_build_and_comes_back(rtx, down):
    def progress(phase, done, total):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build(rtx, down, {"hr": fixed(1, 64, 64, 3)}, progress=progress)


# Engines on a machine that cannot run them.


@pytest.mark.skipif(device_count() > 0, reason="a GPU is here")
def test_what_the_runtime_says_of_engines_without_a_gpu(rtx, down):
    good, _ = build(rtx, down, {"hr": fixed(1, 64, 64, 3)})
    said = {}
    for name, data in {"good": good, "truncated": good[:-1], "garbage": b"x" * 500}.items():
        with collected(rtx) as messages:
            assert rtx.module.Runtime(logger(rtx)).deserialize_cuda_engine(data) is None
        assert messages
        said[name] = errors(messages)
    # All that is wrong with a good engine is the machine.
    assert said["good"] == ""
    assert "plan.header.size == blobSize" in said["truncated"]
    assert "magicTag" in said["garbage"]
    assert not any("cudaError" in text for text in said.values())


# Names, dtypes and the census.


def test_interface_must_be_the_manifests(rtx, down):
    graph = down.graph("downscale", "mixed")
    parsed = parse(rtx, down.read_graph("downscale", "mixed"), "x.onnx")
    check_interface(parsed, graph, "x.onnx")
    hr = graph.inputs[0]
    for wrong in (replace(hr, name="rgb"), replace(hr, dtype="float32"), replace(hr, axes=("batch", "height", "width", 4))):
        with pytest.raises(EngineError, match=r"x.onnx: inputs are hr uint8 \(\?, \?, \?, 3\); the manifest says "):
            check_interface(parsed, replace(graph, inputs=(wrong,)), "x.onnx")
    with pytest.raises(EngineError, match="outputs are lr uint8"):
        check_interface(parsed, replace(graph, outputs=(*graph.outputs, Tensor("z", "float32", ("batch", 9)))), "x.onnx")


@pytest.mark.parametrize("graph", ["downscale", "upscale", "encoder", "decoder"])
def test_no_graph_passes_for_another_precision(rtx, full_bundle, graph):
    bundle = full_bundle("dlv_irn_m", 4)
    found = {p: parse(rtx, bundle.read_graph(graph, p), "x").layers for p in bundle.precisions}
    for claimed in found:
        for real, layers in found.items():
            if claimed == real or (graph in ("encoder", "decoder") and "fp32" not in (claimed, real)):
                require_precision(layers, claimed, "x")
            else:
                with pytest.raises(EngineError, match=r"x: layer \S+ \(\w+\)"):
                    require_precision(layers, claimed, "x")


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_corrections_have_float16_subnets(rtx, corrected_pair_of, model):
    bundle = Bundle(corrected_pair_of(model)[0])
    found = {p: parse(rtx, bundle.read_graph("downscale", p), "x").layers for p in bundle.precisions}
    for precision, layers in found.items():
        require_precision(layers, precision, "x")
        own = [layer for layer in layers if layer.name.startswith("correction") and layer.type == "CONVOLUTION"]
        subnets = [layer for layer in own if part(layer.name) == "subnet"]
        assert len(subnets) > 0.8 * len(own) > 0
        assert {layer.dtype for layer in subnets} == {"FLOAT" if precision == "fp32" else "HALF"}
        assert {layer.dtype for layer in own if part(layer.name) == "correction"} == {"FLOAT"}
    assert len(found) > 1


@pytest.mark.parametrize("graph", ["upscale", "corrected"])
def test_one_layer_of_another_dtype_is_found(rtx, full_bundle, corrected_pair_of, graph):
    bundle = full_bundle("irn_a", 4) if graph == "upscale" else Bundle(corrected_pair_of("irn_a")[0])
    layers = parse(rtx, bundle.read_graph("upscale" if graph == "upscale" else "downscale", "mixed"), "x").layers
    other = {"HALF": "FLOAT", "FLOAT": "HALF"}
    computing = [i for i, layer in enumerate(layers) if part(layer.name) and layer.dtype in other]
    computing = [i for i in computing if layers[i].type != "CAST" and not layers[i].helper]
    assert len(computing) > 50
    for i in computing:
        changed = [*layers]
        changed[i] = layers[i]._replace(dtype=other[layers[i].dtype])
        with pytest.raises(EngineError, match=f"layer {layers[i].name} "):
            require_precision(changed, "mixed", "x")
    with pytest.raises(EngineError, match="gives BF16, which mixed has nowhere"):
        require_precision([layers[0]._replace(dtype="BF16")], "mixed", "x")


def test_layers_of_unknown_part_are_not_passed_over():
    good = Layer("CONVOLUTION", "level0.block0.F.conv1", "HALF")
    require_precision([good], "mixed", "x")
    with pytest.raises(EngineError, match=r"layer conv9 \(CONVOLUTION\) is of no known part"):
        require_precision([good, Layer("CONVOLUTION", "conv9", "HALF")], "mixed", "x")
    with pytest.raises(EngineError, match="no convolution"):
        require_precision([Layer("UNARY", "lr.round", "FLOAT")], "fp32", "x")
    assert count([good, good, Layer("UNARY", "lr.round", "FLOAT")]) == {"CONVOLUTION": {"HALF": 2}, "UNARY": {"FLOAT": 1}}


def test_networks_are_strongly_typed(rtx, down):
    parsed = parse(rtx, down.read_graph("downscale", "mixed"), "x")
    assert parsed.network.get_flag(rtx.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
