"""Under sanitizers: mutated LR files, pictures and manifests, whole runs with threads, allocations that fail."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from rescale import png
from rescale.container import Small
from rescale.errors import RescaleError
from rescale.picture import Picture

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

HERE = Path(__file__).resolve().parent


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"shared_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


files = load(HERE / "test_files.py")
mutations = files.mutations


def instrument(cmake, folder: Path, sanitizers: str, *programs: str) -> Path:
    """Folder of the programs, built into it with the library under sanitizers."""
    conftest = load(HERE / "conftest.py")
    return cmake(
        folder,
        f"-DRESCALE_SOURCE={conftest.SOURCE}",
        f"-DONNXRUNTIME_INCLUDE_DIR={conftest.ort_include()}",
        f"-DRESCALE_SANITIZE={sanitizers}",
        "-DRESCALE_PROGRAMS=OFF",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        source=HERE / "sanitized",
        targets=programs,
    )


def symbols(build: Path) -> str:
    return subprocess.run(["nm", "-C", str(build / "rescale" / "librescale.a")], capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def instrumented(cmake, tmp_path_factory) -> Path:
    """Folder of the programs under AddressSanitizer and UndefinedBehaviorSanitizer."""
    build = instrument(cmake, tmp_path_factory.mktemp("sanitized"), "address,undefined", "corpus", "scarce")
    assert "__asan_report_store" in symbols(build)
    assert "__ubsan_handle" in symbols(build)
    return build


def outcomes(build: Path, folder: Path, records: list[tuple[bytes, bytes, bytes | None]], environment: dict[str, str]) -> list[str]:
    """What `corpus` says of each record: kind, bytes, side-car."""
    fed = b"".join(
        kind + struct.pack("<I", len(data)) + data + (b"\xff" * 4 if beside is None else struct.pack("<I", len(beside)) + beside)
        for kind, data, beside in records
    )
    command = [str(build / "corpus"), str(folder), str(load(HERE / "conftest.py").ort_library())]
    done = subprocess.run(command, input=fed, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    return done.stdout.decode().split("\n")[:-1]


@pytest.fixture(scope="module")
def corpus(instrumented, tmp_path_factory):
    """The program that reads files; a function from records to outcomes."""
    scratch = tmp_path_factory.mktemp("manifest")
    # What ONNX Runtime keeps for the life of a process is not ours.
    (scratch / "suppressions").write_text("leak:libonnxruntime\n")

    def run(records: list[tuple[bytes, bytes, bytes | None]], folder: Path = scratch) -> list[str]:
        # A third of ONNX Runtime's address space is not instrumented: allocations that fail are errors of ours, not the end.
        environment = {"ASAN_OPTIONS": "allocator_may_return_null=1", "LSAN_OPTIONS": f"suppressions={scratch / 'suppressions'}"}
        return outcomes(instrumented, folder, records, environment)

    return run


def outcome(found: Small | RescaleError) -> str:
    return "error 1" if isinstance(found, RescaleError) else str(found.state)


def attack(corpus, count: int, seed: int) -> None:
    mutants = files.mutants(count, seed)
    found = corpus([(b"L", data, sidecar) for _, data, sidecar in mutants])
    wanted = [outcome(files.pythons(data, sidecar)) for _, data, sidecar in mutants]
    assert len(found) == count
    assert {"exact", "damaged", "error 1"} <= set(found)
    different = [(i, a, b) for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]
    # A stream that ends early is refused; Python's decoder takes the missing rows for black and lets the digests decide.
    assert all(a == "error 1" for _, a, _ in different), different
    assert len(different) <= max(2, count // 200)


def test_mutated_lr_files(corpus):
    attack(corpus, 1200, seed=31)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutated_lr_files(corpus):
    for seed in range(40, 60):
        attack(corpus, 2500, seed)


def test_mutated_pictures(corpus, picture):
    rng = np.random.default_rng(5)
    hr = picture(9, 13)
    sources = [png.encode(hr), png.encode(np.dstack([hr, hr[:, :, 0]])), png.encode(hr[:, :, 0].copy())]
    mutants = [png.assemble(png.read_chunks(s, "x")) for s in sources]
    for i in range(600):
        source = sources[i % 3]
        mutants.append(mutations.with_fresh_checksums(source, rng) if i % 2 else mutations.mutate(source, rng))
    found = corpus([(b"P", data, None) for data in mutants])
    assert found[:3] == ["read"] * 3
    assert set(found) == {"read", "error 1"}


def test_mutated_manifests(corpus, bundle, tmp_path):
    """A damaged manifest is a bundle error; one that still says the same is loaded. Nothing else comes of it."""
    source = bundle("irn_m", 2)
    folder = tmp_path / "bundle"
    shutil.copytree(source, folder)
    raw = (source / "manifest.json").read_bytes()
    rng = np.random.default_rng(8)
    mutants = [
        raw,
        *(mutations.mutate(raw, rng) for _ in range(400)),
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ]
    manifest = json.loads(raw)
    for key in manifest:
        for value in (None, -1, 0, 1e308, "x", [], {}, [[]], 1 << 63, (1 << 64) - 1, 2.5, True):
            mutants.append(json.dumps(manifest | {key: value}).encode())
    for key in ("file", "sha256", "memory_per_lr_pixel", "inputs", "outputs"):
        for value in (None, -1, 1 << 63, "../x", [], [{}], [{"name": 1}]):
            graphs = manifest["graphs"] | {"upscale": manifest["graphs"]["upscale"] | {key: value}}
            mutants.append(json.dumps(manifest | {"graphs": graphs}).encode())
    found = corpus([(b"M", data, None) for data in mutants], folder)
    assert found[0] == "loaded"
    assert set(found) == {"loaded", "error 3"}
    assert found.count("error 3") > 250


@pytest.mark.parametrize(("model", "scale"), [("irn", 4), ("dlv_irn_a", 2), ("irn_m", 2)])
def test_whole_runs_with_threads(corpus, bundle, model, scale):
    assert corpus([(b"B", str(bundle(model, scale)).encode(), None)]) == ["ran"]


@pytest.mark.slow
def test_threads_race_for_nothing(cmake, bundle, tmp_path):
    """Under ThreadSanitizer: one `Rescaler` and jobs of it, in four threads at once."""
    build = instrument(cmake, tmp_path / "build", "thread", "corpus")
    assert "__tsan_write" in symbols(build)
    # ONNX Runtime is not instrumented: what its threads do with memory of its own looks unordered.
    (tmp_path / "suppressions").write_text("called_from_lib:libonnxruntime.so\n")
    environment = {"TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:suppressions={tmp_path / 'suppressions'}"}
    for model, scale in (("irn", 4), ("dlv_irn_a", 2), ("irn_m", 2)):
        record = (b"B", str(bundle(model, scale)).encode(), None)
        assert outcomes(build, tmp_path, [record] * 5, environment) == ["ran"] * 5


def test_every_allocation_may_fail(instrumented, tmp_path):
    """Whichever one it is: the library's own error says that memory is short, and nothing is lost or half done."""
    rng = np.random.default_rng(1)
    hr, alpha = rng.integers(0, 256, (18, 14, 3), np.uint8), rng.integers(0, 256, (18, 14), np.uint8)
    source = Picture(hr, False, alpha, ((b"iCCP", b"p\0\0" + zlib.compress(bytes(16) + b"GRAY" + bytes(108))),))
    codes = rng.integers(1, 256, (9, 7), np.uint8)
    small = Small.create(hr[::2, ::2], codes, None, model="irn_a", scale=2, weights="ab" * 32, source=source)
    small.save(tmp_path / "lr.png")
    (tmp_path / "hr.png").write_bytes(png.encode(np.dstack([hr, alpha])))
    command = [str(instrumented / "scarce"), *(str(tmp_path / name) for name in ("lr.png", "hr.png", "out"))]
    (tmp_path / "out").mkdir()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len(done.stdout.splitlines()) == 12
    assert all(int(line.rsplit(" ", 1)[1]) > 0 for line in done.stdout.splitlines())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["out.png", "out.png.rescale"]
