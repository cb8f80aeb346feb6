"""Golden vectors: PyTorch's results for a few pictures, recorded at export, so that any backend can be checked without PyTorch.

Read as what they are, bytes from a stranger: no object is unpickled, and nothing is allocated that the file does not hold.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rescale.bundle import Bundle
from rescale.errors import BundleError
from rescale.variants import LATENT_CHANNELS, LATENT_STRIDE

MAX_GOLDEN_BYTES = 256 << 20
MAX_ARRAYS = 1000
DTYPES = {b"|u1": "uint8", b"<f4": "float32"}
"""All that a graph takes and gives, as the .npy format calls it."""

_DIRECTORY_ENTRY = b"PK\x01\x02"
"""What every entry of a zip archive's directory begins with."""

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([|<>=]?[a-zA-Z][0-9]{0,3})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,10}, ){0,3}[0-9]{1,10},?)?\), \} *\n",
    re.DOTALL,
)
"""All that numpy writes before an array of at most four dimensions. Its own reader evaluates the header as Python, which hostile
text makes fail in many ways, and with some of its dtypes end the process."""

Arrays = Mapping[str, npt.NDArray[Any]]


def golden_vectors(bundle: Bundle) -> list[dict[str, npt.NDArray[Any]]]:
    """PyTorch's results: per case ``hr`` uint8 (1, H, W, 3), ``lr``, ``restored``, and for -M ``z``, ``code``, ``z_hat``.

    Raises:
        BundleError: the file is missing, changed, or not such a file.
    """
    data = bundle.read_golden()
    cases: dict[int, dict[str, npt.NDArray[Any]]] = {}
    try:
        # Counted before zipfile makes something of each.
        if data.count(_DIRECTORY_ENTRY) > MAX_ARRAYS:
            raise ValueError(f"more than {MAX_ARRAYS} arrays")
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            entries = z.infolist()
            # Entries may share their bytes: a small file can say that it has many large ones.
            if max(sum(i.file_size for i in entries), sum(i.compress_size for i in entries)) > MAX_GOLDEN_BYTES:
                raise ValueError(f"arrays of more than {MAX_GOLDEN_BYTES} bytes")
            for entry in entries:
                # Of others zipfile unpacks more than an entry says that it holds.
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(
                        f"{entry.filename[:40]!r} is packed by method {entry.compress_type}; numpy uses deflate or none"
                    )
            for entry in entries:
                match = re.fullmatch(r"([0-9]{1,3})\.([a-z_]+)\.npy", entry.filename)
                if match:
                    cases.setdefault(int(match.group(1)), {})[match.group(2)] = read_npy(z.read(entry))
        if not cases:
            raise ValueError("no case in it")
        for i, case in cases.items():
            _check_case(bundle, i, case)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError) as e:
        raise BundleError(f"{bundle.path}: golden vectors cannot be read: {e}; export the bundle again") from None
    return [cases[i] for i in sorted(cases)]


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """One array in numpy's .npy format, of one of `DTYPES`.

    Raises:
        ValueError: not such a file, another dtype, or another number of bytes than its shape says.
    """
    header = _HEADER.match(data)
    if header is None or int.from_bytes(header[1], "little") != header.end() - header.end(1):
        raise ValueError(f"no array as numpy writes it in version 1.0 of the .npy format; it begins with {data[:60]!r}")
    if header[2] not in DTYPES:
        raise ValueError(f"an array of {header[2].decode()}; {' and '.join(DTYPES.values())} are read")
    dtype = np.dtype(DTYPES[header[2]])
    shape = tuple(map(int, re.findall(rb"[0-9]+", header[4] or b"")))
    # numpy's own reader allocates what the header claims before it looks for the bytes.
    if math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise ValueError(f"an array of shape {shape} and {dtype} with {len(data) - header.end()} bytes")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape, order="F" if header[3] == b"True" else "C").copy()


def _check_case(bundle: Bundle, index: int, case: Arrays) -> None:
    v, scale = bundle.variant, bundle.scale
    wanted: dict[str, str] = {"hr": "uint8", "lr": "uint8", "restored": "uint8"}
    if v.latent:
        wanted |= {"z": "float32", "code": "uint8", "z_hat": "float32"}
    missing = [name for name in wanted if name not in case]
    if missing:
        raise ValueError(f"incomplete: case {index} has no {missing[0]}")
    hr = case["hr"].shape
    if len(hr) != 4 or hr[0] != 1 or hr[3] != 3 or hr[1] % scale or hr[2] % scale or not (hr[1] and hr[2]):
        raise ValueError(f"case {index} has an hr of {hr}, wanted (1, height, width, 3) in multiples of {scale}")
    h, w = hr[1] // scale, hr[2] // scale
    shapes: dict[str, tuple[int, ...]] = {"hr": hr, "lr": (1, h, w, v.lr_channels), "restored": hr}
    if v.latent:
        planes = (1, bundle.z_channels, h, w)
        code = (1, LATENT_CHANNELS, -(-h // LATENT_STRIDE), -(-w // LATENT_STRIDE))
        shapes |= {"z": planes, "code": code, "z_hat": planes}
    for name, dtype in wanted.items():
        array = case[name]
        if array.dtype != dtype or array.shape != shapes[name]:
            raise ValueError(f"case {index} has a {name} of {array.dtype} {array.shape}, wanted {dtype} {shapes[name]}")
