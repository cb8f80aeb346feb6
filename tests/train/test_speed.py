from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescale_train.cli import main
from rescale_train.config import Recipe
from rescale_train.data import CropSampler
from rescale_train.loop import Trainer
from rescale_train.speed import compiled, matmul_peak, measure, table, variants

CPU = torch.device("cpu")
TINY = """
[net]
model = "irn_a"
scale = 2
blocks = [1]
growth = 4
[train]
steps = 10
batch = 2
patch = 16
final_patch = 16
subnet_dtype = "bfloat16"
"""


def test_variants_go_from_plain_to_the_recipe(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of(subnet_dtype="bfloat16")
    rows = variants(recipe, CPU, 2)
    assert not rows[0].channels_last
    assert not rows[0].flush
    assert rows[0].recipe.train.subnet_dtype == "float32"
    ours = next(v for v in rows if "(the recipe)" in v.name)
    assert ours.recipe == recipe
    assert ours.channels_last
    assert {v.recipe.train.batch for v in rows} == {1, 2, 4}
    assert {v.threads for v in rows} == {1, 2}


def test_each_measure_of_a_gpu_recipe_has_a_row(recipe_of: Callable[..., Recipe]) -> None:
    rows = variants(recipe_of(subnet_dtype="float16", dense="aligned", compile="cuda-graph"), torch.device("cuda"), 1)
    before = [(v.name, v.recipe.train.dense, v.recipe.train.compile) for v in rows[2:5]]
    assert before == [
        ("+ float16 subnets", "concat", "none"),
        ("+ channels of zeros up to eights", "aligned", "none"),
        ("+ cuda-graph (the recipe)", "aligned", "cuda-graph"),
    ]


def test_a_float32_recipe_has_no_variant_twice(recipe_of: Callable[..., Recipe]) -> None:
    rows = variants(recipe_of(), CPU, 1)
    keys = [(v.recipe, v.channels_last, v.flush, v.threads) for v in rows]
    assert len(set(keys)) == len(keys)


def test_measured_figures_hang_together(recipe_of: Callable[..., Recipe]) -> None:
    rows = variants(recipe_of(), CPU, 1)
    told: list[str] = []
    records = list(measure(rows, CPU, 3, told.append))
    assert [r["name"] for r in records] == [v.name for v in rows]
    assert len(told) == 5 * len(rows)
    for r in records:
        assert 0 < r["ms_p10"] <= r["ms"] <= r["ms_p90"]
        assert r["pixels_per_second"] == pytest.approx(1000 * r["batch"] * r["patch"] ** 2 / r["ms"])
    same = [r for r in records if r["batch"] == 2]
    assert len({round(r["flops_per_second"] * r["ms"]) for r in same}) == 1
    text = table(records, matmul_peak(CPU, 0.01))
    assert text.count("\n| ") == len(rows)
    assert "| 1.00 |" in text
    assert not torch.is_grad_enabled() or torch.get_num_threads() == 1


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "tiny.toml", tmp_path / "speed.json"
    recipe.write_text(TINY)
    assert main(["speed", str(recipe), "--steps", "1", "--threads", "1", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert report["matmul"]["float32"] > 1e8
    assert main(["speed", str(recipe), "--steps", "1", "--threads", "1", "--set", "train.batch=1"]) == 0
    assert "1 of 16 px" in capsys.readouterr().out
    lost = str(tmp_path / "none" / "speed.json")
    assert main(["speed", str(recipe), "--steps", "1", "--threads", "1", "--out", lost]) == 1
    told = capsys.readouterr()
    assert "2 of 16 px" in told.out, "what was measured is not lost"
    assert told.err.startswith(f"error: {lost}: cannot write")
    assert main(["speed", str(recipe), "--set", "train.batch"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err
    assert main(["speed", str(recipe), "--set", "train.foo=1"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_are_the_same_steps(recipe_of: Callable[..., Recipe], sampler_of: Callable[[Recipe], CropSampler]) -> None:
    plain = recipe_of("irn_a", clip=0.0)
    mode = compiled(plain, "default", 1).recipe
    assert mode == replace(plain, train=replace(plain.train, compile="default"))
    losses = []
    for recipe in (plain, mode):
        trainer, sampler = Trainer(recipe, CPU), sampler_of(recipe)
        losses.append([terms["total"] for _ in range(4) if (terms := trainer.train_step(sampler)) is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
