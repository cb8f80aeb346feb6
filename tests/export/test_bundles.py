from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rescale.bundle import MANIFEST, Bundle
from rescale.errors import OutputError, ParityError
from rescale.files import machine_mark
from rescale.image import pad_planes
from rescale.parity import golden_vectors
from rescale.variants import SCALES, VARIANTS
from rescale_export import bundles
from rescale_export.bundles import bundle_name, check_target, replaced_folder, write_bundle
from rescale_export.graphs import receptive_field
from rescale_export.triton import write_repository
from rescale_train.checkpoint import weights_digest
from rescale_train.config import NetConfig, net_config
from rescale_train.models import RescalingNet
from rescale_train.tables import to_dict

MakeNet = Callable[..., RescalingNet]
BundleOf = Callable[[str, int], Path]

ALL = list(itertools.product(VARIANTS, SCALES))


def denied(folder: Path) -> None:
    raise PermissionError(13, "Permission denied")


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_the_manifest_says_what_the_bundle_is(bundle: BundleOf, make_net: MakeNet, model: str, scale: int) -> None:
    net, path = make_net(model, scale), bundle(model, scale)
    m = json.loads((path / MANIFEST).read_text())
    v = VARIANTS[model]
    assert m["format"] == "rescale-bundle/1.3"
    assert (m["model"], m["scale"], m["size"], m["auxiliary"]) == (model, scale, "custom", v.auxiliary)
    assert m["net"] == to_dict(net.config)
    assert m["receptive_field"] == {"lr_pixels": receptive_field(net)["downscale"]}
    assert m["padding"] == {"rule": "edge", "sides": ["bottom", "right"], "multiple": scale}
    latent = {"channels": 4, "stride": 4, "z_channels": net.config.z_channels, "padding": "edge"}
    assert m["latent"] == (latent if v.latent else None)
    assert m["weights"] == {"sha256": weights_digest(net), "card": {}}
    assert m["licence"] == "unknown", "no card says it"
    assert set(m["exporter"]) == {"rescale", "torch", "onnx", "onnxruntime", "numpy"}
    assert set(m["parity"]) == {"backend", *m["graphs"]}
    assert m["parity"]["upscale"]["largest"] <= 1
    assert set(m["precisions"]) == set(m["precision_parity"]) == {"mixed"}
    assert m["precision_parity"]["mixed"]["psnr_lost"] <= 0.02
    every = [*m["graphs"].items(), *m["precisions"]["mixed"].items()]
    for name, entry in [*every, ("golden", m["golden"])]:
        data = (path / entry["file"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), name
    assert set(content(path)) == {MANIFEST, "golden.npz", *(g["file"] for _, g in every)}
    Bundle(path).verify()


def test_the_card_is_kept(tmp_path: Path, make_net: MakeNet) -> None:
    card = {"steps": 10, "licence": "CC0-1.0", "figures": {"Set5": {"hr_psnr_y": 40.0}}}
    made = write_bundle(make_net("irn", 2), tmp_path / "b", card)
    assert made.manifest["weights"]["card"] == card
    assert (made.path, made.title, made.manifest["licence"]) == (tmp_path / "b", "irn x2 custom", "CC0-1.0")


@pytest.mark.parametrize(("model", "scale"), ALL)
def test_the_golden_vectors_reproduce(bundle: BundleOf, model: str, scale: int) -> None:
    made = Bundle(bundle(model, scale))
    latent = VARIANTS[model].latent
    cases = golden_vectors(made)
    assert len(cases) == 4
    for case in cases:
        assert set(case) == {"hr", "lr", "restored"} | ({"z", "code", "z_hat"} if latent else set())
        assert case["hr"].shape == (1, case["lr"].shape[1] * scale, case["lr"].shape[2] * scale, 3)
    golden: dict[str, Any] = cases[2]
    lr_height, lr_width = golden["lr"].shape[1:3]
    assert lr_height % 4, "the latent's padding is exercised"
    assert lr_width % 4

    def run(graph: str, **inputs: Any) -> list[Any]:
        session = onnxruntime.InferenceSession(made.read_graph(graph), providers=["CPUExecutionProvider"])
        assert [t.name for t in made.graphs[graph].inputs] == [i.name for i in session.get_inputs()] == list(inputs)
        assert [t.name for t in made.graphs[graph].outputs] == [o.name for o in session.get_outputs()]
        out: list[Any] = session.run(None, inputs)
        return out

    def close(got: Any, want: Any) -> None:
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        delta = np.abs(got.astype(int) - want.astype(int))
        assert delta.max() <= 1
        assert delta.mean() < 1e-3

    down = run("downscale", hr=golden["hr"])
    close(down[0], golden["lr"])
    if not latent:
        close(run("upscale", lr=golden["lr"])[0], golden["restored"])
        return
    np.testing.assert_allclose(down[1], golden["z"], atol=1e-3)
    close(run("encoder", z=pad_planes(golden["z"], 4))[0], golden["code"])
    z_hat = run("decoder", code=golden["code"])[0][:, :, :lr_height, :lr_width]
    np.testing.assert_allclose(z_hat, golden["z_hat"], atol=1e-3)
    close(run("upscale", lr=golden["lr"], z=golden["z_hat"])[0], golden["restored"])


@pytest.mark.parametrize("model", ["irn_a", "dlv_irn_m"])
def test_two_exports_are_the_same_bytes(tmp_path: Path, bundle: BundleOf, make_net: MakeNet, model: str) -> None:
    write_bundle(make_net(model, 2), tmp_path / "again")
    assert content(tmp_path / "again") == content(bundle(model, 2))


def test_a_bundle_is_replaced_and_nothing_else_is_left(tmp_path: Path, make_net: MakeNet) -> None:
    target = tmp_path / "b"
    write_bundle(make_net("irn_m", 2), target)
    made = write_bundle(make_net("irn", 2, seed=1), target)
    assert made.weights == weights_digest(make_net("irn", 2, seed=1))
    assert set(content(target)) == {
        MANIFEST,
        "golden.npz",
        "downscale.onnx",
        "upscale.onnx",
        "downscale.mixed.onnx",
        "upscale.mixed.onnx",
    }
    assert os.listdir(tmp_path) == ["b"]


def test_an_empty_folder_is_taken(tmp_path: Path, make_net: MakeNet) -> None:
    (tmp_path / "b").mkdir()
    write_bundle(make_net("irn", 2), tmp_path / "b").verify()
    assert os.listdir(tmp_path) == ["b"]


def test_what_is_not_a_bundle_is_kept(tmp_path: Path, make_net: MakeNet) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("folder", "file"):
        with pytest.raises(OutputError, match=f"{name}: exists and is not a bundle, or holds other files; choose another --out"):
            write_bundle(make_net("irn", 2), tmp_path / name)
    assert content(tmp_path / "folder") == {"thesis.txt": b"precious"}
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_export_tells_what_it_does_and_can_be_ended(tmp_path: Path, make_net: MakeNet) -> None:
    told: list[tuple[int, int, str]] = []
    write_bundle(make_net("irn", 2), tmp_path / "b", precisions=("fp16", "fp32"), progress=lambda *part: told.append(part))
    assert [(done, count) for done, count, _ in told] == [(i, 5) for i in range(5)]
    assert [stage for _, _, stage in told] == [
        "writing graphs",
        "comparing with PyTorch",
        "computing golden vectors",
        "measuring the halo",
        "checking fp16",
    ]
    before = content(tmp_path / "b")

    def cancel(done: int, count: int, stage: str) -> None:
        if stage == "checking mixed":
            raise RuntimeError(stage)

    with pytest.raises(RuntimeError, match="checking mixed"):
        write_bundle(make_net("irn", 4), tmp_path / "b", precisions=("mixed",), progress=cancel)
    assert content(tmp_path / "b") == before
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failed_check_writes_nothing(tmp_path: Path, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    target = tmp_path / "b"
    if there:
        write_bundle(make_net("irn", 2), target)
    before = content(target) if there else None

    def disagree(*args: object) -> None:
        raise ParityError("upscale: 9 of 10 values differ")

    monkeypatch.setattr(bundles, "compare", disagree)
    with pytest.raises(ParityError, match="9 of 10"):
        write_bundle(make_net("irn", 2, seed=1), target)
    assert os.listdir(tmp_path) == (["b"] if there else [])
    assert before is None or content(target) == before


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_keeps_the_old_bundle(
    tmp_path: Path, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target = tmp_path / "b"
    write_bundle(make_net("irn", 2), target)
    before = content(target)
    rename, calls = Path.rename, itertools.count(1)

    def fail(self: Path, to: Path) -> Path:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"b: cannot write the bundle: No space left on device"):
        write_bundle(make_net("irn", 2, seed=1), target)
    assert content(target) == before
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("parent", ["gone", "file"])
def test_an_unwritable_parent_is_an_output_error(tmp_path: Path, make_net: MakeNet, parent: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"b: cannot write the bundle"):
        write_bundle(make_net("irn", 2), tmp_path / parent / "b")
    assert os.listdir(tmp_path) == ["file"]


def test_a_parent_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a file system that is read only, where the owner's permissions say nothing."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=rf"b: cannot write the bundle: .*{tmp_path.name} is not writable; choose another --out"):
        check_target(tmp_path / "b")


def test_places_that_no_bundle_can_take_are_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "there").mkdir()
    wrong = [
        (Path("/"), "/: cannot write the bundle: it is the root folder; choose another --out"),
        (tmp_path / "circle", "circle: cannot write the bundle: this symbolic link leads back to itself; choose another --out"),
        (tmp_path / ("n" * 300), "n: cannot write the bundle: File name too long; choose another --out"),
    ]
    for place, message in wrong:
        with pytest.raises(OutputError, match=message):
            check_target(place)
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(OutputError, match="there: cannot read what is there: Permission denied"):
        check_target(tmp_path / "there")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "there")
    with pytest.raises(OutputError, match=r"there: cannot write the bundle: it is a mount point, .*; choose a folder below it"):
        check_target(tmp_path / "there")


