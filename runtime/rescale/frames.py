"""Raw video frames through a network: rgb24 or rgba on one stream, the same on another, in bounded memory.

A reader, the network and a writer run at the same time, with short queues between them. Frames carry no marker: the LR
stream must be stored losslessly, and the reader of it must know the size. -M has no place for its latent here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import select
import threading
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rescale import codes
from rescale.errors import InputError
from rescale.files import read_some
from rescale.image import MAX_SIDE
from rescale.rescaler import Rescaler

Array = npt.NDArray[np.uint8]

QUEUE_FRAMES = 4
"""Frames that may wait between two stages."""

PARTING_SECONDS = 1.0
"""How long an interrupted run waits for the frame that is being written."""


def parse_size(text: str) -> tuple[int, int]:
    """``1280x720`` to (1280, 720).

    Raises:
        InputError: not two numbers from 1 to 65535.
    """
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        shown = text if len(text) < 40 else text[:40] + "..."
        raise InputError(f"size {shown!r}: WIDTHxHEIGHT is wanted, each from 1 to {MAX_SIDE}, such as 1280x720")
    return width, height


def lr_frame_bytes(net: Rescaler, hr_size: tuple[int, int]) -> tuple[int, int, int]:
    """(height, width, channels) of the LR frames that belong to HR frames of (width, height)."""
    scale = net.bundle.scale
    return -(-hr_size[1] // scale), -(-hr_size[0] // scale), net.bundle.variant.lr_channels


def down_frames(net: Rescaler, hr_size: tuple[int, int], source: BinaryIO, target: BinaryIO) -> int:
    """rgb24 HR frames to LR frames: rgb24, or rgba for -A. Returns how many.

    Raises:
        InputError: an -M bundle, or the stream ends within a frame.
    """
    _no_latent(net)
    width, height = hr_size

    def work(data: bytes) -> bytes:
        small = net.downscale(np.frombuffer(data, np.uint8).reshape(height, width, 3), progress=_untold)
        frame = small.rgb if small.alpha is None else np.dstack([small.rgb, codes.alpha_to_file(small.alpha)])
        return frame.tobytes()

    return _pipe(source, target, height * width * 3, work)


def up_frames(net: Rescaler, hr_size: tuple[int, int], source: BinaryIO, target: BinaryIO) -> int:
    """LR frames as `down_frames` writes them back to rgb24 HR frames of `hr_size`. Returns how many.

    Raises:
        InputError: as `down_frames`.
    """
    _no_latent(net)
    width, height = hr_size
    shape = lr_frame_bytes(net, hr_size)

    def work(data: bytes) -> bytes:
        frame = np.frombuffer(data, np.uint8).reshape(shape)
        alpha = codes.alpha_from_file(frame[:, :, 3]) if shape[2] == 4 else None
        return net.network.up(frame[:, :, :3], alpha, None, _untold)[:height, :width].tobytes()

    return _pipe(source, target, shape[0] * shape[1] * shape[2], work)


def _untold(done: int, count: int, stage: str) -> None:
    """Nobody is told of progress; only with somebody to tell does Ctrl-C end the work within a frame."""


def _no_latent(net: Rescaler) -> None:
    if net.bundle.variant.latent:
        raise InputError(f"{net.bundle.title}: raw frames cannot carry its latent code; use an -A or a plain model")


def _read_frame(source: BinaryIO, size: int, index: int) -> bytes:
    """One frame; empty at the end of the stream."""
    parts, missing = [], size
    while missing:
        try:
            part = read_some(source, missing)
        except OSError as e:
            name = getattr(source, "name", None)
            where = str(name) if isinstance(name, str | os.PathLike) else "the stream"
            raise InputError(f"{where}: cannot read frame {index}: {e.strerror or e}") from None
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    if missing not in (0, size):
        raise InputError(f"frame {index}: the stream ends after {size - missing} of {size} bytes; is the size right?")
    return b"".join(parts)


def _write_frame(target: BinaryIO, frame: bytes) -> None:
    """All of a frame, to a target that may take it in parts, as unbuffered ones do."""
    rest = memoryview(frame)
    while rest:
        written = target.write(rest)
        if written is None:  # a stream that does not block, and has no room
            select.select([], [target], [])
            continue
        rest = rest[written:]
    target.flush()  # small frames would wait in a buffer for those that follow


def _pipe(source: BinaryIO, target: BinaryIO, frame_bytes: int, work: Callable[[bytes], bytes]) -> int:
    incoming: queue.Queue[bytes | BaseException] = queue.Queue(QUEUE_FRAMES)
    outgoing: queue.Queue[bytes | None] = queue.Queue(QUEUE_FRAMES)
    stop = threading.Event()
    failed: list[BaseException] = []

    def put(item: bytes | BaseException) -> bool:
        while not stop.is_set():
            try:
                incoming.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        index = 0
        try:
            while True:
                frame = _read_frame(source, frame_bytes, index)
                if not put(frame) or not frame:
                    return
                index += 1
        except BaseException as e:  # handed to the main thread, which raises it
            put(e)

    def write() -> None:
        while True:
            frame = outgoing.get()
            if frame is None:
                return
            if not failed:
                try:
                    _write_frame(target, frame)
                except BaseException as e:  # as above
                    failed.append(e)

    reader = threading.Thread(target=read, daemon=True)
    writer = threading.Thread(target=write, daemon=True)
    reader.start()
    writer.start()
    count = 0
    patience: float | None = None
    try:
        while not failed:
            try:
                frame = incoming.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(frame, BaseException):
                raise frame
            if not frame:
                break
            outgoing.put(work(frame))
            count += 1
    except KeyboardInterrupt:
        # Whoever reads the target may have stopped reading, and would hold up the end for ever.
        patience = PARTING_SECONDS
        while not outgoing.empty():
            with contextlib.suppress(queue.Empty):
                outgoing.get_nowait()
        raise
    finally:
        stop.set()
        outgoing.put(None)
        writer.join(patience)
    if failed:
        raise failed[0]
    return count
