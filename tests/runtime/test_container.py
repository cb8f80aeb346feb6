"""The LR file: every carrier and layout brings every byte back, and each way of spoiling a file has its own name."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from random_small import assert_same, small_of

import rescale
from rescale import Small, State, block, codes, planes, png, riff
from rescale.carrier import CARRIERS, CONTAINERS
from rescale.errors import InputError, LrFileError
from rescale.variants import VARIANTS

jxl_missing = not pytest.importorskip("importlib.util").find_spec("imagecodecs")
LAYOUTS = ("alpha", "chunk", "strip")
CONTAINERS_HERE = [c for c in CONTAINERS if c != "jxl" or not jxl_missing]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.sampled_from([2, 4]),
    st.integers(1, 67),
    st.integers(1, 67),
    st.sampled_from(CONTAINERS_HERE),
    st.sampled_from(LAYOUTS),
    st.sampled_from(CARRIERS),
    st.integers(0, 3),
)
def test_every_byte_survives(model, scale, width, height, container, layout, carrier, seed):
    colour = ((b"gAMA", b"\0\0\xb1\x8f"), (b"pHYs", b"\0\0\x0b\x13\0\0\x0b\x13\1")) if seed % 2 else ()
    small = small_of(model, scale, width, height, seed, colour=colour, gray=seed == 3)
    data, sidecar = small.encode(container, layout, carrier)
    assert (sidecar is not None) == (carrier == "sidecar")
    assert_same(Small.from_bytes(data, sidecar=sidecar), small)
    if carrier == "sidecar":
        assert Small.from_bytes(data).state is State.FOREIGN


def test_alpha_zigzag_is_a_bijection_without_zero():
    every = np.arange(1, 256, dtype=np.uint8)
    stored = codes.alpha_to_file(every)
    assert sorted(stored) == list(range(1, 256))
    assert np.array_equal(codes.alpha_from_file(stored), every)
    assert [int(codes.alpha_to_file(np.uint8(c))) for c in (128, 127, 129, 126, 1, 255)] == [255, 254, 253, 252, 2, 1]
    assert codes.alpha_from_file(np.zeros(1, np.uint8))[0] == codes.ALPHA_NEUTRAL


def by_hand(data: bytes) -> tuple[bytes, dict[bytes, bytes], np.ndarray]:
    """Integrity block and sections of a PNG, and its pixels, as docs/file-format.md says where they are."""
    own = b"".join(c.data[4:] for c in png.read_chunks(data, "x") if c.kind == b"reSc")
    (count,) = struct.unpack_from("<I", own, 160)
    sections, at = {}, 164
    for _ in range(count):
        name, length = struct.unpack_from("<4sI", own, at)
        sections[name] = own[at + 8 : at + 8 + length]
        at += 8 + length
    assert own[at:] == hashlib.sha256(own[:at]).digest()
    return own, sections, np.array(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("model", "layout"), [("irn_a", "alpha"), ("irn_a", "chunk"), ("irn_a", "strip"), ("irn_m", "none"), ("irn", "none")]
)
def test_the_digests_are_those_that_the_format_says(model, layout):
    """Taken from the file without our code: what writes and reads with one mistake agrees with itself."""
    width, height = 18, 13
    small = small_of(model, 2, width, height)
    own, sections, pixels = by_hand(small.to_bytes() if layout == "none" else small.to_bytes(layout=layout))
    if layout == "alpha":
        codes_of = [128, *(code for k in range(1, 128) for code in (128 - k, 128 + k))]
        auxiliary = bytes(codes_of[255 - stored] for stored in pixels[:, :, 3].flat)
    elif layout == "strip":
        rows = [pixels[height + r, :, c] for r in range(5) for c in range(3)]
        auxiliary = b"".join(row.tobytes() for row in rows[:height])
    else:
        auxiliary = b"".join(Image.open(io.BytesIO(plane)).tobytes() for plane in sections.values())
    assert {"chunk": [b"ALPH"], "none": [b"LATN"] if model == "irn_m" else []}.get(layout, []) == list(sections)
    assert len(auxiliary) == {"irn_a": width * height, "irn_m": 4 * 5 * 4, "irn": 0}[model]
    assert own[96:128] == hashlib.sha256(pixels[:height, :, :3].tobytes()).digest()
    assert own[128:160] == hashlib.sha256(auxiliary).digest()


def test_layouts_look_as_promised(tmp_path):
    small = small_of("irn_a", 2, 20, 13)
    alpha = Image.open(io.BytesIO(small.to_bytes(layout="alpha")))
    assert alpha.mode == "RGBA"
    assert alpha.size == (20, 13)
    assert np.array(alpha)[:, :, 3].min() >= 1
    chunk = Image.open(io.BytesIO(small.to_bytes(layout="chunk")))
    assert (chunk.mode, chunk.size) == ("RGB", (20, 13))
    strip = Image.open(io.BytesIO(small.to_bytes(layout="strip")))
    assert (strip.mode, strip.size) == ("RGB", (20, 13 + 5))


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_strip_and_coded_planes_are_exact(height, width):
    rng = np.random.default_rng((height, width))
    rgb, plane = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 256, (height, width), np.uint8)
    joined = planes.add_strip(rgb, plane)
    assert joined.shape[0] == height + planes.strip_rows(height)
    a, b = planes.take_strip(joined, height)
    assert np.array_equal(a, rgb)
    assert np.array_equal(b, plane)
    assert np.array_equal(planes.decode(planes.encode(plane), plane.shape, "x"), plane)


def test_coded_plane_of_another_size_is_refused_before_it_is_decoded():
    bomb = png.encode(np.zeros((3000, 3000), np.uint8))
    with pytest.raises(InputError, match="a coded plane of 3000x3000, wanted 5x4"):
        planes.decode(bomb, (4, 5), "x")


def test_the_limit_on_pixels_holds_for_the_transparency_that_is_carried():
    plane = np.full((48, 64), 7, np.uint8)
    small = replace(small_of("irn", 4, 16, 12), source_alpha=plane)
    data = small.to_bytes()
    assert np.array_equal(Small.from_bytes(data, max_pixels=48 * 64).source_alpha, plane)
    with pytest.raises(InputError, match="transparency of an HR picture of 64x48, above the limit of 3071 pixels; raise it"):
        Small.from_bytes(data, max_pixels=48 * 64 - 1)


def test_a_coded_plane_is_decoded_without_copies_of_three_channels():
    data = planes.encode(np.zeros((2000, 2000), np.uint8))
    tracemalloc.start()
    planes.decode(data, (2000, 2000), "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 2000 * 2000


def test_paths_bytes_and_streams_are_the_same(tmp_path):
    small = small_of("dlv_irn_a", 4, 11, 7)
    small.save(tmp_path / "s.png")
    data = (tmp_path / "s.png").read_bytes()
    for source in (tmp_path / "s.png", str(tmp_path / "s.png"), data, io.BytesIO(data)):
        assert_same(Small.open(source), small)


@pytest.mark.parametrize("container", CONTAINERS_HERE)
def test_moving_between_lossless_containers_keeps_the_promise(container):
    small = small_of("dlv_irn_a", 2, 30, 20)
    moved = small
    for target in (container, "webp", "png"):
        moved = Small.from_bytes(moved.to_bytes(target, layout="chunk"))
        assert_same(moved, small)


def rewritten(data: bytes, change) -> bytes:
    """The file as Pillow would save it after a change of its pixels, with our chunks put back: a tool that keeps chunks."""
    image = change(Image.open(io.BytesIO(data)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    kept = [(c.kind, c.data) for c in png.read_chunks(data, "x") if c.kind == b"reSc"]
    return png.insert(buffer.getvalue(), kept)


def test_states_are_told_apart():
    a, m = small_of("dlv_irn_a", 2, 40, 30).to_bytes(), small_of("irn_m", 2, 40, 30).to_bytes()
    plain_png = png.encode(np.zeros((5, 5, 3), np.uint8))
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(m)).convert("RGB").save(jpeg, "JPEG")
    premultiplied = rewritten(a, lambda i: i.convert("RGBa").convert("RGBA"))
    newer = block.encode(Small.from_bytes(m).block)
    newer = newer[:4] + b"\x02" + newer[5:]
    cases = [
        (a, State.EXACT),
        (rewritten(a, lambda i: i), State.EXACT),
        (rewritten(a, lambda i: i.resize((20, 15))), State.CHANGED),
        (rewritten(m, lambda i: i.rotate(180)), State.CHANGED),
        (premultiplied, State.CHANGED),
        (rewritten(a, lambda i: i.convert("RGB")), State.STRIPPED),
        (plain_png, State.FOREIGN),
        (jpeg.getvalue(), State.FOREIGN),
        (png.insert(plain_png, [(b"reSc", b"\0\0\0\1junk")]), State.DAMAGED),
        (png.insert(plain_png, [(b"reSc", b"\0")]), State.DAMAGED),
        (png.insert(png.critical_only(png.read_chunks(m, "x")), [(b"reSc", b"\0\0\0\1" + newer)]), State.NEWER),
    ]
    for index, (data, want) in enumerate(cases):
        small = Small.from_bytes(data)
        assert small.state is want, (index, small.detail)
        if want is not State.EXACT:
            assert small.alpha is None
            assert small.latent is None
            assert small.detail
            with pytest.raises(LrFileError, match="written from an exact picture only"):
                small.to_bytes()


def test_a_latent_that_was_exchanged_is_never_used():
    one, two = small_of("irn_m", 2, 40, 30, seed=0), small_of("irn_m", 2, 40, 30, seed=2)
    foreign = [c.data for c in png.read_chunks(two.to_bytes(), "x") if c.kind == b"reSc"]
    mixed = Small.from_bytes(png.insert(one.to_bytes(), [(b"reSc", d) for d in foreign]))
    assert mixed.state is State.CHANGED
    assert mixed.latent is None


def test_missing_section_is_stripped_not_exact():
    small = small_of("dlv_irn_m", 2, 16, 16)
    bare = block.encode(small.block)
    data = png.insert(png.encode(small.rgb), [(b"reSc", b"\0\0\0\1" + bare)])
    found = Small.from_bytes(data)
    assert found.state is State.STRIPPED
    assert "latent code is missing" in found.detail


def test_large_blocks_travel_in_numbered_parts(monkeypatch):
    from rescale import carrier

    monkeypatch.setattr(carrier, "PART_BYTES", 100)
    small = small_of("irn_m", 2, 60, 60)
    data = small.to_bytes()
    own = [c for c in png.read_chunks(data, "x") if c.kind == b"reSc"]
    assert len(own) > 3
    assert_same(Small.from_bytes(data), small)
    others = [c for c in png.read_chunks(data, "x") if c.kind != b"reSc"]
    head, tail = others[:1], others[1:]
    assert_same(Small.from_bytes(png.assemble([*head, *reversed(own), *tail])), small)
    assert Small.from_bytes(png.assemble([*head, *own[1:], *tail])).state is State.DAMAGED
    assert Small.from_bytes(png.assemble([*head, own[0], *own, *tail])).state is State.DAMAGED


def test_text_survives_the_forms_that_tools_give_it():
    small = small_of("irn_m", 2, 24, 24)
    data = small.to_bytes(carrier="text")
    image = Image.open(io.BytesIO(data))
    text = image.info["rescale"]
    for compressed in (False, True):
        for international in (False, True):
            info = PngImagePlugin.PngInfo()
            (info.add_itxt if international else info.add_text)("rescale", text, zip=compressed)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", pnginfo=info)
            assert_same(Small.from_bytes(buffer.getvalue()), small)


def test_text_that_is_too_much_or_a_bomb_is_refused(monkeypatch):
    import zlib

    from rescale import carrier

    data = png.encode(np.zeros((4, 4, 3), np.uint8))
    for body, what in ((zlib.compress(b"A" * 50_000_000), "too long"), (b"junk", "inflate"), (zlib.compress(b"!!"), "base64")):
        bad = Small.from_bytes(png.insert(data, [(b"zTXt", b"rescale\0\0" + body)]))
        assert bad.state is State.DAMAGED
        assert what in bad.detail
    monkeypatch.setattr(carrier, "MAX_TEXT_BYTES", 10)
    with pytest.raises(InputError, match="use --carrier chunk or sidecar"):
        small_of("irn", 2, 4, 4).to_bytes(carrier="text")


@pytest.mark.parametrize("name", ["s.jpg", "s.avif", "s", "s.gif"])
def test_lossy_or_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"an LR file is lossless: name it s.png or s.webp or s.jxl"):
        small_of("irn", 2, 4, 4).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("container", "gif"), ("layout", "left"), ("carrier", "pigeon")])
def test_unknown_options_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} '{value}': choose one of"):
        small_of("irn_a", 2, 4, 4).encode(**{option: value})


def test_webp_too_large_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="WebP holds at most 16383 pixels a side; write a PNG"):
        riff.encode(np.zeros((1, 16384, 3), np.uint8))


def test_strip_leaves_nothing_behind():
    small = Small.from_bytes(small_of("dlv_irn_a", 2, 20, 20).to_bytes())
    data = small.without_auxiliary().to_bytes()
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert Small.from_bytes(data).state is State.FOREIGN
    assert b"reSc" not in data


def test_block_fields_are_checked():
    good = block.encode(small_of("irn", 2, 5, 5).block)
    assert block.decode(good).model == "irn"
    for end in (0, 4, 100, len(good) - 1):
        with pytest.raises(block.DamagedBlockError):
            block.decode(good[:end])
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x55
        with pytest.raises((block.DamagedBlockError, block.NewerFormatError)):
            block.decode(bytes(bad))


def test_force_takes_the_neutral_road(bundle, picture):
    image = picture(26, 34)
    with rescale.load(bundle("dlv_irn_a", 2)) as net:
        small = net.downscale(image)
        stripped = Small.from_bytes(rewritten(small.to_bytes(), lambda i: i.convert("RGB")))
        with pytest.raises(LrFileError, match=r"alpha plane was changed or dropped.*--force"):
            net.upscale(stripped)
        neutral = net.network.up(small.rgb, None, None)
        assert np.array_equal(net.upscale(stripped, strict=False), neutral[:26, :34])


def test_small_blocks_are_written_twice_and_one_copy_is_enough():
    for model, container in (("dlv_irn_a", "png"), ("irn", "png"), ("dlv_irn_a", "webp")):
        small = small_of(model, 2, 12, 10)
        data = small.to_bytes(container)
        if container == "png":
            chunks = png.read_chunks(data, "x")
            own = next(i for i, c in enumerate(chunks) if c.kind == b"reSc")
            text = next(i for i, c in enumerate(chunks) if c.kind == b"zTXt")
            for gone in (own, text):
                assert_same(Small.from_bytes(png.assemble([*chunks[:gone], *chunks[gone + 1 :]])), small)
            hurt = png.Chunk(b"reSc", b"\0\0\0\1RSCL junk", True)
            assert_same(Small.from_bytes(png.assemble([*chunks[:own], hurt, *chunks[own + 1 :]])), small)
        else:
            pieces = riff.read_chunks(data, "x")
            for gone in (b"RSCL", b"XMP "):
                assert_same(Small.from_bytes(riff.assemble([p for p in pieces if p[0] != gone])), small)


def test_strip_refuses_what_it_cannot_judge(tmp_path):
    small = small_of("dlv_irn_a", 2, 20, 30)
    data = small.to_bytes(layout="strip")
    without_marker = png.critical_only(png.read_chunks(data, "x"))
    resized = rewritten(data, lambda i: i.resize((10, 20)))
    for bad in (without_marker, resized, png.insert(without_marker, [(b"reSc", b"\0\0\0\1junk")])):
        with pytest.raises(LrFileError, match="what of it is auxiliary data cannot be told"):
            Small.from_bytes(bad).without_auxiliary()
    assert Small.from_bytes(data).without_auxiliary().pixels.shape == (30, 20, 3)


def test_a_lost_marker_can_be_replaced_by_trust(bundle, picture):
    image = picture(24, 36)
    with rescale.load(bundle("dlv_irn_a", 2)) as net, rescale.load(bundle("irn", 2)) as plain:
        small = net.downscale(image)
        lost = Small.from_bytes(png.critical_only(png.read_chunks(small.to_bytes(), "x")))
        assert lost.state is State.FOREIGN
        assert np.array_equal(net.upscale(lost, trust_alpha=True), net.upscale(small))
        opaque = Small.from_bytes(png.encode(small.rgb))
        for runtime, file in ((plain, lost), (net, opaque)):
            with pytest.raises(LrFileError, match="carries no marker"):
                runtime.upscale(file, trust_alpha=True)
            assert runtime.upscale(file, strict=False, trust_alpha=True).shape == (24, 36, 3)
        premultiplied = Small.from_bytes(rewritten(small.to_bytes(), lambda i: i.convert("RGBa").convert("RGBA")))
        assert premultiplied.state is State.CHANGED
        got, want = net.upscale(premultiplied, trust_alpha=True), net.upscale(small)
        forced = net.upscale(premultiplied, strict=False)
        assert rescale.psnr(got, want) > rescale.psnr(forced, want)
        # What has another number of pixels, or another model's marker, is not helped by trust.
        resized = Small.from_bytes(rewritten(small.to_bytes(), lambda i: i.resize((9, 6))))
        with pytest.raises(LrFileError, match="it has 9x6 pixels where its marker says 18x12"):
            net.upscale(resized, trust_alpha=True)
        with rescale.load(bundle("irn_a", 2)) as other, pytest.raises(LrFileError, match="made by dlv_irn_a"):
            other.upscale(small, trust_alpha=True)


def one_code_off(image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    pixels[3, 4, 3] -= 1
    return Image.fromarray(pixels)


def test_trust_is_offered_where_an_alpha_channel_may_be_minus_as():
    a, m = small_of("dlv_irn_a", 2, 40, 30), small_of("dlv_irn_m", 2, 40, 30)
    bare = png.critical_only(png.read_chunks(a.to_bytes(), "x"))
    cases = [
        (bare, "dlv_irn_a", State.FOREIGN, True),
        (rewritten(a.to_bytes(), lambda i: i.convert("RGBa").convert("RGBA")), "dlv_irn_a", State.CHANGED, True),
        (rewritten(a.to_bytes(), one_code_off), "dlv_irn_a", State.STRIPPED, True),
        (bare, "dlv_irn_m", State.FOREIGN, False),
        (png.encode(a.rgb), "dlv_irn_a", State.FOREIGN, False),
        (rewritten(a.to_bytes(), lambda i: i.convert("RGB")), "dlv_irn_a", State.STRIPPED, False),
        (rewritten(a.to_bytes(), lambda i: i.resize((9, 6))), "dlv_irn_a", State.CHANGED, False),
        (a.to_bytes(), "irn_a", State.OTHER_MODEL, False),
        (m.to_bytes(), "dlv_irn_a", State.OTHER_MODEL, False),
    ]
    for data, model, state, offered in cases:
        with pytest.raises(LrFileError) as refusal:
            Small.from_bytes(data).require(model, 2, a.block.weights)
        assert refusal.value.state is state
        assert ("made it and a tool saved it again, --trust-alpha restores it" in str(refusal.value)) == offered, refusal.value
        assert "(--force restores without its auxiliary data)" in str(refusal.value)


def test_the_smallest_damage_to_alpha_is_trusted_as_larger_is(bundle, picture):
    with rescale.load(bundle("dlv_irn_a", 2), threads=1) as net:
        small = net.downscale(picture(25, 35))
        hurt = Small.from_bytes(rewritten(small.to_bytes(), one_code_off))
        assert (hurt.state, hurt.alpha) == (State.STRIPPED, None)
        assert int((hurt.unverified_alpha != small.alpha).sum()) == 1
        want, got = net.upscale(small), net.upscale(hurt, trust_alpha=True)
        assert got.shape == want.shape
        assert rescale.psnr(got, want) > rescale.psnr(net.upscale(hurt, strict=False), want)


def test_a_newer_copy_does_not_hide_one_that_can_be_read():
    small = small_of("dlv_irn_a", 2, 12, 10)
    pieces = [(k, b"RSCL\x02" + d[5:] if k == b"RSCL" else d) for k, d in riff.read_chunks(small.to_bytes("webp"), "x")]
    assert_same(Small.from_bytes(riff.assemble(pieces)), small)
    only = riff.assemble([p for p in pieces if p[0] != b"XMP "])
    assert Small.from_bytes(only).state is State.NEWER
