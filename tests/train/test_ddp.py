from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from rescale_train import checkpoint
from rescale_train.data import CropSampler, find_pictures, load_picture
from rescale_train.log import read_log
from rescale_train.loop import Trainer
from rescale_train.options import spread
from rescale_train.recipe import load_recipe
from rescale_train.run import is_loss_of_another

CPU = torch.device("cpu")

SCRIPT = """
import hashlib, sys
from pathlib import Path
from rescale_train import cli, loop

run = loop.Trainer.run

def run_and_tell(self, *args):
    result = run(self, *args)
    data = b"".join(p.detach().numpy().tobytes() for p in self.net.parameters())
    Path(sys.argv[1], f"rank{self.rank}").write_text(hashlib.sha256(data).hexdigest())
    return result

loop.Trainer.run = run_and_tell
raise SystemExit(cli.main(sys.argv[2:]))
"""


class BothRanks:
    """What two processes draw, as one batch."""

    def __init__(self, sampler: CropSampler) -> None:
        self.sampler = sampler

    def batch(self, step: int, rank: int, count: int, patch: int) -> tuple[Tensor, Tensor]:
        hr, lr = zip(*(self.sampler.batch(step, r, count // 2, patch) for r in (0, 1)), strict=True)
        return torch.cat(hr), torch.cat(lr)


SIZES = {"train.steps": "3", "train.batch": "4", "train.final_batch": "4"}
NESTED = {"net.corrections": "2", "net.correction_growth": "4", "train.flow_frozen": "true", "train.nested": "true"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("changes", [SIZES, SIZES | NESTED], ids=["flow", "nested corrections"])
def test_two_processes_train_one_net(tmp_path: Path, pictures: Path, recipe_file: Path, changes: dict[str, str]) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, str(tmp_path / "main.py"), str(tmp_path), "run", str(recipe_file), "--data", str(pictures)]
    command += ["--out", str(out), "--threads", "1", "--device", "cpu", "--log-every", "1", "--holdout", "1"]
    command += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("pictures to train on") == 1, "one process speaks"
    assert json.loads(done.stdout[done.stdout.index("{") :])["finished"]

    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text()
    assert {p.name for p in out.iterdir()} == {"checkpoint.safetensors", "log.jsonl", "loss.png"}
    assert [r["step"] for r in read_log(out / "log.jsonl") if "total" in r] == [1, 2, 3]

    recipe = load_recipe(str(recipe_file), changes)
    paths = find_pictures([pictures])
    held = spread(paths, 1)
    sampler = CropSampler([load_picture(p) for p in paths if p not in held], 2, recipe.train.seed, CPU)
    alone = Trainer(recipe, CPU)
    fresh = {k: v.clone() for k, v in alone.net.state_dict().items()}
    for _ in range(3):
        alone.train_step(BothRanks(sampler))  # type: ignore[arg-type]
    found = checkpoint.read(out / "checkpoint.safetensors").tensors
    for key, value in alone.net.state_dict().items():
        torch.testing.assert_close(found[f"model.{key}"], value, atol=1e-4, rtol=0)
    assert max(float((found[f"model.{k}"] - v).abs().max()) for k, v in fresh.items()) > 5e-4


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:35993"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection reset by peer"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_the_loss_of_another_process_is_known(error: RuntimeError, lost: bool) -> None:
    """Its own message says why; those of the others would be forty lines of traceback."""
    assert is_loss_of_another(error) is lost
