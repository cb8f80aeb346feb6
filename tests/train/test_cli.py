from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rescale_train.run
from rescale.errors import RescaleError
from rescale.files import machine_mark
from rescale_export.probe import probe_picture
from rescale_train import checkpoint
from rescale_train.cli import main
from rescale_train.config import Recipe
from rescale_train.data import CropSampler
from rescale_train.lock import sole_writer
from rescale_train.log import read_log
from rescale_train.loop import Options, Trainer
from rescale_train.memory import memory_told
from rescale_train.options import pick_device
from rescale_train.progress import with_progress_bar
from rescale_train.recipe import recipe_names
from rescale_train.run import Division
from rescale_train.validation import CEILING

Run = Callable[..., int]


def test_a_run_writes_checkpoint_log_and_plot(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--set", "train.steps=3", "--set", "train.loss.hr=2", "--log-every", "1", "--split") == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "checkpoint.safetensors",
        "checkpoint.safetensors.part00",
        "log.jsonl",
        "loss.png",
    }
    found = checkpoint.read(out / "checkpoint.safetensors")
    assert (found.recipe.train.steps, found.recipe.train.loss.hr, found.progress["step"]) == (3, 2.0, 3)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert text.startswith("irn_a x2: 3 pictures to train on, 1 held out\n")
    assert "step 2/3 total " in text
    result = json.loads(text[text.index("{") :])
    assert result["finished"]
    assert result["checkpoint"] == str(out / "checkpoint.safetensors")
    assert result["hr_psnr_y"] == read_log(out / "log.jsonl")[-1]["hr_psnr_y"] > 10.0


def test_a_warm_up_that_takes_all_steps_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--set", "train.steps=3", "--set", "train.warmup=3", "--max-minutes", "0") == 0
    assert "warning: train.warmup: 3 of 3 steps; the learning rate does not fall" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked on Windows")
def test_two_runs_do_not_write_to_one_folder(run: Run, tmp_path: Path, error: Callable[[], str]) -> None:
    with sole_writer(tmp_path / "out"):
        assert run("--set", "train.steps=1") == 1
        assert "out: another run is writing here; wait for its end, or choose another --out" in error()
        assert not list((tmp_path / "out").iterdir())
    assert run("--set", "train.steps=1") == 0


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked on Windows")
def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("rescale_train.lock.fcntl.flock", refuse)
    with sole_writer(tmp_path / "out"):
        assert "out: cannot be locked (No locks available); let no other run write to it" in capsys.readouterr().err


def test_a_run_that_another_one_made_meanwhile_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], str]
) -> None:
    """It began and ended after this one had looked at the folder."""
    target = tmp_path / "out" / "checkpoint.safetensors"

    def divide(*args: Any) -> Division:
        target.parent.mkdir()
        target.write_bytes(b"another run's")
        return real(*args)

    real = rescale_train.run.divide
    monkeypatch.setattr(rescale_train.run, "divide", divide)
    assert run() == 1
    assert "checkpoint.safetensors: exists; add --resume" in error()
    assert target.read_bytes() == b"another run's"


