"""What a run tells while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from rescale.console import warn
from rescale_train.loop import Options, Trainer
from rescale_train.options import stop_on_signals


def carry_out(trainer: Trainer, sampler: Any, held: list[Any], options: Options) -> tuple[dict[str, Any], int]:
    """Run the trainer with a progress bar (on a terminal) or plain lines, stopping cleanly on signals.

    Returns:
        What `Trainer.run` does, and the exit code that a signal asked for; 0 without one.
    """
    with stop_on_signals() as stopped_by:
        options.should_stop = lambda: stopped_by() != 0
        if trainer.rank == 0 and sys.stderr.isatty():
            return with_progress_bar(trainer, sampler, held, options), stopped_by()
        if trainer.rank == 0:
            options.report = plain_report(trainer.recipe.train.steps)
        return trainer.run(sampler, held, options), stopped_by()


def plain_report(steps: int) -> Callable[[dict[str, Any]], None]:
    """Progress as lines, for logs and pipes. A reader that goes away, or a full disk, does not end a run: the lines stop."""
    broken = False

    def report(record: dict[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        values = " ".join(f"{k} {v:.6g}" for k, v in record.items() if k != "step")
        try:
            print(f"step {record['step']}/{steps} {values}", flush=True)
        except OSError as e:
            broken = True
            with contextlib.suppress(OSError):
                warn(f"output: {e.strerror or e}; the run goes on, its log is log.jsonl in --out")

    return report


def with_progress_bar(trainer: Trainer, sampler: Any, held: list[Any], options: Options) -> dict[str, Any]:
    """Progress as a bar with the remaining time and the newest figures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    shown: dict[str, Any] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=trainer.recipe.train.steps, completed=trainer.step)

        def report(record: dict[str, Any]) -> None:
            shown.update(
                {k: v for k, v in record.items() if k in ("total", "skipped", "ms", "hr_psnr_y", "hr_psnr_rgb", "lr_psnr_y")}
            )
            text = " ".join(f"{k} {v:.4g}" for k, v in shown.items())
            bar.update(task, completed=record["step"], description=text)

        options.report = report
        return trainer.run(sampler, held, options)
