"""What the shipped weights reach, through the exported graphs and the LR file, on photographs that scikit-image ships."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import skimage

import rescale
from rescale import Small
from rescale_export.bundles import write_bundle
from rescale_export.validate import reference
from rescale_train import checkpoint
from rescale_train.shipped import list_shipped

DATA = Path(skimage.__file__).parent / "data"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

FLOORS = {
    # Mean Y-PSNR of the restored HR, and of the LR against bicubic, over `PICTURES`; 0.1 dB below what was measured.
    ("dlv_irn_a", 2, "lite"): (45.73, 47.74),
    ("dlv_irn_a", 4, "lite"): (33.59, 48.86),
    ("irn", 2, "lite"): (40.59, 46.40),
}


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    """Every shipped model, exported: (weights, PyTorch network, runtime)."""
    opened = {}
    for s in list_shipped():
        net = checkpoint.load_net(checkpoint.read(s.path), str(s.path))
        path = tmp_path_factory.mktemp("shipped") / "bundle"
        write_bundle(net, path, s.card)
        opened[s.model, s.scale, s.size] = (s, net, rescale.load(path))
    yield opened
    for _, _, runtime in opened.values():
        runtime.close()


def photographs() -> list[np.ndarray]:
    return [rescale.read_picture(DATA / name)[:300, :400] for name in PICTURES]


@pytest.mark.parametrize("key", FLOORS, ids=lambda k: f"{k[0]}_x{k[1]}_{k[2]}")
def test_quality_does_not_fall(nets, key):
    from rescale_train.bicubic import bicubic_picture

    _, _, net = nets[key]
    hr, lr = [], []
    for picture in photographs():
        small = Small.from_bytes(net.downscale(picture).to_bytes())
        hr.append(rescale.psnr_y(net.upscale(small), picture, key[1]))
        lr.append(rescale.psnr_y(small.rgb, bicubic_picture(picture, key[1]), key[1]))
    found = statistics.fmean(hr), statistics.fmean(lr)
    assert found[0] >= FLOORS[key][0], found
    assert found[1] >= FLOORS[key][1], found


def test_every_shipped_file_has_a_floor_and_a_true_card(nets):
    for key, (shipped, net, _) in nets.items():
        assert key in FLOORS
        assert shipped.card["weights_sha256"] == checkpoint.weights_digest(net)
        assert shipped.card["parameters"] == sum(p.numel() for p in net.parameters())
        assert {"data", "machine", "steps", "minutes", "recipe", "figures"} <= set(shipped.card)


def test_runtime_agrees_with_pytorch_in_9999_of_10000_bytes(nets):
    for _, net, runtime in nets.values():
        tally = {"lr": [0, 0], "hr": [0, 0]}
        for picture in photographs():
            want = reference(net, picture[None])
            lr = want["lr"][0]
            small = runtime.downscale(picture)
            found = {
                "lr": (small.rgb if small.alpha is None else np.dstack([small.rgb, small.alpha]), lr),
                # The HR of the same LR: where an LR byte differs, its surroundings in the HR may too.
                "hr": (
                    runtime.network.up(lr[:, :, :3], lr[:, :, 3] if small.alpha is not None else None, None),
                    want["restored"][0],
                ),
            }
            for kind, (got, right) in found.items():
                assert np.abs(got.astype(int) - right).max() <= 1
                tally[kind][0] += right.size
                tally[kind][1] += int(np.count_nonzero(got != right))
        for values, different in tally.values():
            assert different <= 1e-4 * values, tally


def test_alpha_buys_three_decibels(nets):
    mean = {}
    for key in (("dlv_irn_a", 2, "lite"), ("irn", 2, "lite")):
        _, _, net = nets[key]
        mean[key[0]] = statistics.fmean(rescale.psnr_y(net.upscale(net.downscale(p)), p, 2) for p in photographs())
    assert mean["dlv_irn_a"] - mean["irn"] >= 3.0, mean


def test_odd_sizes_lose_less_than_a_third_of_a_decibel(nets):
    for (_, scale, _), (_, _, net) in nets.items():
        loss = []
        for picture in photographs():
            even, odd = picture[:-scale, :-scale], picture[: 1 - scale, : 1 - scale]
            values = [rescale.psnr_y(net.upscale(net.downscale(np.ascontiguousarray(p))), p) for p in (even, odd)]
            loss.append(values[0] - values[1])
        assert statistics.fmean(loss) < 0.3
        assert max(loss) < 0.3