def test_what_a_killed_run_left_half_written_is_removed(run: Run, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid in (process.pid, os.getpid()):
        (out / f".rescale.{machine_mark()}-{pid}-01234567.tmp").write_bytes(b"half")
    assert run("--set", "train.steps=1") == 0
    assert [p.name for p in out.glob(".*")] == [f".rescale.{machine_mark()}-{os.getpid()}-01234567.tmp"], (
        "that of a living one stays"
    )


def test_a_log_that_cannot_be_written_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], str]
) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")  # as a write that fails has it, without the name
        return real(path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    assert run("--log-every", "1") == 1
    assert f"{tmp_path / 'out' / 'log.jsonl'}: cannot write: No space left on device" in error()


def test_an_existing_run_is_kept_unless_resumed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    assert run("--max-minutes", "0") == 0
    target = tmp_path / "out" / "checkpoint.safetensors"
    before = target.read_bytes()
    capsys.readouterr()
    assert run() == 1
    assert "checkpoint.safetensors: exists; add --resume to continue it, or choose another --out" in error()
    assert target.read_bytes() == before
    parts, log = checkpoint.split(target), (tmp_path / "out" / "log.jsonl").read_text()
    target.unlink()
    assert run() == 1
    assert "checkpoint.safetensors.part00: exists; add --resume" in error()
    assert checkpoint.join(parts[0]) == before
    assert (tmp_path / "out" / "log.jsonl").read_text() == log
    assert run("--resume") == 0
    assert checkpoint.read(target).progress["step"] == 4


def test_a_run_resumes_from_parts(run: Run, tmp_path: Path) -> None:
    assert run("--max-minutes", "0", "--split") == 0
    (tmp_path / "out" / "checkpoint.safetensors").unlink()
    assert run("--resume") == 0
    assert checkpoint.read(tmp_path / "out" / "checkpoint.safetensors").progress["step"] == 4


def test_resume_without_a_checkpoint_is_an_error(run: Run, tmp_path: Path, error: Callable[[], str]) -> None:
    assert run("--resume") == 1
    assert "checkpoint.safetensors: no checkpoint to resume; leave out --resume to start" in error()
    assert not (tmp_path / "out").exists(), "nothing is left behind"


def test_resume_of_another_recipe_is_an_error(run: Run, capsys: pytest.CaptureFixture[str], error: Callable[[], str]) -> None:
    assert run("--max-minutes", "0") == 0
    capsys.readouterr()
    assert run("--resume", "--set", "train.lr_peak=1.0") == 1
    assert "written by another recipe" in error()


def test_init_from_starts_with_the_given_weights(
    run: Run,
    tmp_path: Path,
    tiny_net: torch.nn.Module,
    recipe_of: Callable[..., Recipe],
    capsys: pytest.CaptureFixture[str],
    error: Callable[[], str],
) -> None:
    recipe = recipe_of("irn_a")
    weights = tmp_path / "w.safetensors"
    checkpoint.write(weights, tiny_net.state_dict(), recipe, {})
    assert run("--init-from", str(weights), "--set", "train.lr_peak=0.0", "--set", "train.weight_decay=0.0") == 0
    found = checkpoint.read(tmp_path / "out" / "checkpoint.safetensors").weights()
    assert all(torch.equal(found[k], v) for k, v in tiny_net.state_dict().items())
    capsys.readouterr()
    assert run("--init-from", str(weights), "--resume") == 1
    assert "--resume and --init-from exclude each other" in error()


def test_init_from_another_network_is_an_error(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    assert run("--max-minutes", "0") == 0
    path = tmp_path / "out" / "checkpoint.safetensors"
    weights = path.rename(tmp_path / "w.safetensors")
    capsys.readouterr()
    assert run("--init-from", str(weights), "--set", "net.growth=3") == 1
    assert "w.safetensors: the network to start from does not grow into the recipe's: its growth is 4" in error()
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "train.steps"], 2, "--set takes KEY=VALUE, got 'train.steps'"),
        (["--set", "train.stepz=3"], 2, "train.stepz: unknown key"),
        (["--set", "train.steps=many"], 2, "--set train.steps: 'many' is not a TOML value"),
        (["--set", "net.model='gan'"], 2, "unknown model 'gan'"),
        (["--device", "tpu9"], 1, "--device tpu9: unknown; use auto, cpu, cuda or cuda:N"),
        (["--device", "meta"], 1, "--device meta: unknown; use auto, cpu, cuda or cuda:N"),
        (["--device", "mps"], 1, "--device mps: unknown; use auto, cpu, cuda or cuda:N"),
        (["--init-from", "/tmp"], 1, "/tmp: a folder; give the checkpoint.safetensors in it"),
        (["--data", "/nowhere/at/all"], 1, "/nowhere/at/all: not a folder"),
        (["--init-from", "/nowhere/w.safetensors"], 1, "/nowhere/w.safetensors: no such checkpoint"),
        (["--init-from", "nothing"], 1, "nothing: no such file, and no such shipped weights (there are dlv_irn_a_x2_full, "),
        (["--init-from", "irn_x2_lite"], 1, "irn_x2_lite.safetensors: "),
        (["--max-minutes", "-1"], 2, "--max-minutes"),
        (["--max-minutes", "nan"], 2, "--max-minutes"),
        (["--no-such-option"], 2, "--no-such-option"),
    ],
)
def test_wrong_arguments(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str) -> None:
    assert run(*arguments) == code
    assert message in capsys.readouterr().err


def test_a_recipe_that_has_no_file_is_a_wrong_word(tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Any) -> None:
    rest = ["--data", str(tmp_path), "--set", "train.steps=3"]
    assert main(["run", "irn_x2_lit", *rest]) == 2
    assert "unknown recipe 'irn_x2_lit': give a .toml file or one of " in capsys.readouterr().err
    assert main(["run", str(tmp_path / "none.toml"), *rest]) == 1
    assert "none.toml: cannot read the recipe" in error()
    (tmp_path / "wrong.toml").write_text("[net]\nmodel = 'irn'\nscale = 2\nsize = 'lite'\n[train]\nstepz = 3\n")
    assert main(["run", str(tmp_path / "wrong.toml"), *rest]) == 1
    assert "wrong.toml: train.stepz: unknown key" in error()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_without_a_device_is_an_error(run: Run, tmp_path: Path, error: Callable[[], str]) -> None:
    assert run("--device", "cuda") == 1
    assert "--device cuda: this PyTorch" in (text := error())
    assert "sees no CUDA device; use --device cpu" in text
    assert not (tmp_path / "out").exists()


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RescaleError, match="--device gpu: unknown"):
        pick_device("gpu")


def test_one_device_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RescaleError, match="--device cuda:0: one device for several processes; give --device cuda"):
        pick_device("cuda:0")


@pytest.mark.parametrize(
    "lack", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("allocator: can't allocate memory"), MemoryError()]
)
def test_a_batch_too_large_for_the_memory_is_told(
    run: Run, error: Callable[[], str], monkeypatch: pytest.MonkeyPatch, lack: Exception
) -> None:
    def fails(self: Trainer, sampler: object) -> None:
        raise lack

    monkeypatch.setattr(Trainer, "_train_step", fails)
    assert run() == 1
    assert "error: out of memory on cpu with 2 crops of 16 px a step; give --set train.batch=... or train.patch=... less" in error()


