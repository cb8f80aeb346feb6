from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from rescale.variants import SCALES, VARIANTS
from rescale_export.probe import probe_picture
from rescale_train.config import DENSE_MODES, SIZES, NetConfig, net_config
from rescale_train.models import AutoEncoder, DenseBlock, InvBlock, RescalingNet, build
from rescale_train.models.auxiliary import pad_z

MODELS = tuple(VARIANTS)
calm = settings(deadline=None, max_examples=30)


def decibels(a: Tensor, b: Tensor) -> float:
    return float(-10.0 * torch.log10((a.double() - b.double()).square().mean()))


@pytest.mark.parametrize(("std", "every"), [(0.02, False), (0.03, True)], ids=["near-fresh", "trained-scale"])
@pytest.mark.parametrize(("model", "scale", "size"), list(itertools.product(MODELS, SCALES, SIZES)))
@torch.no_grad()
def test_the_flow_inverts_exactly(
    net_of: Callable[..., RescalingNet], as_batch: Callable[..., Tensor], model: str, scale: int, size: str, std: float, every: bool
) -> None:
    net = net_of(net_config(model, scale, size), std, every)
    x = as_batch(probe_picture(6 * scale, 10 * scale))
    y, z = net(x)
    assert (y[:, :3] - functional.avg_pool2d(x, scale)).abs().max() > 0.03, "the blocks do something"
    assert y.shape == (1, VARIANTS[model].lr_channels, 6, 10)
    assert z.shape == (1, net.config.z_channels, 6, 10)
    assert decibels(net.inverse(y, z), x) > 90.0


SWITCHES = [
    *((m, {"alpha_split": "post"}) for m in ("irn_a", "dlv_irn_a")),
    *((m, {"alpha_mean": False}) for m in ("irn_a", "dlv_irn_a")),
    *((m, {"alpha_split": "post", "alpha_mean": False, "alpha_basis": "orthonormal"}) for m in ("irn_a", "dlv_irn_a")),
    *((m, {"alpha_basis": "orthonormal"}) for m in ("irn_a", "dlv_irn_a")),
    *((m, {"alpha_gain": 8.0}) for m in ("irn_a", "dlv_irn_a")),
    *((m, {"ae_layers": 2, "ae_zero_init": False}) for m in ("irn_m", "dlv_irn_m")),
    *((m, {"dlv_channels": 0}) for m in ("dlv_irn", "dlv_irn_a", "dlv_irn_m")),
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("model", "switch"), SWITCHES, ids=[f"{m}-{'-'.join(map(str, s.items()))}" for m, s in SWITCHES])
@torch.no_grad()
def test_every_switch_inverts_and_keeps_the_shapes(
    net_of: Callable[..., RescalingNet], as_batch: Callable[..., Tensor], model: str, scale: int, switch: dict[str, object]
) -> None:
    net = net_of(net_config(model, scale, "lite", **switch), 0.03, True)
    x = as_batch(probe_picture(6 * scale, 10 * scale))
    y, z = net(x)
    assert decibels(net.inverse(y, z), x) > 90.0
    down = net.downscale(x)
    assert down.lr.shape == (1, VARIANTS[model].lr_channels, 6, 10)
    assert net.upscale(down.lr, net.decode_z(down.lr, down.code)).shape == x.shape


@pytest.mark.parametrize(
    ("model", "scale", "size", "count"),
    [
        ("irn", 2, "full", 1667952),
        ("irn", 4, "full", 4355136),
        ("irn_a", 2, "full", 1669024),
        ("irn_a", 4, "full", 4365056),
        ("dlv_irn", 2, "full", 1752888),
        ("dlv_irn_a", 4, "full", 4792976),
        ("irn_a", 2, "lite", 188368),
    ],
)
def test_parameter_counts(model: str, scale: int, size: str, count: int) -> None:
    assert sum(p.numel() for p in build(net_config(model, scale, size)).parameters()) == count


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(MODELS, SCALES)))
@torch.no_grad()
def test_a_fresh_net_reduces_by_the_box_mean(as_batch: Callable[..., Tensor], model: str, scale: int) -> None:
    x = as_batch(probe_picture(8 * scale, 6 * scale))
    y, _ = build(net_config(model, scale, "lite"))(x)
    torch.testing.assert_close(y[:, :3], functional.avg_pool2d(x, scale), atol=1e-6, rtol=0)


