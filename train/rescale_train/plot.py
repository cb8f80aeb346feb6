"""Loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from rescale_train.log import read_log

PLOT = "loss.png"
"""Name of a run's plot in its folder."""


def loss_plot(log: Path, target: Path) -> None:
    """Draw the loss terms and the validation PSNR of a log into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_log(log)
    losses = [r for r in records if "total" in r]
    checks = [r for r in records if "hr_psnr_y" in r]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for term in ("total", "hr", "lr", "z", "z_mse"):
        values = [(r["step"], r[term]) for r in losses if r.get(term, 0) > 0]
        if values:
            left.plot(*zip(*values, strict=True), label=term, linewidth=1)
    left.set(xlabel="step", ylabel="loss (sum over C, H, W)", yscale="log")
    if losses:
        left.legend()
    for key, label in (("hr_psnr_y", "HR against source"), ("lr_psnr_y", "LR against bicubic")):
        right.plot([r["step"] for r in checks], [float(r[key]) for r in checks], label=label, marker=".")
    right.set(xlabel="step", ylabel="Y-PSNR (dB), held-out pictures")
    if checks:
        right.legend()
    figure.savefig(target, dpi=100)
    pyplot.close(figure)
