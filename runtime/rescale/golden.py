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
DTYPES = ("uint8", "float32")
"""All that a graph takes and gives."""

Arrays = Mapping[str, npt.NDArray[Any]]


def golden_vectors(bundle: Bundle) -> list[dict[str, npt.NDArray[Any]]]:
    """PyTorch's results: per case ``hr`` uint8 (1, H, W, 3), ``lr``, ``restored``, and for -M ``z``, ``code``, ``z_hat``.

    Raises:
        BundleError: the file is missing, changed, or not such a file.
    """
    data = bundle.read_golden()
    cases: dict[int, dict[str, npt.NDArray[Any]]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            entries = z.infolist()
            if len(entries) > MAX_ARRAYS or sum(i.file_size for i in entries) > MAX_GOLDEN_BYTES:
                raise ValueError(f"more than {MAX_ARRAYS} arrays or {MAX_GOLDEN_BYTES} bytes of them")
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
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array in version {version} of the .npy format; 1.0 and 2.0 are read")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or dtype not in [np.dtype(d) for d in DTYPES]:
        raise ValueError(f"an array of {dtype}; {' and '.join(DTYPES)} are read")
    start = stream.tell()
    # numpy's own reader allocates what the header claims before it looks for the bytes.
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"an array of shape {shape} and {dtype} with {len(data) - start} bytes")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C").copy()


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
