"""Networks and training runs as data: frozen dataclasses that check themselves. `rescale_train.tables` has their plain form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rescale.errors import ConfigError, UnknownModelError
from rescale.variants import Variant, check_scale, variant
from rescale_train.content.mix import MixConfig

ALPHA_SPLITS = ("pre", "post")
ALPHA_BASES = ("paper", "orthonormal")
Z_MODES = ("zero", "random")
OPTIMISERS = ("adamw", "muon", "soap")
DENSE_MODES = ("concat", "sum", "aligned")
"""Ways to compute a dense block, the same up to rounding: joined features; a sum of one convolution a feature, a fifth faster on
CPUs; joined features in channels that fill a GPU's matrix units."""
COMPILE_MODES = ("none", "cuda-graph", "default", "reduce-overhead", "max-autotune")
SUBNET_DTYPES = ("float32", "tf32", "bfloat16", "float16")
HR_KINDS = ("charbonnier", "psnr")
LR_KINDS = ("l2", "charbonnier")

COUNTS = (
    ("steps", 1, 10**9),
    ("batch", 1, 2**16),
    ("final_batch", 1, 2**16),
    ("patch", 1, 2**13),
    ("final_patch", 1, 2**13),
    ("warmup", 0, 10**9),
    ("ae_pretrain_steps", 0, 10**9),
    ("seed", 0, 2**32 - 1),
)
"""Whole numbers of a training run, each with the least and the greatest value that it takes."""


@dataclass(frozen=True)
class NetConfig:
    """Everything that determines a network's layers and arithmetic.

    Attributes:
        model: variant name, see `rescale.variants.VARIANTS`.
        scale: 2 or 4.
        blocks: invertible blocks per Haar level.
        growth: channels added by each convolution of a dense block.
        lr_growth: the same at the second of two Haar levels, whose blocks work on LR pixels; 0: as at the first.
        shared_trunk: the scale subnet H and the shift subnet G share one dense block (not in the paper; smaller).
        dlv_channels: width d of the dual latent variable appended to the upper branch (our reading of DLV-IRN).
        alpha_split: where the alpha channel is split off: before the blocks or after them (paper, table 1).
        alpha_mean: initialise alpha with the mean of the 3C high bands (paper, table 1).
        alpha_gain: k in sigmoid(k * alpha); 1 is the paper.
        alpha_basis: ``paper`` for mean and equation 1; ``orthonormal`` for a volume-preserving completion.
        ae_layers: convolutions in the encoder of the -M autoencoder, 2 or 4 (paper, table 2).
        ae_zero_init: zero the decoder's last layer, so that training starts at z-hat = 0 (our proposal).
        corrections: learned steps of the encoder along the decoder's gradient, see `RescalingNet.correct` (ours); the decoder is
            the same with and without them.
        correction_growth: growth of a correction's dense block.
        correction_limit: levels of 255 by which a correction moves a code at most; 0: by any number.
        latent_gain: k_z, what z is multiplied with before the -M encoder and divided by after the decoder; 1 is the paper. A
            trained z has an RMS of about 0.005: without a gain the code varies by less than one of its 255 levels.
    """

    model: str
    scale: int
    blocks: tuple[int, ...]
    growth: int
    shared_trunk: bool = False
    dlv_channels: int = 0
    alpha_split: str = "pre"
    alpha_mean: bool = True
    alpha_gain: float = 1.0
    alpha_basis: str = "paper"
    ae_layers: int = 4
    ae_zero_init: bool = True
    latent_gain: float = 1.0
    lr_growth: int = 0
    corrections: int = 0
    correction_growth: int = 48
    correction_limit: float = 0.0

    def __post_init__(self) -> None:
        v = variant(self.model)
        check_scale(self.scale)
        levels = self.scale.bit_length() - 1
        require(len(self.blocks) == levels, f"net.blocks: {self.model} x{self.scale} has {levels} Haar level(s), got {self.blocks}")
        require(
            all(0 <= n <= 64 for n in self.blocks) and self.blocks[-1] >= 1,
            f"net.blocks: each level takes 0 to 64 blocks, the last at least 1, got {self.blocks}",
        )
        require(1 <= self.growth <= 256, f"net.growth: 1 to 256, got {self.growth}")
        require(0 <= self.lr_growth <= 256, f"net.lr_growth: 0 to 256, got {self.lr_growth}")
        require(
            levels > 1 or self.lr_growth == 0,
            f"net.lr_growth: {self.model} x{self.scale} has one Haar level; give net.growth, and 0 here, got {self.lr_growth}",
        )
        require(0 <= self.dlv_channels <= 16, f"net.dlv_channels: 0 to 16, got {self.dlv_channels}")
        require(
            v.dlv or self.dlv_channels == 0, f"net.dlv_channels: {self.model} has no dual latent variable, got {self.dlv_channels}"
        )
        _one_of("net.alpha_split", self.alpha_split, ALPHA_SPLITS)
        _one_of("net.alpha_basis", self.alpha_basis, ALPHA_BASES)
        require(0.0 < self.alpha_gain <= 64.0, f"net.alpha_gain: above 0, at most 64, got {self.alpha_gain}")
        require(0.0 < self.latent_gain <= 4096.0, f"net.latent_gain: above 0, at most 4096, got {self.latent_gain}")
        _one_of("net.ae_layers", self.ae_layers, (2, 4))
        require(0 <= self.corrections <= 8, f"net.corrections: 0 to 8, got {self.corrections}")
        require(1 <= self.correction_growth <= 256, f"net.correction_growth: 1 to 256, got {self.correction_growth}")
        require(0.0 <= self.correction_limit <= 255.0, f"net.correction_limit: 0 to 255, got {self.correction_limit}")

    @property
    def variant(self) -> Variant:
        """The paper's variant that this network realises."""
        return variant(self.model)

    @property
    def pre_split(self) -> bool:
        """Alpha takes part in the flow (paper, figure 1a)."""
        return self.variant.alpha and self.alpha_split == "pre"

    @property
    def low_channels(self) -> int:
        """Channels of the lower branch x_l inside the flow."""
        return 4 if self.pre_split else 3

    @property
    def growths(self) -> tuple[int, ...]:
        """Growth of each Haar level, finest first."""
        return (self.growth,) * (len(self.blocks) - 1) + (self.lr_growth or self.growth,)

    @property
    def z_channels(self) -> int:
        """Channels of z: all that does not end up in the LR picture."""
        total: int = (12 + self.dlv_channels) * 4 ** (len(self.blocks) - 1)
        return total - self.variant.lr_channels


