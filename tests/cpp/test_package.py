"""The installed package as somebody else uses it: find_package, pkg-config, the programs; and no allocation in the frame loop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rescale
from rescale import codes, png
from rescale.container import Small

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(900)  # the first test waits for the compiler

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A prefix with the installed library."""
    prefix = tmp_path_factory.mktemp("prefix")
    subprocess.run(["cmake", "--install", str(built), "--prefix", str(prefix)], check=True, capture_output=True)
    return prefix


@pytest.fixture(scope="module")
def consumer(cmake, installed, tmp_path_factory) -> Path:
    """A separate project, built with find_package."""
    include = os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "/usr/include/onnxruntime")
    build = tmp_path_factory.mktemp("consumer")
    return cmake(build, f"-DCMAKE_PREFIX_PATH={installed}", f"-DONNXRUNTIME_INCLUDE_DIR={include}", source=HERE / "consumer")


def run(*command: object, status: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(c) for c in command], capture_output=True, **options)
    assert done.returncode == status, done.stderr.decode() + done.stdout.decode()[-2000:]
    return done


@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 2), ("irn_m", 2), ("irn_a", 4)])
@pytest.mark.parametrize("tile", [0, 8])
def test_the_frame_loop_allocates_nothing_outside_the_backend(consumer, bundle, ort, model, scale, tile):
    environment = os.environ | {"SHIM_LIBRARY": str(ort)}
    out = run(consumer / "allocations", consumer / "libshim.so", bundle(model, scale), tile, env=environment).stdout
    counts = [int(line) for line in out.split()]
    assert counts[0] > 0
    assert counts[1:] == [0] * 7


def test_older_versions_of_onnx_runtime_are_asked_for_what_they_have(consumer, bundle, ort):
    def tell(version: str, status: int) -> str:
        environment = os.environ | {"SHIM_LIBRARY": str(ort), "SHIM_VERSION": version}
        command = consumer / "allocations", consumer / "libshim.so", bundle("irn", 2), 0
        return run(*command, status=status, env=environment).stderr.decode()

    for version in ("1.14.1", "1.17.3", "1.20.0", "1.99.0"):
        assert tell(version, 0) == ""
    assert "ONNX Runtime 1.8.1; version 1.12 or newer is wanted" in tell("1.8.1", 1)


def test_pkg_config_says_how_to_compile_and_link(installed, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("C++: pkg-config is not installed")
    (folder,) = installed.glob("lib*/**/pkgconfig")
    environment = os.environ | {"PKG_CONFIG_PATH": str(folder)}
    flags = run("pkg-config", "--cflags", "--libs", "rescale", env=environment).stdout.decode().split()
    source = tmp_path / "a.c"
    source.write_text("#include <rescale/rescale.h>\n#include <stdio.h>\nint main(void) { return puts(rescale_version()) < 0; }\n")
    run("cc", "-Wall", "-Wextra", "-pedantic", "-std=c99", "-Werror", source, "-o", tmp_path / "a", *flags)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder.parent)}
    assert run(tmp_path / "a", env=environment).stdout.decode().strip() == rescale.__version__


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_pkg_config_names_the_folders_that_were_given(tmp_path, ort_header, kind):
    base = str(tmp_path / "i") + "/" if kind == "absolute" else ""
    options = [f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'i'}", f"-DCMAKE_INSTALL_LIBDIR={base}far/lib"]
    options += [f"-DCMAKE_INSTALL_INCLUDEDIR={base}include", f"-DONNXRUNTIME_INCLUDE_DIR={ort_header}"]
    run("cmake", "-S", ROOT / "runtime" / "cpp", "-B", tmp_path / "b", *options)
    lines = dict(line.split("=", 1) for line in (tmp_path / "b" / "rescale.pc").read_text().splitlines()[:3])
    prefix = lines["prefix"].replace("${pcfiledir}", str(tmp_path / "i" / "far" / "lib" / "pkgconfig"))
    found = [os.path.normpath(lines[k].replace("${prefix}", prefix)) for k in ("libdir", "includedir")]
    assert found == [str(tmp_path / "i" / "far" / "lib"), str(tmp_path / "i" / "include")]


