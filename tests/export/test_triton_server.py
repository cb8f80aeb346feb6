"""Model repositories on a real Triton server, which a wheel carries: over HTTP and gRPC, on loopback only.

The wheel has Triton's Python backend and no other. Repositories for ONNX Runtime run on it with a model.py that hands the
graph's bytes to ONNX Runtime in place of the missing backend; ensembles, steps and configurations are as they were written.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rescale
from rescale.bundle import Bundle
from rescale_export.triton import repository_models, title, write_repository

WHEELS = ("nvidia-pytriton==0.7.0", "tritonclient==2.73.0", "grpcio==1.85.1", "protobuf==6.33.6", "python-rapidjson==1.25")
INSTALL_SECONDS = 180
PYTHON = "{}.{}".format(*sys.version_info)
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}

STAND_IN = """
import json
import numpy as np, onnxruntime as ort, triton_python_backend_utils as pb_utils
from pathlib import Path
{helpers}
class TritonPythonModel:
    def initialize(self, args):
        self.session = ort.InferenceSession(str(Path(args["model_repository"]) / "1" / "model.onnx"))
        self.names = [[t["name"] for t in json.loads(args["model_config"])[k]] for k in ("input", "output")]
    def execute(self, requests):
        inputs, outputs = self.names
        found = [self.session.run(outputs, {{n: _take(r, n) for n in inputs}}) for r in requests]
        return [pb_utils.InferenceResponse(output_tensors=list(map(_give, outputs, arrays))) for arrays in found]
"""

GRPC_CLIENT = """
import json, sys
import numpy as np, tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException
port, folder = sys.argv[1:]
types = {"uint8": "UINT8", "float32": "FP32"}
with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
    for line in sys.stdin:
        job = json.loads(line)
        inputs = []
        with np.load(f"{folder}/{job['file']}.npz") as arrays:
            for key in arrays.files:
                inputs.append(grpc.InferInput(key[2:], list(arrays[key].shape), types[arrays[key].dtype.name]))
                inputs[-1].set_data_from_numpy(arrays[key])
        try:
            result = client.infer(job["model"], inputs, client_timeout=200)
            names = [o.name for o in result.get_response().outputs]
            np.savez(f"{folder}/{job['file']}.out.npz", **{f"t.{n}": result.as_numpy(n) for n in names})
            print(json.dumps({"status": "OK"}))
        except InferenceServerException as e:
            print(json.dumps({"status": e.status(), "message": e.message()}))
"""

CONFIG_CHECK = """
import sys
from pathlib import Path
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
for path in sorted(Path(sys.argv[1]).rglob("config.pbtxt")):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    kind = config.backend or config.platform
    tensors = [f"{t.name} {model_config_pb2.DataType.Name(t.data_type)} {list(t.dims)}" for t in [*config.input, *config.output]]
    print(config.name, kind, config.max_batch_size, len(config.ensemble_scheduling.step), *tensors, sep="|")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the server and the gRPC client; RESCALE_TRITON_SITE names one that is installed already."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the server's wheel is for Linux on x86-64")
    if named := os.environ.get("RESCALE_TRITON_SITE"):
        return Path(named)
    folder = tmp_path_factory.mktemp("triton")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", str(folder)]
    try:
        done = subprocess.run([*pip, *WHEELS], capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{WHEELS[0]} was not installed within {INSTALL_SECONDS} s")
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-200:])
        pytest.skip(f"{WHEELS[0]} cannot be installed here: {reason}")
    return folder


