"""Files that somebody made to do harm: graphs that read other files, text for terminals, pipes, PNGs of two meanings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import rescale
from rescale import block as blocks
from rescale import png
from rescale.console import printable
from rescale.container import Small
from rescale.errors import InputError

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

EVIL = "\x1b]0;title\x07\x1b[2Jx\rfake\nerror: forged"


@pytest.fixture
def program(built, ort):
    """Runs rescale-cpp; gives its exit code, standard output and standard error."""
    environment = os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}

    def call(*arguments: object) -> tuple[int, str, str]:
        command = [str(built / "rescale-cpp"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return call


@pytest.fixture
def remade(bundle, tmp_path):
    """A bundle of irn_a x2 with another downscale graph, whose digest the manifest has."""

    def make(graph: bytes) -> Path:
        folder = tmp_path / f"bundle{len(list(tmp_path.iterdir()))}"
        shutil.copytree(bundle("irn_a", 2), folder)
        (folder / "downscale.onnx").write_bytes(graph)
        change(folder, lambda m: m["graphs"]["downscale"].update(sha256=hashlib.sha256(graph).hexdigest()))
        return folder

    return make


def change(folder: Path, edit) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def original(bundle) -> onnx.ModelProto:
    return onnx.load(bundle("irn_a", 2) / "downscale.onnx")


def moved_out(tensor: TensorProto, place: str) -> None:
    """The values of a tensor are to be read from another file."""
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", "0"), ("length", str(size))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def outside(place: str = "weights.bin") -> TensorProto:
    tensor = helper.make_tensor("secret", TensorProto.FLOAT, [4], bytes(16), raw=True)
    moved_out(tensor, place)
    return tensor


def in_an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=outside()))


def in_a_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["secret"], ["out"])], "branch", [], [], [outside()])
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))


def in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["out"], value=outside())
    model.functions.append(helper.make_function("own", "f", [], ["out"], [node], [helper.make_opsetid("", 17)]))


def in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(outside(), indices, [9]))


def as_a_compiled_part(model: onnx.ModelProto) -> None:
    node = helper.make_node("EPContext", [], ["unused"], domain="com.microsoft", embed_mode=0, ep_cache_context="../x.engine")
    model.graph.node.insert(0, node)


def as_a_weight(place: str):
    def put(model: onnx.ModelProto) -> None:
        weights = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
        moved_out(max(weights, key=lambda i: len(i.raw_data)), place)

    return put


def test_a_graph_that_refers_to_other_files_is_refused(native, failure, bundle, remade, picture):
    hr = picture(10, 12)
    secret = Path(os.path.relpath(bundle("irn_a", 2) / "downscale.onnx"))
    for put in (
        as_a_weight("weights.bin"),
        as_a_weight(str(secret)),
        as_a_weight(str(secret.resolve())),
        as_a_weight("/dev/zero"),
        in_an_attribute,
        in_a_subgraph,
        in_a_function,
        in_a_sparse_tensor,
        as_a_compiled_part,
    ):
        model = original(bundle)
        put(model)
        folder = remade(model.SerializeToString())
        (folder / "weights.bin").write_bytes(bytes(1 << 20))
        own = native.load(folder)
        with pytest.raises(failure) as caught:
            own.downscale(hr)
        own.close()
        assert caught.value.kind == "bundle"
        assert str(caught.value).startswith(f"{folder}/downscale.onnx: ")
        assert str(caught.value).endswith("in another file, which no SHA-256 of the manifest covers; export the bundle again")


def field(number: int, body: bytes) -> bytes:
    """A message as a field of another."""
    size, length = len(body), b""
    while size >= 0x80:
        size, length = size >> 7, length + bytes([size & 0x7F | 0x80])
    return bytes([number << 3 | 2]) + length + bytes([size]) + body


def test_odd_encodings_hide_no_reference(native, failure, bundle, remade, picture):
    """What protobuf's decoder takes for a reference is one, however it is written; what neither can read is refused."""
    hr, data = picture(10, 12), original(bundle).SerializeToString()
    location = bytes([14 << 3])
    for tensor, kind in (
        (location + b"\x01", "bundle"),
        (location + b"\x81\x80\x80\x80\x10", "bundle"),  # 32 bits of it are 1
        (b"\xf0\x80\x00" + b"\x01", "bundle"),  # the field's number in more bytes than it needs
        (location + b"\x01" + location + b"\x00", "bundle"),
        (field(13, b""), "bundle"),
        (field(14, b""), "bundle"),
        (b"\x08\x00" * (1 << 20), "bundle"),
        (location + b"\xff" * 10, "backend"),
        (location, "backend"),
        (b"\x0b\x0c", "bundle"),  # a group
        (b"\x0a\x7f", "backend"),
    ):
        own = native.load(remade(data + field(7, field(5, tensor))))
        with pytest.raises(failure) as caught:
            own.downscale(hr)
        own.close()
        assert caught.value.kind == kind, tensor
        assert str(caught.value).endswith("export the bundle again"), tensor
    deep = b""
    for _ in range(200):  # the graph of an attribute of a node
        deep = field(1, field(5, field(6, deep)))
    own = native.load(remade(data + field(7, deep)))
    with pytest.raises(failure, match="not a whole ONNX file; export the bundle again"):
        own.downscale(hr)
    own.close()


