"""The split graphs of a network: downscale and upscale, and for -M encoder and decoder.

    downscale   hr uint8 (batch, height, width, 3)         -> lr uint8 (batch, h, w, 3 or 4) [, z float32 (batch, z, h, w)]
    upscale     lr [, z]                                   -> hr
    encoder     z float32 (batch, z, h, w), h, w of 4      -> code uint8 (batch, 4, h/4, w/4)
    decoder     code                                       -> z

Rounding and clamping are inside, so the bytes come from the graph. z = 0 is not fed: the last block's G and H are absent
from a downscale that drops z, and the first inverse block reduces to -G * exp(-s). A downscale with corrections holds the way
up and its adjoint too.

Precision is part of the graph, for runtimes that are strongly typed: in ``mixed`` the subnets (and the -M autoencoder's layers)
are float16 and the coupling stream, exp, tanh, sigmoid, Haar and quantiser float32; in ``fp16`` the stream is float16 too, but for
that of the corrections. Casts from and to bytes, division by 255, alpha's sigmoid and logit, clamping and rounding stay float32 in
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from rescale import contract
from rescale.codes import ALPHA_MAX, ALPHA_MIN, LATENT_NEUTRAL, LOGIT_MARGIN
from rescale.contract import Tensor, graph_names
from rescale.network import LATENT_HALO
from rescale.quality import error_metric
from rescale.variants import LATENT_STRIDE
from rescale_export.adjoint import Adjoint
from rescale_export.writer import GraphWriter
from rescale_train.models import DenseBlock, InvBlock, RescalingNet
from rescale_train.models.coupling import CLAMP, LEAKY_SLOPE
from rescale_train.models.irn import SLOPE_GAIN, code_range


def _array(t: torch.Tensor) -> npt.NDArray[np.float32]:
    value: npt.NDArray[np.float32] = t.detach().cpu().float().numpy()
    return value


def _weight_bias(conv: nn.Module) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return _array(conv.weight), _array(conv.bias)


def _dense(g: GraphWriter, block: DenseBlock, value: str, name: str, out_scale: Sequence[float] | None = None) -> str:
    """A dense block; `out_scale` multiplies its output channels and is folded into the last convolution.

    In float32 a convolution of joined features is written as a sum of one convolution a feature. Nothing is copied together,
    every convolution but those of the block's input has whole blocks of 16 channels, and runtimes fuse the sums into the
    convolutions: docs/speed.md has the gain. In float16 every sum would be rounded, so features are joined.
    """
    with g.using(g.inner):
        features = [g.cast(value, g.stream, g.inner)]
        widths = [block.convs[0].in_channels] + [block.convs[0].out_channels] * 4
        for k, conv in enumerate(block.convs, 1):
            weight, bias = _weight_bias(conv)
            if k == len(block.convs) and out_scale is not None:
                factor = np.asarray(out_scale, np.float32)
                weight, bias = weight * factor[:, None, None, None], bias * factor
            here = f"{name}.conv{k}"
            if g.element == "float16":
                out = g.conv(g.concat(features, f"{name}.cat{k}"), weight, bias, here)
            else:
                out = _sum_of_convs(g, list(zip(features, widths, strict=False)), weight, bias, here)
            if k < len(block.convs):
                features.append(g.op("LeakyRelu", [out], f"{name}.act{k}", alpha=LEAKY_SLOPE))
        return g.cast(out, g.inner, g.stream)


def _sum_of_convs(
    g: GraphWriter,
    features: list[tuple[str, int]],
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32],
    name: str,
) -> str:
    """The convolution of joined features, each given with its number of channels."""
    total, start = "", 0
    for j, (feature, width) in enumerate(features):
        part = g.conv(feature, weight[:, start : start + width], None if j else bias, f"{name}.{j}")
        total = g.op("Add", [part, total], f"{name}.sum{j}") if j else part
        start += width
    return total


def _shift_and_factor(g: GraphWriter, block: InvBlock, y1: str, name: str, sign: float) -> tuple[str, str]:
    """sign * G(y1) and exp(sign * s). Sign and the half in tanh(H / 2) are folded into weights; both are exact."""
    n = block.high
    if block.shared_trunk:
        both = _dense(g, block.GH, y1, f"{name}.GH", [sign] * n + [0.5 * sign] * n)
        shift, raw = g.split(both, [n, n], f"{name}.split")
    else:
        shift = _dense(g, block.G, y1, f"{name}.G", [sign] * n)
        raw = _dense(g, block.H, y1, f"{name}.H", [0.5 * sign] * n)
    s = g.op("Tanh", [raw], f"{name}.tanh")
    if CLAMP != 1.0:
        s = g.op("Mul", [s, g.scalar(CLAMP)], f"{name}.clamp")
    return shift, g.op("Exp", [s], f"{name}.exp")


def _forward_block(g: GraphWriter, block: InvBlock, x1: str, x2: str, name: str, need_high: bool) -> tuple[str, str]:
    y1 = g.op("Add", [x1, _dense(g, block.F, x2, f"{name}.F")], f"{name}.low")
    if not need_high:
        return y1, ""
    shift, factor = _shift_and_factor(g, block, y1, name, 1.0)
    scaled = g.op("Mul", [x2, factor], f"{name}.scale")
    return y1, g.op("Add", [scaled, shift], f"{name}.high")


def _inverse_block(g: GraphWriter, block: InvBlock, y1: str, y2: str, name: str) -> tuple[str, str]:
    """`y2` empty stands for zero."""
    shift, factor = _shift_and_factor(g, block, y1, name, -1.0)
    moved = g.op("Add", [y2, shift], f"{name}.shift") if y2 else shift
    x2 = g.op("Mul", [moved, factor], f"{name}.high")
    return g.op("Add", [y1, _dense(g, block.F, x2, f"{name}.F", [-1.0] * block.low)], f"{name}.low"), x2


def to_planes(g: GraphWriter, value: str, name: str) -> str:
    """uint8 NHWC -> float32 NCHW. Cast first: TensorRT takes uint8 into a cast only."""
    floats = g.op("Cast", [value], f"{name}.cast", to=onnx.TensorProto.FLOAT)
    return g.op("Transpose", [floats], f"{name}.nchw", perm=[0, 3, 1, 2])


def _to_bytes(g: GraphWriter, planes: str, name: str) -> str:
    """Whole float32 numbers 0..255 in NCHW -> uint8 NHWC."""
    pixels = g.op("Transpose", [planes], f"{name}.nhwc", perm=[0, 2, 3, 1])
    return g.op("Cast", [pixels], f"{name}.cast", to=onnx.TensorProto.UINT8)


def _round_rgb(g: GraphWriter, value: str, name: str) -> str:
    clipped = g.op("Clip", [value, g.scalar(0.0), g.scalar(1.0)], f"{name}.clip")
    levels = g.op("Mul", [clipped, g.scalar(255.0)], f"{name}.levels")
    return g.op("Round", [levels], f"{name}.round")


def downscale(net: RescalingNet, precision: str = "fp32") -> GraphWriter:
    """The downscale graph."""
    c, v = net.config, net.config.variant
    g = GraphWriter("downscale", precision)
    planes = to_planes(g, g.input(contract.hr()), "input")
    unit = g.op("Div", [planes, g.scalar(255.0)], "input.unit")
    state = g.cast(unit, "float32", g.stream)
    low, high = c.low_channels, 12 + c.dlv_channels - c.low_channels
    a = b = ""
    stages = net.stages()
    last = len(stages) - 1
    for level, (transform, blocks) in enumerate(stages):
        if level:
            state = g.concat([a, b], f"level{level}.cat")
            high = 4 * (low + high) - low
        keep_z = v.latent or (v.alpha and not c.pre_split)
        with g.using(g.stream):
            bands = g.conv(state, _array(transform.analysis), None, f"level{level}.haar", stride=2)
            a, b = g.split(bands, [low, high], f"level{level}.split")
            for i, block in enumerate(blocks):
                need_high = keep_z or level < last or i < len(blocks) - 1
                a, b = _forward_block(g, block, a, b, f"level{level}.block{i}", need_high)
    a = g.cast(a, g.stream, "float32")
    b = g.cast(b, g.stream, "float32") if b else b
    if v.alpha:
        if not c.pre_split:
            a = g.concat([a, g.split(b, [1, high - 1], "high.split")[0]], "lr.join")
        rgb, alpha = g.split(_correct(g, net, unit, a), [3, 1], "lr.split")
        gained = g.op("Mul", [alpha, g.scalar(c.alpha_gain)], "alpha.gain") if c.alpha_gain != 1.0 else alpha
        u = g.op("Sigmoid", [gained], "alpha.sigmoid")
        levels = g.op("Mul", [u, g.scalar(ALPHA_MAX - ALPHA_MIN)], "alpha.levels")
        rounded = g.op("Round", [levels], "alpha.round")
        codes = g.op("Add", [rounded, g.scalar(ALPHA_MIN)], "alpha.code")
        small = g.concat([_round_rgb(g, rgb, "lr"), codes], "lr.cat")
    else:
        z_hat = _as_decoded(g, net, b) if v.latent and net.corrections else ""
        small = _round_rgb(g, _correct(g, net, unit, a, z_hat), "lr")
    g.output(_to_bytes(g, small, "lr"), contract.lr(v))
    if v.latent:
        g.output(b, contract.z(c.z_channels))
    return g


def _correct(g: GraphWriter, net: RescalingNet, x: str, y: str, z_hat: str = "") -> str:
    """`RescalingNet.correct`: x is the picture in [0, 1], y the flow's, z-hat what is decoded (empty: zero), all float32."""
    c = net.config
    for k, block in enumerate(net.corrections):
        name = f"correction{k}"
        with g.stream_in_float32():
            low, high = code_range(c)
            least = g.constant("codes.least", np.reshape(low, (1, -1, 1, 1)))
            most = g.constant("codes.most", np.reshape(high, (1, -1, 1, 1)))
            y = g.op("Min", [g.op("Max", [y, least], f"{name}.above"), most], f"{name}.held")
            start = len(g.nodes)
            a, b = y, z_hat
            if c.variant.alpha and not c.pre_split:
                a, alpha = g.split(y, [3, 1], f"{name}.split")
                b = _as_first_of(g, alpha, c.z_channels + 1, f"{name}.high")
            restored = _flow_back(g, net, a, b, f"{name}.")
            nodes = g.nodes[start:]
            seed = g.conv(g.op("Sub", [restored, x], f"{name}.error"), error_metric()[:, :, None, None], None, f"{name}.metric")
            slope = Adjoint(g, nodes, c.alpha_gain).of(y, {restored: seed})
            seen = g.concat([y, g.op("Mul", [slope, g.scalar(SLOPE_GAIN)], f"{name}.slope")], f"{name}.cat")
            step = _dense(g, cast(DenseBlock, block), seen, name, [1.0 / 255.0] * c.variant.lr_channels)
            if c.correction_limit:
                limit = c.correction_limit / 255.0
                step = g.op("Clip", [step, g.scalar(-limit), g.scalar(limit)], f"{name}.limit")
            y = g.op("Add", [y, step], f"{name}.y")
    return y


