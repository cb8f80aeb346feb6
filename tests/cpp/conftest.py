"""The C++ library, built once per session, and its C ABI through ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "runtime" / "cpp"
HEADER = "onnxruntime_c_api.h"
FOLDERS = [Path(p) for p in ("/usr/include", "/usr/local/include")]
STATUS = ("ok", "input", "output", "bundle", "backend", "out_of_memory", "lr_file", "internal", "cancelled")
PROGRESS = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, c_uint64, c_uint64)


def missing() -> str | None:
    """What is not there to build with, in words."""
    for tool in ("cmake", os.environ.get("CXX", "c++")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    for file, package in (("png.h", "libpng-dev"), ("zlib.h", "zlib1g-dev"), ("nlohmann/json.hpp", "nlohmann-json3-dev")):
        if not any((folder / file).exists() for folder in FOLDERS):
            return f"{file} is missing ({package})"
    if ort_include() is None:
        return f"{HEADER} is missing (libonnxruntime-dev, or its folder in ONNXRUNTIME_INCLUDE_DIR)"
    return None


def ort_include() -> Path | None:
    """Folder of ONNX Runtime's C header."""
    named = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    places = [Path(named)] if named else [f / sub for f in FOLDERS for sub in ("", "onnxruntime", "onnxruntime/core/session")]
    return next((p for p in places if (p / HEADER).exists()), None)


def ort_library() -> Path:
    """The wheel's library: what Python runs on, so that results can be compared byte for byte."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))


def configure_and_build(build: Path, *options: str, source: Path = SOURCE, targets: tuple[str, ...] = ()) -> Path:
    """Configure and build a project into a folder; a failure shows the compiler's words."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", "-S", str(source), "-B", str(build), *generator, *options],
        ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1), *(("--target", *targets) if targets else ())],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return build


@pytest.fixture(scope="session")
def cmake() -> Callable[..., Path]:
    """Builds the library or a project that uses it; skips where the tools or headers cannot be had."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"C++: {reason}")
    return configure_and_build


@pytest.fixture(scope="session")
def built(cmake: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shared library with its programs, built with warnings as errors."""
    return cmake(
        tmp_path_factory.mktemp("cpp") / "build", "-DRESCALE_WARNINGS_AS_ERRORS=ON", f"-DONNXRUNTIME_INCLUDE_DIR={ort_include()}"
    )


@pytest.fixture(scope="session")
def ort_header(cmake: Callable[..., Path]) -> Path | None:
    """Folder of ONNX Runtime's C header."""
    return ort_include()


@pytest.fixture(scope="session")
def ort() -> Path:
    """ONNX Runtime's library."""
    return ort_library()


class Options(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((n, c_char_p) for n in ("backend", "precision", "library", "provider")),
        ("provider_options", POINTER(c_char_p)),
        *((n, c_char_p) for n in ("provider_library", "engines")),
        ("memory", c_uint64),
        *((n, c_int32) for n in ("threads", "tile_width", "tile_height", "exact", "device")),
    ]


class Info(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((n, c_int32) for n in ("scale", "lr_channels", "latent", "halo", "receptive_field")),
        *((n, c_char_p) for n in ("model", "size", "weights", "runner")),
    ]


class Image(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("width", c_int32), ("height", c_int32), ("channels", c_int32), ("stride", c_ssize_t)]


class Buffer(ctypes.Structure):
    _fields_ = [("data", POINTER(c_uint8)), ("size", c_size_t)]


class Chunk(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("data", c_void_p), ("size", c_size_t)]


class Extras(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("alpha", POINTER(Image)),
        ("chunks", POINTER(Chunk)),
        ("chunk_count", c_size_t),
        ("gray", c_int32),
    ]


class LrInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *((n, c_int32) for n in ("state", "has_marker", "width", "height")),
        *((n, c_uint64) for n in ("hr_width", "hr_height")),
        ("scale", c_int32),
        *((n, c_char_p) for n in ("state_name", "detail", "model", "weights", "layout", "source_mode")),
        *((n, POINTER(c_uint8)) for n in ("rgb", "alpha", "latent", "source_alpha", "unverified_alpha")),
        ("chunks", POINTER(Chunk)),
        ("chunk_count", c_size_t),
    ]


class DeviceTensor(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("data", c_void_p), ("shape", c_int64 * 4)]


