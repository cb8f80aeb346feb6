"""What can be said of an engine file without a GPU: its sidecar, its header, and whether both tell of these bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rescale.console import printable
from rescale.engine_file import ENGINE_SUFFIX, SIDECAR_SUFFIX, read_header, read_info, read_whole
from rescale.errors import EngineError
from rescale.files import open_regular

HEADER_BYTES = 64


def report(path: Path) -> dict[str, Any]:
    """All that is known of an engine.

    Returns:
        ``path``; ``engine``, the sidecar or None; ``header`` of a TensorRT for RTX engine or None; ``problem``, why the engine
        cannot be used, or None.

    Raises:
        EngineError: neither the engine nor its sidecar is there, or it is a folder.
    """
    if path.name.endswith(SIDECAR_SUFFIX):
        path = path.with_name(path.name.removesuffix(SIDECAR_SUFFIX) + ENGINE_SUFFIX)
    info, problem = None, None
    try:
        info = read_info(path)
        read_whole(info)
    except EngineError as e:
        if info is None and not path.is_file():
            raise
        problem = str(e)
    return {"path": str(path), "engine": info.to_dict() if info else None, "header": _header(path), "problem": problem}


def _header(path: Path) -> dict[str, Any] | None:
    try:
        with open_regular(path) as f:
            header = read_header(f.read(HEADER_BYTES))
    except OSError:
        return None
    if header is None:
        return None
    known = {"bytes": header.size, "library": header.version, "compute_capabilities": list(header.capabilities)}
    return known | {"unknown_bits": header.unknown}


def as_text(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [found["path"]]
    info, header = found["engine"], found["header"]
    if info is not None:
        lines.append(f"  {info['model']} x{info['scale']} {info['size']}, {info['graph']}, {info['precision']}")
        lines.append(f"  {info['backend']} {info['library']}, {info['bytes']} bytes, SHA-256 {info['engine_sha256'][:12]}...")
        sizes = (f"{name} {'x'.join(map(str, info['profile'][name]))}" for name in ("min", "opt", "max"))
        lines.append(f"  pictures (batch x height x width of HR): {', '.join(sizes)}")
        bound = f"only {info['device']}, " if info["device"] else ""
        lines.append(f"  runs on: {bound}compute capability {', '.join(info['compute_capabilities']) or 'unknown'}")
        for side in ("inputs", "outputs"):
            tensors = (f"{t['name']} {t['dtype']} ({', '.join(map(str, t['axes']))})" for t in info[side])
            lines.append(f"  {side}: {', '.join(tensors)}")
        if info["parity"]:
            lines.append(
                f"  parity: {info['parity']['psnr_lost']} dB lost against PyTorch ({info['parity'].get('runner', 'unknown')})"
            )
        lines.append("  layers by output dtype:")
        for kind, row in info["census"].items():
            lines.append(f"    {kind:<14} {', '.join(f'{n} {dtype}' for dtype, n in row.items())}")
    if header is not None:
        bits = f" and unnamed bits {header['unknown_bits']:#x}" if header["unknown_bits"] else ""
        capabilities = ", ".join(header["compute_capabilities"])
        lines.append(f"  header: {header['bytes']} bytes, version {header['library']}, compute capability {capabilities}{bits}")
    lines.append(f"  cannot be used: {found['problem']}" if found["problem"] else "  whole: size, SHA-256 and header agree")
    return "\n".join(map(printable, lines))
