"""What happens to pictures on their way: programs and libraries that re-save, optimise, strip or resize a file.

Each entry of `TOOLS` really runs what its name says, with the settings that people leave at their defaults.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from rescale import png
from rescale.carrier import container_of

Pixels = npt.NDArray[np.uint8]

TIMEOUT_S = 60
UNKNOWN = "(version unknown)"
_VERSION = re.compile(r"\d+(?:\.\d+)+(?:-\d+)?")


class ToolError(Exception):
    """A tool that is present did not produce a picture."""


@dataclass(frozen=True)
class Package:
    """A Python package, by the name it is installed by and the one it is imported by."""

    name: str
    module: str

    def missing(self) -> str | None:
        """Why it cannot be used; None if it can."""
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError):  # OSError: the package is there, the shared library it binds is not
            return f"{self.name} not installed"
        except Exception as e:  # of a package that does not fit the others here
            return f"{self.name} cannot be imported: {' '.join(str(e).split()) or type(e).__name__}"
        return None

    def version(self) -> str:
        """Name and version, or that it is unknown."""
        if self.module == "pyvips":
            vips = importlib.import_module("pyvips")
            return "libvips " + ".".join(str(vips.version(i)) for i in range(3))
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{self.name} {metadata.version(self.name)}"
        # Of another package with the same module, such as opencv-python.
        for name in metadata.packages_distributions().get(self.module, ()):
            with contextlib.suppress(metadata.PackageNotFoundError):
                return f"{name} {metadata.version(name)}"
        return f"{self.name} {UNKNOWN}"


@dataclass(frozen=True)
class Program:
    """A command-line program: what people call it, its commands in order of preference, and how it tells its version."""

    name: str
    commands: tuple[str, ...]
    version_option: str = "-version"

    def path(self) -> str | None:
        """Where it is."""
        return next(filter(None, map(shutil.which, self.commands)), None)

    def missing(self) -> str | None:
        """Why it cannot be used; None if it can."""
        return None if self.path() else f"{self.name} not installed (looked for {', '.join(self.commands)})"

    def version(self) -> str:
        """Name and version, or that it is unknown."""
        try:
            done = subprocess.run(
                [str(self.path()), self.version_option], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            return f"{self.name} {UNKNOWN}"
        found = _VERSION.search((done.stdout + done.stderr).decode(errors="replace"))
        return f"{self.name} {found.group() if found else UNKNOWN}"

    def run(self, *arguments: str) -> bytes:
        """Run it; what it printed.

        Raises:
            ToolError: it cannot be started, failed or took longer than `TIMEOUT_S`.
        """
        try:
            done = subprocess.run(
                [str(self.path()), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=TIMEOUT_S
            )
        except subprocess.CalledProcessError as e:
            said = e.stderr.decode(errors="replace").strip().splitlines()
            raise ToolError(f"{self.name}: exit code {e.returncode}: {said[-1] if said else 'no message'}") from None
        except subprocess.TimeoutExpired:
            raise ToolError(f"{self.name}: not done after {TIMEOUT_S} s") from None
        except OSError as e:
            raise ToolError(f"{self.name}: cannot be started: {e.strerror or e}") from None
        return done.stdout


PILLOW = Package("Pillow", "PIL")
OPENCV = Package("opencv-python-headless", "cv2")
LIBVIPS = Package("pyvips", "pyvips")
OXIPNG = Package("pyoxipng", "oxipng")
# Not `convert`: on many machines that name belongs to something else.
MAGICK = Program("ImageMagick", ("magick", "convert-im6.q16", "convert-im6.q16hdri"))
OPTIPNG = Program("optipng", ("optipng",))
PNGCRUSH = Program("pngcrush", ("pngcrush",))
CWEBP = Program("cwebp", ("cwebp",))
CHROMIUM = Program("Chromium", ("chromium", "chromium-browser", "google-chrome"), "--version")


@dataclass(frozen=True)
class Tool:
    """One thing that is done to a file.

    Attributes:
        name: what it is, for a table.
        needs: the package or program that does it.
        run: bytes of a file to bytes of the new file; raises `ToolError`.
        takes: containers it is measured with.
    """

    name: str
    needs: Package | Program
    run: Callable[[bytes], bytes]
    takes: tuple[str, ...] = ("png",)

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        return self.needs.missing()


def premultiply(pixels: Pixels) -> Pixels:
    """(h, w, 4) as an 8-bit premultiplied surface gives it back, such as a browser's canvas.

    Stored is ``p = round(c * a / 255)``; read back is ``round(p * 255 / a)``, and 0 where a is 0. Over all c and a,
    Chromium 156 gives 1 more or less in 1.5% of the values, and this in all others.
    """
    colour, alpha = pixels[:, :, :3].astype(np.int32), pixels[:, :, 3:].astype(np.int32)
    stored = (colour * alpha + 127) // 255
    divisor = np.maximum(alpha, 1)
    again = np.where(alpha > 0, np.minimum((stored * 255 + divisor // 2) // divisor, 255), 0)
    return np.dstack([again.astype(np.uint8), pixels[:, :, 3]])


def _pillow(container: str, text: bool = False, **options: Any) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        buffer, passed = io.BytesIO(), PngImagePlugin.PngInfo()
        with Image.open(io.BytesIO(data)) as image:
            for key, value in image.info.items() if text else ():
                if isinstance(value, str):
                    passed.add_text(str(key), value)
            extra = {"pnginfo": passed} if text else {}
            # JPEG has no alpha, so everyone who saves one converts first.
            (image.convert("RGB") if container == "JPEG" else image).save(buffer, container, **options, **extra)
        return buffer.getvalue()

    return run


def _premultiplied(keep_chunks: bool) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(image)
        again = png.encode(premultiply(pixels) if pixels.shape[2] == 4 else pixels)
        chunks = png.read_chunks(data, "file") if keep_chunks else []
        return png.insert(again, [(c.kind, c.data) for c in chunks if c.kind not in png.CRITICAL])

    return run


def _opencv(flag: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        import cv2

        image = cv2.imdecode(np.frombuffer(data, np.uint8), getattr(cv2, flag))
        if image is None:
            raise ToolError("OpenCV: cannot read the file")
        return bytes(cv2.imencode(f".{container_of(data)}", image)[1])

    return run


def _vips(thumbnail: bool) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        import pyvips

        image = pyvips.Image.new_from_buffer(data, "")
        if thumbnail:
            image = pyvips.Image.thumbnail_buffer(data, max(1, image.width // 2))
        return bytes(image.webpsave_buffer(lossless=True) if container_of(data) == "webp" else image.pngsave_buffer())

    return run


def _oxipng(strip: str = "none", **options: Any) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        import oxipng

        return bytes(oxipng.optimize_from_memory(data, level=4, strip=getattr(oxipng.StripChunks, strip)(), **options))

    return run


def _command(program: Program, *arguments: str, suffix: str | None = None) -> Callable[[bytes], bytes]:
    """A program on files of a temporary folder; IN and OUT stand for their paths."""

    def run(data: bytes) -> bytes:
        container = container_of(data)
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, f"in.{container}"), Path(folder, f"out.{suffix or container}")
            source.write_bytes(data)
            program.run(*({"IN": str(source), "OUT": str(target)}.get(a, a) for a in arguments))
            if not target.is_file():
                raise ToolError(f"{program.name}: wrote no file")
            return target.read_bytes()

    return run


_PAGE = """<!doctype html><body><img id="i" src="data:image/{};base64,{}"><script>
addEventListener("load", () => {{
  const i = document.getElementById("i"), c = document.createElement("canvas");
  c.width = i.naturalWidth; c.height = i.naturalHeight;
  c.getContext("2d").drawImage(i, 0, 0);
  document.body.textContent = "canvas=" + c.toDataURL("image/png") + "=end";
}});
</script>"""


def _chromium(data: bytes) -> bytes:
    """Draw on a 2D canvas and take the canvas as PNG, in a profile of its own and without the network."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder, "page.html")
        page.write_text(_PAGE.format(container_of(data), base64.b64encode(data).decode()), encoding="ascii")
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
        options = [f"--{f}" for f in f"{flags} disable-sync dump-dom".split()]
        dom = CHROMIUM.run(*options, f"--user-data-dir={folder}/profile", page.as_uri())
    found = re.search(rb"canvas=data:image/png;base64,([A-Za-z0-9+/=]+?)=end", dom)
    if found is None:
        raise ToolError("Chromium: the page has no picture")
    return base64.b64decode(found.group(1))