class NativeError(Exception):
    """A status that is not OK; `kind` is its name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def view(array: np.ndarray) -> Image:
    """A view of uint8 (H, W, C) or (H, W), of any row stride."""
    assert array.dtype == np.uint8
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.shape[1] > 1:
        assert array.strides[1:] == ((channels, 1) if array.ndim == 3 else (1,))
    return Image(array.ctypes.data, array.shape[1], array.shape[0], channels, array.strides[0])


def image(array: np.ndarray | None) -> Any:
    """A reference to a `view`, or NULL."""
    return None if array is None else byref(view(array))


class Lr:
    """An LR picture of the library, as arrays."""

    def __init__(self, native: Native, pointer: c_void_p) -> None:
        self.native, self.pointer = native, pointer
        i = LrInfo(ctypes.sizeof(LrInfo))
        native.call("rescale_lr_get_info", pointer, byref(i))
        self.info = i
        self.state, self.detail = i.state_name.decode(), i.detail.decode()
        width, height = i.width, i.height
        self.rgb = self._plane(i.rgb, (height, width, 3))
        self.alpha = self._plane(i.alpha, (height, width))
        self.unverified_alpha = self._plane(i.unverified_alpha, (height, width))
        self.latent = self._plane(i.latent, (4, -(-height // 4), -(-width // 4)))
        self.source_alpha = self._plane(i.source_alpha, (i.hr_height, i.hr_width))
        self.colour = tuple((c.name, ctypes.string_at(c.data, c.size)) for c in i.chunks[: i.chunk_count])

    def _plane(self, data: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        return np.ctypeslib.as_array(data, shape).copy() if data else None

    def write(self, layout: str = "alpha", carrier: str = "chunk") -> tuple[bytes, bytes]:
        """LR file and side-car."""
        png, sidecar = Buffer(), Buffer()
        self.native.call("rescale_lr_write", self.pointer, layout.encode(), carrier.encode(), byref(png), byref(sidecar))
        return self.native.taken(png), self.native.taken(sidecar)

    def save(self, path: Path, layout: str = "alpha", carrier: str = "chunk") -> None:
        self.native.call("rescale_lr_save", self.pointer, os.fsencode(path), layout.encode(), carrier.encode())

    def __del__(self) -> None:
        self.native.lib.rescale_lr_free(self.pointer)


class Session:
    """A loaded bundle."""

    def __init__(self, native: Native, pointer: c_void_p) -> None:
        self.native, self.pointer = native, pointer
        self.callback: Any = None
        self.info = Info(ctypes.sizeof(Info))
        native.call("rescale_get_info", pointer, byref(self.info))

    def downscale(self, hr: np.ndarray, lr: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """LR as a frame, and the latent (4, ., .)."""
        scale = self.info.scale
        height, width = (-(-n // scale) for n in hr.shape[:2])
        if lr is None:
            lr = np.zeros((height, width, self.info.lr_channels), np.uint8)
        latent = np.zeros((4 * -(-height // 4), -(-width // 4)), np.uint8) if self.info.latent else None
        self.native.call("rescale_downscale", self.pointer, image(hr), image(lr), image(latent))
        return lr, None if latent is None else latent.reshape(4, -1, latent.shape[1])

    def upscale(self, lr: np.ndarray, latent: np.ndarray | None, hr: np.ndarray) -> np.ndarray:
        """Writes to and returns `hr`."""
        if latent is not None:
            latent = latent.reshape(-1, latent.shape[2])
        self.native.call("rescale_upscale", self.pointer, image(lr), image(latent), image(hr))
        return hr

    def downscale_lr(
        self,
        hr: np.ndarray,
        alpha: np.ndarray | None = None,
        colour: Sequence[tuple[bytes, bytes]] = (),
        gray: bool = False,
        plain: bool = False,
    ) -> Lr:
        """An LR picture of pixels; `plain`: no extras are given at all."""
        chunks = (Chunk * len(colour))(*(Chunk(kind, ctypes.cast(body, c_void_p), len(body)) for kind, body in colour))
        beside = None if alpha is None else ctypes.pointer(view(alpha))
        extras = Extras(ctypes.sizeof(Extras), beside, chunks, len(colour), int(gray))
        pointer = c_void_p()
        self.native.call("rescale_downscale_lr", self.pointer, image(hr), None if plain else byref(extras), byref(pointer))
        return Lr(self.native, pointer)

    def restore(self, lr: Lr, hr: np.ndarray, force: bool = False, trust_alpha: bool = False) -> np.ndarray:
        """Writes pixels to and returns `hr`."""
        self.native.call("rescale_restore", self.pointer, lr.pointer, int(force), int(trust_alpha), image(hr))
        return hr

    def with_progress(self, tell: Callable[[int, int], int | None]) -> Session:
        """The same bundle, whose runs call `tell` with what is done and all there is."""
        pointer, callback = c_void_p(), PROGRESS(lambda user, done, total: tell(done, total) or 0)
        self.native.call("rescale_with_progress", self.pointer, callback, None, byref(pointer))
        session = Session(self.native, pointer)
        session.callback = callback  # lives as long as it can be called
        return session

    def downscale_png(
        self, png: bytes, layout: str = "alpha", carrier: str = "chunk", keep: bool = False, max_pixels: int = 0
    ) -> tuple[bytes, bytes]:
        """LR file and side-car."""
        lr, sidecar = Buffer(), Buffer()
        arguments = (png, len(png), int(keep), max_pixels, layout.encode(), carrier.encode())
        self.native.call("rescale_downscale_png", self.pointer, *arguments, byref(lr), byref(sidecar))
        return self.native.taken(lr), self.native.taken(sidecar)

    def restore_png(self, lr: Lr, force: bool = False, trust_alpha: bool = False) -> bytes:
        """The HR picture as PNG."""
        hr = Buffer()
        self.native.call("rescale_restore_png", self.pointer, lr.pointer, int(force), int(trust_alpha), byref(hr))
        return self.native.taken(hr)

    def close(self) -> None:
        self.native.lib.rescale_free(self.pointer)
        self.pointer = None


class Native:
    """The shared library."""

    def __init__(self, path: Path, ort: Path) -> None:
        self.lib, self.ort = ctypes.CDLL(str(path)), ort
        self.image = Image
        self.header_option = [f"-DONNXRUNTIME_INCLUDE_DIR={ort_include()}"]
        for name in ("rescale_version", "rescale_last_error"):
            getattr(self.lib, name).restype = c_char_p
        p, i, n, s = c_void_p, c_int32, c_size_t, c_char_p
        for name, types in {
            "rescale_load": (s, p, p),
            "rescale_free": (p,),
            "rescale_get_info": (p, p),
            "rescale_downscale": (p, p, p, p),
            "rescale_upscale": (p, p, p, p),
            "rescale_downscale_png": (p, s, n, i, c_uint64, s, s, p, p),
            "rescale_restore_png": (p, p, i, i, p),
            "rescale_with_progress": (p, p, p, p),
            "rescale_downscale_lr": (p, p, p, p),
            "rescale_restore": (p, p, i, i, p),
            "rescale_lr_write": (p, s, s, p, p),
            "rescale_lr_save": (p, s, s, s),
            "rescale_lr_read": (s, n, s, c_uint64, s, n, p),
            "rescale_lr_open": (s, c_uint64, p),
            "rescale_lr_free": (p,),
            "rescale_lr_get_info": (p, p),
            "rescale_lr_verdict": (p, p, p, p),
            "rescale_buffer_free": (p,),
            "rescale_printable": (s, p),
            "rescale_run_device": (p, s, p, n, p, n, p),
        }.items():
            getattr(self.lib, name).argtypes = types

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status."""
        status = getattr(self.lib, name)(*arguments)
        if status:
            raise NativeError(STATUS[status], self.lib.rescale_last_error().decode())

    def printable(self, text: str | None) -> str:
        """Text as the library shows it."""
        line = Buffer()
        self.call("rescale_printable", None if text is None else text.encode(), byref(line))
        return self.taken(line).decode()

    def taken(self, buffer: Buffer) -> bytes:
        """A buffer's bytes; it is freed."""
        data = ctypes.string_at(buffer.data, buffer.size) if buffer.data else b""
        self.lib.rescale_buffer_free(byref(buffer))
        return data

    def load(self, bundle: Path, provider_options: Mapping[str, str] | None = None, **options: Any) -> Session:
        """A session; options as in `rescale_options`, text as str."""
        o = Options(ctypes.sizeof(Options), library=str(self.ort).encode())
        for name, value in options.items():
            setattr(o, name, value.encode() if isinstance(value, str) else value)
        if provider_options:
            flat = [part.encode() for pair in provider_options.items() for part in pair]
            o.provider_options = (c_char_p * (len(flat) + 1))(*flat, None)
        pointer = c_void_p()
        self.call("rescale_load", str(bundle).encode(), byref(o), byref(pointer))
        return Session(self, pointer)

    def read(self, data: bytes, name: str = "LR picture", max_pixels: int = 0, sidecar: bytes | None = None) -> Lr:
        """An LR file from its bytes."""
        pointer = c_void_p()
        beside = (sidecar, len(sidecar)) if sidecar is not None else (None, 0)
        self.call("rescale_lr_read", data, len(data), name.encode(), max_pixels, *beside, byref(pointer))
        return Lr(self, pointer)

    def open(self, path: Path) -> Lr:
        """An LR file."""
        pointer = c_void_p()
        self.call("rescale_lr_open", str(path).encode(), 0, byref(pointer))
        return Lr(self, pointer)


@pytest.fixture(scope="session")
def native(built: Path, ort: Path) -> Native:
    """The C ABI."""
    found = [*built.glob("librescale.so"), *built.glob("librescale.dylib")]
    return Native(found[0], ort)


@pytest.fixture(scope="session")
def failure() -> type[NativeError]:
    """The exception of a status, for suites, which cannot import this file."""
    return NativeError