def test_the_installed_program_finds_the_library_in_its_own_prefix(installed):
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    assert run(installed / "bin" / "rescale-cpp", "--version", env=environment).stdout.decode().strip() == rescale.__version__


HOST = """
cmake_minimum_required(VERSION 3.18)
project(host LANGUAGES CXX)
add_subdirectory("%s" rescale)
add_library(own "%s")
get_target_property(OWN own TYPE)
get_target_property(THEIRS rescale TYPE)
message(STATUS "own ${OWN}, rescale ${THEIRS}, programs ${RESCALE_PROGRAMS}")
"""


def test_a_host_project_keeps_its_own_kind_of_libraries(tmp_path, ort_header):
    (tmp_path / "own.cpp").write_text("int own() { return 1; }\n")
    (tmp_path / "CMakeLists.txt").write_text(HOST % (ROOT / "runtime" / "cpp", tmp_path / "own.cpp"))
    out = run("cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DONNXRUNTIME_INCLUDE_DIR={ort_header}").stdout.decode()
    assert "-- own STATIC_LIBRARY, rescale SHARED_LIBRARY, programs OFF" in out


@pytest.fixture
def program(built, ort):
    """Runs rescale-cpp."""
    environment = os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}

    def call(*arguments: object, status: int = 0, **options) -> subprocess.CompletedProcess:
        return run(built / "rescale-cpp", *arguments, status=status, env=environment, **options)

    return call


def test_the_program_makes_shows_and_restores_files(program, bundle, picture, tmp_path):
    path, hr = bundle("dlv_irn_m", 2), picture(31, 46)
    (tmp_path / "hr.png").write_bytes(png.encode(hr))
    program("down", tmp_path / "hr.png", tmp_path / "lr.png", "--bundle", path, "--carrier", "sidecar", "--threads", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hr.png", "lr.png", "lr.png.rescale"]
    small = Small.open(tmp_path / "lr.png")
    assert small.state == "exact"
    shown = program("info", tmp_path / "lr.png").stdout.decode()
    assert "state: exact\nlr_size: 23x16\nmodel: dlv_irn_m\nscale: 2\nhr_size: 46x31\n" in shown
    program("up", tmp_path / "lr.png", tmp_path / "back.png", "--bundle", path, "--tile", 8)
    with rescale.load(path, backend="onnxruntime", tile=(8, 8)) as net:
        assert np.array_equal(np.array(Image.open(tmp_path / "back.png")), net.upscale(small))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_the_program_says_is_lost_loudly(built, bundle, picture, tmp_path):
    with rescale.load(bundle("irn", 2)) as net:
        net.downscale(picture(8, 8)).save(tmp_path / "s.png")
    for arguments in (["info", tmp_path / "s.png"], ["--help"], ["--version"]):
        with open("/dev/full", "wb") as full:
            command = [str(built / "rescale-cpp"), *map(str, arguments)]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, "error: output: No space left on device\n")


