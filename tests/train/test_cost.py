from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rescale_train.config import net_config
from rescale_train.cost import macs_per_lr_pixel, step_flop
from rescale_train.models import DenseBlock, build
from rescale_train.recipe import load_recipe


@pytest.mark.parametrize(
    ("model", "scale", "size"), [("irn_a", 2, "lite"), ("irn", 4, "lite"), ("dlv_irn_m", 4, "lite"), ("irn_a", 4, "medium")]
)
def test_cost_is_that_of_the_convolutions(model: str, scale: int, size: str) -> None:
    """Counted where PyTorch computes them, on a picture of 8x8 LR pixels."""
    net = build(net_config(model, scale, size))
    # The Haar transforms are convolutions too, and are not counted.
    blocks = {
        f"RescalingNet.{name}" for name, module in net.levels.named_modules(prefix="levels") if isinstance(module, DenseBlock)
    }
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 8 * scale, 8 * scale))
    counted = sum(sum(kinds.values()) for name, kinds in counter.get_flop_counts().items() if name in blocks) // 2
    assert macs_per_lr_pixel(net.config) * 64 == counted


def test_cost_of_the_papers_network() -> None:
    macs = macs_per_lr_pixel(net_config("dlv_irn_a", 2, "full"))
    low, high, growth = 4, 11, 32

    def dense(c_in: int, c_out: int) -> int:
        return 9 * (sum((c_in + k * growth) * growth for k in range(4)) + (c_in + 4 * growth) * c_out)

    assert macs == 8 * (dense(high, low) + 2 * dense(low, high))


def test_all_blocks_at_lr_cost_what_the_second_level_costs() -> None:
    both, last = (macs_per_lr_pixel(net_config("irn", 4, "lite", blocks=b)) for b in ((4, 4), (0, 4)))
    assert both - last == 4 * macs_per_lr_pixel(net_config("irn", 2, "lite"))


def test_a_step_is_both_directions_forward_and_backward() -> None:
    recipe = load_recipe("dlv_irn_a_x2_lite")
    assert step_flop(recipe, 16, 64) == 12 * macs_per_lr_pixel(recipe.net) * 16 * 32 * 32
