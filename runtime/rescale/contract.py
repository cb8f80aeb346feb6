"""What goes into a bundle's graphs and what comes out: the contract between exporter, engines and runtime (docs/bundle.md)."""

from __future__ import annotations

from dataclasses import dataclass

from rescale.variants import LATENT_CHANNELS, Variant

GRADIENT = "gradient"
"""The graph that a bundle may hold beside those that its variant needs: `rescale.refine` descends it."""

LR_AXES = ("lr_height", "lr_width")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph.

    Attributes:
        name: as in the ONNX file.
        dtype: numpy's name.
        axes: fixed sizes as numbers, dynamic ones as names; equal names are equal sizes.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]


def hr(name: str = "hr") -> Tensor:
    """The HR picture: RGB, NHWC."""
    return Tensor(name, "uint8", ("batch", "height", "width", 3))


def lr(v: Variant) -> Tensor:
    """The LR picture: RGB and for -A the alpha codes, NHWC."""
    return Tensor("lr", "uint8", ("batch", *LR_AXES, v.lr_channels))


def z(channels: int) -> Tensor:
    """z of -M, NCHW."""
    return Tensor("z", "float32", ("batch", channels, *LR_AXES))


def code() -> Tensor:
    """The latent code s of -M, NCHW."""
    return Tensor("code", "uint8", ("batch", LATENT_CHANNELS, "latent_height", "latent_width"))


def target() -> Tensor:
    """The HR picture that is to be restored."""
    return hr("target")


def gradient(v: Variant) -> Tensor:
    """The error's gradient by the LR codes, NHWC."""
    return Tensor("gradient", "float32", ("batch", *LR_AXES, v.lr_channels))


def graph_names(v: Variant) -> tuple[str, ...]:
    """Graphs that a variant's bundle holds."""
    return ("downscale", "upscale", "encoder", "decoder") if v.latent else ("downscale", "upscale")


def interface(v: Variant, z_channels: int) -> dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Inputs and outputs of each of a variant's graphs, in order.

    Args:
        v: which network.
        z_channels: channels of z; of no meaning without a latent code.
    """
    if not v.latent:
        return {"downscale": ((hr(),), (lr(v),)), "upscale": ((lr(v),), (hr(),))}
    latent = z(z_channels)
    return {
        "downscale": ((hr(),), (lr(v), latent)),
        "upscale": ((lr(v), latent), (hr(),)),
        "encoder": ((latent,), (code(),)),
        "decoder": ((code(),), (latent,)),
    }


def gradient_interface(v: Variant, z_channels: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of the gradient graph: those of the upscale graph, with the HR picture to restore and the gradient."""
    inputs, outputs = interface(v, z_channels)["upscale"]
    return (*inputs, target()), (*outputs, gradient(v))