def test_the_program_leaves_nothing_in_the_home_folder(built, ort, bundle, picture, tmp_path):
    """ONNX Runtime from 1.32 on keeps an identity of the machine there, unless it is told."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "hr.png").write_bytes(png.encode(picture(9, 9)))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XDG_") and k != "ORT_DISABLE_TELEMETRY"}
    environment = kept | {"RESCALE_ONNXRUNTIME": str(ort), "HOME": str(home)}
    run(built / "rescale-cpp", "down", tmp_path / "hr.png", tmp_path / "lr.png", "--bundle", bundle("irn", 2), env=environment)
    assert list(home.rglob("*")) == []


def test_what_a_result_takes_the_place_of(program, built, ort, bundle, picture, tmp_path):
    path, environment = bundle("irn_a", 2), os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}
    source, folder = tmp_path / "hr.png", tmp_path / "there"
    source.write_bytes(png.encode(picture(20, 20)))
    folder.mkdir()
    for link, target in (("to.png", folder / "to.png"), ("near.png", Path("there/near.png")), ("twice.png", Path("to.png"))):
        (tmp_path / link).symlink_to(target)
        program("down", source, tmp_path / link, "--bundle", path)
        assert (tmp_path / link).readlink() == target
        assert Small.open(tmp_path / link).state == "exact"
    assert sorted(p.name for p in folder.iterdir()) == ["near.png", "to.png"]
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        through = pool.submit(pipe.read_bytes)
        program("down", source, pipe, "--bundle", path)
        assert through.result(60) == (folder / "to.png").read_bytes()
    assert pipe.is_fifo()
    # In a container each run has the process id of the one that was killed.
    script = 'for n in 0 1; do : > "$0/.rescale.$$-$n.tmp"; done; exec "$@"'
    run("sh", "-c", script, tmp_path, built / "rescale-cpp", "down", source, tmp_path / "x.png", "--bundle", path, env=environment)


def test_the_programs_refusals(program, bundle, picture, tmp_path):
    path = bundle("irn_a", 2)
    plain = tmp_path / "plain.png"
    plain.write_bytes(png.encode(picture(20, 20)))
    done = program("up", plain, tmp_path / "out.png", "--bundle", path, status=3)
    assert "it carries no marker of this toolkit" in done.stderr.decode()
    assert not (tmp_path / "out.png").exists()
    forced = program("up", plain, tmp_path / "out.png", "--bundle", path, "--force")
    assert "restored without auxiliary data" in forced.stderr.decode()
    forced = program("up", plain, tmp_path / "out.png", "--bundle", bundle("irn", 2), "--force")
    assert "restored from its pixels, unverified" in forced.stderr.decode()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere" / "x.png")
    (tmp_path / "folder.png").mkdir()
    for arguments, status, words in (
        (("down", plain), 2, "wrong number of files"),
        (("down", plain, tmp_path / "x.png", "--nothing", "1"), 2, "no option --nothing"),
        (("down", plain, tmp_path / "x.png"), 2, "--bundle is missing"),
        *(
            (("down", plain, tmp_path / "x.png", "--bundle", path, "--memory", size), 2, "a size is wanted")
            for size in ("much", "0.5", "-1GB", "1e9", "1000000000000GB", "1.2.3GB", "GB", "")
        ),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--threads", "-1"), 2, "a whole number is wanted"),
        (("down", plain, tmp_path / "x.jpg", "--bundle", path), 1, "writes PNG"),
        (("down", tmp_path / "none.png", tmp_path / "x.png", "--bundle", path), 1, "none.png: no such file"),
        (
            ("down", plain, tmp_path / "none" / "x.png", "--bundle", path),
            1,
            f"x.png: the folder {tmp_path / 'none'} does not exist",
        ),
        (
            ("down", plain, tmp_path / "dangling.png", "--bundle", path),
            1,
            f"into the folder {tmp_path / 'nowhere'}, which does not",
        ),
        (("down", plain, tmp_path / "folder.png", "--bundle", path), 1, "folder.png: is a folder; name a file in it"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--layout", "x"), 2, "choose one of alpha, chunk, strip"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--carrier", "x"), 2, "choose one of chunk, text, sidecar"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--alpha", "x"), 2, "choose one of refuse, keep"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--backend", "nope"), 2, "choose one of auto, onnxruntime"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--precision", "bf16"), 2, "choose one of fp32, mixed, fp16"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--threads", "4097"), 2, "at most 4096"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--tile", "0"), 2, "at least 1"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--max-pixels", "0"), 2, "at least 1"),
        *(
            (
                ("down", plain, tmp_path / "x.png", "--bundle", path, "--backend", f"onnxruntime:{rest}"),
                1,
                "wanted is onnxruntime:PROV",
            )
            for rest in ("", "CPUExecutionProvider,x", "CPUExecutionProvider,=1", ",a=1")
        ),
        (
            ("down", plain, tmp_path / "x.png", "--bundle", bundle("irn", 2), "--layout", "strip"),
            1,
            "makes no fourth plane to lay out",
        ),
        (("up", plain, tmp_path / "x.png", "--bundle", bundle("irn", 2), "--trust-alpha"), 1, "reads no alpha channel"),
        (("down", plain, tmp_path / "x.png", "--bundle", tmp_path), 1, "no bundle here (manifest.json is missing)"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--precision", "fp16"), 1, "not 'fp16'; export it"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--backend", "tensorrt"), 1, "-DRESCALE_WITH_TENSORRT=ON"),
        (
            ("down", plain, tmp_path / "x.png", "--bundle", path, "--backend", "onnxruntime:CUDAExecutionProvider"),
            1,
            "does not have it",
        ),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--library", tmp_path / "no.so"), 1, "RESCALE_ONNXRUNTIME"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--max-pixels", "10"), 1, "above the limit of 10 pixels"),
        (("down", plain, tmp_path / "x.png", "--bundle", path, "--memory", "1000"), 1, "is too small for this model: at least"),
        (("up", plain, tmp_path / "x.png", "--bundle", path, "--max-pixels", "500"), 1, "would become larger than 500 pixels"),
    ):
        done = program(*arguments, status=status)
        assert words in done.stderr.decode(), arguments
        assert len(done.stderr.decode().splitlines()) == 1 or status == 2
    program("down", plain, tmp_path / "lr.png", "--bundle", path, "--memory", "512mb", "--max-pixels", "400")
    lr = (tmp_path / "lr.png").read_bytes()
    for left in (0, 40, len(lr) // 2):
        (tmp_path / "part.png").write_bytes(lr[:left])
        done = program("up", tmp_path / "part.png", tmp_path / "y.png", "--bundle", path, status=3)
        assert done.stderr.decode().rstrip().endswith("take an undamaged copy")
    odd = tmp_path / "odd.png"
    odd.write_bytes(png.encode(picture(21, 19)))
    limit = ("--bundle", path, "--max-pixels", 21 * 19)
    program("down", odd, tmp_path / "odd_lr.png", *limit)
    program("up", tmp_path / "odd_lr.png", tmp_path / "odd_again.png", *limit)
    assert b"usage:" in program("--help").stdout
    assert program("--version").stdout.decode().strip() == rescale.__version__
    assert not list(tmp_path.glob(".rescale*"))


def test_a_source_is_never_written_over(program, bundle, picture, tmp_path):
    path, source, link = bundle("irn_a", 2), tmp_path / "own.png", tmp_path / "link.png"
    data = png.encode(picture(20, 20))
    source.write_bytes(data)
    link.symlink_to(source)
    for command in ("down", "up"):
        for pair in ((source, source), (source, link), (link, source), (source, tmp_path / ".." / tmp_path.name / "own.png")):
            assert b"is the source itself" in program(command, *pair, "-b", path, status=1).stderr
            assert source.read_bytes() == data


def test_a_replaced_file_keeps_its_permissions(program, bundle, picture, tmp_path):
    source, target = tmp_path / "hr.png", tmp_path / "lr.png"
    source.write_bytes(png.encode(picture(20, 20)))
    sidecar = tmp_path / "lr.png.rescale"
    for file in (target, sidecar):
        file.write_bytes(b"old")
        file.chmod(0o600)
    program("down", source, target, "-b", bundle("irn_a", 2), "--carrier", "sidecar")
    program("up", target, tmp_path / "again.PNG", "-b", bundle("irn_a", 2))
    assert [file.stat().st_mode & 0o777 for file in (target, sidecar)] == [0o600, 0o600]
    assert (tmp_path / "again.PNG").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_cannot_end_is_ended_by_the_second_signal(built, consumer, ort, bundle, picture, tmp_path, number):
    (tmp_path / "hr.png").write_bytes(png.encode(picture(20, 20)))
    command = [built / "rescale-cpp", "down", tmp_path / "hr.png", tmp_path / "lr.png", "-b", bundle("irn_a", 2)]
    shim = {"RESCALE_ONNXRUNTIME": str(consumer / "libshim.so"), "SHIM_LIBRARY": str(ort), "SHIM_HANGS": "1"}
    running = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, env=os.environ | shim)
    try:
        assert running.stderr.readline() == b"hangs\n"  # before that the first signal would end it
        assert catches(running.pid, number)
        running.send_signal(number)
        wait_until(lambda: not catches(running.pid, number))
        assert running.poll() is None
        running.send_signal(number)
        assert running.wait(60) == -number
    finally:
        running.kill()
        running.communicate()
    assert [p.name for p in tmp_path.iterdir()] == ["hr.png"]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16) >> (number - 1) & 1 == 1


def wait_until(found) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_program_reads_and_writes_streams(program, bundle, picture, tmp_path):
    path, source = bundle("dlv_irn_a", 2), png.encode(picture(31, 46))
    (tmp_path / "hr.png").write_bytes(source)
    program("down", tmp_path / "hr.png", tmp_path / "lr.png", "--bundle", path)
    down = program("down", "-", "-", "-b", path, input=source)
    assert down.stdout == (tmp_path / "lr.png").read_bytes()
    assert down.stderr.startswith(b"- -> -: 46x31 -> 23x16, ")
    program("up", tmp_path / "lr.png", tmp_path / "back.png", f"--bundle={path}")
    up = program("up", "-", "-", f"--bundle={path}", "--tile=64", input=down.stdout)
    assert up.stdout == (tmp_path / "back.png").read_bytes()
    assert b"source: -\nstate: exact\n" in program("info", "-", input=down.stdout).stdout
    for arguments, data, status, words in (
        (("up", "-", "-", "-b", path), b"", 3, "<stdin>: empty: take an undamaged copy"),
        (("up", "-", "-", "-b", path), source, 3, "<stdin>: it carries no marker of this toolkit"),
        (("down", "-", "-", "-b", path, "--carrier", "sidecar"), source, 2, "needs a file to lie beside, not standard output"),
        (("down", "-", "-", "-b", path, "--exact=1"), source, 2, "--exact takes no value"),
        (("down", "-", "-", "-x"), source, 2, "no option -x"),
        (("down", "-", "-", "--bundle"), source, 2, "--bundle takes a value"),
    ):
        done = program(*arguments, status=status, input=data)
        assert words in done.stderr.decode(), arguments
        assert done.stdout == b""
    for arguments in (("down", "--help"), ("up", "x", "-h"), ("info", "--help")):
        assert program(*arguments).stdout == program("--help").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_program_ends_cleanly_when_it_is_told_to(built, ort, bundle, picture, tmp_path, number, code):
    hr = np.tile(picture(100, 100), (12, 20, 1))
    (tmp_path / "hr.png").write_bytes(png.encode(hr))
    command = [built / "rescale-cpp", "down", tmp_path / "hr.png", tmp_path / "lr.png", "-b", bundle("dlv_irn_a", 2), "--tile", 12]
    environment = os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}
    running = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, env=environment)
    wait_until(lambda: catches(running.pid, number))  # the network runs: the program then has a handler
    running.send_signal(number)
    assert running.communicate(timeout=60)[1] == b"error: interrupted\n"
    assert running.returncode == code
    assert [p.name for p in tmp_path.iterdir()] == ["hr.png"]


def test_raw_frames_through_the_example_are_pythons(built, bundle, picture, ort):
    path = bundle("dlv_irn_a", 2)
    frames = [picture(27, 41), picture(27, 41)[::-1].copy(), picture(27, 41)[:, ::-1].copy()]
    raw = b"".join(f.tobytes() for f in frames)
    environment = os.environ | {"RESCALE_ONNXRUNTIME": str(ort)}
    lr = run(built / "rescale-frames", "down", path, "41x27", env=environment, input=raw).stdout
    with rescale.load(path, backend="onnxruntime") as net:
        small = [net.downscale(f) for f in frames]
        assert lr == b"".join(np.dstack([s.rgb, codes.alpha_to_file(s.alpha)]).tobytes() for s in small)
        hr = run(built / "rescale-frames", "up", path, "41x27", env=environment, input=lr).stdout
        assert hr == b"".join(net.upscale(s).tobytes() for s in small)
    done = run(built / "rescale-frames", "down", path, "41x27", env=environment, input=raw[:-1], status=1)
    assert b"frame 2: the stream ends within it" in done.stderr
