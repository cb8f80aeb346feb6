"""What lies where a folder's result belongs: the finished result of an earlier run, or something else. No pixel is decoded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from rescale import block as blocks
from rescale import carrier, png
from rescale.batch import Job
from rescale.block import Block
from rescale.bundle import Bundle
from rescale.container import sidecar_path
from rescale.errors import InputError, OutputError
from rescale.resize import Target
from rescale.source import read_bytes

CURE = "remove it, or --overwrite makes all again"


def read_block(path: Path) -> Block | None:
    """The marker of an LR file, from the file or the side-car beside it; None without one that can be read.

    Raises:
        InputError: the file cannot be read, or is no whole file.
    """
    data, name = read_bytes(path)
    copies = carrier.read(data, name)[0]
    with contextlib.suppress(InputError):
        copies += [read_bytes(sidecar_path(path))[0]] if os.path.isfile(sidecar_path(path)) else []
    for copy in copies:
        with contextlib.suppress(blocks.NewerFormatError, blocks.DamagedBlockError):
            return blocks.decode(copy)
    return None


def require_small(job: Job, bundle: Bundle, size: Target | None = None) -> None:
    """Check that a target is an LR file, of a certain size if one is wanted, that this bundle made of a source which has not
    changed since.

    Raises:
        OutputError: it is not; the message says what it is.
    """
    try:
        block = read_block(job.target)
    except InputError as e:
        raise OutputError(f"{e}; it lies where the LR of {job.source} belongs: {CURE}") from None
    if block is None:
        raise OutputError(f"{job.target}: no LR file, since it has no marker; it lies where that of {job.source} belongs: {CURE}")
    if (block.model, block.scale, block.weights) != bundle.identity:
        made = f"made by {block.model} x{block.scale} with weights {block.weights[:12]}"
        raise OutputError(f"{job.target}: {made}, not by {bundle.title} with weights {bundle.weights[:12]}: {CURE}")
    if size is not None and not size.fits(block.lr_size):
        raise OutputError(f"{job.target}: has {block.lr_size[0]}x{block.lr_size[1]} pixels, not --target {size}: {CURE}")
    _require_later(job)


def require_large(job: Job, sized: bool) -> None:
    """Check that a target is a picture that may have been restored from a source which has not changed since.

    Args:
        job: from LR file to PNG.
        sized: the source's marker says which size it has.

    Raises:
        OutputError: it is not; the message says what it is.
    """
    try:
        data, name = read_bytes(job.target)
        header = png.read_header(png.read_chunks(data, name), name)
    except InputError as e:
        raise OutputError(f"{e}; it lies where what {job.source} becomes belongs: {CURE}") from None
    block = _source_block(job) if sized else None
    _require_size(job, header, None if block is None else block.hr_size)
    _require_later(job)


def require_bare(job: Job) -> None:
    """Check that a target may be the picture that is left of a source which has not changed since, and carries nothing else.

    Args:
        job: from LR file to PNG.

    Raises:
        OutputError: it is not; the message says what it is.
    """
    try:
        data, name = read_bytes(job.target)
        header = png.read_header(png.read_chunks(data, name), name)
        copies, damaged, _ = carrier.read(data, name)
    except InputError as e:
        raise OutputError(f"{e}; it lies where what is left of {job.source} belongs: {CURE}") from None
    require_no_sidecar(job.target)
    if copies or damaged or header.colour & png.ALPHA:
        raise OutputError(f"{job.target}: carries auxiliary data or an alpha channel: {CURE}")
    block = _source_block(job)
    _require_size(job, header, None if block is None else block.lr_size)
    _require_later(job)


def require_no_sidecar(target: Path) -> None:
    """Check that no side-car lies beside a picture from which nothing shall be restored.

    Raises:
        OutputError: one does.
    """
    if os.path.lexists(sidecar_path(target)):
        raise OutputError(f"{sidecar_path(target)}: a side-car lies there and would make {target.name} restorable; remove it")


def _source_block(job: Job) -> Block | None:
    with contextlib.suppress(InputError):
        return read_block(job.source)
    return None


def _require_size(job: Job, header: png.Header, wanted: tuple[int, int] | None) -> None:
    if wanted is not None and wanted != (header.width, header.height):
        becomes = f"{job.source} becomes {wanted[0]}x{wanted[1]}"
        raise OutputError(f"{job.target}: has {header.width}x{header.height} pixels, and {becomes}: {CURE}")


def _require_later(job: Job) -> None:
    if job.source.stat().st_mtime_ns > job.target.stat().st_mtime_ns:
        raise OutputError(f"{job.target}: older than {job.source}, which may have changed since: {CURE}")