def test_a_graph_that_says_that_its_weights_lie_in_it_is_taken(native, bundle, remade, picture):
    model, hr = original(bundle), picture(10, 12)
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    data = model.SerializeToString()
    assert len(data) > len(original(bundle).SerializeToString())
    results = []
    for folder in (remade(data), bundle("irn_a", 2)):
        own = native.load(folder)
        results.append(own.downscale(hr)[0])
        own.close()
    assert np.array_equal(*results)


def clean(text: str) -> list[str]:
    """Lines of what a program printed, none of which can steer a terminal."""
    assert all(c.isprintable() or c == "\n" for c in text), text
    return text.splitlines()


def test_names_in_files_reach_no_terminal(program, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    hr, lr, out = tmp_path / "hr.png", tmp_path / "lr.png", tmp_path / "out.png"
    hr.write_bytes(png.encode(picture(20, 20)))
    with rescale.load(path, backend="onnxruntime") as net:
        small = net.downscale(picture(20, 20))
    replace(small, block=replace(small.block, model=EVIL[:32])).save(lr)
    code, shown, _ = program("info", lr)
    assert code == 0
    assert f"model: {printable(EVIL[:32])}" in clean(shown)
    code, _, told = program("up", lr, out, "--bundle", path)
    assert (code, len(clean(told))) == (3, 1)
    assert printable(EVIL[:32]) in told
    code, _, told = program("up", lr, out, "--bundle", path, "--force")
    assert (code, len(clean(told))) == (0, 1)

    for key, status in (("size", 0), ("model", 1), ("format", 1)):
        folder = tmp_path / key
        shutil.copytree(path, folder)
        change(folder, lambda m, key=key: m.update({key: EVIL}))
        code, shown, told = program("down", hr, out, "--bundle", folder)
        assert (code, len(clean(shown)), len(clean(told))) == (status, 1 - status, status)
        assert printable(EVIL) in shown + told

    odd = tmp_path / f"{EVIL.replace('/', '')}.png"
    for arguments in (("info", odd), ("down", hr, odd, "--bundle", path), ("info", odd), ("up", odd, odd, "--bundle", path)):
        code, shown, told = program(*arguments)
        assert printable(odd) in shown + told
        assert len(clean(told)) == code
        clean(shown)
    code, _, told = program("down", hr, out, EVIL.replace("x", "--"))
    assert code == 2
    clean(told)


def test_the_example_prints_no_name_raw(built, ort, bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundle("irn_a", 2), folder)
    change(folder, lambda m: m.update(model=EVIL))
    command = [str(built / "rescale-frames"), "down", str(folder), "8x8"]
    environment = os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}
    done = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 1
    assert len(clean(done.stderr.decode())) == 1


def test_a_zero_byte_in_a_name_ends_no_message(program, bundle, picture, tmp_path):
    path, lr = bundle("irn_a", 2), tmp_path / "lr.png"
    with rescale.load(path, backend="onnxruntime") as net:
        small = net.downscale(picture(20, 20))
    replace(small, block=replace(small.block, model="irn_a\0evil")).save(lr)
    code, _, told = program("up", lr, tmp_path / "out.png", "--bundle", path)
    assert (code, len(clean(told))) == (3, 1)
    assert "made by irn_a\\x00evil x2 with weights" in told
    assert "not by irn_a x2 with weights" in told


def test_the_c_abi_makes_text_printable(native, failure):
    for text in (EVIL, "", "plain \u00e9"):
        assert native.printable(text) == printable(text)
    with pytest.raises(failure, match="text"):
        native.printable(None)