def high_bands(picture: np.ndarray) -> np.ndarray:
    """The nine high bands of each 2x2 block, from the definition in IRN: (9, h, w), R G B of each band together."""
    p = picture.astype(np.float64) / 255.0
    a, b, c, d = p[0::2, 0::2], p[0::2, 1::2], p[1::2, 0::2], p[1::2, 1::2]
    bands = [a - b + c - d, a + b - c - d, a - b - c + d]
    return np.concatenate(bands, axis=2).transpose(2, 0, 1) / 4.0


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(("irn_a", "dlv_irn_a"), SCALES)))
@torch.no_grad()
def test_alpha_starts_as_the_mean_of_the_high_bands(as_batch: Callable[..., Tensor], model: str, scale: int) -> None:
    picture = probe_picture(8 * scale, 6 * scale)
    y, _ = build(net_config(model, scale, "lite"))(as_batch(picture))
    mean = high_bands(picture).mean(0)
    step = scale // 2
    want = mean.reshape(8, step, 6, step).mean((1, 3))
    np.testing.assert_allclose(y[0, 3].numpy(), want, atol=1e-6)


@torch.no_grad()
def test_equation_1_recovers_the_removed_band(as_batch: Callable[..., Tensor]) -> None:
    picture = probe_picture(16, 12)
    y, z = build(net_config("irn_a", 2, "lite"))(as_batch(picture))
    recovered = 9.0 * y[0, 3] - z[0, :8].sum(0)
    np.testing.assert_allclose(recovered.numpy(), high_bands(picture)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("switch", "weights"),
    [
        ({"alpha_mean": False}, [1.0] + [0.0] * 8),
        ({"alpha_split": "post"}, [1.0] + [0.0] * 8),
        ({"alpha_basis": "orthonormal"}, [1 / 3] * 9),
    ],
    ids=["no mean", "post", "orthonormal"],
)
@torch.no_grad()
def test_alpha_of_the_other_splits(as_batch: Callable[..., Tensor], switch: dict[str, object], weights: list[float]) -> None:
    picture = probe_picture(16, 12)
    y, _ = build(net_config("irn_a", 2, "lite", **switch))(as_batch(picture))
    np.testing.assert_allclose(y[0, 3].numpy(), np.tensordot(weights, high_bands(picture), 1), atol=1e-6)


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(MODELS, SCALES)))
@torch.no_grad()
def test_downscale_gives_8_bit_codes_and_upscale_the_source_size(
    net_of: Callable[..., RescalingNet], as_batch: Callable[..., Tensor], model: str, scale: int
) -> None:
    net = net_of(net_config(model, scale, "lite"), 0.03, True)
    x = as_batch(probe_picture(6 * scale, 9 * scale, 1), probe_picture(6 * scale, 9 * scale, 2))
    v = net.config.variant
    lr, code, raw, z = net.downscale(x)
    assert lr.shape == (2, v.lr_channels, 6, 9)
    assert raw.shape == (2, 3, 6, 9)
    assert z.shape == (2, net.config.z_channels, 6, 9)
    whole = lr[:, :3] * 255.0
    assert lr[:, :3].min() >= 0.0
    assert lr[:, :3].max() <= 1.0
    assert (whole - whole.round()).abs().max() < 1e-3
    if v.alpha:
        levels = lr[:, 3] * 254.0
        assert (levels - levels.round()).abs().max() < 1e-3
        assert levels.round().min() >= 0
        assert levels.round().max() <= 254
    assert (code is not None) is v.latent
    if code is not None:
        assert code.shape == (2, 4, 2, 3)
        assert (code * 127.0 - (code * 127.0).round()).abs().max() < 1e-3
        assert code.abs().max() <= 1.0
    assert net.upscale(lr, net.decode_z(lr, code)).shape == x.shape


@torch.no_grad()
def test_alpha_codes_reach_1_and_255_and_never_0(net_of: Callable[..., RescalingNet], as_batch: Callable[..., Tensor]) -> None:
    net = net_of(NetConfig("irn_a", 2, (1,), 4, alpha_gain=64.0), 0.3, True)
    lr = net.downscale(as_batch(probe_picture(32, 32))).lr
    codes = torch.round(lr[:, 3] * 254.0) + 1.0
    assert (codes.min(), codes.max()) == (1.0, 255.0)
    assert net.upscale(lr).isfinite().all()