@pytest.mark.parametrize("length", [1, 240, 255])
def test_any_legal_name_will_do(tmp_path: Path, length: int) -> None:
    for _ in range(2):
        with replaced_folder(tmp_path / ("n" * length)) as folder:
            (folder / MANIFEST).write_text('{"format": "rescale-bundle/1.3"}')
    assert os.listdir(tmp_path) == ["n" * length]


def test_the_written_bundle_is_returned_though_another_export_takes_its_place(
    tmp_path: Path, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def soon_taken_away(target: Path) -> Iterator[Path]:
        with replaced_folder(target) as folder:
            yield folder
        target.rename(tmp_path / "aside")

    monkeypatch.setattr(bundles, "replaced_folder", soon_taken_away)
    net = make_net("irn", 2)
    made = write_bundle(net, tmp_path / "b", precisions=())
    assert (made.path, made.weights) == (tmp_path / "b", weights_digest(net))


def test_exports_to_one_place_at_a_time_all_succeed_and_leave_one_bundle(tmp_path: Path) -> None:
    def export(number: int) -> None:
        for _ in range(100):
            with replaced_folder(tmp_path / "b") as folder:
                (folder / "manifest.json").write_text(f'{{"format": "rescale-bundle/1.3", "by": {number}}}')

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(export, n) for n in range(3)]:
            done.result()
    assert os.listdir(tmp_path) == ["b"]
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["by"] in range(3)