def test_printable_is_pythons(built):
    """Every code point that Unicode has assigned, and bytes that are not UTF-8, as Python has them in file names."""

    def assigned(point: int) -> bool:
        return unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")

    points = [chr(p) for p in range(1, sys.maxunicode + 1) if assigned(p) or p in (0xE000, 0xF8FF, 0xF0000, 0xFFFFD, 0x10FFFD)]
    bad = [bytes.fromhex(b) for b in ("80", "c0af", "c3", "e080af", "eda080", "f08080af", "f4908080", "ff", "e280")]
    texts = ["".join(points[i : i + 20_000]).encode() for i in range(0, len(points), 20_000)] + [b"a" + b + b"b" for b in bad]
    for text in texts:
        command = [str(built / "rescale-cpp"), "info", "x.png", "--max-pixels", os.fsdecode(text)]
        done = subprocess.run(command, capture_output=True)
        wanted = printable(text.decode("utf-8", "surrogateescape"))
        assert done.stderr.decode().splitlines()[0] == f"error: --max-pixels {wanted}: a whole number is wanted"


def test_onnx_runtime_says_nothing_by_itself(program, bundle, remade, picture, tmp_path):
    """It logs an error that it also gives: in colours, over several lines, with the names in the graph as they are."""
    hr = tmp_path / "hr.png"
    hr.write_bytes(png.encode(picture(20, 20)))
    model = original(bundle)
    result = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [4], [1, 7, 7, 4]))
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], [result], name=EVIL))
    running = model.SerializeToString()
    model.graph.node[-1].input[1] = EVIL
    loading = model.SerializeToString()
    for graph, words in ((running, "downscale failed in onnxruntime"), (loading, "downscale cannot be loaded by")):
        code, shown, told = program("down", hr, tmp_path / "out.png", "--bundle", remade(graph))
        assert (code, shown, len(clean(told))) == (1, "", 1)
        assert words in told


def test_the_librarys_errors_of_onnx_runtime_are_one_line(native, failure, bundle, remade, picture):
    model = original(bundle)
    model.graph.node[-1].op_type = EVIL
    own = native.load(remade(model.SerializeToString()))
    with pytest.raises(failure) as caught:
        own.downscale(picture(10, 12))
    own.close()
    assert str(caught.value).isprintable()
    assert "title" in str(caught.value)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["manifest.json", "downscale.onnx"])
def test_pipes_and_devices_in_a_bundle_are_refused(program, bundle, picture, tmp_path, name, kind):
    """Nobody writes to the pipe; the device never ends."""
    folder, hr = tmp_path / "bundle", tmp_path / "hr.png"
    shutil.copytree(bundle("irn_a", 2), folder)
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    hr.write_bytes(png.encode(picture(20, 20)))
    code, _, told = program("down", hr, tmp_path / "out.png", "--bundle", folder)
    wanted = "a pipe or a device; a regular file is wanted: put the file itself there"
    assert (code, told) == (1, f"error: {folder / name}: {wanted}\n")


def test_a_picture_may_come_through_a_pipe(program, bundle, picture, tmp_path):
    with rescale.load(bundle("irn_a", 2), backend="onnxruntime") as net:
        data = net.downscale(picture(20, 20)).to_bytes()
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        through = pool.submit(program, "info", pipe)
        pipe.write_bytes(data)
        assert "state: exact" in through.result(60)[1]


def header(width: int, height: int, colour: int = 2, depth: int = 8) -> png.Chunk:
    return png.Chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), True)


