"""A Triton server that a wheel carries, on loopback only, and what asks it over HTTP and gRPC. Its only backend is Python's."""

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
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WHEELS = ("nvidia-pytriton==0.7.0", "tritonclient==2.73.0", "grpcio==1.85.1", "protobuf==6.33.6", "python-rapidjson==1.25")
INSTALL_SECONDS = 180
PYTHON = "{}.{}".format(*sys.version_info)
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}

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


def install(folder: Path) -> Path:
    """The server and its gRPC client, installed into a folder; RESCALE_TRITON_SITE names one where they are already.

    Skips the test where they are not to be had.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("the server's wheel is for Linux on x86-64")
    if named := os.environ.get("RESCALE_TRITON_SITE"):
        return Path(named)
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