SIZES: dict[str, dict[str, Any]] = {
    # The paper's network: 8 blocks a level, growth 32, separate F, G and H.
    "full": {"blocks_per_level": 8, "growth": 32, "shared_trunk": False},
    # A third of full's arithmetic at x2, a fifth at x4: lite, wider where a multiply-accumulate buys most.
    "medium": {"blocks_per_level": 4, "growth": 16, "lr_growth": 32, "shared_trunk": True},
    # An eighth of full's arithmetic at x2, a seventh at x4.
    "lite": {"blocks_per_level": 4, "growth": 16, "shared_trunk": True},
}
"""Named sizes. Data, so that a new one is a new row."""

DEFAULT_SIZES = ("medium", "lite")
"""The first of these that ships is what a user gets who names no size: the small gain of full over medium is not worth 2.8
times the time at x2, that of medium over lite is worth 2.4 times at x2 and a third more at x4 (docs/experiments.md, the ladder)."""


def check_size(size: str) -> None:
    """Check that networks can be of a size.

    Raises:
        UnknownModelError: it is none of `SIZES`.
    """
    if size not in SIZES:
        raise UnknownModelError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")


def net_config(model: str, scale: int, size: str, **overrides: Any) -> NetConfig:
    """The network of a named size.

    Raises:
        ConfigError: a bad override.
        UnknownModelError: unknown model, scale or size.
    """
    check_size(size)
    row = dict(SIZES[size])
    levels = check_scale(scale).bit_length() - 1
    if levels == 1 and "lr_growth" in row:
        row["growth"] = row.pop("lr_growth")
    values: dict[str, Any] = {
        "model": model,
        "scale": scale,
        "blocks": (row.pop("blocks_per_level"),) * levels,
        "dlv_channels": 3 if variant(model).dlv else 0,
        **row,
    }
    return NetConfig(**{**values, **overrides})


def size_name(config: NetConfig) -> str:
    """The named size that a network has, or ``custom``."""
    for size in SIZES:
        named = net_config(config.model, config.scale, size)
        if (named.blocks, named.growths, named.shared_trunk) == (config.blocks, config.growths, config.shared_trunk):
            return size
    return "custom"