def lying_pngs() -> dict[str, tuple[list[png.Chunk], str]]:
    """PNGs that decoders read differently, and why each is refused."""
    raw = zlib.compress(bytes(49 * 16))
    one, end = header(16, 16), png.Chunk(b"IEND", b"", True)

    def chunk(kind: bytes, data: bytes = b"\0\1\0\1\0\1") -> png.Chunk:
        return png.Chunk(kind, data, True)

    whole, first, rest = chunk(b"IDAT", raw), chunk(b"IDAT", raw[:9]), chunk(b"IDAT", raw[9:])
    twice, unknown = "more than one IHDR chunk", "a critical chunk b'ABCD' that no PNG has"
    split = "other chunks between its IDAT chunks"
    four, indexed, indices = chunk(b"PLTE", bytes(12)), header(16, 16, 3), chunk(b"IDAT", zlib.compress(bytes(17 * 16)))
    return {
        "larger": ([one, header(16, 32), whole, end], twice),
        "behind": ([one, whole, header(16, 32), end], twice),
        "between": ([one, first, one, rest, end], split),
        "text between": ([one, first, chunk(b"tEXt", b"a\0b"), rest, end], split),
        "transparency between": ([one, first, chunk(b"tRNS"), rest, end], split),
        "transparency behind": ([one, whole, chunk(b"tRNS"), end], "tRNS behind IDAT"),
        "transparency twice": ([one, chunk(b"tRNS"), chunk(b"tRNS"), whole, end], "more than one tRNS chunk"),
        "palette behind": ([one, whole, chunk(b"PLTE"), end], "PLTE behind IDAT"),
        "palette behind nothing": ([one, chunk(b"IDAT", b""), chunk(b"PLTE"), whole, end], split),
        "palette twice": ([one, chunk(b"PLTE"), chunk(b"PLTE"), whole, end], "more than one PLTE chunk"),
        "unknown": ([one, chunk(b"ABCD"), whole, end], unknown),
        "unknown behind": ([one, whole, chunk(b"ABCD"), end], unknown),
        "no palette": ([indexed, indices, end], "PLTE is missing"),
        "transparency before": ([indexed, chunk(b"tRNS", b"\0"), four, indices, end], "tRNS before PLTE"),
        "too much transparency": ([indexed, four, chunk(b"tRNS", bytes(5)), indices, end], "tRNS of 5 bytes"),
        "no transparency": ([indexed, four, chunk(b"tRNS", b""), indices, end], "tRNS of 0 bytes"),
        "transparency of gray": ([one, chunk(b"tRNS", bytes(2)), whole, end], "tRNS of 2 bytes"),
        "transparency of colours": ([header(16, 16, 0), chunk(b"tRNS"), indices, end], "tRNS of 6 bytes"),
        "an empty palette": ([indexed, chunk(b"PLTE", b""), indices, end], "PLTE of 0 bytes for pixels of 8 bits"),
        "part of a colour": ([indexed, chunk(b"PLTE", bytes(7)), indices, end], "PLTE of 7 bytes for pixels of 8 bits"),
        "a large palette": ([indexed, chunk(b"PLTE", bytes(771)), indices, end], "PLTE of 771 bytes for pixels of 8 bits"),
        "a palette of more bits": ([header(16, 16, 3, 1), four, indices, end], "PLTE of 12 bytes for pixels of 1 bits"),
    }


def test_pngs_of_two_meanings_are_refused(native, failure, bundle):
    own = native.load(bundle("irn_a", 2))
    for name, (chunks, why) in lying_pngs().items():
        data = png.assemble(chunks)
        for call in (native.read, own.downscale_png):
            with pytest.raises(failure) as caught:
                call(data)
            assert caught.value.kind == "input", name
            assert str(caught.value).endswith(f": damaged PNG: {why}"), name
        with pytest.raises(InputError) as theirs:
            Small.from_bytes(data)
        assert str(theirs.value).endswith(f": damaged PNG: {why}"), name
    own.close()


def test_a_plane_of_two_meanings_is_damaged(native, bundle, picture):
    """The alpha plane in a file's block is a PNG too."""
    with rescale.load(bundle("irn_a", 2), backend="onnxruntime") as net:
        small = net.downscale(picture(20, 30))
    chunks = png.read_chunks(small.to_bytes(layout="chunk"), "x")
    block = blocks.decode(b"".join(c.data[4:] for c in chunks if c.kind == b"reSc"))
    plane = png.assemble([header(15, 10, 0), header(5, 3, 0), *png.read_chunks(block.sections[blocks.ALPHA_SECTION], "x")[1:]])
    changed = blocks.encode(replace(block, sections={**block.sections, blocks.ALPHA_SECTION: plane}))
    kept = [c for c in chunks if c.kind not in (b"reSc", b"zTXt")]
    found = native.read(png.assemble([kept[0], png.Chunk(b"reSc", b"\0\0\0\1" + changed, True), *kept[1:]]))
    assert found.state == "damaged"
    assert found.detail.endswith("damaged PNG: more than one IHDR chunk")


def test_pngs_with_chunks_of_others_are_read(native, picture):
    """Chunks that may be left out change nothing, before the pixels and behind them."""
    pixels = picture(9, 7)
    first, *rest = png.read_chunks(png.encode(pixels), "x")
    text = png.Chunk(b"tEXt", b"a\0b", True)
    pieces = [png.Chunk(b"IDAT", part, True) for c in rest if c.kind == b"IDAT" for part in (c.data[:20], b"", c.data[20:])]
    data = png.assemble([first, text, *pieces, text, rest[-1]])
    assert np.array_equal(native.read(data).rgb, pixels)
