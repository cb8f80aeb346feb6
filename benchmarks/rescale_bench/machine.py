"""The machine that figures were measured on: processor, memory, versions, and how fast it multiplies matrices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from rescale import __version__
from rescale.memory import available_memory
from rescale.threads import cpu_quota, usable_threads

PRODUCT_SIDE = 2048
"""Sides of the square float32 matrices whose product is the machine's peak."""

PRODUCT_FLOPS = 2 * PRODUCT_SIDE**3

SIMD = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "svebf16"),
)
"""Instruction sets that decide how fast convolutions are, as Linux names them on x86 and ARM."""

PACKAGES = (
    "numpy",
    "pillow",
    "imagecodecs",
    "scikit-image",
    "onnxruntime",
    "openvino",
    "torch",
    "onnx",
    "tensorrt",
    "tensorrt-rtx",
)


def machine(threads: int, cpuinfo: Path = Path("/proc/cpuinfo"), meminfo: Path = Path("/proc/meminfo")) -> dict[str, Any]:
    """What the figures depend on, for a report; unknown entries are None or empty.

    Args:
        threads: that were used.
        cpuinfo, meminfo: Linux's files.
    """
    model, flags = _processor(cpuinfo)
    return {
        "cpu": model or platform.processor() or None,
        "architecture": platform.machine(),
        "simd": [name for name in SIMD if name in flags],
        "cpus": os.cpu_count(),
        "usable_threads": usable_threads(),
        "cpu_quota": cpu_quota(Path("/sys/fs/cgroup")),
        "threads": threads,
        "memory": _total_memory(meminfo),
        "memory_available": available_memory(),
        "load_average": [round(n, 2) for n in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of this toolkit, of Python, and of those packages that are installed and bear on speed or figures."""
    found = {"rescale": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux's VmHWM, where there is one: `ru_maxrss` of a started process is at least what its parent took at that time.
    """
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        match = None
    if match:
        return int(match.group(1)) << 10
    import resource  # not on Windows

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found << 10


class Product:
    """The matrix product that the peak is taken from: PyTorch, float32, all threads."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        random = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.rand(PRODUCT_SIDE, PRODUCT_SIDE, generator=random) for _ in range(2))
        self._out = torch.empty(PRODUCT_SIDE, PRODUCT_SIDE)

    def seconds(self) -> float:
        """Of one product."""
        import torch

        start = time.perf_counter()
        torch.mm(self._a, self._b, out=self._out)
        return time.perf_counter() - start


def _processor(cpuinfo: Path) -> tuple[str, set[str]]:
    """Model name and flags of the first processor."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return "", set()
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    return (name.group(1).strip() if name else ""), set(flags.group(1).split() if flags else ())


def _total_memory(meminfo: Path) -> int | None:
    try:
        match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.M)
    except OSError:
        return None
    return int(match.group(1)) << 10 if match else None