@pytest.mark.parametrize("model", ["irn", "irn_a", "dlv_irn_m"])
@torch.no_grad()
def test_upscale_without_z_takes_zero(net_of: Callable[..., RescalingNet], as_batch: Callable[..., Tensor], model: str) -> None:
    net = net_of(net_config(model, 2, "lite"), 0.03, True)
    lr = net.downscale(as_batch(probe_picture(16, 16))).lr
    zero = torch.zeros(1, net.config.z_channels, 8, 8)
    assert torch.equal(net.upscale(lr), net.upscale(lr, zero))
    assert not torch.equal(net.upscale(lr), net.upscale(lr, zero + 0.1))


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_a_coupling_block_is_the_one_of_irn(shared: bool) -> None:
    torch.manual_seed(1)
    block = InvBlock(3, 9, 4, shared)
    for p in block.parameters():
        p.normal_(std=0.1)
    x1, x2 = torch.randn(1, 3, 5, 7), torch.randn(1, 9, 5, 7)
    y1 = x1 + block.F(x2)
    g, h = block.GH(y1).chunk(2, 1) if shared else (block.G(y1), block.H(y1))
    want = x2 * torch.exp(2.0 * torch.sigmoid(h) - 1.0) + g
    got = block(x1, x2)
    torch.testing.assert_close(got[0], y1)
    torch.testing.assert_close(got[1], want)
    torch.testing.assert_close(torch.cat(block.inverse(*got), 1), torch.cat((x1, x2), 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_dense_block_feeds_every_layer_all_earlier_ones() -> None:
    torch.manual_seed(1)
    block = DenseBlock(3, 5, 4).double()
    for p in block.parameters():
        p.normal_(std=0.3)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    seen = [x]
    for k in range(1, 6):
        conv = getattr(block, f"conv{k}")
        out = functional.conv2d(torch.cat(seen, 1), conv.weight, conv.bias, padding=1)
        seen.append(torch.where(out > 0, out, 0.2 * out) if k < 5 else out)
    torch.testing.assert_close(block(x), seen[-1])


def test_a_fresh_dense_block_gives_zero() -> None:
    assert not DenseBlock(3, 5, 4)(torch.rand(1, 3, 8, 8)).any()


@calm
@given(height=st.integers(1, 9), width=st.integers(1, 9), layers=st.sampled_from([2, 4]))
def test_the_autoencoder_takes_any_size(height: int, width: int, layers: int) -> None:
    ae = AutoEncoder(9, layers, zero_init=False)
    z = torch.randn(2, 9, height, width)
    s = ae.encode(z)
    assert s.shape == (2, 4, -(-height // 4), -(-width // 4))
    assert s.abs().max() < 1.0
    assert ae.decode(s, height, width).shape == z.shape


@calm
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_pad_z_repeats_the_edge_to_multiples_of_4(height: int, width: int) -> None:
    z = torch.arange(float(height * width)).reshape(1, 1, height, width)
    want = np.pad(z[0, 0].numpy(), ((0, -height % 4), (0, -width % 4)), mode="edge")
    np.testing.assert_array_equal(pad_z(z)[0, 0].numpy(), want)


@pytest.mark.parametrize("layers", [2, 4])
def test_the_latent_gain_only_scales_z(layers: int) -> None:
    plain, gained = AutoEncoder(9, layers, zero_init=False), AutoEncoder(9, layers, zero_init=False, gain=128.0)
    gained.load_state_dict(plain.state_dict())
    z = torch.randn(1, 9, 8, 8)
    torch.testing.assert_close(gained.encode(z / 128.0), plain.encode(z), rtol=0, atol=0)
    s = torch.rand(1, 4, 2, 2)
    torch.testing.assert_close(gained.decode(s, 8, 8) * 128.0, plain.decode(s, 8, 8), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [2, 4])
def test_zero_init_decodes_to_zero(layers: int) -> None:
    s = torch.rand(1, 4, 2, 2)
    assert not AutoEncoder(9, layers, zero_init=True).decode(s, 8, 8).any()
    assert AutoEncoder(9, layers, zero_init=False).decode(s, 8, 8).any()


def test_the_same_seed_builds_the_same_net() -> None:
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(torch.cat([p.flatten() for p in build(NetConfig("irn", 2, (1,), 4)).parameters()]))
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


@pytest.mark.parametrize("growth", [6, 8])
def test_every_way_to_compute_a_dense_block_is_the_same_block(growth: int) -> None:
    torch.manual_seed(0)
    block = DenseBlock(5, 7, growth).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 5, 9, 11, dtype=torch.float64, requires_grad=True)
    results = []
    for block.mode in DENSE_MODES:
        out = block(x)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11)
