"""LR files that are foreign, changed or damaged: the same states and refusals as Python, and never a silently wrong picture."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import png
from rescale.container import Small
from rescale.errors import InputError, LrFileError, RescaleError
from rescale.picture import Picture, open_picture

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

_PLACE = Path(__file__).resolve().parents[1] / "runtime" / "test_mutations.py"
_SPEC = importlib.util.spec_from_file_location("mutations_of_issue_b", _PLACE)
mutations = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mutations)

PLANES = ("rgb", "alpha", "latent", "source_alpha", "unverified_alpha")
MOST = mutations.MAX_PIXELS


def mutants(count: int, seed: int) -> list[tuple[Small, bytes, bytes | None]]:
    """Mutated PNG files of the corpus of tests/runtime/test_mutations.py, with the picture each came from."""
    files = []
    for model, container, layout, carrier in mutations.CORPUS:
        if container == "png":
            small = mutations.original(model)
            files.append((small, *small.encode(container, layout, carrier)))
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        small, data, sidecar = files[i % len(files)]
        if sidecar is not None and rng.random() < 0.6:
            sidecar = mutations.mutate(sidecar, rng)
        else:
            data = mutations.with_fresh_checksums(data, rng) if rng.random() < 0.5 else mutations.mutate(data, rng)
        out.append((small, data, sidecar))
    return out


def outcome(errors: type[Exception], call: Callable[..., Any], *arguments: object) -> Any:
    """What a call gives: its result, or the error that it raises."""
    try:
        return call(*arguments)
    except errors as e:
        return e


def pythons(data: bytes, sidecar: bytes | None) -> Small | RescaleError:
    return outcome(RescaleError, Small.from_bytes, data, "mutant", MOST, sidecar)


def natives(native, failure, data: bytes, sidecar: bytes | None):
    found = outcome(failure, native.read, data, "mutant", MOST, sidecar)
    assert not isinstance(found, failure) or found.kind == "input", found
    return found


def assert_same(mine, theirs) -> None:
    """An LR picture of the C++ library and one of Python's."""
    assert (mine.state, mine.detail) == (theirs.state, theirs.detail)
    for name in PLANES:
        a, b = getattr(mine, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        assert a is None or np.array_equal(a, b), name


def test_mutated_files_are_judged_as_python_judges_them(native, failure):
    tally: dict[str, int] = {}
    for i, (original, data, sidecar) in enumerate(mutants(3000, seed=11)):
        theirs, mine = pythons(data, sidecar), natives(native, failure, data, sidecar)
        refused = isinstance(theirs, RescaleError)
        assert refused == isinstance(mine, Exception), f"mutant {i}: {theirs!r}, C++ {getattr(mine, 'state', mine)}"
        if refused:
            # Decoders word damaged pixels differently; all else is word for word the same.
            if "damaged picture" not in str(theirs) and "not a P" not in str(mine) and "not a picture" not in str(theirs):
                assert str(mine) == str(theirs), i
            tally["refused"] = tally.get("refused", 0) + 1
            continue
        if "damaged picture" not in theirs.detail:
            assert_same(mine, theirs)
        else:
            assert mine.state == theirs.state, i
        if mine.state == "exact":
            assert np.array_equal(mine.rgb, original.rgb)
        tally[mine.state] = tally.get(mine.state, 0) + 1
    assert {"exact", "refused", "damaged", "pixels-changed", "newer-format", "foreign"} <= set(tally), tally


def test_pictures_are_read_and_refused_as_python_does(native, failure, bundle):
    own = native.load(bundle("irn", 2))
    gray, ramp = np.arange(256, dtype=np.uint8).reshape(16, 16), np.arange(768, dtype=np.uint8).reshape(16, 16, 3)

    def saved(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(buffer, "PNG", **options)
        return buffer.getvalue()

    cases = {
        "rgb": saved(ramp),
        "gray": saved(gray),
        "two levels": saved(gray, "1"),
        "palette": saved(ramp, "P"),
        "palette with transparency": saved(ramp, "P", transparency=3),
        "opaque": saved(np.dstack([ramp, np.full((16, 16), 255, np.uint8)])),
        "transparent": saved(np.dstack([ramp, gray])),
        "gray, transparent": saved(np.dstack([gray, gray])),
        "16 bits": saved(gray.astype(np.uint16) * 257),
        "animated": saved(ramp, save_all=True, append_images=[Image.fromarray(ramp[::-1].copy())]),
        "truncated": saved(ramp)[:-30],
        "changed": saved(ramp).replace(b"IDAT", b"IDAU"),
        "wide": saved(np.zeros((1, 70_000, 3), np.uint8)),
        "huge": b"\x89PNG\r\n\x1a\n" + png.assemble(_huge())[8:],
        "no picture": b"hello",
    }
    for name, data in cases.items():
        for rule in ("refuse", "keep"):
            wanted = outcome(InputError, open_picture, data, rule)
            if isinstance(wanted, InputError):
                with pytest.raises(failure) as caught:
                    own.downscale_png(data, keep=rule == "keep")
                assert caught.value.kind == "input", name
                mine, theirs = str(caught.value), str(wanted)
                if name in ("16 bits", "animated"):  # Python has an option for each, which C++ does without
                    mine, theirs = mine.split(";")[0], theirs.split(";")[0]
                assert mine == theirs or name == "no picture"
                continue
            small = Small.from_bytes(own.downscale_png(data, keep=rule == "keep")[0])
            with rescale.load(bundle("irn", 2), backend="onnxruntime") as net:
                same = net.downscale(wanted)
            assert np.array_equal(small.rgb, same.rgb), name
            assert small.block.source_mode == same.block.source_mode, name
            assert (small.source_alpha is None) == (same.source_alpha is None), name
            assert small.source_alpha is None or np.array_equal(small.source_alpha, same.source_alpha), name
    own.close()


def test_the_limit_on_pixels_holds_for_the_transparency_that_a_file_carries(native, failure, bundle, picture):
    hr = np.dstack([picture(16, 20), np.arange(16 * 20, dtype=np.uint8).reshape(16, 20)])
    with rescale.load(bundle("irn", 2), backend="onnxruntime") as net:
        data = net.downscale(open_picture(png.encode(hr), "keep")).to_bytes()
    assert native.read(data, max_pixels=320).state == "exact"
    for limit in (80, 319):
        with pytest.raises(InputError) as theirs:
            Small.from_bytes(data, "LR picture", limit)
        with pytest.raises(failure) as mine:
            native.read(data, max_pixels=limit)
        assert mine.value.kind == "input"
        assert str(mine.value) == str(theirs.value)


def _huge() -> list[png.Chunk]:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return [png.Chunk(b"IHDR", header, True), png.Chunk(b"IDAT", zlib.compress(bytes(99)), True), png.Chunk(b"IEND", b"", True)]


def test_lr_files_of_other_tools_are_read_as_python_reads_them(native, bundle, picture):
    """Palette, gray, 16 bits, interlacing, an alpha channel that a tool dropped: whatever holds the same pixels is exact."""
    with rescale.load(bundle("irn_a", 2), backend="onnxruntime") as net:
        for hr in (picture(20, 30), np.full((20, 30, 3), 9, np.uint8)):
            data = net.downscale(hr).to_bytes()
            chunks = png.read_chunks(data, "x")
            marker = [c for c in chunks if c.kind in (b"reSc", b"zTXt")]
            pixels = Image.open(io.BytesIO(data))
            for change in (
                lambda i: i,
                lambda i: i.convert("RGB"),
                lambda i: i.convert("L"),
                lambda i: i.convert("LA"),
                lambda i: i.quantize(256),
                lambda i: i.resize((7, 5)),
            ):
                buffer = io.BytesIO()
                change(pixels).save(buffer, "PNG")
                for kept in (marker, []):
                    again = png.read_chunks(buffer.getvalue(), "x")
                    mutant = png.assemble([again[0], *kept, *again[1:]])
                    assert_same(native.read(mutant), Small.from_bytes(mutant))


@pytest.mark.parametrize(("model", "other"), [("dlv_irn_a", "irn_a"), ("irn", "dlv_irn"), ("irn_m", "irn")])
def test_refusals_and_forced_restorations_are_pythons(native, failure, bundle, picture, model, other):
    hr = picture(26, 34)
    with rescale.load(bundle(model, 2), backend="onnxruntime") as net:
        own = native.load(bundle(model, 2))
        exact = net.downscale(hr).to_bytes()
        pixels = np.array(Image.open(io.BytesIO(exact)))
        block = [(c.kind, c.data) for c in png.read_chunks(exact, "x") if c.kind == b"reSc"]
        changed = []
        for channel in (0, pixels.shape[2] - 1):  # of colour, and of alpha where there is one
            nearly = pixels.copy()
            nearly[3, 4, channel] ^= 1
            changed.append(png.insert(png.encode(nearly), block))
        foreign = []
        for bundle_of_others in (bundle(other, 2), bundle(model, 4)):
            with rescale.load(bundle_of_others, backend="onnxruntime") as theirs:
                foreign.append(theirs.downscale(hr).to_bytes())
        for data in (exact, png.encode(pixels), *changed, *foreign, png.encode(hr)):
            mine, wanted = native.read(data), Small.from_bytes(data)
            assert_same(mine, wanted)
            for force, trust in ((False, False), (True, False), (False, True), (True, True)):
                restored = outcome(LrFileError, net.restore, wanted, not force, trust)
                if isinstance(restored, LrFileError):
                    with pytest.raises(failure) as caught:
                        own.restore_png(mine, force, trust)
                    assert (caught.value.kind, str(caught.value)) == ("lr_file", str(restored))
                else:
                    assert np.array_equal(np.array(Image.open(io.BytesIO(own.restore_png(mine, force, trust)))), restored.pixels)
        own.close()


def test_side_cars_that_cannot_be_read_are_judged_as_python_does(native, bundle, picture, tmp_path):
    with rescale.load(bundle("dlv_irn_a", 2), backend="onnxruntime") as net:
        data, sidecar = net.downscale(picture(26, 34)).encode("png", "alpha", "sidecar")
    file, beside = tmp_path / "small.png", tmp_path / "small.png.rescale"
    file.write_bytes(data)
    beside.mkdir()
    assert_same(native.open(file), Small.open(file))
    beside.rmdir()
    os.mkfifo(beside)
    assert_same(native.open(file), Small.open(file))
    beside.unlink()
    assert_same(native.open(file), Small.open(file))
    for content in (sidecar, sidecar[:50], b""):
        beside.write_bytes(content)
        assert_same(native.open(file), Small.open(file))


@pytest.mark.slow
def test_the_limit_on_a_carried_plane_is_the_callers(native):
    """Its own size bounds it, also above the limit that holds for pictures unless the caller says otherwise."""
    plane = np.zeros((16384, 11000), np.uint8)
    source = Picture(np.zeros((*plane.shape, 3), np.uint8), alpha=plane)
    rgb = np.zeros((8192, 5500, 3), np.uint8)
    data = Small.create(rgb, None, None, model="irn", scale=2, weights="ab" * 32, source=source).to_bytes()
    found = native.read(data, max_pixels=plane.size)
    assert found.state == "exact"
    assert np.array_equal(found.source_alpha, plane)
