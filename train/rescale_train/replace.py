"""Whether newly trained weights may take the place of others: both measured on what training held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rescale_train.content.report import Picture, measure, summary
from rescale_train.models import RescalingNet

LOSS = 0.25
"""HR Y-PSNR in dB that one group of pictures may lose while the mean of all groups gains."""

COLOUR_SHARE = 0.5
"""A loss that weighs luma higher sells colour for it. RGB-PSNR may fall by this share of what Y-PSNR gains, or by `LOSS`."""


@dataclass(frozen=True)
class Verdict:
    """How new weights compare with those they would replace.

    Attributes:
        table: Markdown; a row for each group of pictures, HR and LR in dB.
        refusal: why the old ones stay; empty when the new ones are better.
    """

    table: str
    refusal: str


def judge(old: RescalingNet, new: RescalingNet, groups: Mapping[str, Mapping[str, Picture]]) -> Verdict:
    """Compare two networks of one model and scale.

    The new one is better when the mean over the groups of their mean HR Y-PSNR is higher and no group lost more than `LOSS` of
    it, nor more RGB-PSNR than `COLOUR_SHARE` says.
    LR fidelity stands beside it in the table and decides nothing: a trade of one for the other is for people to judge.

    Args:
        old, new: in evaluation mode.
        groups: uint8 (H, W, 3) pictures by name, in named groups that weigh the same, whatever their number of pictures.
    """
    lines = [
        "| held out | HR dB | new | change | HR RGB dB | new | change | LR dB | new | change |",
        f"|{'---|' * 10}",
    ]
    gains, worse = {}, []
    for name, pictures in groups.items():
        before, after = summary(measure(old, pictures)), summary(measure(new, pictures))
        cells = []
        for key in ("hr_psnr_y", "hr_psnr_rgb", "lr_psnr_y"):
            cells += [f"{before[key]:.2f}", f"{after[key]:.2f}", f"{after[key] - before[key]:+.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        gains[name] = after["hr_psnr_y"] - before["hr_psnr_y"]
        for key, label, allowed in (("hr_psnr_y", "", LOSS), ("hr_psnr_rgb", "RGB ", max(LOSS, COLOUR_SHARE * gains[name]))):
            if (lost := before[key] - after[key]) > allowed:
                worse.append(f"{name} lose {lost:.2f} dB of {label}HR, at most {allowed:.2f} is allowed")
    mean = sum(gains.values()) / len(gains)
    refusal = "; ".join(worse)
    if not worse and not mean > 0:
        refusal = f"the mean HR changes by {mean:+.3f} dB, a gain is wanted"
    return Verdict("\n".join(lines), refusal)
