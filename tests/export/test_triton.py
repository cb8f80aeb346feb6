"""Model repositories, without a server: a stand-in schedules ensembles, runs graphs and loads model.py as Triton does."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rescale
from rescale.bundle import Bundle
from rescale.errors import BackendError, BundleError, OutOfMemoryError
from rescale_export.triton import repository_models, title, write_repository

VARIANTS = ("irn", "irn_a", "irn_m", "dlv_irn", "dlv_irn_a", "dlv_irn_m")
EVERY = [(m, s) for m in VARIANTS for s in (2, 4)]
TYPES = {"TYPE_UINT8": "uint8", "TYPE_FP32": "float32"}

TOKEN = re.compile(r'\s*("[^"]*"|[{}\[\]:,]|[A-Za-z_0-9-]+)')


def parse(text: str) -> dict[str, list[Any]]:
    """Protobuf text as lists by field name."""
    tokens = TOKEN.findall(text)
    assert TOKEN.sub("", text).strip() == "", "only what the language knows"
    position = 0

    def value() -> Any:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "{":
            return message("}")
        if token == "[":
            found = []
            while tokens[position] != "]":
                found.append(value())
                position += tokens[position] == ","
            position += 1
            return found
        return token[1:-1] if token.startswith('"') else int(token) if re.fullmatch(r"-?\d+", token) else token

    def message(end: str | None) -> dict[str, list[Any]]:
        nonlocal position
        out: dict[str, list[Any]] = {}
        while position < len(tokens) and tokens[position] != end:
            name = tokens[position]
            position += 1
            position += tokens[position] == ":"
            out.setdefault(name, []).append(value())
        position += 1
        return out

    return message(None)


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array.copy()

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> FakeTensor:
        class Holder:
            def __dlpack__(self, **options: Any) -> Any:
                return capsule

            def __dlpack_device__(self) -> tuple[int, int]:
                return 1, 0

        return cls(name, np.from_dlpack(Holder()))

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class FakeError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL = "400", "503", "500"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class FakeResponse:
    def __init__(self, output_tensors: Any = (), error: FakeError | None = None) -> None:
        self.outputs, self.error = {t.name: t.array for t in output_tensors}, error


def config_json(config: dict[str, list[Any]]) -> str:
    """As Triton hands it to a Python model."""
    parameters = {p["key"][0]: {"string_value": p["value"][0]["string_value"][0]} for p in config["parameters"]}
    tensors = {k: [{"name": t["name"][0], "data_type": t["data_type"][0], "dims": t["dims"][0]} for t in config[k]] for k in IO}
    return json.dumps({"name": config["name"][0], "parameters": parameters, **tensors})


IO = ("input", "output")


class Server:
    """Loads a whole repository and answers requests; checks every tensor against the configurations on its way."""

    def __init__(self, repository: Path) -> None:
        self.folder = repository
        self.configs = {p.parent.name: parse(p.read_text()) for p in sorted(repository.glob("*/config.pbtxt"))}
        self.models: dict[str, Any] = {}
        for name, config in self.configs.items():
            assert config["name"] == [name]
            assert config["max_batch_size"] == [0]
            if config.get("backend") == ["python"]:
                self.models[name] = self.python(name, config)
            elif config.get("backend") == ["onnxruntime"]:
                self.models[name] = ort.InferenceSession(repository / name / "1" / "model.onnx")

    def python(self, name: str, config: dict[str, list[Any]]) -> Any:
        spec = importlib.util.spec_from_file_location(f"triton_{name}", self.folder / name / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        arguments = {"model_repository": str(self.folder / name), "model_version": "1", "model_config": config_json(config)}
        model.initialize(arguments)
        return model

    def infer(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        config = self.configs[name]
        self.fits(config["input"], inputs)
        if "ensemble_scheduling" in config:
            pool = dict(inputs)
            for step in config["ensemble_scheduling"][0]["step"]:
                feed = {m["key"][0]: pool[m["value"][0]] for m in step["input_map"]}
                out = self.infer(step["model_name"][0], **feed)
                pool |= {m["value"][0]: out[m["key"][0]] for m in step["output_map"]}
            out = {t["name"][0]: pool[t["name"][0]] for t in config["output"]}
        elif config["backend"] == ["python"]:
            (response,) = self.models[name].execute([{k: FakeTensor(k, v) for k, v in inputs.items()}])
            if response.error is not None:
                raise response.error
            out = response.outputs
        else:
            names = [t["name"][0] for t in config["output"]]
            out = dict(zip(names, self.models[name].run(names, inputs), strict=True))
        self.fits(config["output"], out)
        return out

    @staticmethod
    def fits(tensors: list[Any], arrays: dict[str, np.ndarray]) -> None:
        assert {t["name"][0] for t in tensors} == set(arrays)
        for t in tensors:
            array = arrays[t["name"][0]]
            assert array.dtype.name == TYPES[t["data_type"][0]]
            assert len(array.shape) == len(t["dims"][0])
            assert all(want in (-1, got) for want, got in zip(t["dims"][0], array.shape, strict=True))


@pytest.fixture(autouse=True)
def utilities(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(
        Tensor=FakeTensor,
        TritonError=FakeError,
        InferenceResponse=FakeResponse,
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)


BundleOf = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def serve(bundle: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, Server]]]:
    """(title, server) of a model, scale and backend, made once."""
    made: dict[tuple[str, int, str], tuple[str, Server]] = {}

    def get(model: str, scale: int, backend: str) -> tuple[str, Server]:
        if (model, scale, backend) not in made:
            b = Bundle(bundle(model, scale))
            repository = tmp_path_factory.mktemp("repository")
            assert write_repository(b, repository, backend) == [m.name for m in repository_models(b, backend)]
            made[model, scale, backend] = title(b), Server(repository)
        return made[model, scale, backend]

    return get


loaded = functools.cache(functools.partial(rescale.load, backend="onnxruntime"))


def local(path: Path, hr: np.ndarray) -> dict[str, np.ndarray]:
    """What the runtime makes of one picture."""
    network = loaded(path).network
    lr, code = network.down(hr)
    alpha = lr[:, :, 3] if lr.shape[2] == 4 else None
    out = {"lr": lr[None], "hr": network.up(np.ascontiguousarray(lr[:, :, :3]), alpha, code)[None]}
    return out | ({} if code is None else {"code": code[None]})


@pytest.mark.parametrize(("model", "scale"), EVERY)
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_answers_equal_the_runtime_at_every_kind_of_size(serve, bundle, picture, model: str, scale: int, backend: str) -> None:
    name, server = serve(model, scale, backend)
    for height, width in ((1, 1), (33, 47), (8 * scale, 12 * scale), (9 * scale, 7 * scale - 1)):
        hr = picture(height, width)
        want = local(bundle(model, scale), hr)
        got = server.infer(f"{name}_downscale", hr=hr[None])
        restored = server.infer(f"{name}_upscale", **got)
        assert set(got) | set(restored) == set(want)
        for key, value in (got | restored).items():
            assert np.array_equal(value, want[key]), key


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), n=st.integers(1, 3))
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_batches_of_any_size_are_their_pictures(serve, bundle, picture, backend: str, height: int, width: int, n: int) -> None:
    name, server = serve("dlv_irn_m", 2, backend)
    batch = np.stack([picture(height, width, seed) for seed in range(n)])
    small = server.infer(f"{name}_downscale", hr=batch)
    big = server.infer(f"{name}_upscale", **small)["hr"]
    for i in range(n):
        want = local(bundle("dlv_irn_m", 2), batch[i])
        assert all(np.array_equal(small[k][i], want[k][0]) for k in small)
        assert np.array_equal(big[i], want["hr"][0])


@pytest.mark.parametrize("model", ["irn", "irn_a", "irn_m"])
def test_encode_makes_the_runtimes_file_and_decode_restores_the_first_shape(serve, bundle, picture, model: str) -> None:
    name, server = serve(model, 2, "python")
    hr = picture(33, 47)
    file = server.infer(f"{name}_encode", hr=hr)["file"].tobytes()
    with rescale.load(bundle(model, 2), "onnxruntime") as net:
        assert file == net.downscale(hr).to_bytes()
        want = net.upscale(rescale.Small.open(file))
    got = server.infer(f"{name}_decode", file=np.frombuffer(file, np.uint8))["hr"]
    assert got.shape == (33, 47, 3)
    assert np.array_equal(got, want)


def refused(server: Server, model: str, **inputs: np.ndarray) -> str:
    with pytest.raises(FakeError) as found:
        server.infer(model, **inputs)
    assert found.value.code == FakeError.INVALID_ARG
    return str(found.value)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_shapes_that_cannot_be_right_are_refused_in_words(serve, monkeypatch, backend: str) -> None:
    name, server = serve("irn_m", 2, backend)
    assert refused(server, f"{name}_downscale", hr=zeros(1, 0, 4, 3)).startswith("hr: at least one picture of 1x1 pixels is wanted")
    for n, h, w in ((2, 2, 3), (1, 1, 3), (1, 2, 2)):
        message = refused(server, f"{name}_upscale", lr=zeros(1, 5, 9, 3), code=zeros(n, 4, h, w))
        assert message.startswith("code: ")
        assert "does not belong to lr of shape [1, 5, 9, 3]" in message
    step = server.models[f"{name}_step_grid" if backend == "onnxruntime" else f"{name}_downscale"]
    monkeypatch.setattr(step, "max_pixels", 99)
    assert refused(server, f"{name}_downscale", hr=zeros(1, 10, 10, 3)).startswith("hr: ")
    server.infer(f"{name}_downscale", hr=zeros(1, 9, 11, 3))


def test_files_that_cannot_be_restored_are_refused_in_words(serve, bundle, picture, monkeypatch) -> None:
    name, server = serve("irn_a", 2, "python")
    with rescale.load(bundle("irn_a", 2), "onnxruntime") as net:
        file = net.downscale(picture(20, 20)).to_bytes()
    with rescale.load(bundle("irn_m", 2), "onnxruntime") as net:
        other = net.downscale(picture(20, 20)).to_bytes()
    for data, words in (
        (b"", "not a picture that can be read"),
        (b"junk", "not a picture that can be read"),
        (file[:-40], "file: "),
        (other, "take the bundle that made it"),
    ):
        assert words in refused(server, f"{name}_decode", file=np.frombuffer(data, np.uint8))
    monkeypatch.setattr(server.models[f"{name}_decode"], "max_pixels", 399)
    assert "stands for 400 HR pixels, allowed are 399" in refused(server, f"{name}_decode", file=np.frombuffer(file, np.uint8))


def test_a_failed_request_says_whose_fault_it_is_and_spares_the_others(serve, monkeypatch) -> None:
    name, server = serve("irn", 2, "python")
    model = server.models[f"{name}_downscale"]
    requests = [{"hr": FakeTensor("hr", zeros(1, h, 4, 3))} for h in (4, 0, 6)]
    answers = model.execute(requests)
    assert [a.error is None for a in answers] == [True, False, True]
    assert [a.outputs["lr"].shape for a in answers if a.error is None] == [(1, 2, 2, 3), (1, 3, 2, 3)]
    for error, code, message in (
        (OutOfMemoryError("no memory"), FakeError.UNAVAILABLE, "no memory"),
        (MemoryError(), FakeError.UNAVAILABLE, "not enough memory"),
        (BackendError("broken"), FakeError.INTERNAL, "broken"),
    ):

        def fail(image: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(model.net.network, "down", fail)
        (answer,) = model.execute(requests[:1])
        assert (answer.error.code, str(answer.error)) == (code, message)


def test_a_python_model_checks_its_bundle_before_it_is_ready(bundle, tmp_path: Path) -> None:
    b = Bundle(bundle("irn", 2))
    write_repository(b, tmp_path, "python")
    graph = tmp_path / f"{title(b)}_encode" / "1" / "bundle" / "upscale.onnx"
    graph.write_bytes(graph.read_bytes() + b"x")
    with pytest.raises(BundleError, match=r"upscale.onnx: SHA-256"):
        Server(tmp_path)
    write_repository(b, tmp_path, "python")
    config = tmp_path / f"{title(b)}_encode" / "config.pbtxt"
    config.write_text(config.read_text().replace(b.weights, "0" * 64))
    with pytest.raises(BundleError, match=r"config\.pbtxt says otherwise"):
        Server(tmp_path)


@pytest.mark.parametrize(("task", "way"), [("downscale", "down"), ("encode", "down"), ("upscale", "up"), ("decode", "up")])
def test_a_python_model_that_cannot_run_is_not_ready(bundle, tmp_path: Path, monkeypatch, task: str, way: str) -> None:
    def fail(*_: Any) -> None:
        raise BackendError("broken")

    b = Bundle(bundle("irn", 2))
    for name in write_repository(b, tmp_path, "python"):
        if name != f"{title(b)}_{task}":
            shutil.rmtree(tmp_path / name)
    monkeypatch.setattr(f"rescale.network.Network.{way}", fail)
    with pytest.raises(BackendError, match=r"^broken$"):
        Server(tmp_path)


def test_a_bundle_with_a_gradient_is_served(refinable, tmp_path: Path) -> None:
    b = Bundle(refinable("irn", 2))
    write_repository(b, tmp_path, "python")
    for task in ("downscale", "upscale", "encode", "decode"):
        Bundle(tmp_path / f"{title(b)}_{task}" / "1" / "bundle").verify()


@pytest.mark.parametrize(("model", "scale"), EVERY)
@pytest.mark.parametrize("precision", ["fp32", "mixed"])
def test_configurations_agree_with_the_graphs_and_with_each_other(bundle, tmp_path, model, scale, precision) -> None:
    b = Bundle(bundle(model, scale))
    names = write_repository(b, tmp_path, "onnxruntime", precision)
    configs = {p.parent.name: parse(p.read_text()) for p in tmp_path.glob("*/config.pbtxt")}
    assert set(configs) == set(names) == {p.name for p in tmp_path.iterdir()}
    tensors = {
        (name, key, t["name"][0]): (t["data_type"][0], t["dims"][0]) for name, c in configs.items() for key in IO for t in c[key]
    }
    served = set()
    for name, config in configs.items():
        parameters = {p["key"][0]: p["value"][0]["string_value"][0] for p in config["parameters"]}
        assert (parameters["model"], parameters["scale"], parameters["weights_sha256"]) == (model, str(scale), b.weights)
        assert parameters["bundle_format"] == b.manifest["format"]
        instances = [{"kind": ["KIND_CPU"], "count": [1]}] if config.get("backend") == ["python"] else []
        assert config.get("instance_group", []) == instances, "Python models run on the CPU, whatever GPUs there are"
        if config.get("backend") == ["onnxruntime"]:
            data = (tmp_path / name / "1" / "model.onnx").read_bytes()
            assert hashlib.sha256(data).hexdigest() == parameters["onnx_sha256"]
            assert data == b.read_graph(parameters["graph"], precision)
            served.add(parameters["graph"])
            graph = onnx.load_from_string(data).graph
            for key, values in (("input", graph.input), ("output", graph.output)):
                assert [t["name"][0] for t in config[key]] == [v.name for v in values]
                for v in values:
                    kind, sizes = tensors[name, key, v.name]
                    assert onnx.helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[kind])) == v.type.tensor_type.elem_type
                    assert sizes == [d.dim_value or -1 for d in v.type.tensor_type.shape.dim]
        for step in config.get("ensemble_scheduling", [{"step": []}])[0]["step"]:
            inner = step["model_name"][0]
            assert step["model_version"] == [-1], "the latest"
            assert {m["key"][0] for m in step["input_map"]} == {n for i, k, n in tensors if (i, k) == (inner, "input")}
            for m, key in [(m, "input") for m in step["input_map"]] + [(m, "output") for m in step["output_map"]]:
                # One tensor of an ensemble has one dtype and one shape wherever it comes by.
                known = tensors.setdefault((name, "pool", m["value"][0]), tensors[inner, key, m["key"][0]])
                assert known == tensors[inner, key, m["key"][0]]
                for side in IO:
                    assert tensors.get((name, side, m["value"][0]), known) == known
    assert served == set(b.graphs)