def test_another_failure_of_a_step_is_not_called_one_of_memory() -> None:
    with pytest.raises(RuntimeError, match="a defect"), memory_told(2, 16, torch.device("cpu")):
        raise RuntimeError("a defect")


def test_a_run_killed_in_its_last_validation_makes_up_for_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    figures = {k: v for k, v in json.loads("{" + capsys.readouterr().out.partition("{")[2]).items() if "_psnr_" in k}
    path = tmp_path / "out" / "checkpoint.safetensors"
    whole = checkpoint.read(path)
    progress = {k: v for k, v in whole.progress.items() if "_psnr_" not in k}
    checkpoint.write(path, whole.tensors, whole.recipe, progress)
    for _ in range(2):
        assert run("--resume") == 0
        told = json.loads("{" + capsys.readouterr().out.partition("{")[2])
        assert {k: v for k, v in told.items() if "_psnr_" in k} == figures != {}
        assert {k: v for k, v in checkpoint.read(path).progress.items() if "_psnr_" in k} == figures


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_unwritable_out_is_an_error(run: Run, tmp_path: Path, error: Callable[[], str], below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run("--out", str(tmp_path / "file" / below)) == 1
    assert "cannot create the folder" in error()
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_does_not_end_a_run(tmp_path: Path, pictures: Path, recipe_file: Path) -> None:
    out = tmp_path / "out"
    code = "from rescale_train.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "run", str(recipe_file), "--data", str(pictures), "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--log-every", "1", "--device", "cpu", "--threads", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "warning: output: No space left on device; the run goes on" in done.stderr
    assert "Traceback" not in done.stderr
    steps = checkpoint.read(out / "checkpoint.safetensors").recipe.train.steps
    assert checkpoint.read(out / "checkpoint.safetensors").progress["step"] == steps
    assert read_log(out / "log.jsonl")[-1]["step"] == steps


def test_figures_of_an_exact_picture_are_json_too(
    run: Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flat picture comes back exactly: its PSNR would be infinite, which JSON does not know."""
    (val := tmp_path / "val").mkdir()
    Image.new("RGB", (64, 64), (0, 0, 0)).save(val / "black.png")
    assert run("--max-minutes", "0", "--val", str(val), "--set", "train.lr_peak=0.0") == 0

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    text = capsys.readouterr().out
    assert json.loads(text[text.index("{\n") :], parse_constant=no_constant)["lr_psnr_y"] == CEILING
    for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)


def test_a_checkpoint_that_diverged_is_not_resumed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Callable[[], str]
) -> None:
    assert run("--max-minutes", "0") == 0
    target = tmp_path / "out" / "checkpoint.safetensors"
    found = checkpoint.read(target)
    name = next(k for k in found.tensors if k.startswith("optim."))
    tensors = found.tensors | {name: torch.full_like(found.tensors[name], float("nan"))}
    checkpoint.write(target, tensors, found.recipe, found.progress)
    capsys.readouterr()
    assert run("--resume") == 1
    assert f"{name} is not finite; the training diverged" in error()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_resumable_checkpoint(
    run: Run, tmp_path: Path, pictures: Path, recipe_file: Path, number: signal.Signals
) -> None:
    code = "from rescale_train.cli import main; raise SystemExit(main())"
    steps = ("--set", "train.steps=1000000")
    arguments = ["run", str(recipe_file), "--data", str(pictures), "--out", str(tmp_path / "out"), "--threads", "1"]
    command = [sys.executable, "-c", code, *arguments, *steps, "--log-every", "1", "--device", "cpu", "--holdout", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step 3/"):
                break
        child.send_signal(number)
        rest, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number, errors
    result = json.loads(rest[rest.index("{") :])
    assert not result["finished"]
    assert result["step"] >= 3
    target = tmp_path / "out" / "checkpoint.safetensors"
    assert checkpoint.read(target).progress["step"] == result["step"]
    assert run("--resume", "--max-minutes", "0", *steps) == 0
    assert checkpoint.read(target).progress["step"] == result["step"] + 1


def test_the_progress_bar_follows_the_run(
    recipe_of: Callable[..., Recipe], sampler_of: Callable[..., CropSampler], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(steps=3)
    result = with_progress_bar(
        Trainer(recipe, torch.device("cpu")), sampler_of(recipe), [probe_picture(32, 32)], Options(tmp_path, log_every=1)
    )
    assert result["finished"]
    text = capsys.readouterr()
    assert "3/3" in text.err
    assert "hr_psnr_y" in text.err
    assert text.out == ""


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == recipe_names()
    assert main(["recipes", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert list(table) == recipe_names()
    assert all(set(row) == {"net", "train"} for row in table.values())


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("rescale-train")
    if not os.access(command, os.X_OK):
        pytest.skip("not installed as a command")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("run", "ship", "recipes"))
    assert np.all([len(line) < 200 for line in done.stdout.splitlines()])
