"""The training loop: one step function, resumable at any step, on one process or several.

The batch of a step depends only on seed, step and rank, so that a run stopped and resumed follows the same curve as an
unbroken one. Only process 0 writes files.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rescale.errors import CheckpointError, OutputError, RescaleError
from rescale.json_text import without_nan
from rescale_train import checkpoint
from rescale_train.captured import CapturedPass
from rescale_train.config import Recipe
from rescale_train.data import CropSampler, Picture
from rescale_train.log import trim_log
from rescale_train.losses import Objective
from rescale_train.memory import memory_told
from rescale_train.models import DenseBlock, RescalingNet, build
from rescale_train.optim import Optimiser
from rescale_train.pretrain import pretrain_autoencoder
from rescale_train.recipe import differences
from rescale_train.schedule import arithmetic, corrections_made, crop_plan, learning_rate, subnet_arithmetic
from rescale_train.start import Start
from rescale_train.validation import validate

MAX_SKIPPED = 50
"""Consecutive non-finite steps after which a run gives up."""

CLIP_WINDOW = 101
"""Steps over which the running median of the gradient norm is taken."""


class DivergedError(RescaleError):
    """The loss stayed non-finite."""


@dataclass
class Options:
    """What a run needs beside its recipe.

    Attributes:
        out: folder of checkpoint.safetensors, log.jsonl and loss.png.
        max_minutes: stop cleanly after this many minutes; None for no limit.
        save_every: steps between checkpoints.
        validate_every: steps between validations; 0 for at the end only.
        log_every: steps between log lines.
        split_parts: also write the checkpoint as parts below 15 MB.
        should_stop: asked after each step; True stops cleanly (Ctrl-C, SIGTERM).
        report: receives each log record.
    """

    out: Path
    max_minutes: float | None = None
    save_every: int = 500
    validate_every: int = 1000
    log_every: int = 50
    split_parts: bool = False
    should_stop: Callable[[], bool] = field(default=lambda: False)
    report: Callable[[dict[str, Any]], None] = field(default=lambda record: None)


class Trainer:
    """State of one run: network, average, optimiser, step.

    Attributes:
        held_out: `file_digest` of each picture kept from training, for the checkpoint; None: not to be told.
        validated_on: `file_digest` of each picture that the run validates on, for its resumption; None: not to be told.
        trained_on: `digests_digest` of the training pictures, for the checkpoint; None: not to be told.
        earlier: runs before this one, first one first, for the checkpoint; see `lineage.stage`.
        validation: dB of the checkpoint that was resumed, if it has any.
        skipped: steps of the run that were not finite.

    Args:
        recipe: network and run.
        device: where to train.
        rank: this process's number.
        world: number of processes; the recipe's batch is shared among them.
        start: weights to start from instead of fresh ones.
        pretrain: give a fresh autoencoder the recipe's ``ae_pretrain_steps``; false where only the time of a step is wanted, or
            weights are restored by `resume`.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        start: Start | None = None,
        pretrain: bool = True,
    ) -> None:
        for key in ("batch", "final_batch") if recipe.train.final_fraction else ("batch",):
            count = getattr(recipe.train, key)
            if count % world:
                raise RescaleError(f"train.{key}: a batch of {count} crops cannot be shared by {world} processes; --set another")
        self.recipe, self.device, self.rank, self.world = recipe, device, rank, world
        self.step = 0
        self.seconds = 0.0
        self.held_out: list[str] | None = None
        self.validated_on: list[str] | None = None
        self.trained_on: str | None = None
        self.earlier = start.earlier if start is not None else []
        self.validation: dict[str, float] = {}
        self.skipped = 0
        self._skipped_in_a_row = 0
        self.norms: list[float] = []
        self._compiled_for: str | None = None
        self._ahead: tuple[int, tuple[Tensor, Tensor]] | None = None
        captured = recipe.train.compile == "cuda-graph"
        if captured and (device.type != "cuda" or world > 1):
            where = f"{world} processes" if world > 1 else f"a {device.type} device"
            raise RescaleError(f'train.compile: "cuda-graph" is for one CUDA device, not {where}; --set train.compile="none"')
        torch.manual_seed(recipe.train.seed)
        self.net = build(recipe.net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for block in self.net.modules():
            if isinstance(block, DenseBlock):
                block.mode = recipe.train.dense
        self.continued = start is not None
        if start is not None:
            self.net.load_state_dict(start.weights)
        if pretrain and recipe.train.ae_pretrain_steps and (start is None or start.fresh_autoencoder):
            pretrain_autoencoder(self.net, recipe, device)
        if (recipe.train.ae_frozen or recipe.train.flow_frozen) and self.net.autoencoder is not None:
            self.net.autoencoder.requires_grad_(False)
        if recipe.train.flow_frozen:
            self.net.levels.requires_grad_(False)
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters] if recipe.train.ema else []
        objective: nn.Module = Objective(self.net, recipe)
        if world > 1:
            objective = nn.parallel.DistributedDataParallel(
                objective, device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=recipe.train.nested
            )
        self._captured = CapturedPass(objective, self.parameters) if captured else None
        if recipe.train.compile not in ("none", "cuda-graph"):
            # Two shapes come in a run, those of the final crops last; each is compiled for itself.
            objective = cast(nn.Module, torch.compile(objective, mode=recipe.train.compile, dynamic=False))
        self.objective = objective
        self.optimiser = Optimiser(self.net, recipe.train)

    def train_step(self, sampler: CropSampler) -> dict[str, float] | None:
        """One optimiser step. Returns the loss terms and the gradient norm, or None if it was skipped as non-finite."""
        with memory_told(*crop_plan(self.recipe, self.step), self.device):
            return self._train_step(sampler)

    def _train_step(self, sampler: CropSampler) -> dict[str, float] | None:
        t = self.recipe.train
        batch = self._crops(sampler, self.step)
        generator = None
        if t.lr_noise > 0 or t.z == "random":
            generator = torch.Generator(self.device).manual_seed((t.seed * 1_000_003 + self.step) * 64 + self.rank)
        rate = learning_rate(self.recipe, self.step)
        self.optimiser.zero_grad()
        if self._captured is not None:
            now = arithmetic(self.recipe, self.step)
            terms = self._captured(batch, now, lambda: subnet_arithmetic(self.recipe, self.step, self.device))
        else:
            if t.compile != "none":
                self._compile_anew()
            with subnet_arithmetic(self.recipe, self.step, self.device):
                terms = self.objective(*batch, generator, corrections_made(self.recipe, self.step))
            terms["total"].backward()
        self.step += 1
        if self.device.type == "cuda" and self.step < t.steps:
            # While the device computes: what follows waits for it.
            self._ahead = self.step, self._crops(sampler, self.step)
        values = self._values(terms)
        norm = values["grad_norm"]
        if not (math.isfinite(norm) and math.isfinite(values["total"])):
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED:
                raise DivergedError(f"step {self.step}: {MAX_SKIPPED} steps in a row were not finite; lower train.lr_peak")
            return None
        self._skipped_in_a_row = 0
        if t.clip:
            limit = t.clip * statistics.median(self.norms) if len(self.norms) >= 10 else norm
            if norm > limit:
                nn.utils.clip_grads_with_norm_(self.parameters, limit, torch.tensor(norm))
            self.norms = [*self.norms[-(CLIP_WINDOW - 1) :], norm]
        self.optimiser.step(rate)
        if self.average:
            # A young average would remember the fresh weights for too long.
            decay = min(t.ema, (1.0 + self.step) / (10.0 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)
        return values | {"rate": rate}

    def _crops(self, sampler: CropSampler, step: int) -> tuple[Tensor, Tensor]:
        """Crops of a step and their bicubic reductions, drawn ahead or now."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        count, patch = crop_plan(self.recipe, step)
        return sampler.batch(step, self.rank, count // self.world, patch)

    def _values(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Loss terms and ``grad_norm``, for which the device is waited for once."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        found = {**terms, "grad_norm": norm}
        return dict(zip(found, torch.stack([v.detach().float() for v in found.values()]).tolist(), strict=True))

    def _compile_anew(self) -> None:
        """Forget what was compiled for another arithmetic.

        A recorded CUDA graph has that of its convolutions in it, and cuDNN's TF32 is not among what PyTorch compares before it
        replays one.
        """
        now = arithmetic(self.recipe, self.step)
        if self._compiled_for not in (None, now):
            torch.compiler.reset()
        self._compiled_for = now

    @contextlib.contextmanager
    def averaged(self) -> Iterator[RescalingNet]:
        """The network with the averaged weights in place, in evaluation."""
        kept = [p.detach().clone() for p in self.parameters]
        pairs = list(zip(self.parameters, self.average, strict=True)) if self.average else []
        with torch.no_grad():
            for p, a in pairs:
                p.copy_(a)
        try:
            yield self.net
        finally:
            with torch.no_grad():
                for p, k in zip(self.parameters, kept, strict=True):
                    p.copy_(k)

    def save(self, path: Path, validation: dict[str, float]) -> None:
        """Write everything that `resume` needs, and the figures of a validation at this step."""
        names = {id(p): n for n, p in self.net.named_parameters()}
        tensors: dict[str, Tensor] = {f"model.{n}": v for n, v in self.net.state_dict().items()}
        if self.average:
            tensors |= {f"ema.{n}": v.clone() for n, v in self.net.state_dict().items()}  # a file shares no memory
            tensors |= {f"ema.{names[id(p)]}": a for p, a in zip(self.parameters, self.average, strict=True)}
        for p in self.parameters:
            for key, value in self.optimiser.state_of(p).items():
                tensors[f"optim.{names[id(p)]}.{key}"] = value
        tensors["state.norms"] = torch.tensor(self.norms, dtype=torch.float64)
        progress: dict[str, Any] = {"step": self.step, "seconds": self.seconds, **validation}
        if self.held_out is not None:
            progress["held_out"] = self.held_out
        if self.validated_on is not None and self.validated_on != self.held_out:
            progress["validated_on"] = self.validated_on
        if self.trained_on is not None:
            progress["trained_on"] = self.trained_on
        if self.earlier:
            progress["earlier"] = self.earlier
        progress |= self._skipped()
        checkpoint.write(path, tensors, self.recipe, progress)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe.

        Raises:
            CheckpointError: it is damaged, not finite, of another recipe, or of a run that trained on or held out other pictures.
        """
        found = checkpoint.read(path)
        if found.recipe != self.recipe:
            changed = [f"{key} {old}, now {new}" for key, (old, new) in differences(found.recipe, self.recipe).items()]
            named = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise CheckpointError(f"{path}: written by another recipe ({named}); start in a new --out folder, or use --init-from")
        before = checkpoint.held_out(found, str(path))
        if before is not None and self.held_out is not None and not set(before) <= set(self.held_out):
            raise CheckpointError(
                f"{path}: its run held out other pictures, some of which would now be trained on; "
                "give the --data, --val and --holdout that it began with"
            )
        self.held_out, self.earlier = before, found.progress.get("earlier", [])
        if self.trained_on is not None and found.progress.get("trained_on", self.trained_on) != self.trained_on:
            raise CheckpointError(
                f"{path}: its run trained on other pictures; give the --data, --val and --holdout that it began with, "
                "or go on with others by --init-from in a new --out folder"
            )
        for key, value in found.tensors.items():
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{path}: {key} is not finite; the training diverged, start again")
        names = {id(p): n for n, p in self.net.named_parameters()}
        try:
            self.net.load_state_dict({k.removeprefix("model."): v for k, v in found.tensors.items() if k.startswith("model.")})
            for p, a in zip(self.parameters, self.average, strict=bool(self.average)):
                a.copy_(found.tensors[f"ema.{names[id(p)]}"])
            for p in self.parameters:
                prefix = f"optim.{names[id(p)]}."
                state = {k.removeprefix(prefix): v for k, v in found.tensors.items() if k.startswith(prefix)}
                if state:
                    self.optimiser.restore(p, state)
            self.norms = found.tensors["state.norms"].tolist()
            self.step, self.seconds = int(found.progress["step"]), float(found.progress["seconds"])
            self.skipped = int(found.progress.get("skipped", 0))
            self.validation = {k: float(v) for k, v in found.progress.items() if "_psnr_" in k}
        except (KeyError, RuntimeError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path}: not a complete training checkpoint: {e}") from None

    def run(self, sampler: CropSampler, held: list[Picture], options: Options) -> dict[str, Any]:
        """Train to the recipe's last step, or until the time is up or a stop is asked for.

        Returns:
            The last record: step, finished or not, and the validation figures.
        """
        target = options.out / "checkpoint.safetensors"
        log = options.out / "log.jsonl"
        if self.rank == 0:
            trim_log(log, self.step)
        start = last_log = time.monotonic()
        seconds_before = self.seconds
        last_step = self.step
        steps = self.recipe.train.steps
        validation = self.validation if self.step >= steps else {}
        if self.step >= steps and not validation:  # killed before the last validation was written
            validation = self._validated(held, log, options)
            if validation:
                self.save(target, validation)
        if self.step == 0 and self.continued and options.validate_every:
            validation = self._validated(held, log, options)
            start = last_log = time.monotonic()
        while self.step < steps:
            terms = self.train_step(sampler)
            now = time.monotonic()
            self.seconds = seconds_before + now - start
            out_of_time = options.max_minutes is not None and now - start >= 60.0 * options.max_minutes
            stop = self._agree(out_of_time or options.should_stop())
            done = self.step == steps
            if self.step % options.log_every == 0 or done or stop:
                ms = 1000.0 * (now - last_log) / max(1, self.step - last_step)
                last_log, last_step = now, self.step
                record = {"step": self.step, **(terms or {}), **self._skipped(), "ms": ms, "seconds": self.seconds}
                self._record(log, options, record)
            due = self.rank == 0 and (done or stop or self.step % options.save_every == 0)
            if due:
                # Before the validation, which can take longer than a system that stops a process waits.
                self.save(target, {})
            if done or stop or (options.validate_every and self.step % options.validate_every == 0):
                validation = self._validated(held, log, options)
                if validation and due:
                    self.save(target, validation)
                last_log, last_step = time.monotonic(), self.step
            if due and options.split_parts and (done or stop):
                checkpoint.split(target)
            if stop:
                break
        result = {"step": self.step, "steps": steps, "finished": self.step >= steps, "seconds": self.seconds}
        return {**result, **self._skipped(), **validation}

    def _skipped(self) -> dict[str, int]:
        """To be told, if there are any."""
        return {"skipped": self.skipped} if self.skipped else {}

    def _validate(self, held: list[Picture]) -> dict[str, float]:
        if self.rank != 0 or not held:
            return {}
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
        with self.averaged() as net:
            return validate(net, held)

    def _validated(self, held: list[Picture], log: Path, options: Options) -> dict[str, float]:
        """`_validate`, recorded if it says something."""
        validation = self._validate(held)
        if validation:
            self._record(log, options, {"step": self.step, **validation})
        return validation

    def _agree(self, stop: bool) -> bool:
        """All processes stop at the same step."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _record(self, log: Path, options: Options, record: dict[str, Any]) -> None:
        if self.rank == 0:
            try:
                with log.open("a", encoding="utf-8") as f:
                    f.write(json.dumps(without_nan(record)) + "\n")
            except OSError as e:
                raise OutputError.of(log, e) from None
            options.report(record)
