"""One competitor of `rescale-bench speed` in a process of its own: `python -m rescale_bench.speed_worker`.

JSON lines on standard input and output; what a library prints goes to standard error.

    in   a `Spec` as a table                            out  {"ready": what runs, "base_rss": bytes} or {"error": ..., "kind": ...}
    in   {"source": file, "save": file or null}         out  seconds by part, "whole", "compute", "peak_rss" in bytes, or an error
    in   end of file                                    the process ends

A process of its own has a peak of memory of its own, and no thread pool of another library beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from rescale.bundle import Bundle
from rescale.container import Small
from rescale.errors import RescaleError
from rescale.extras import import_library
from rescale.picture import Picture, open_picture
from rescale.rescaler import load
from rescale_bench.machine import Product, peak_rss
from rescale_bench.peers import Directions, Peer, compiled, eager, naive
from rescale_bench.speed_gpu import GpuCase, is_gpu
from rescale_bench.stopwatch import Stopwatch, Watched

Array = npt.NDArray[np.uint8]

PARTS = ("decode", "run", "encode")
DIRECTIONS = ("downscale", "upscale")
PRODUCT = "product"
BACKEND = "backend"


@dataclass(frozen=True)
class Spec:
    """What a process runs.

    Attributes:
        kind: ``backend``, one of `rescale_bench.peers.NAMES`, or ``product``.
        direction: one of `DIRECTIONS`.
        threads: CPU threads.
        bundle: folder of the bundle, whose identity every competitor's LR files carry.
        backend, precision: of a backend.
        mode: one of `rescale_bench.speed_gpu.MODES`.
        memory: budget of a backend in bytes; None for the default.
        folder: of the peers' files: `NET` and the plain exports.
    """

    kind: str
    direction: str
    threads: int
    bundle: str = ""
    backend: str = ""
    precision: str = ""
    memory: int | None = None
    folder: str = ""
    mode: str = ""


NET, COMPILED = "net.safetensors", "compiled"


@dataclass(frozen=True)
class Step:
    """One direction in three parts: file to arrays, arrays to arrays, arrays to file; and the arrays to compare."""

    decode: Callable[[bytes], Any]
    run: Callable[[Any], Any]
    encode: Callable[[Any, Any], bytes]
    arrays: Callable[[Any], dict[str, Array]]


def downscale(net: Directions, bundle: Bundle) -> Step:
    """PNG of the source to pixels, pixels to LR codes, LR file with its digests."""

    def encode(source: Picture, found: tuple[Array, Array | None]) -> bytes:
        lr, latent = found
        alpha = np.ascontiguousarray(lr[:, :, 3]) if bundle.variant.alpha else None
        v, scale, weights = bundle.variant, bundle.scale, bundle.weights
        small = Small.create(lr[:, :, :3], alpha, latent, model=v.name, scale=scale, weights=weights, source=source)
        return small.to_bytes()

    def arrays(found: tuple[Array, Array | None]) -> dict[str, Array]:
        return {"lr": found[0]} | ({} if found[1] is None else {"code": found[1]})

    return Step(open_picture, lambda source: net.down(source.pixels), encode, arrays)


def upscale(net: Directions, bundle: Bundle) -> Step:
    """LR file to arrays with its digests checked, LR codes to HR pixels, PNG of the HR."""

    def decode(data: bytes) -> Small:
        small = Small.from_bytes(data)
        small.require(*bundle.identity)
        return small

    def encode(small: Small, hr: Array) -> bytes:
        assert small.block is not None
        width, height = small.block.hr_size
        return Picture(np.ascontiguousarray(hr[:height, :width])).to_bytes()

    return Step(decode, lambda small: net.up(small.rgb, small.alpha, small.latent), encode, lambda hr: {"hr": hr})


def timed(step: Step, data: bytes) -> tuple[dict[str, float], Any, bytes]:
    """Seconds of each of `PARTS` and of the whole, the arrays that came out, and the file."""
    start = time.perf_counter()
    source = step.decode(data)
    decoded = time.perf_counter()
    found = step.run(source)
    ran = time.perf_counter()
    file = step.encode(source, found)
    encoded = time.perf_counter()
    del source
    seconds = {"decode": decoded - start, "run": ran - decoded, "encode": encoded - ran}
    return seconds | {"whole": time.perf_counter() - start}, found, file


def _open(spec: Spec, stack: contextlib.ExitStack) -> tuple[str, Callable[[Path, Path | None], dict[str, float]]]:
    """What runs, in words, and a function that times one source and may save the results."""
    if spec.kind == PRODUCT:
        product = Product(spec.threads)
        return "matrix product", lambda source, save: {"run": product.seconds()}
    bundle = Bundle(spec.bundle)
    watch, gpu = Stopwatch(), None
    net: Directions
    if spec.kind == BACKEND and is_gpu(spec.backend):
        gpu = stack.enter_context(contextlib.closing(GpuCase(bundle, spec.backend, spec.precision, spec.mode, spec.memory)))
        name, net = gpu.name, gpu.network
    elif spec.kind == BACKEND:
        # As a program that embeds it does: tiling and memory budgets included.
        opened = stack.enter_context(load(spec.bundle, spec.backend, spec.threads, spec.memory, precision=spec.precision))
        name, net = opened.runner.name, opened.network
        opened.network.runner = Watched(opened.network.runner, watch)
    else:
        name, net = _peer(spec, bundle)
        net.watch(watch.around)
    step = (downscale if spec.direction == DIRECTIONS[0] else upscale)(net, bundle)

    def measure(source: Path, save: Path | None) -> dict[str, float]:
        watch.take()
        seconds, found, file = timed(step, source.read_bytes())
        seconds |= {"compute": watch.take()} if gpu is None else gpu.measure()
        if save is not None:
            save.write_bytes(file)
            np.savez(arrays_file(save), allow_pickle=False, **step.arrays(found))
        return seconds

    return name, measure


def _peer(spec: Spec, bundle: Bundle) -> tuple[str, Peer]:
    folder = Path(spec.folder)
    if spec.kind == "naive":
        onnxruntime = import_library("onnxruntime")
        name = f"plain export on onnxruntime {onnxruntime.__version__} CPU, {spec.threads} thread(s)"
        return name, naive(folder, bundle.variant.name, bundle.scale, spec.threads)
    import torch

    from rescale_train import checkpoint

    net, how = checkpoint.read_net(folder / NET), f"{torch.__version__} CPU, {spec.threads} thread(s)"
    if spec.kind == "compiled":
        return f"torch.compile of torch {how}", compiled(net, spec.threads, folder.parent / COMPILED)
    return f"torch {how}", eager(net, spec.threads)


def arrays_file(file: Path) -> Path:
    """Where the arrays of a saved result lie."""
    return file.with_name(file.name + ".npz")


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the input ends."""

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    with contextlib.ExitStack() as stack:
        try:
            name, measure = _open(Spec(**json.loads(requests.readline())), stack)
        except RescaleError as e:
            return answer({"error": str(e), "kind": type(e).__name__})
        answer({"ready": name, "base_rss": peak_rss()})
        for line in requests:
            request = json.loads(line)
            try:
                seconds = measure(Path(request["source"]), Path(request["save"]) if request["save"] else None)
            except MemoryError:
                answer({"error": "not enough memory", "kind": "OutOfMemoryError"})
            except (RescaleError, RuntimeError) as e:  # PyTorch's failed allocations are RuntimeErrors
                answer({"error": str(e).splitlines()[0] if str(e) else type(e).__name__, "kind": type(e).__name__})
            else:
                answer({**seconds, "peak_rss": peak_rss()})
    return None


def request_of(spec: Spec) -> str:
    """The first line that a process reads."""
    return json.dumps(dataclasses.asdict(spec))


def main() -> int:
    """Entry point of the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print where they like
    try:
        serve(sys.stdin, answers)
    except (KeyboardInterrupt, BrokenPipeError):  # the command that started this one ends, and says so
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
