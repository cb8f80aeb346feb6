"""Mutated files: never a crash, a hang, unbounded memory or a silently wrong picture.

The property: whatever bytes come, reading either raises one of our errors or returns a picture whose state is not exact, or
one that is exact and equal to the original in every pixel, alpha and latent value.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest

from rescale import Small, State, png, riff
from rescale.carrier import PNG_CHUNK
from rescale.container import Picture
from rescale.errors import RescaleError

MAX_PIXELS = 4_000_000
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def original(model: str) -> Small:
    rng = np.random.default_rng(5)
    rgb = np.add.outer(np.arange(19) * 3, np.arange(23) * 5)[:, :, None] + rng.integers(0, 40, (19, 23, 3))
    alpha = rng.integers(100, 150, (19, 23)).astype(np.uint8) if model == "dlv_irn_a" else None
    latent = rng.integers(1, 256, (4, 5, 6)).astype(np.uint8) if model == "irn_m" else None
    source = Picture(
        np.zeros((37, 45, 3), np.uint8),
        alpha=rng.integers(0, 256, (37, 45)).astype(np.uint8) if model == "irn_m" else None,
        colour=((b"gAMA", b"\0\0\xb1\x8f"), (b"eXIf", b"MM\0*" + bytes(40))),
    )
    return Small.create(rgb.astype(np.uint8), alpha, latent, model=model, scale=2, weights="cd" * 32, source=source)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three random faults: flipped, overwritten, removed, doubled, swapped or cut bytes, wild lengths."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = int(rng.integers(0, 8)), int(rng.integers(0, max(1, len(out))))
        length = int(rng.integers(1, 40))
        if kind == 0:
            out[at : at + 1] = bytes([out[at] ^ (1 << int(rng.integers(0, 8)))]) if out else b""
        elif kind == 1:
            out[at : at + 1] = bytes([INTERESTING[int(rng.integers(0, 5))]])
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at : at + length] = rng.integers(0, 256, min(length, len(out) - at), np.uint8).tobytes()
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            out[at : at + 4] = int(rng.integers(0, 1 << 32)).to_bytes(4, "big" if rng.random() < 0.5 else "little")
        else:
            other = int(rng.integers(0, max(1, len(out))))
            a, b = out[at : at + length], out[other : other + length]
            if len(a) == len(b):
                out[at : at + length], out[other : other + length] = b, a
    return bytes(out)


def with_fresh_checksums(data: bytes, rng: np.random.Generator) -> bytes:
    """Mutate inside one chunk and repair the container around it, so that the fault reaches the deeper parsers."""
    if riff.is_webp(data):
        pieces = riff.read_chunks(data, "x")
        at = int(rng.integers(0, len(pieces)))
        pieces[at] = (pieces[at][0], mutate(pieces[at][1], rng))
        return riff.assemble(pieces)
    chunks = png.read_chunks(data, "x")
    at = int(rng.integers(0, len(chunks)))
    chunks[at] = png.Chunk(chunks[at].kind, mutate(chunks[at].data, rng), True)
    return png.assemble(chunks)


CORPUS = [
    (model, container, layout, carrier)
    for model, layout in (
        ("dlv_irn_a", "alpha"),
        ("dlv_irn_a", "chunk"),
        ("dlv_irn_a", "strip"),
        ("irn_m", "alpha"),
        ("irn", "alpha"),
    )
    for container in ("png", "webp")
    for carrier in ("chunk", "text", "sidecar")
]


def attack(count: int, seed: int) -> dict[str, int]:
    """Read `count` mutated files; returns how often each outcome came."""
    files = []
    for model, container, layout, carrier in CORPUS:
        small = original(model)
        files.append((small, *small.encode(container, layout, carrier)))
    rng = np.random.default_rng(seed)
    tally: dict[str, int] = {}
    for i in range(count):
        small, data, sidecar = files[i % len(files)]
        if sidecar is not None and rng.random() < 0.6:
            sidecar = mutate(sidecar, rng)
        else:
            data = with_fresh_checksums(data, rng) if rng.random() < 0.5 else mutate(data, rng)
        start = time.monotonic()
        try:
            found = Small.from_bytes(data, "mutant", MAX_PIXELS, sidecar)
        except RescaleError as e:
            outcome = type(e).__name__
        else:
            outcome = str(found.state)
            if found.state is State.EXACT:
                assert np.array_equal(found.rgb, small.rgb)
                for got, want in (
                    (found.alpha, small.alpha),
                    (found.latent, small.latent),
                    (found.source_alpha, small.source_alpha),
                ):
                    assert (got is None) == (want is None)
                    assert want is None or np.array_equal(got, want)
                assert found.block.hr_size == small.block.hr_size
            else:
                assert found.alpha is None
                assert found.latent is None
        assert time.monotonic() - start < 5, f"mutant {i} of seed {seed} took too long"
        tally[outcome] = tally.get(outcome, 0) + 1
    return tally


def test_mutations_are_never_silently_wrong():
    tally = attack(6000, seed=1)
    assert {"exact", "InputError", "damaged", "pixels-changed"} <= set(tally), tally


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutations_are_never_silently_wrong_nor_costly():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = attack(200_000, seed=2)
    assert sum(tally.values()) == 200_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "more than 300 MB"


def test_the_marker_alone_mutated_is_damaged_or_newer_never_exact():
    small = original("irn_m")
    chunks = png.read_chunks(small.to_bytes(), "x")
    at = next(i for i, c in enumerate(chunks) if c.kind == PNG_CHUNK)
    rng = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(chunks[at].data)
        data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        mutant = [*chunks[:at], png.Chunk(PNG_CHUNK, bytes(data), True), *chunks[at + 1 :]]
        assert Small.from_bytes(png.assemble(mutant)).state in (State.DAMAGED, State.NEWER)