def environment(site: Path) -> dict[str, str]:
    """For a process that sees the site's packages first, which hold another protobuf than this environment."""
    return os.environ | {"PYTHONPATH": str(site)}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class Server:
    """A running server; one that does not become ready is an error with its log."""

    def __init__(self, site: Path, repository: Path, work: Path) -> None:
        home = site / "pytriton" / "tritonserver"
        stub = home / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
        if not stub.exists():
            pytest.skip(f"the server's wheel has no stub for Python {PYTHON}")
        backend = work / "backends" / "python"
        backend.mkdir(parents=True)
        for path in (home / "backends" / "python" / "libtriton_python.so", stub, stub.parents[2] / "backends" / "python"):
            for file in [path] if path.is_file() else path.glob("*.py"):
                (backend / file.name).symlink_to(file)
        libraries = str(site / "nvidia_pytriton.libs")
        env = os.environ | {"LD_LIBRARY_PATH": libraries}
        needs = subprocess.run(["ldd", str(stub)], env=env, capture_output=True, text=True, check=False).stdout
        if missing := re.findall(r"(\S+) => not found", needs):
            pytest.skip(f"the server's Python stub needs {', '.join(missing)}, which this machine does not have")
        # The stub embeds an interpreter of its own, which ignores PYTHONPATH and takes the packages of the python3 that it
        # finds on PATH: this one's, whether its environment was activated or not.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env.pop("PYTHONPATH", None)
        self.http, self.grpc = free_ports(2)
        self.site, self.work, self.log = site, work, work / "server.log"
        # Ended in the end, also if this process is killed before it can do so.
        command = ["timeout", "--kill-after=20", "900", str(home / "bin" / "tritonserver")]
        command += [f"--model-repository={repository}", f"--backend-directory={work / 'backends'}"]
        command += ["--http-address=127.0.0.1", f"--http-port={self.http}", "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}"]
        command += ["--allow-metrics=false", "--disable-auto-complete-config", "--exit-timeout-secs=5"]
        with self.log.open("wb") as log:
            # A session of its own, so that its stubs can be ended with it whatever happens.
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def wait(self, seconds: float = 150) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=5).close()
                return
            time.sleep(0.1)
        pytest.fail(f"the server is not ready:\n{self.log.read_text()[-6000:]}")

    def stop(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def request(self, model: str, body: bytes, header: int | None = None) -> tuple[int, bytes, int]:
        """Status, body, and length of the JSON at its start."""
        headers = {} if header is None else {"Inference-Header-Content-Length": str(header)}
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/v2/models/{model}/infer", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=200) as f:
                raw = f.read()
                return f.status, raw, int(f.headers.get("Inference-Header-Content-Length", len(raw)))
        except urllib.error.HTTPError as e:
            return e.code, e.read(), 0

    def infer(self, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Over HTTP with binary tensors."""
        tensors = [
            {"name": n, "shape": a.shape, "datatype": DATATYPES[a.dtype.name], "parameters": {"binary_data_size": a.nbytes}}
            for n, a in inputs.items()
        ]
        head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
        status, raw, position = self.request(model, b"".join([head, *(a.tobytes() for a in inputs.values())]), len(head))
        assert status == 200, raw
        out = {}
        for t in json.loads(raw[:position])["outputs"]:
            size = t["parameters"]["binary_data_size"]
            dtype = next(k for k, v in DATATYPES.items() if v == t["datatype"])
            out[t["name"]] = np.frombuffer(raw[position : position + size], dtype).reshape(t["shape"])
            position += size
        return out

    def refusal(self, model: str, **inputs: np.ndarray) -> tuple[int, str]:
        """Status and error text of a request in plain JSON."""
        tensors = [
            {"name": n, "shape": a.shape, "datatype": DATATYPES[a.dtype.name], "data": a.ravel().tolist()}
            for n, a in inputs.items()
        ]
        status, raw, _ = self.request(model, json.dumps({"inputs": tensors}).encode())
        return status, json.loads(raw)["error"]

    def grpc_calls(self, jobs: list[tuple[str, dict[str, np.ndarray]]]) -> list[dict[str, Any]]:
        """Answers over gRPC: arrays by name, or ``status`` and ``message``."""
        lines = []
        for i, (model, inputs) in enumerate(jobs):
            np.savez(self.work / f"{i}.npz", **{f"t.{n}": a for n, a in inputs.items()})
            lines.append(json.dumps({"model": model, "file": str(i)}))
        command = [sys.executable, "-c", GRPC_CLIENT, str(self.grpc), str(self.work)]
        done = subprocess.run(
            command, env=environment(self.site), input="\n".join(lines), capture_output=True, text=True, check=False, timeout=250
        )
        assert done.returncode == 0, done.stderr
        answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        for i, answer in enumerate(answers):
            if answer["status"] == "OK":
                with np.load(self.work / f"{i}.out.npz") as arrays:
                    answer |= {key[2:]: arrays[key] for key in arrays.files}
        return answers


SERVED = {("irn", 2): "python", ("irn_a", 2): "python", ("irn_m", 2): "python"} | {
    (m, 4): "onnxruntime" for m in ("irn", "irn_a", "irn_m")
}


@pytest.fixture(scope="module")
def server(site: Path, bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One repository with plain, -A and -M bundles for both backends, served."""
    work = tmp_path_factory.mktemp("server")
    repository = work / "repository"
    for (model, scale), backend in SERVED.items():
        write_repository(Bundle(bundle(model, scale)), repository, backend)
    for path in repository.glob("*/1/model.onnx"):
        steps = next(repository.glob("*_step_grid/1/model.py")).read_text()
        helpers = "import ctypes\nfrom typing import Any, cast\nArray = Any\n" + steps[steps.index("def _take") :]
        (path.parent / "model.py").write_text(STAND_IN.format(helpers=helpers))
        config = path.parents[1] / "config.pbtxt"
        config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    running = Server(site, repository, work)
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def local(path: Path, hr: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the runtime makes of one picture: LR and code, and HR."""
    with rescale.load(path, "onnxruntime") as net:
        lr, code = net.network.down(hr)
        alpha = lr[:, :, 3] if lr.shape[2] == 4 else None
        back = net.network.up(np.ascontiguousarray(lr[:, :, :3]), alpha, code)[None]
    return {"lr": lr[None]} | ({} if code is None else {"code": code[None]}), back


@pytest.mark.parametrize(("model", "scale"), SERVED)
def test_http_and_grpc_give_the_runtimes_bytes(server: Server, bundle, picture, model: str, scale: int) -> None:
    path = bundle(model, scale)
    name = title(Bundle(path))
    jobs, wanted = [], []
    for height, width in ((1, 1), (33, 47), (64, 96)):
        hr = picture(height, width)
        small, back = local(path, hr)
        got = server.infer(f"{name}_downscale", hr=hr[None])
        assert set(got) == set(small)
        assert all(np.array_equal(got[k], small[k]) for k in small)
        assert np.array_equal(server.infer(f"{name}_upscale", **got)["hr"], back)
        jobs += [(f"{name}_downscale", {"hr": hr[None]}), (f"{name}_upscale", small)]
        wanted += [small, {"hr": back}]
    for answer, want in zip(server.grpc_calls(jobs), wanted, strict=True):
        assert answer["status"] == "OK", answer
        assert all(np.array_equal(answer[k], want[k]) for k in want)


@pytest.mark.parametrize("model", ["irn", "irn_a", "irn_m"])
def test_whole_files_over_http_and_grpc(server: Server, bundle, picture, model: str) -> None:
    name, hr = title(Bundle(bundle(model, 2))), picture(33, 47)
    with rescale.load(bundle(model, 2), "onnxruntime") as net:
        file = net.downscale(hr).to_bytes()
        want = net.upscale(rescale.Small.open(file))
    assert server.infer(f"{name}_encode", hr=hr)["file"].tobytes() == file
    (encoded,) = server.grpc_calls([(f"{name}_encode", {"hr": hr})])
    assert encoded["file"].tobytes() == file
    data = np.frombuffer(file, np.uint8)
    assert np.array_equal(server.infer(f"{name}_decode", file=data)["hr"], want)
    (decoded,) = server.grpc_calls([(f"{name}_decode", {"file": data})])
    assert np.array_equal(decoded["hr"], want)
    # What curl can send: JSON both ways.
    body = json.dumps({"inputs": [{"name": "file", "shape": data.shape, "datatype": "UINT8", "data": data.tolist()}]}).encode()
    status, raw, _ = server.request(f"{name}_decode", body)
    assert status == 200
    assert json.loads(raw)["outputs"][0]["data"] == want.ravel().tolist()


def test_bad_requests_are_answered_with_400_in_words_and_the_server_goes_on(server: Server, bundle, picture) -> None:
    python, ensemble, alpha = (title(Bundle(bundle(m, s))) for m, s in (("irn_m", 2), ("irn_m", 4), ("irn_a", 2)))

    def zeros(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
        return np.zeros(shape, dtype)

    cases: list[tuple[str, dict[str, np.ndarray], str]] = [
        *((f"{t}_downscale", {"hr": zeros(1, 4, 4, 4)}, "unexpected shape for input 'hr'") for t in (python, ensemble)),
        *((f"{t}_downscale", {"hr": zeros(4, 4, 3)}, "unexpected shape for input 'hr'") for t in (python, ensemble)),
        *((f"{t}_downscale", {"hr": zeros(1, 4, 4, 3, dtype=np.float32)}, "data-type") for t in (python, ensemble)),
        *((f"{t}_downscale", {"hr": zeros(1, 0, 4, 3)}, "hr: at least one picture of 1x1 pixels") for t in (python, ensemble)),
        *((f"{t}_downscale", {"hr": zeros(0, 4, 4, 3)}, "hr: at least one picture of 1x1 pixels") for t in (python, ensemble)),
        *((f"{t}_downscale", {"lr": zeros(1, 4, 4, 3)}, "'lr'") for t in (python, ensemble)),
        *((f"{t}_upscale", {"lr": zeros(1, 4, 4, 3)}, "expected 2 inputs but got 1") for t in (python, ensemble)),
        *(
            (f"{t}_upscale", {"lr": zeros(1, 5, 9, 3), "code": zeros(1, 4, 2, 2)}, "does not belong to lr of shape [1, 5, 9, 3]")
            for t in (python, ensemble)
        ),
        (f"{alpha}_upscale", {"lr": zeros(1, 4, 4, 3)}, "unexpected shape for input 'lr'"),
        (f"{alpha}_decode", {"file": zeros(5)}, "not a picture that can be read"),
        (f"{alpha}_decode", {"file": zeros(0)}, "not a picture that can be read"),
    ]
    for (model, inputs, words), answer in zip(cases, server.grpc_calls([c[:2] for c in cases]), strict=True):
        status, text = server.refusal(model, **inputs)
        assert (status, words in text) == (400, True), (model, status, text)
        assert answer["status"] == "StatusCode.INVALID_ARGUMENT", (model, answer)
        assert words in answer["message"]
    hr = picture(8, 8)
    with rescale.load(bundle("irn_m", 2), "onnxruntime") as net:
        foreign = np.frombuffer(net.downscale(hr).to_bytes(), np.uint8)
    status, text = server.refusal(f"{alpha}_decode", file=foreign)
    assert (status, "take the bundle that made it" in text) == (400, True)
    assert server.infer(f"{python}_downscale", hr=hr[None])["lr"].shape == (1, 4, 4, 3)
    assert server.infer(f"{ensemble}_downscale", hr=hr[None])["lr"].shape == (1, 2, 2, 3)
    assert "Traceback" not in server.log.read_text()


def test_the_pages_client_and_curl_line_work(server: Server, bundle, picture, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "triton.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    name = title(Bundle(bundle("irn_a", 2)))
    assert code.count("dlv_irn_a_x2_medium_") == 2
    code = code.replace("dlv_irn_a_x2_medium", name).replace("localhost:8001", f"127.0.0.1:{server.grpc}")
    rescale.write_picture(tmp_path / "photo.png", picture(33, 47))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(server.site), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with rescale.load(bundle("irn_a", 2), "onnxruntime") as net:
        assert (tmp_path / "small.png").read_bytes() == net.downscale(picture(33, 47)).to_bytes()
    body = re.search(r"-d '(.*)'", page).group(1)
    status, raw, _ = server.request(f"{title(Bundle(bundle('irn', 2)))}_downscale", body.encode())
    assert (status, json.loads(raw)["outputs"][0]["shape"]) == (200, [1, 1, 1, 3])


def test_every_configuration_is_what_the_server_reads(site: Path, bundle, tmp_path: Path) -> None:
    """All variants and backends, by the schema that the server's client carries."""
    models = []
    for name, scale in [(m, s) for m in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m") for s in (2, 4)]:
        b = Bundle(bundle(name, scale))
        for backend in ("onnxruntime", "python"):
            write_repository(b, tmp_path / backend, backend)
            models += repository_models(b, backend)
    for model in models:
        if "_graph_" in model.name:
            path = tmp_path / "tensorrt" / model.name / "config.pbtxt"
            path.parent.mkdir(parents=True)
            path.write_text(model.config().replace("onnxruntime", "tensorrt"))
    done = subprocess.run(
        [sys.executable, "-c", CONFIG_CHECK, str(tmp_path)], env=environment(site), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name, kind, batch, steps, *tensors = line.split("|")
        found[name, kind] = (batch, int(steps), tensors)
    names = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
    for model in models:
        tensors = [
            f"{t.name} {names[t.dtype]} {[a if isinstance(a, int) else -1 for a in t.axes]}"
            for t in (*model.inputs, *model.outputs)
        ]
        assert found[model.name, model.backend] == ("0", len(model.steps), tensors)
    assert len(found) == len(models) + sum("_graph_" in m.name for m in models)

    broken = tmp_path / "broken" / "m" / "config.pbtxt"
    broken.parent.mkdir(parents=True)
    broken.write_text('name: "m"\ninput { nme: "hr" }\n')
    check = [sys.executable, "-c", CONFIG_CHECK, str(tmp_path / "broken")]
    done = subprocess.run(check, env=environment(site), capture_output=True, text=True, check=False)
    assert 'no field named "nme"' in done.stderr


@pytest.mark.slow
def test_every_variant_and_scale_makes_and_restores_files_on_the_server(site: Path, bundle, tmp_path: Path, picture) -> None:
    for model in ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m"):
        for scale in (2, 4):
            path = bundle(model, scale)
            work = tmp_path / f"work_{model}_{scale}"
            work.mkdir()
            write_repository(Bundle(path), work / "r", "python")
            running = Server(site, work / "r", work)
            try:
                running.wait()
                for height, width in ((1, 1), (5, 200), (301, 303)):
                    hr = picture(height, width)
                    file = running.infer(f"{title(Bundle(path))}_encode", hr=hr)["file"]
                    with rescale.load(path, "onnxruntime") as net:
                        assert file.tobytes() == net.downscale(hr).to_bytes()
                        want = net.upscale(rescale.Small.open(file.tobytes()))
                    assert np.array_equal(running.infer(f"{title(Bundle(path))}_decode", file=file)["hr"], want)
            finally:
                running.stop()