def _logits(gain: float) -> npt.NDArray[np.float32]:
    """alpha for each of 256 codes: logit(u) / gain with u clamped. A table is the same on every backend."""
    u = (np.arange(256, dtype=np.float64) - ALPHA_MIN) / (ALPHA_MAX - ALPHA_MIN)
    u = np.clip(u, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return np.asarray(np.log(u / (1.0 - u)) / gain, np.float32)


def _as_first_of(g: GraphWriter, plane: str, channels: int, name: str) -> str:
    """One channel as the first of several, of which the others are zero."""
    first = np.zeros((channels, 1, 1, 1), np.float32)
    first[0] = 1.0
    return g.conv(plane, first, None, name)


def _flow_back(g: GraphWriter, net: RescalingNet, a: str, b: str, prefix: str = "") -> str:
    """The inverse flow: lower and upper branch (empty: zero) at LR -> the picture in [0, 1], all in the stream's dtype."""
    c = net.config
    low = c.low_channels
    stages = net.stages()
    total = (12 + c.dlv_channels) * 4 ** (len(stages) - 1)
    x = ""
    for level, (transform, blocks) in reversed(list(enumerate(stages))):
        with g.using(g.stream):
            for i, block in reversed(list(enumerate(blocks))):
                a, b = _inverse_block(g, block, a, b, f"{prefix}level{level}.block{i}")
            joined = g.concat([a, b], f"{prefix}level{level}.cat")
            mixed = g.conv(joined, _array(transform.synthesis), None, f"{prefix}level{level}.haar")
        x = g.op("DepthToSpace", [mixed], f"{prefix}level{level}.space", blocksize=2, mode="CRD")
        if level:
            total //= 4
            a, b = g.split(x, [low, total - low], f"{prefix}level{level}.split")
    return x


def upscale(net: RescalingNet, precision: str = "fp32") -> GraphWriter:
    """The upscale graph."""
    c, v = net.config, net.config.variant
    g = GraphWriter("upscale", precision)
    planes = to_planes(g, g.input(contract.lr(v)), "input")
    a, b = planes, ""
    if v.alpha:
        rgb, code = g.split(planes, [3, 1], "input.split")
        index = g.op("Cast", [code], "alpha.index", to=onnx.TensorProto.INT32)
        alpha = g.op("Gather", [g.constant("alpha.logits", _logits(c.alpha_gain)), index], "alpha.logit", axis=0)
        a = g.op("Mul", [rgb, g.scalar(1.0 / 255.0)], "input.unit")
        if c.pre_split:
            a = g.concat([a, alpha], "input.cat")
        else:
            b = _as_first_of(g, alpha, c.z_channels + 1, "input.high")
    else:
        a = g.op("Mul", [planes, g.scalar(1.0 / 255.0)], "input.unit")
    if v.latent:
        b = g.input(contract.z(c.z_channels))
    a = g.cast(a, "float32", g.stream)
    b = g.cast(b, "float32", g.stream) if b else b
    x = _flow_back(g, net, a, b)
    g.output(_to_bytes(g, _round_rgb(g, g.cast(x, g.stream, "float32"), "hr"), "hr"), contract.hr())
    return g


def _sequence(g: GraphWriter, layers: nn.Sequential, value: str, name: str) -> str:
    """float32 in and out, the layers in the dtype of subnets."""
    value = g.cast(value, "float32", g.inner)
    with g.using(g.inner):
        value = _layers(g, layers, value, name)
    return g.cast(value, g.inner, "float32")


def _layers(g: GraphWriter, layers: nn.Sequential, value: str, name: str) -> str:
    for i, layer in enumerate(layers):
        here = f"{name}.{i}"
        if isinstance(layer, nn.Conv2d):
            value = g.conv(value, *_weight_bias(layer), here)
        elif isinstance(layer, nn.ReLU):
            value = g.op("Relu", [value], here)
        elif isinstance(layer, nn.MaxPool2d):
            value = g.op("MaxPool", [value], here, kernel_shape=[2, 2], strides=[2, 2])
        elif isinstance(layer, nn.Upsample):
            options: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            value = g.op("Resize", [value, "", g.constant("double", [1.0, 1.0, 2.0, 2.0], np.float32)], here, **options)
        else:
            raise TypeError(f"no ONNX form for {type(layer).__name__}")
    return value


def _encode(g: GraphWriter, net: RescalingNet, z: str, prefix: str = "") -> str:
    """z, both sides multiples of 4, -> whole numbers -127..127."""
    assert net.autoencoder is not None
    gain = net.autoencoder.gain
    gained = g.op("Mul", [z, g.scalar(gain)], f"{prefix}latent.gain") if gain != 1.0 else z
    s = g.op("Tanh", [_sequence(g, net.autoencoder.encoder, gained, f"{prefix}encoder")], f"{prefix}latent.tanh")
    levels = g.op("Mul", [s, g.scalar(127.0)], f"{prefix}latent.levels")
    return g.op("Round", [levels], f"{prefix}latent.round")


def _decode(g: GraphWriter, net: RescalingNet, levels: str, prefix: str = "") -> str:
    """-127..127 -> z-hat."""
    assert net.autoencoder is not None
    s = g.op("Div", [levels, g.scalar(127.0)], f"{prefix}latent.unit")
    z = _sequence(g, net.autoencoder.decoder, s, f"{prefix}decoder")
    gain = net.autoencoder.gain
    return g.op("Div", [z, g.scalar(gain)], f"{prefix}latent.ungain") if gain != 1.0 else z


def _as_decoded(g: GraphWriter, net: RescalingNet, z: str) -> str:
    """z-hat from z of any size, as encoder and decoder make it of a file."""
    count, name = net.config.z_channels, "correction.z"
    with g.stream_in_float32():
        stride = g.constant(f"{name}.stride", [LATENT_STRIDE] * 2, np.int64)
        size = g.op("Shape", [z], f"{name}.size", start=2)
        more = g.op("Add", [size, g.constant(f"{name}.most", [LATENT_STRIDE - 1] * 2, np.int64)], f"{name}.more")
        whole = g.op("Mul", [g.op("Div", [more, stride], f"{name}.blocks"), stride], f"{name}.whole")
        short = g.op("Sub", [whole, size], f"{name}.short")
        pads = g.op("Concat", [g.constant(f"{name}.none", [0] * 6, np.int64), short], f"{name}.pads", axis=0)
        padded = g.op("Pad", [z, pads], f"{name}.pad", mode="edge")
        g.declare(padded, Tensor("", "float32", ("batch", count, "padded_height", "padded_width")))
        decoded = _decode(g, net, _encode(g, net, padded, "correction."), "correction.")
        start, axes = (g.constant(f"{name}.{k}", v, np.int64) for k, v in (("start", [0, 0]), ("axes", [2, 3])))
        return g.declare(g.op("Slice", [decoded, start, size, axes], f"{name}.hat"), contract.z(count))


def encoder(net: RescalingNet, precision: str = "fp32") -> GraphWriter:
    """The -M encoder graph; both sides of z are multiples of 4."""
    g = GraphWriter("encoder", precision)
    rounded = _encode(g, net, g.input(contract.z(net.config.z_channels)))
    codes = g.op("Add", [rounded, g.scalar(LATENT_NEUTRAL)], "latent.code")
    packed = g.op("Cast", [codes], "latent.cast", to=onnx.TensorProto.UINT8)
    g.output(packed, contract.code())
    return g


def decoder(net: RescalingNet, precision: str = "fp32") -> GraphWriter:
    """The -M decoder graph; its z is cropped to the LR picture by the caller."""
    g = GraphWriter("decoder", precision)
    floats = g.op("Cast", [g.input(contract.code())], "latent.cast", to=onnx.TensorProto.FLOAT)
    centred = g.op("Sub", [floats, g.scalar(LATENT_NEUTRAL)], "latent.centre")
    g.output(_decode(g, net, centred), contract.z(net.config.z_channels))
    return g


def split_graphs(net: RescalingNet, precision: str = "fp32") -> dict[str, GraphWriter]:
    """All graphs of a network by name.

    Args:
        net: the network.
        precision: one of `rescale.bundle.PRECISIONS`.

    Raises:
        ParityError: a weight that float16 cannot hold.
    """
    makers = {"downscale": downscale, "upscale": upscale, "encoder": encoder, "decoder": decoder}
    return {name: makers[name](net, precision) for name in graph_names(net.config.variant)}


def receptive_field(net: RescalingNet) -> dict[str, int]:
    """LR pixels on each side that a value of a downscale or upscale graph may depend on: 10 pixels a block at its resolution.

    A dense block of five 3x3 convolutions reaches 5 pixels; F and then G or H of the same block add up. A correction looks as
    far as the upscale graph, then as its adjoint, then as its own dense block; with a latent code, as far as encoder and decoder
    before that.
    """
    stages = net.stages()
    at_finest = sum(10 * len(blocks) * 2**level for level, (_, blocks) in enumerate(stages))
    flow = int(-(-at_finest // 2 ** (len(stages) - 1)))
    latent = 2 * LATENT_HALO if net.config.variant.latent and net.corrections else 0
    return {"downscale": flow + latent + len(net.corrections) * (2 * flow + 5), "upscale": flow}
