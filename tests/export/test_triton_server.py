"""Model repositories on a real Triton server, over HTTP and gRPC.

Repositories for ONNX Runtime run on its Python backend with a model.py that hands the graph's bytes to ONNX Runtime in place
of the missing backend; ensembles, steps and configurations are as they were written.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_server import Server, environment, install

import rescale
from rescale.bundle import Bundle
from rescale_export.triton import repository_models, title, write_repository

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
    """A folder with the server and the gRPC client."""
    return install(tmp_path_factory.mktemp("triton"))


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
