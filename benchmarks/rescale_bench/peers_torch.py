"""The peers' side of PyTorch: a network as modules on bytes, their plain ONNX export, and what a network costs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from rescale.codes import ALPHA_MAX, ALPHA_MIN, LATENT_NEUTRAL
from rescale.errors import ParityError
from rescale.variants import LATENT_STRIDE
from rescale_bench.peers import naive_file
from rescale_train import checkpoint
from rescale_train.config import NetConfig, Recipe, TrainConfig
from rescale_train.models import RescalingNet, build

OPSET = 17
RGB_STEPS, ALPHA_STEPS, LATENT_STEPS = 255.0, float(ALPHA_MAX - ALPHA_MIN), 127.0
LAST_LAYER_STD = 0.01
"""Of a random network's last layers, which a new network has at zero: nothing can be left out, and no value overflows."""


class BytesDown(nn.Module):
    """``hr`` uint8 (B, H, W, 3) -> ``lr`` uint8 (B, h, w, 3 or 4), and for -M ``code`` uint8 (B, 4, ceil(h/4), ceil(w/4))."""

    def __init__(self, net: RescalingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, hr: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        found = self.net.downscale(hr.permute(0, 3, 1, 2).float() / RGB_STEPS)
        levels = torch.round(found.lr[:, :3] * RGB_STEPS)
        if self.net.config.variant.alpha:
            levels = torch.cat((levels, torch.round(found.lr[:, 3:] * ALPHA_STEPS) + ALPHA_MIN), 1)
        lr = levels.permute(0, 2, 3, 1).to(torch.uint8)
        if found.code is None:
            return lr
        return lr, (torch.round(found.code * LATENT_STEPS) + LATENT_NEUTRAL).to(torch.uint8)


class BytesUp(nn.Module):
    """``lr`` [, ``code``] as `BytesDown` gives them -> ``hr`` uint8 (B, H, W, 3)."""

    def __init__(self, net: RescalingNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, lr: Tensor, code: Tensor | None = None) -> Tensor:
        """See the class."""
        planes = lr.permute(0, 3, 1, 2).float()
        x = planes[:, :3] / RGB_STEPS
        if self.net.config.variant.alpha:
            x = torch.cat((x, (planes[:, 3:] - ALPHA_MIN) / ALPHA_STEPS), 1)
        z = None if code is None else self.net.decode_z(x, (code.float() - LATENT_NEUTRAL) / LATENT_STEPS)
        levels = torch.round(self.net.upscale(x, z).clamp(0.0, 1.0) * RGB_STEPS)
        return levels.permute(0, 2, 3, 1).to(torch.uint8)


def export_naive(net: RescalingNet, folder: Path, lr_size: tuple[int, int]) -> None:
    """Write both directions as `torch.onnx.export` makes them of the plain modules.

    Args:
        net: in evaluation mode.
        folder: an existing one.
        lr_size: (height, width) of the LR pictures to come. Sizes are dynamic, but what -M pads to its latent's grid is traced.

    Raises:
        ParityError: PyTorch cannot export it.
    """
    scale, latent = net.config.scale, net.config.variant.latent
    height, width = (4 * LATENT_STRIDE + n % LATENT_STRIDE for n in lr_size)
    hr = torch.randint(0, 256, (1, height * scale, width * scale, 3), dtype=torch.uint8)
    with torch.no_grad():
        found = BytesDown(net)(hr)
    lr = found if isinstance(found, tuple) else (found,)
    small = ["lr", "code"] if latent else ["lr"]
    axes = {"hr": {1: "height", 2: "width"}, "lr": {1: "h", 2: "w"}, "code": {2: "code_h", 3: "code_w"}}
    for name, module, inputs, input_names, output_names in (
        ("downscale", BytesDown(net), (hr,), ["hr"], small),
        ("upscale", BytesUp(net), lr, small, ["hr"]),
    ):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations of the exporter that most published models went through
                torch.onnx.export(
                    module.eval(),
                    inputs,
                    str(folder / naive_file(name)),
                    input_names=input_names,
                    output_names=output_names,
                    dynamic_axes={n: axes[n] for n in (*input_names, *output_names)},
                    opset_version=OPSET,
                    dynamo=False,
                )
        except Exception as e:  # the exporter raises what the tracer raises
            raise ParityError(f"{net.config.model} x{scale}: PyTorch cannot export {name}: {e}") from None


def random_net(config: NetConfig, seed: int = 0) -> RescalingNet:
    """A network with random weights that are zero nowhere, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config)
        for name, p in net.named_parameters():
            if name.endswith("conv5.weight"):
                nn.init.normal_(p, std=LAST_LAYER_STD)
    return net.eval()


def save_net(net: RescalingNet, path: Path) -> None:
    """Write a network for another process, which reads it as `rescale_train.checkpoint.read_net` does."""
    checkpoint.write(path, net.state_dict(), Recipe(net.config, TrainConfig(steps=1, flow_frozen=bool(net.corrections))), {})
