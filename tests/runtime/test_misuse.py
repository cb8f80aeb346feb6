"""Damaged sources, and calls that make no sense: each is an error of ours that says what is wanted."""

from __future__ import annotations

import asyncio
import io
import pickle
import struct
import tempfile
import warnings

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import errors
from rescale.errors import BackendError, InputError, RescaleError
from rescale.memory import parse_memory


def encoded(kind: str, frames: int, picture) -> bytes:
    first, *more = [Image.fromarray(picture(20, 24, seed=n)) for n in range(frames)]
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=more)
    return out.getvalue()


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_a_picture_cut_anywhere_is_refused_by_name(kind, frames, picture):
    """Decoders raise many classes, some while they count frames, and warn."""
    data = encoded(kind, frames, picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in range(1, len(data), max(1, len(data) // 300)):
            try:
                assert rescale.read_picture(data[:end]).shape == (20, 24, 3)
            except RescaleError as e:
                assert "\n" not in str(e)  # noqa: PT017
    if frames == 2:
        with pytest.raises(InputError, match="has several frames"):
            rescale.read_picture(data)


def test_colours_multiplied_by_alpha_are_refused(picture):
    rgba = Image.fromarray(np.dstack([picture(8, 9), picture(8, 9)[:, :, 0]]))
    for kind in (1, 2):
        out = io.BytesIO()
        rgba.save(out, "TIFF")
        entry = struct.pack("<HHI", 338, 3, 1)
        assert out.getvalue().count(entry) == 1
        data = out.getvalue().replace(entry + struct.pack("<H", 2), entry + struct.pack("<H", kind))
        if kind == 1:
            with pytest.raises(InputError, match="multiplied by its alpha"):
                rescale.open_picture(data, "keep")
        else:
            assert np.array_equal(rescale.open_picture(data, "keep").planes()[:, :, :3], np.asarray(rgba)[:, :, :3])


@pytest.mark.parametrize("kind", [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RescaleError)])
def test_every_error_survives_a_process_pool(kind):
    error = kind("what happened", "foreign") if kind is errors.LrFileError else kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_code) == (kind, "what happened", kind.exit_code)
    assert getattr(again, "state", None) == getattr(error, "state", None)


@pytest.mark.parametrize("text", ["0.5", "0.0001K", "0"])
def test_a_budget_below_one_byte_is_refused(text):
    with pytest.raises(InputError, match="a size is wanted"):
        parse_memory(text)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"memory": 0}, InputError, "memory 0: a whole number of bytes is wanted"),
        ({"tile": 8}, InputError, "tile 8: "),
        ({"tile": (0, 0)}, InputError, r"tile \(0, 0\): "),
        ({"tile": (8, -3)}, InputError, r"tile \(8, -3\): "),
        ({"threads": 3_000_000_000}, BackendError, "threads: at most 4096, got 3000000000"),
        ({"threads": 0}, BackendError, "threads: at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(bundle, options, kind, message):
    with pytest.raises(kind, match=message):
        rescale.load(bundle("irn", 2), **options)


def test_only_an_lr_picture_is_upscaled(bundle, picture):
    with rescale.load(bundle("irn", 2)) as net:
        for wrong in (picture(8, 8), "s.png", None):
            with pytest.raises(InputError, match=f"an LR picture is wanted.*not {type(wrong).__name__}"):
                net.upscale(wrong)


def test_uploads_of_web_frameworks_are_read_or_told_what_to_do(picture):
    data = encoded("PNG", 1, picture)
    with tempfile.SpooledTemporaryFile(1 << 20) as kept, tempfile.TemporaryFile() as spilt:
        for upload in (kept, spilt):
            upload.write(data)
            upload.seek(0)
            assert rescale.read_picture(upload).shape == (20, 24, 3)
            with pytest.raises(InputError, match=r"^stream: empty"):
                rescale.read_picture(upload)

    class Upload:
        def read(self, size: int = -1) -> asyncio.Future[bytes]:
            return future

    loop = asyncio.new_event_loop()
    future = loop.create_future()
    for read in (rescale.open_picture, rescale.Small.open):
        with pytest.raises(InputError, match=r"^stream: cannot read: .* gives .*Future, not bytes; pass these, as of await "):
            read(Upload())
    loop.close()


def test_bytes_in_any_form_are_read_and_nothing_else_is(bundle, picture):
    """Web frameworks hand over a bytearray, sockets a memoryview; a picture with colour chunks has its own way through."""
    source = rescale.Picture(picture(8, 9), colour=((b"gAMA", bytes(4)),))
    with rescale.load(bundle("irn", 2)) as net:
        small = net.downscale(source)
    for container in ("png", "webp"):
        data, block = small.encode(container, carrier="sidecar")
        for form in (bytes, bytearray, memoryview):
            found = rescale.Small.from_bytes(form(data), sidecar=form(block))
            assert (found.state, found.colour) == (rescale.State.EXACT, source.colour)
            assert rescale.Small.open(form(small.to_bytes(container))).colour == source.colour
    for wrong in ("small.png", None, io.BytesIO(data), picture(4, 4)):
        with pytest.raises(InputError, match=f"the bytes of a file were expected; .*, got {type(wrong).__name__}"):
            rescale.Small.from_bytes(wrong)
    with pytest.raises(InputError, match="the bytes of a file were expected"):
        rescale.Small.from_bytes(data, sidecar="small.png.rescale")


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), [[1]]])
def test_only_rgb_is_written(tmp_path, array):
    with pytest.raises(InputError, match="expected, got"):
        rescale.write_picture(tmp_path / "x.png", array)
    assert not list(tmp_path.iterdir())


def test_options_of_no_provider_are_refused(bundle):
    with pytest.raises(BackendError, match="name it with provider="):
        rescale.load(bundle("irn", 2), provider_options={"use_arena": "0"})


@pytest.mark.parametrize(("most", "message"), [(15, "samples from 0 to 15, not to 255"), (65535, "more than 8 bits")])
def test_samples_of_a_pnm_that_end_elsewhere_are_refused(most, message):
    data = b"P5 # gray\n4 4 %d\n" % most + bytes(4 * 4 * (2 if most > 255 else 1))
    with pytest.raises(InputError, match=message):
        rescale.open_picture(data)
