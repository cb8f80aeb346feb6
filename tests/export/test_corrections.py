"""Downscale graphs with corrections: PyTorch's values, any size and tile, files that either bundle restores."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import rescale
from rescale.backends import create
from rescale.bundle import MANIFEST, Bundle
from rescale.errors import BundleError
from rescale.half import HalfRunner
from rescale.network import LATENT_HALO
from rescale.variants import LATENT_STRIDE
from rescale_export import graphs
from rescale_export.bundles import write_bundle
from rescale_export.cli import main
from rescale_export.halo import LIMIT, RMS_LIMIT
from rescale_export.memory import bytes_per_lr_pixel
from rescale_export.session import session_of
from rescale_export.validate import reference
from rescale_export.writer import FILTER_VALUES
from rescale_train import checkpoint
from rescale_train.checkpoint import flow_digest, weights_digest
from rescale_train.recipe import load_recipe

CASES = [(m, s, {}) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]
CASES += [("irn_a", 2, {"alpha_split": "post"}), ("irn_a", 4, {"alpha_split": "post"}), ("dlv_irn_a", 2, {"shared_trunk": False})]
CASES += [("irn_a", 4, {"blocks": (0, 1)}), ("irn_a", 2, {"alpha_basis": "orthonormal"})]

SUBNET = re.compile(
    r"level\d+\.block\d+\.(F|G|H|GH)\.(conv|act|cat)\d(?!.*\.float32)|correction\d+\.(conv|act|cat)\d|correction\.(encoder|decoder)\."
)


@pytest.mark.parametrize(("model", "scale", "changes"), CASES)
def test_the_graph_gives_what_pytorch_gives(make_net, picture, model, scale, changes):
    net = make_net(model, scale, corrections=2, **changes)
    hr = np.stack([picture(12 * scale, 10 * scale, s) for s in range(2)])
    want = reference(net, hr)["lr"]
    model_ = graphs.downscale(net).model({})
    found = session_of(model_.SerializeToString()).run(None, {"hr": hr})[0]
    assert np.abs(found.astype(int) - want).max() <= 1
    assert (found != want).mean() <= 1e-3
    assert (want != reference(net.with_corrections(0), hr)["lr"]).mean() > 0.05, "the corrections do something"


@pytest.mark.parametrize("model", ["irn", "irn_a"])
def test_codes_beyond_what_a_file_holds_are_corrected_as_in_pytorch(make_net, model):
    """A picture of black and white edges, and a flow that answers with codes far outside."""
    net = make_net(model, 2, corrections=2)
    with torch.no_grad():
        net.levels[0][0].F.convs[4].bias += 1.5
    hr = np.kron(np.random.default_rng(0).integers(0, 2, (1, 12, 10, 1)) * 255, np.ones((1, 2, 2, 3))).astype(np.uint8)
    want = reference(net, hr)["lr"]
    found = session_of(graphs.downscale(net).model({}).SerializeToString()).run(None, {"hr": hr})[0]
    assert np.abs(found.astype(int) - want).max() <= 1
    assert (found != want).mean() <= 1e-2


def test_no_step_is_longer_than_the_limit(make_net, picture):
    free, net = (make_net("irn", 2, corrections=2, correction_limit=limit) for limit in (0.0, 0.5))
    hr = picture(24, 20, 0)[None]
    want, flow = reference(net, hr)["lr"], reference(net.with_corrections(0), hr)["lr"].astype(int)
    found = session_of(graphs.downscale(net).model({}).SerializeToString()).run(None, {"hr": hr})[0]
    assert (found != want).mean() <= 1e-3
    assert np.abs(found - flow).max() <= 2 * 0.5 + 1 < np.abs(reference(free, hr)["lr"] - flow).max()


@pytest.mark.parametrize("precision", ["mixed", "fp16"])
@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_their_subnets_are_float16_and_their_stream_is_not(make_net, model, precision):
    graph = graphs.downscale(make_net(model, 2, corrections=2), precision).model({})
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    kinds |= {t.name: t.data_type for t in graph.graph.initializer}
    own = [n for n in graph.graph.node if n.name.startswith("correction") and n.op_type != "Cast"]
    found = {}
    for node in own:
        given = {kinds[i] for i in node.input if kinds.get(i) in (TensorProto.FLOAT, TensorProto.FLOAT16)}
        assert len(given) <= 1 or node.op_type == "Resize", f"{node.name} takes both: a strongly typed parser refuses it"
        found.setdefault(SUBNET.search(node.name) is not None, set()).add(kinds[node.output[0]])
    others = {TensorProto.BOOL, TensorProto.INT64}
    assert found[True] - others == {TensorProto.FLOAT16}
    assert found[False] - others == {TensorProto.FLOAT}


@pytest.mark.parametrize(("model", "scale"), [("irn_a", 2), ("irn_m", 4), ("dlv_irn", 2)])
def test_float16_moves_no_code_far(make_net, tmp_path, picture, model, scale):
    """Rounded as a device rounds; pictures of noise and of black and white, whose slopes are far beyond those of photographs."""
    write_bundle(make_net(model, scale, corrections=2), tmp_path / "b", None, ("mixed",))
    bundle = Bundle(tmp_path / "b")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 48, 3), np.uint8)
    for image in (picture(32, 48, 1), noise, np.where(noise < 128, np.uint8(0), np.uint8(255))):
        exact, rounded = (
            run("downscale", {"hr": image[None]})["lr"].astype(int)
            for run in (create(bundle, "onnxruntime", 1, "fp32").run, HalfRunner(bundle, "mixed", 1).run)
        )
        assert np.abs(exact - rounded).max() <= 2
        assert (exact != rounded).mean() < 0.1


def test_filters_that_corrections_share_are_stored_once(make_net):
    net = make_net("irn_a", 2, corrections=2)
    two = graphs.downscale(net).constants
    net.corrections = net.corrections[:1]
    one = set(graphs.downscale(net).constants)
    more = [name for name, t in two.items() if name not in one and math.prod(t.dims) >= FILTER_VALUES]
    assert more
    assert not [name for name in more if "level" in name], "of the second one only its own block is new"


@pytest.mark.parametrize(("model", "scale"), [("irn_a", 2), ("irn_a", 4), ("irn_m", 2), ("irn_m", 4)])
@torch.no_grad()
def test_a_code_depends_on_no_more_than_the_receptive_field(make_net, model, scale):
    net = make_net(model, scale, corrections=2).double()
    net.corrections = net.corrections[:1]
    field = graphs.receptive_field(net)
    assert field["downscale"] == 3 * field["upscale"] + 5 + (2 * LATENT_HALO if model == "irn_m" else 0)
    at = -(-field["downscale"] // LATENT_STRIDE) * LATENT_STRIDE
    side = 2 * at + 4
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, side * scale, side * scale, generator=g, dtype=torch.float64)
    other, block = x.clone(), slice(at * scale, (at + 1) * scale)
    other[..., block, block] = torch.rand(1, 3, scale, scale, generator=g, dtype=torch.float64)

    def codes(picture):
        y, z = net(picture)
        coder = net.autoencoder
        return net.correct(picture, y, torch.zeros_like(z) if coder is None else coder.decode(coder.encode(z), *z.shape[2:]))

    delta = (codes(other) - codes(x))[0].abs().amax(0)
    rows, columns = torch.nonzero(delta, as_tuple=True)
    reach = int(torch.maximum((rows - at).abs(), (columns - at).abs()).max())
    assert field["upscale"] < reach <= field["downscale"]


def test_the_manifest_says_so(make_net, corrected_pair):
    net = make_net("irn_a", 2, corrections=2)
    one, other = (Bundle(p) for p in corrected_pair)
    assert (one.corrections, other.corrections) == (2, 0)
    assert (one.weights, one.network) == (flow_digest(net), weights_digest(net))
    assert other.weights == other.network == one.weights
    fields = graphs.receptive_field(net)
    assert (one.receptive_field, one.upscale_receptive_field) == (fields["downscale"], fields["upscale"])
    assert one.upscale_halo <= one.halo <= one.receptive_field
    measured = one.manifest["halo"]
    assert measured["deviation"] <= measured["limit"] == LIMIT
    assert measured["deviation_rms"] <= measured["limit_rms"] == RMS_LIMIT
    assert other.upscale_receptive_field == other.receptive_field == fields["upscale"]
    assert "corrections" not in other.manifest
    assert one.memory("downscale") > one.memory("upscale") == other.memory("upscale")


def test_a_downscale_graph_says_so_by_itself(corrected_pair):
    """Where it lies without its manifest, as in a Triton repository."""
    for bundle in map(Bundle, corrected_pair):
        for precision, entries in bundle.precisions.items():
            for name in entries:
                graph = onnx.load_from_string(bundle.read_graph(name, precision))
                found = {p.key: p.value for p in graph.metadata_props}
                want = {
                    "model": "irn_a",
                    "scale": "2",
                    "precision": precision,
                    "weights": bundle.weights,
                    "colour": "RGB, uint8, NHWC",
                }
                if name == "downscale":
                    want |= {"corrections": str(bundle.corrections), "network": bundle.network}
                assert found == want
    assert len({Bundle(path).network for path in corrected_pair}) == 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 12), (33, 21), (64, 80)])
@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_either_bundle_restores_the_files_of_the_other(corrected_pair_of, picture, model, height, width):
    image = picture(height, width)
    first, second = corrected_pair_of(model)
    with rescale.load(first, threads=1) as one, rescale.load(second, threads=1) as other:
        small, plain = one.downscale(image), other.downscale(image)
        assert np.array_equal(one.upscale(small), other.upscale(small))
        assert np.array_equal(one.upscale(plain), other.upscale(plain))
        assert (small.latent is None) == (model == "irn_a")
        assert small.latent is None or np.array_equal(small.latent, plain.latent)
        if height > 8:
            assert not np.array_equal(small.rgb, plain.rgb)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_tiles_give_what_the_whole_picture_gives(corrected_pair_of, picture, model, exact):
    image = picture(150, 130)
    with rescale.load(corrected_pair_of(model)[0], threads=1, exact=exact) as net:
        whole, code = net.network.down(image)
        net.network.tile = (25, 30)
        assert len(net.network.tiles(75, 65, "downscale")) > 1
        tiled, tiled_code = net.network.down(image)
    assert np.array_equal(code, tiled_code)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert (whole != tiled).mean() <= (1e-3 if exact else 1e-2)


def test_refining_begins_where_they_end(corrected_pair, picture):
    image = picture(40, 36)
    with rescale.load(corrected_pair[0], threads=1) as net:
        plain, refined = (net.upscale(net.downscale(image, steps)) for steps in (0, 4))
    assert np.square(refined - image.astype(float)).sum() <= np.square(plain - image.astype(float)).sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["corrections"].update(count=-1), "where a whole number"),
        (lambda m: m["corrections"].update(sha256="no"), "corrections.sha256 is not 64 hexadecimal digits"),
        (lambda m: m["corrections"].pop("count"), "KeyError"),
        (lambda m: m["halo"].update(upscale_lr_pixels=m["halo"]["lr_pixels"] + 1), "where a whole number"),
        (lambda m: m["receptive_field"].update(upscale_lr_pixels="9"), "where a whole number"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(corrected_pair, tmp_path, change, message):
    shutil.copytree(corrected_pair[0], tmp_path / "b")
    m = json.loads((tmp_path / "b" / MANIFEST).read_text())
    change(m)
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(m))
    with pytest.raises(BundleError, match=message):
        Bundle(tmp_path / "b")


@pytest.mark.parametrize("nested", [False, True])
def test_the_command_leaves_them_out_on_demand(make_net, tmp_path, capsys, monkeypatch, nested):
    net = make_net("irn_a", 2, corrections=2)
    base = load_recipe("irn_a_x2_lite", {})
    recipe = dataclasses.replace(base, net=net.config, train=dataclasses.replace(base.train, flow_frozen=True, nested=nested))
    checkpoint.write(tmp_path / "w.safetensors", net.state_dict(), recipe, {"step": 1, "seconds": 1.0})
    monkeypatch.chdir(tmp_path)
    run = ["--model", "irn_a", "--scale", "2", "--checkpoint", "w.safetensors", "--precision", "fp32", "--out"]
    assert main([*run, "2"]) == 0
    assert main([*run, "0", "--corrections", "0"]) == 0
    said = capsys.readouterr().out
    assert "irn_a x2: weights of w.safetensors, 2 corrections of the encoder (--corrections 0 is some ten times faster)" in said
    assert "irn_a x2: weights of w.safetensors, 0 of 2 corrections of the encoder" in said
    assert main([*run, "1", "--corrections", "1"]) == (0 if nested else 1)
    if not nested:
        assert capsys.readouterr().err.endswith("w.safetensors: --corrections 1: it can have 0 or 2\n")
    wanted = "0 to 2" if nested else "0 or 2"
    assert main([*run, "3", "--corrections", "3"]) == 1
    assert capsys.readouterr().err.endswith(f"w.safetensors: --corrections 3: it can have {wanted}\n")
    bundles = [Bundle(tmp_path / str(count)) for count in ((0, 1, 2) if nested else (0, 2))]
    assert [b.corrections for b in bundles] == ([0, 1, 2] if nested else [0, 2])
    assert {b.weights for b in bundles} == {bundles[0].weights}
    assert len({b.network for b in bundles}) == len(bundles)


def test_corrections_that_are_not_there_cannot_be_asked_for(tmp_path, capsys):
    run = ["--model", "irn", "--size", "lite", "--out", str(tmp_path / "b"), "--corrections", "1"]
    assert main(run) == 1
    assert "irn_x2_lite.safetensors: --corrections 1: it can have 0\n" in capsys.readouterr().err
    assert main([*run[:-1], "-1"]) == 2


def test_a_card_says_nothing_of_corrections_that_were_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "irn", "--scale", "2", "--size", "medium", "--corrections", "0", "--precision", "fp32"]) == 0
    card = Bundle(tmp_path / "irn_x2_medium").manifest["weights"]["card"]
    assert card["recipe"]["train"]["steps"] == 600
    assert not {"figures", "validation", "parameters", "weights_sha256"} & card.keys()
    assert "shipped weights irn x2 medium, 0 of 3 corrections of the encoder\n" in capsys.readouterr().out, "no figure of others"


@pytest.mark.parametrize("model", ["irn_a", "irn_m"])
def test_memory_counts_every_tensor(make_net, monkeypatch, model):
    """Shape inference does not follow the sizes that -M pads and crops by; what it cannot tell would count as nothing."""
    seen = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *a, **k: seen.append(infer(*a, **k).graph) or infer(*a, **k))
    written = graphs.downscale(make_net(model, 2, corrections=2)).model({})
    assert bytes_per_lr_pixel(written, 2) > 0
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*seen[-1].value_info, *seen[-1].output)}
    assert {o for node in seen[-1].node for o in node.output} <= set(shapes)
    assert not [name for name, sides in shapes.items() if 0 in sides]