BOTH = ("png", "webp")
_QUIET = ("-quiet", "-out", "OUT")

TOOLS: tuple[Tool, ...] = (
    Tool("Pillow: open, save as PNG", PILLOW, _pillow("PNG"), BOTH),
    Tool("Pillow: the same, passing text on", PILLOW, _pillow("PNG", text=True)),
    Tool("Pillow: lossless WebP, exact", PILLOW, _pillow("WEBP", lossless=True, exact=True), BOTH),
    Tool("Pillow: lossless WebP, not exact", PILLOW, _pillow("WEBP", lossless=True), BOTH),
    Tool("OpenCV: imread, imwrite", OPENCV, _opencv("IMREAD_COLOR"), BOTH),
    Tool("OpenCV: imread unchanged, imwrite", OPENCV, _opencv("IMREAD_UNCHANGED"), BOTH),
    Tool("libvips: copy", LIBVIPS, _vips(thumbnail=False), BOTH),
    Tool("libvips: thumbnail, half size", LIBVIPS, _vips(thumbnail=True), BOTH),
    Tool("ImageMagick: re-encode", MAGICK, _command(MAGICK, "IN", "OUT"), BOTH),
    Tool("ImageMagick: -strip", MAGICK, _command(MAGICK, "IN", "-strip", "OUT")),
    Tool("ImageMagick: -resize 50%", MAGICK, _command(MAGICK, "IN", "-resize", "50%", "OUT"), BOTH),
    Tool("oxipng -o 4", OXIPNG, _oxipng()),
    Tool("oxipng -o 4 --strip safe", OXIPNG, _oxipng("safe")),
    Tool("oxipng -o 4 --strip all", OXIPNG, _oxipng("all")),
    Tool("oxipng -o 4 --alpha", OXIPNG, _oxipng(optimize_alpha=True)),
    Tool("optipng", OPTIPNG, _command(OPTIPNG, *_QUIET, "IN")),
    Tool("optipng -strip all", OPTIPNG, _command(OPTIPNG, "-strip", "all", *_QUIET, "IN")),
    Tool("pngcrush", PNGCRUSH, _command(PNGCRUSH, "-q", "IN", "OUT")),
    Tool("cwebp -lossless", CWEBP, _command(CWEBP, "-quiet", "-lossless", "IN", "-o", "OUT", suffix="webp")),
    Tool("Pillow: JPEG, quality 95", PILLOW, _pillow("JPEG", quality=95), BOTH),
    Tool("Pillow: lossy WebP, quality 95", PILLOW, _pillow("WEBP", quality=95), BOTH),
    Tool("8-bit premultiply, computed", PILLOW, _premultiplied(keep_chunks=False)),
    Tool("8-bit premultiply, chunks kept", PILLOW, _premultiplied(keep_chunks=True)),
    Tool("Chromium: canvas to PNG", CHROMIUM, _chromium, BOTH),
)
