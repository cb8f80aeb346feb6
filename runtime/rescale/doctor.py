"""`rescale doctor`: what this machine has, what of it works, and the line that installs what does not.

Every library is asked in a process of its own, see `rescale.probes`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rescale import __version__
from rescale.backends import auto_backend
from rescale.bundle import Bundle
from rescale.console import print_json_line, printable, progress_bar
from rescale.memory import available_memory
from rescale.probes import BROKEN, PROBES, WORKS, Facts, finding, install
from rescale.threads import cpu_quota, usable_threads

# The engines' backends find devices through cuda-python.
NEEDS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "cuda-python"),
    "tensorrt-rtx": ("tensorrt-rtx", "cuda-python"),
}
"""Libraries of each backend in `rescale.backends.NAMES`."""

LIMIT_SECONDS = 60.0
PARITY_LIMIT_SECONDS = 600.0

FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
"""What ONNX Runtime has kernels for, of x86 and of ARM."""


def ask(name: str, argument: str | None = None, limit: float = LIMIT_SECONDS) -> Facts:
    """Run one probe in a process of its own.

    Returns:
        What it found; state ``broken`` with the reason if it crashed, hung or said nothing.
    """
    # The same packages as here: also those that a script put on the path itself.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # Without -P the folder that one stands in would come first: a folder torch/ there would pass for PyTorch.
    command = [sys.executable, "-P", "-m", "rescale.probes", name, *([] if argument is None else [argument])]
    try:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return finding(BROKEN, detail=f"no answer within {limit:g} s")
    if done.returncode < 0:
        return finding(BROKEN, detail=f"crashed: {_signal(-done.returncode)}")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "state" not in found:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return finding(BROKEN, detail=f"ended with exit code {done.returncode} and no report" + (f": {last}" if last else ""))
    return found


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Facts:
    """Model, threads and the instruction sets that matter."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", text, re.M)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    has = set(listed.group(1).split()) if listed else set()
    return {
        "model": model.group(1).strip() if model else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "usable_threads": usable_threads(),
        "quota": cpu_quota(),
        "flags": [flag for flag in FLAGS if flag in has],
    }


def examine(bundle: Path | None = None, limit: float = LIMIT_SECONDS) -> Facts:
    """The whole report, as `--json` prints it.

    Raises:
        BundleError: the bundle is missing or damaged.
    """
    opened = None
    if bundle is not None:
        opened = Bundle(bundle)
        opened.verify()
    with progress_bar(len(PROBES)) as advance, ThreadPoolExecutor(max(2, usable_threads())) as pool:

        def probe(name: str) -> Facts:
            found = ask(name, limit=limit)
            advance(name)
            return found

        libraries = dict(zip(PROBES, pool.map(probe, PROBES), strict=True))
    default = auto_backend()
    report: Facts = {
        "rescale": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "memory": {"available_bytes": available_memory()},
        "driver": libraries.pop("driver"),
        "libraries": libraries,
        "backends": {name: _backend(name, libraries) for name in NEEDS},
        "default": default,
    }
    if opened is not None:
        report["bundle"] = _check_bundle(opened, report["backends"], default, limit)
    report["ok"] = report["backends"][default]["works"] and (
        opened is None or report["bundle"]["results"][f"{default} fp32"]["state"] == WORKS
    )
    return report


def _backend(name: str, libraries: dict[str, Facts]) -> Facts:
    """Whether a backend can run graphs here, and the first thing to do if it cannot."""
    for needed in NEEDS[name]:
        found = libraries[needed]
        if found["state"] != WORKS:
            why = f"{needed} {found['state']}" + (f": {found['detail']}" if found["detail"] else "")
            again = "pip install --force-reinstall onnxruntime" if name == "onnxruntime" else install(name)  # no extra has that
            return {"works": False, "why": why, "cure": found["cure"] or again}
    return {"works": True, "why": "", "cure": ""}


def _check_bundle(bundle: Bundle, backends: dict[str, Facts], default: str, limit: float) -> Facts:
    """Golden vectors on every backend that works and every precision that the bundle holds."""
    results: dict[str, Facts] = {}
    for backend in (name for name, b in backends.items() if b["works"]):
        for precision in bundle.precisions:
            argument = json.dumps([str(bundle.path), backend, precision])
            results[f"{backend} {precision}"] = ask("parity", argument, max(limit, PARITY_LIMIT_SECONDS))
    results.setdefault(f"{default} fp32", finding(BROKEN, detail=f"{default} does not work here"))
    return {"path": str(bundle.path), "title": bundle.title, "weights": bundle.weights, "results": results}


def describe(report: Facts) -> list[str]:
    """The report for people, by line."""
    c, memory, driver = report["cpu"], report["memory"]["available_bytes"], report["driver"]
    flags = " ".join(c["flags"]) or "no flags known"
    lines = [
        f"rescale {report['rescale']}, Python {report['python']}, {report['platform']}",
        f"CPU: {c['model']}, {c['usable_threads']} of {c['cores']} threads usable; {flags}",
        "memory: " + ("unknown" if memory is None else f"{memory / (1 << 30):.1f} GB available"),
    ]
    title = f"driver: {driver['version'] or driver['state']}"
    lines.append(title + (f", {driver['detail']}" if driver["detail"] else ""))
    if driver["cure"]:
        lines.append(f"    {driver['cure']}")
    for d in driver.get("devices", []):
        size = d["memory_bytes"] / (1 << 30)
        lines.append(f"GPU: {d['name']}, compute capability {d['compute_capability']}, {size:.0f} GB")
    lines.append("libraries:")
    for name, found in report["libraries"].items():
        lines += _rows(name, found["state"], " ".join(filter(None, (found["version"], found["detail"]))), found["cure"])
    lines.append("backends:")
    for name, b in report["backends"].items():
        said = ": ".join(filter(None, ("default" if name == report["default"] else "", "" if b["works"] else b["why"])))
        lines += _rows(name, "works" if b["works"] else "unusable", said, b["cure"])
    if "bundle" in report:
        b = report["bundle"]
        lines.append(f"bundle {b['path']}: {b['title']}")
        for name, found in b["results"].items():
            lines += _rows(name, found["state"], _parity_text(found), "")
    return lines


def _rows(name: str, state: str, said: str, cure: str) -> Sequence[str]:
    first = f"  {name:<20}{state:<15}{said}".rstrip()
    return [first, f"{'':37}{cure}"] if cure else [first]


def _parity_text(found: Facts) -> str:
    if "parity" not in found:
        return str(found["detail"])
    p = found["parity"]
    shares = ", ".join(
        f"{k} {c['different']} of {c['values']} values differ by at most {c['largest']}" for k, c in p["graphs"].items()
    )
    lost = "infinitely much" if p["psnr_lost"] is None else f"{p['psnr_lost']:.4f} dB"
    times = ", ".join(f"{k} {1000 * s:.0f} ms" for k, s in found["seconds"].items())
    text = f"loses {lost} to PyTorch; {shares}; {times} for {found['hr_pixels']} HR pixels; {found['runner']}"
    return f"{found['detail']}; {text}" if found["detail"] else text


def command(bundle: Path | None, json_: bool, limit: float) -> int:
    """Body of the command. Exit code 0: the default backend works, and passes the bundle's parity gate if one is given."""
    report: dict[str, Any] = examine(bundle, limit)
    if json_:
        print_json_line(report)
    else:
        # Names come from manifests, libraries and devices.
        print("\n".join(map(printable, describe(report))))
    return 0 if report["ok"] else 1
