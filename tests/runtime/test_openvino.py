"""The OpenVINO backend: the same values as ONNX Runtime in float32, and a bfloat16 mode that is what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import rescale
from rescale.backends import create
from rescale.bundle import Bundle
from rescale.errors import BackendError
from rescale.network import Network
from rescale.parity import measure

openvino = pytest.importorskip("openvino")
module = pytest.importorskip("rescale.backends.openvino")

BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16 instructions")


@pytest.mark.parametrize(("model", "scale"), [("irn", 4), ("dlv_irn_a", 2), ("irn_m", 2), ("dlv_irn_m", 4)])
def test_float32_agrees_with_pytorch(bundle, model, scale):
    b = Bundle(bundle(model, scale))
    parity = measure(b, create(b, "openvino", threads=1).run)
    parity.require("openvino", max_loss=0.01)
    assert all(c.largest <= 1 and c.share < 1e-3 for c in parity.total().values())


def test_float32_needs_no_folder_to_write_to(bundle, picture, monkeypatch):
    """Many containers run on a file system that nobody may write to."""

    def refuse(*args, **options):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with rescale.load(bundle("irn_m", 2), "openvino", threads=1) as net:
        assert net.upscale(net.downscale(picture(10, 12))).shape == (10, 12, 3)


@needs_bf16
@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 2), ("dlv_irn_m", 2)])
def test_bfloat16_passes_the_gate(bundle, model, scale):
    b = Bundle(bundle(model, scale))
    runner = create(b, "openvino", threads=1, precision="mixed")
    measure(b, runner.run).require("openvino mixed")
    assert "bfloat16" in runner.name


@needs_bf16
def test_bfloat16_really_runs_and_only_in_subnets(bundle):
    b = Bundle(bundle("dlv_irn_a", 2))
    runner = create(b, "openvino", threads=1, precision="mixed")
    for graph in ("downscale", "upscale"):
        model = runner._model(graph).model
        kinds = {}
        for node in model.get_runtime_model().get_ordered_ops():
            info = {k: str(v.value) for k, v in node.get_rt_info().items()}
            if info.get("runtimePrecision") == "bf16" and info["layerType"] not in module._MOVES:
                kinds.setdefault(info["layerType"], []).append(node.get_friendly_name())
        assert set(kinds) == {"Convolution"}
        assert all(".block" in name for name in kinds["Convolution"])


@needs_bf16
def test_marks_that_have_no_effect_are_refused(bundle, monkeypatch):
    monkeypatch.setattr(module, "_mark", lambda tree: None)
    b = Bundle(bundle("irn_a", 2))
    with pytest.raises(BackendError, match="would run in bfloat16, outside the subnets"):
        create(b, "openvino", precision="mixed").run("downscale", {"hr": np.zeros((1, 8, 8, 3), np.uint8)})


@needs_bf16
def test_a_model_without_bfloat16_is_refused(bundle, monkeypatch):
    def all_layers(tree: ET.ElementTree) -> None:
        for layer in tree.getroot().find("layers"):
            info = ET.SubElement(layer, "rt_info")
            ET.SubElement(info, "attribute", name="DisablePrecisionConversion", version="0", value="dynamic:f16")

    monkeypatch.setattr(module, "_mark", all_layers)
    b = Bundle(bundle("irn_a", 2))
    with pytest.raises(BackendError, match=r"no convolution would run in bfloat16|outside the subnets"):
        create(b, "openvino", precision="mixed").run("downscale", {"hr": np.zeros((1, 8, 8, 3), np.uint8)})


def test_float16_and_bad_threads_are_refused(bundle):
    b = Bundle(bundle("irn", 2))
    with pytest.raises(BackendError, match="openvino runs fp32 and mixed, not 'fp16'"):
        create(b, "openvino", precision="fp16")
    with pytest.raises(BackendError, match="threads: at least 1"):
        create(b, "openvino", threads=0)


def test_auto_prefers_it(bundle):
    with rescale.load(bundle("irn", 2)) as net:
        assert net.runner.name.startswith("openvino")


def test_eight_threads_share_one_model(bundle, picture):
    b = Bundle(bundle("irn_m", 2))
    net = Network(b, create(b, "openvino", threads=1))
    images = [picture(40 + 2 * i, 50, seed=i) for i in range(8)]
    want = [net.down(i) for i in images]
    got = [None] * 8

    def work(i):
        got[i] = net.down(images[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for g, (lr, latent) in zip(got, want, strict=True):
        np.testing.assert_array_equal(g[0], lr)
        np.testing.assert_array_equal(g[1], latent)


def test_a_picture_through_files_is_restored_by_the_other_backend(bundle, picture, tmp_path):
    path, image = bundle("dlv_irn_a", 2), picture(51, 67)
    with rescale.load(path, backend="openvino") as a, rescale.load(path, backend="onnxruntime") as b:
        a.downscale(image).save(tmp_path / "s.png")
        small = rescale.Small.open(tmp_path / "s.png")
        delta = np.abs(a.upscale(small).astype(int) - b.upscale(small).astype(int))
    assert delta.max() <= 1


def test_closed_and_broken_use_are_errors(bundle):
    b = Bundle(bundle("irn", 2))
    runner = create(b, "openvino")
    with pytest.raises(BackendError, match="downscale failed in openvino"):
        runner.run("downscale", {"hr": np.zeros((1, 8, 8, 4), np.uint8)})
    runner.close()
    with pytest.raises(BackendError, match=r"used after close"):
        runner.run("downscale", {"hr": np.zeros((1, 8, 8, 3), np.uint8)})


INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
import rescale
net = rescale.load(sys.argv[1], backend="openvino", threads=1)
net.downscale(np.zeros((16, 16, 3), np.uint8))
box = [net]
del net
def drop():
    box.pop().close()
thread = threading.Thread(target=drop)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_survived_after_a_network_was_closed_on_another_thread(bundle):
    """OpenVINO frees the first thread's signal stack with its last registry: the process died of SIGSEGV, without a word."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(bundle("irn", 2))], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that are forked")
@pytest.mark.parametrize("again", [False, True])
def test_a_forked_process_is_told_and_does_not_wait_for_ever(bundle, again):
    code = f"""
import os, signal, numpy, rescale, warnings
warnings.simplefilter("ignore")
net, image = rescale.load({str(bundle("irn", 2))!r}, "openvino", threads=2), numpy.zeros((200, 200, 3), numpy.uint8)
net.downscale(image)
if not os.fork():
    signal.alarm(60)
    try:
        other = rescale.load({str(bundle("irn", 2))!r}, "openvino", threads=2) if {again} else net
        other.downscale(image)
    except rescale.BackendError as e:
        print(e, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "this process was forked from one that had used it already; load the bundle in the new process only" in done.stdout