@dataclass(frozen=True)
class LossConfig:
    """Weights of equation 2. Every term is a sum over C, H, W and a mean over the batch.

    Attributes:
        hr: lambda_1, error of the restored HR.
        hr_kind: ``charbonnier`` for the Charbonnier distance (the paper), ``psnr`` for the logarithm of each crop's mean squared
            error: a decibel is worth the same on every crop, whereas the distance lets the hardest crops decide.
        hr_knee: dB, with ``psnr``: crops better than this count as in squared error, no more than their error; 0: what rounding
            to 8 bits leaves, 58.9 dB. Without it easy crops decide, though a picture's PSNR hangs on its hard parts.
        luma: how much more the luma part of the HR error counts (its square 1 + luma times); 0 as in the paper.
        lr: lambda_2, error of the LR against bicubic; 0 means scale squared, as in IRN.
        lr_kind: ``l2`` for the squared error (the paper), ``charbonnier`` as in IRN's fine-tuning against colour casts. At the
            same weight the latter pulls about a hundred times harder on an error of one grey level.
        lr_clamp: clamp the bicubic reference to what 8 bits can hold. Unclamped, as in IRN, text and saturated edges pull the
            LR beyond the range, where rounding cuts off what the HR is restored from.
        z: lambda_3, squared z (distribution matching with z-hat = 0).
        z_mse: lambda_4, squared error of the decoded z (-M only).
    """

    hr: float = 1.0
    lr: float = 0.0
    z: float = 1.0
    z_mse: float = 1.0
    lr_kind: str = "l2"
    lr_clamp: bool = False
    hr_kind: str = "charbonnier"
    hr_knee: float = 0.0
    luma: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hr", "lr", "z", "z_mse"):
            value = getattr(self, name)
            require(0.0 <= value <= 1e9, f"train.loss.{name}: 0 to 1e9, got {value}")
        require(0.0 <= self.luma <= 100.0, f"train.loss.luma: 0 to 100, got {self.luma}")
        _one_of("train.loss.hr_kind", self.hr_kind, HR_KINDS)
        require(0.0 <= self.hr_knee <= 100.0, f"train.loss.hr_knee: 0 to 100, got {self.hr_knee}")
        require(not self.hr_knee or self.hr_kind == "psnr", f'train.loss.hr_knee is for hr_kind = "psnr", got "{self.hr_kind}"')
        _one_of("train.loss.lr_kind", self.lr_kind, LR_KINDS)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: optimiser steps; the learning rate reaches its end after exactly these.
        batch: crops per step, over all processes.
        patch: HR crop side in pixels, a multiple of the scale.
        final_fraction: share of the steps at the end that use `final_batch` crops of `final_patch` pixels; 0 for none.
        area_power: a photograph is drawn in proportion to this power of its area; 1: every pixel alike, 0: every picture alike.
        hard_crops: share of the density of a picture's crops that follows the detail which reducing loses; 0: all places alike.
        lr_peak: peak learning rate.
        lr_end: last learning rate as a share of the peak.
        warmup: steps of linear warm-up.
        optimiser: ``adamw``; or ``muon`` for the inner filters of the dense blocks, or ``soap`` for all filters, and AdamW for
            the rest.
        weight_decay: decoupled decay.
        betas: AdamW's betas.
        clip: gradient norm limit as a multiple of the running median norm; 0 for none.
        ema: decay of the weight average that is validated and shipped; 0 for none.
        subnet_dtype: arithmetic of the dense blocks. The coupling state, Haar and losses are float32; tf32 alone, which holds for
            all convolutions, also rounds what goes into Haar.
        float32_fraction: share of the steps at the end that run wholly in float32.
        dense: how dense blocks are computed, of `DENSE_MODES`.
        compile: ``cuda-graph`` records each shape of crops once and replays it, on a CUDA device alone; or a mode of torch.compile;
            or ``none``.
        z: ``zero``, or ``random`` for z ~ N(0, 1) in training (plain variants only; the original IRN).
        lr_noise: standard deviation of Gaussian noise on the quantised RGB of the LR, of a crop in `lr_noise_share` of cases.
            Alpha stays as it is: it has no picture to be faithful to, and noise there costs restored detail.
        ae_pretrain_steps: steps of autoencoder pre-training on standalone random z (-M; the paper's AE_p).
        ae_frozen: keep the autoencoder fixed afterwards (-M; the paper's AE_f).
        flow_frozen: keep the flow and the autoencoder fixed and train `net.corrections` alone, which nothing else does.
        nested: make in every second step the first of `net.corrections` alone (`schedule.corrections_made`), so that the others can
            be left out of the trained encoder (as by nested dropout; Rippel et al., ICML 2014).
        seed: of the weights, the crops, the mixed-in pictures and the noise.
        loss: weights of the loss terms.
        mix: pictures beside the photographs; none by default.
    """

    steps: int
    batch: int = 16
    patch: int = 144
    final_fraction: float = 0.0
    final_batch: int = 4
    final_patch: int = 192
    area_power: float = 1.0
    hard_crops: float = 0.0
    lr_peak: float = 5e-4
    lr_end: float = 0.0
    warmup: int = 500
    optimiser: str = "adamw"
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 2.0
    ema: float = 0.999
    subnet_dtype: str = "float32"
    float32_fraction: float = 0.1
    dense: str = "concat"
    compile: str = "none"
    z: str = "zero"
    lr_noise: float = 0.0
    lr_noise_share: float = 0.5
    ae_pretrain_steps: int = 0
    ae_frozen: bool = False
    flow_frozen: bool = False
    nested: bool = False
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    mix: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self) -> None:
        for name, least, most in COUNTS:
            value = getattr(self, name)
            require(least <= value <= most, f"train.{name}: {least} to {most}, got {value}")
        for name in ("final_fraction", "area_power", "hard_crops", "float32_fraction", "lr_noise_share", "lr_end"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"train.{name}: 0 to 1, got {value}")
        require(0.0 <= self.lr_peak <= 1.0, f"train.lr_peak: 0 to 1, got {self.lr_peak}")
        for name in ("weight_decay", "clip", "lr_noise"):
            value = getattr(self, name)
            require(0.0 <= value < math.inf, f"train.{name}: at least 0, got {value}")
        require(all(0.0 <= b < 1.0 for b in self.betas), f"train.betas: each 0 to below 1, got {self.betas}")
        require(0.0 <= self.ema < 1.0, f"train.ema: 0 to below 1, got {self.ema}")
        _one_of("train.dense", self.dense, DENSE_MODES)
        _one_of("train.compile", self.compile, COMPILE_MODES)
        _one_of("train.optimiser", self.optimiser, OPTIMISERS)
        _one_of("train.subnet_dtype", self.subnet_dtype, SUBNET_DTYPES)
        _one_of("train.z", self.z, Z_MODES)


@dataclass(frozen=True)
class Recipe:
    """A network and the run that trains it."""

    net: NetConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        v = self.net.variant
        require(self.train.z == "zero" or v.auxiliary == "none", f"train.z: random z is for the plain variants, not {v.name}")
        require(v.latent or not (self.train.ae_pretrain_steps or self.train.ae_frozen), f"train.ae_*: {v.name} has no autoencoder")
        require(
            self.train.flow_frozen == bool(self.net.corrections),
            "train.flow_frozen: true is wanted with net.corrections and not without; it is what trains them (docs/corrections.md)",
        )
        require(not self.train.nested or self.net.corrections > 0, "train.nested: is of net.corrections, and there are none")
        require(
            not self.net.corrections or self.train.compile == "none",
            f'train.compile: "none" is wanted with net.corrections, got "{self.train.compile}"',
        )
        require(
            self.train.compile != "cuda-graph" or (self.train.z == "zero" and not self.train.lr_noise),
            'train.compile: a "cuda-graph" draws no random numbers; not with train.lr_noise or train.z = "random"',
        )
        for name in ("patch", "final_patch"):
            side = getattr(self.train, name)
            step = self.net.scale * (4 if v.latent else 1)
            require(side >= 8 * step and side % step == 0, f"train.{name}: a multiple of {step}, at least {8 * step}, got {side}")


def require(ok: bool, message: str) -> None:
    """Raise `ConfigError` unless a condition holds."""
    if not ok:
        raise ConfigError(message)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    require(value in allowed, f"{name}: one of {', '.join(map(str, allowed))}, got {value!r}")