@pytest.mark.parametrize(("size", "change"), [("lite", {}), ("full", {}), ("custom", {"growth": 5})])
def test_the_default_name_has_model_scale_and_size(size: str, change: dict[str, Any]) -> None:
    class Net:
        config: NetConfig = net_config("dlv_irn_a", 4, "lite" if change else size, **change)

    assert bundle_name(Net()) == f"dlv_irn_a_x4_{size}"  # type: ignore[arg-type]


def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is where this command runs; choose another --out"), replaced_folder(Path()):
        pass


def test_ctrl_c_between_the_renames_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text('{"format": "rescale-bundle/1.3"}')
    rename, calls = Path.rename, []

    def interrupted(self: Path, goal: Path) -> Path:
        calls.append(goal)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, goal)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replaced_folder(target) as folder:
        (folder / "manifest.json").write_text("new")
    assert "rescale-bundle" in (target / "manifest.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


KILLED = """
import os, pathlib, sys
from rescale_export.bundles import replaced_folder
rename = pathlib.Path.rename
def killed_after(self, goal):
    rename(self, goal)
    os._exit(9)
pathlib.Path.rename = killed_after
with replaced_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "manifest.json").write_text("new")
"""


def test_what_an_export_killed_between_the_renames_left_goes_with_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with replaced_folder(target) as folder:
        (folder / "manifest.json").write_text('{"format": "rescale-bundle/1.3"}')
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False).returncode == 9
    assert [p.name for p in tmp_path.iterdir()] != ["bundle"]
    with replaced_folder(target) as folder:
        (folder / "manifest.json").write_text('{"format": "rescale-bundle/1.3"}')
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_every_file_is_on_the_disk_before_its_folder_takes_the_place(
    tmp_path: Path, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure would leave a bundle, or a model of a server, of empty files."""
    rename, fsync, synced = Path.rename, os.fsync, dict[int, int]()

    def watched_sync(handle: int) -> None:
        fsync(handle)
        found = os.fstat(handle)
        synced[found.st_ino] = found.st_size

    def watched(self: Path, goal: Path) -> Path:
        files = [p for p in self.rglob("*") if p.is_file()]
        assert [p.name for p in files if synced.get(p.stat().st_ino) != p.stat().st_size] == []
        moved.extend(files)
        return rename(self, goal)

    moved: list[Path] = []
    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "rename", watched)
    made = write_bundle(make_net("irn", 2), tmp_path / "b")
    assert {p.name for p in moved} == {p.name for p in made.path.iterdir()}
    moved.clear()
    write_repository(made, tmp_path / "models", "python")
    assert {p.name for p in moved} >= {MANIFEST, "model.py", "config.pbtxt"}


@pytest.mark.skipif(os.name == "nt", reason="nobody knows there whether a process lives")
def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, other = machine_mark(), "0" * 8
    names = {
        "left": f".rescale-export.{mine}-{gone.pid}-0123abcd.tmp",
        "under way": f".rescale-export.{mine}-{os.getpid()}-0123abcd.tmp",
        "of another machine": f".rescale-export.{other}-{gone.pid}-0123abcd.tmp",
        "of another program": f".rescale-export.{gone.pid}.tmp",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "downscale.onnx").write_text("half")
    with replaced_folder(tmp_path / "bundle"):
        pass
    left = {p.name for p in tmp_path.iterdir()} - {"bundle"}
    assert left == {names[n] for n in ("under way", "of another machine", "of another program")}


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replaced_folder(tmp_path / "link") as folder:
        (folder / "manifest.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "manifest.json").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_a_folder_with_a_foreign_manifest_or_other_files_is_never_replaced(tmp_path: Path) -> None:
    for names in (("manifest.json",), ("manifest.json", "thesis.txt")):
        folder = tmp_path / str(len(names))
        folder.mkdir()
        for name in names:
            text = '{"name": "my browser extension"}' if len(names) == 1 else '{"format": "rescale-bundle/1.3"}'
            (folder / name).write_text(text)
        with pytest.raises(OutputError, match="is not a bundle, or holds other files"), replaced_folder(folder):
            pass
        assert sorted(p.name for p in folder.iterdir()) == sorted(names)
