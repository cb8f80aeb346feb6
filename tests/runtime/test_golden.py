"""Golden vectors: read as numpy writes them, and refused when broken."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescale import golden
from rescale.bundle import Bundle
from rescale.errors import BundleError
from rescale.golden import read_npy
from rescale.parity import golden_vectors

BundleOf = Callable[[str, int], Path]
Alter = Callable[..., Path]


def test_golden_arrays_round_trip() -> None:
    for array in (np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.float32([[1.5], [-2]]), np.zeros((0, 3), np.uint8)):
        for order in "CF":
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(array, order=order))  # type: ignore[call-overload]
            found = read_npy(buffer.getvalue())
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype
            assert found.flags.writeable


def npy(array: np.ndarray, **header: Any) -> bytes:
    buffer = io.BytesIO()
    if header:
        fields = {"descr": "|u1", "fortran_order": False, "shape": array.shape} | header
        np.lib.format.write_array_header_1_0(buffer, fields)  # type: ignore[arg-type]
        return buffer.getvalue() + array.tobytes()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_with(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no array as numpy writes it"),
        (b"no array at all", "no array as numpy writes it"),
        (npy(np.zeros(3, np.float64)), "an array of <f8; uint8 and float32 are read"),
        (npy(np.array([print, None])), r"an array of \|O"),
        (npy(np.zeros(3, ">f4")), "an array of >f4"),
        (npy(np.zeros(3, np.uint8), shape=(1 << 33,)), "with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(1 << 33,) * 4), "with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(2,)), r"shape \(2,\) and uint8 with 3 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(-1, -3)), "no array as numpy writes it"),
        (npy(np.zeros((0, 3), np.uint8), shape=(0,) + ((1 << 33),) * 3), "too big|too large|maximum"),
        (npy(np.zeros(3, np.uint8))[:-1], "with 2 bytes"),
        (npy(np.zeros(3, np.uint8), shape=(1 << 40,)), "no array as numpy writes it"),
        (npy(np.zeros((1,) * 5, np.uint8)), "no array as numpy writes it"),
        (npy(np.zeros(3, np.uint8)).replace(b"}  ", b"}\n "), "no array as numpy writes it"),
        (b"\x93NUMPY\x03\x00" + bytes(80), "no array as numpy writes it"),
        # What evaluates a header as Python fails on these in ways of its own, and the first ends the process (SIGFPE).
        (npy_with("{'descr':'<m8[1s/0]','fortran_order':False,'shape':(1,)}"), "no array as numpy writes it"),
        (npy_with("{'descr': ('f4',), 'fortran_order': False, 'shape': (1,), }"), "no array as numpy writes it"),
        (npy_with("("), "no array as numpy writes it"),
        (npy_with("{[]: 1}"), "no array as numpy writes it"),
        (npy_with("-" * 9000 + "1"), "no array as numpy writes it"),
    ],
)
def test_an_array_that_lies_is_refused_before_it_is_made(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_npy(data)


def repacked(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Callable[[str, bytes], bytes]:
    """A change of the golden file's entries."""

    def apply(_: str, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            entries = {n: z.read(n) for n in z.namelist()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
            for name, content in change(entries).items():
                z.writestr(name, content)
        return out.getvalue()

    return apply


GOLDEN_CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "empty": (lambda e: {}, "no case in it"),
    "gone": (lambda e: {n: b for n, b in e.items() if n != "1.z_hat.npy"}, "incomplete: case 1 has no z_hat"),
    "dtype": (lambda e: e | {"0.lr.npy": npy(np.zeros((1, 1, 1, 3), np.float32))}, r"case 0 has a lr of float32"),
    "shape": (lambda e: e | {"0.restored.npy": npy(np.zeros((1, 1, 2, 3), np.uint8))}, r"case 0 has a restored of uint8 \(1, 1,"),
    "odd": (lambda e: e | {"0.hr.npy": npy(np.zeros((1, 3, 2, 3), np.uint8))}, "in multiples of 2"),
    "rank": (lambda e: e | {"0.hr.npy": npy(np.zeros((2, 3), np.uint8))}, r"an hr of \(2, 3\)"),
    "code": (lambda e: e | {"0.code.npy": npy(np.zeros((1, 4, 2, 2), np.uint8))}, "case 0 has a code"),
    "pickle": (lambda e: e | {"2.z.npy": npy(np.array([print]))}, r"an array of \|O"),
    "many": (lambda e: e | {f"x{i}": b"" for i in range(1001)}, "more than 1000 arrays"),
    "bomb": (lambda e: e | {"x": bytes((256 << 20) + 1)}, "more than 268435456 bytes"),
}


@pytest.mark.parametrize("name", GOLDEN_CHANGES)
def test_broken_golden_vectors_are_refused(full_bundle: BundleOf, altered: Alter, name: str) -> None:
    change, message = GOLDEN_CHANGES[name]
    path = altered(full_bundle("irn_m", 2), repacked(change), "golden.npz")
    with pytest.raises(BundleError, match=rf"golden vectors cannot be read: .*{message}.*; export the bundle again"):
        golden_vectors(Bundle(path))


def test_a_golden_file_that_is_no_archive_is_refused(full_bundle: BundleOf, altered: Alter) -> None:
    def damage(_: str, data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes(64) + data[middle + 64 :]

    for change in (lambda _, data: b"no archive", lambda _, data: data[: len(data) // 2], damage):
        with pytest.raises(BundleError, match="golden vectors cannot be read"):
            golden_vectors(Bundle(altered(full_bundle("irn_m", 2), change, "golden.npz")))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_does_not_keep_to_its_size_is_refused(full_bundle: BundleOf, altered: Alter, method: int) -> None:
    """1271 bytes that say they are 100 took 3 GB."""

    def packed(_: str, data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as z:
            z.writestr("0.hr.npy", bytes(1 << 20))
        return out.getvalue()

    with pytest.raises(BundleError, match=f"'0.hr.npy' is packed by method {method}; numpy uses deflate or none"):
        golden_vectors(Bundle(altered(full_bundle("irn_m", 2), packed, "golden.npz")))


def test_entries_that_share_their_bytes_are_counted_each(
    full_bundle: BundleOf, altered: Alter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of many entries over the same bytes, each of which unpacks to next to nothing."""
    path = full_bundle("irn_m", 2)
    content = (path / "golden.npz").stat().st_size

    def listed_again(_: str, data: bytes) -> bytes:
        start, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
        directory = bytearray(data[start:end] * 20)
        at = 0
        while (at := directory.find(b"PK\x01\x02", at)) >= 0:
            directory[at + 24 : at + 28] = bytes(4)  # unpacked size
            at += 4
        tail = bytearray(data[end:])
        tail[12:16] = len(directory).to_bytes(4, "little")
        return data[:start] + directory + tail

    monkeypatch.setattr(golden, "MAX_GOLDEN_BYTES", 4 * content)
    with pytest.raises(BundleError, match=f"arrays of more than {4 * content} bytes"):
        golden_vectors(Bundle(altered(path, listed_again, "golden.npz")))
