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
from rescale_export.validate import MAX_DIFFERENT, MAX_DIFFERENT_CORRECTED, reference
from rescale_train import checkpoint
from rescale_train.shipped import find_shipped, list_shipped

DATA = Path(skimage.__file__).parent / "data"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """(PyTorch network, runtime) of shipped weights, exported once."""
    made = {}

    def get(shipped):
        if shipped.title not in made:
            net = checkpoint.load_net(checkpoint.read(shipped.path), str(shipped.path))
            path = tmp_path_factory.mktemp("shipped") / "bundle"
            write_bundle(net, path, shipped.card)
            made[shipped.title] = net, rescale.load(path)
        return made[shipped.title]

    yield get
    for _, runtime in made.values():
        runtime.close()


def photographs() -> list[np.ndarray]:
    return [rescale.read_picture(DATA / name)[:300, :400] for name in PICTURES]


def test_quality_does_not_fall(opened, shipped_weights, recorded):
    """Mean Y-PSNR of the restored HR, and of the LR against bicubic, at most 0.1 dB below what was measured."""
    from rescale_train.bicubic import bicubic_picture

    _, net = opened(shipped_weights)
    hr, lr = [], []
    for picture in photographs():
        small = Small.from_bytes(net.downscale(picture).to_bytes())
        hr.append(rescale.psnr_y(net.upscale(small), picture, shipped_weights.scale))
        lr.append(rescale.psnr_y(small.rgb, bicubic_picture(picture, shipped_weights.scale), shipped_weights.scale))
    found = [statistics.fmean(hr), statistics.fmean(lr)]
    floors = recorded(shipped_weights.title, "photographs", found)
    assert found[0] >= floors[0] - 0.1, (found, floors)
    assert found[1] >= floors[1] - 0.1, (found, floors)


@pytest.mark.parametrize("weights", list_shipped(), ids=lambda s: s.title)
def test_every_card_is_true(weights):
    net = checkpoint.load_net(checkpoint.read(weights.path), str(weights.path))
    assert weights.card["weights_sha256"] == checkpoint.weights_digest(net)
    assert weights.card["parameters"] == sum(p.numel() for p in net.parameters())
    assert {"data", "machine", "steps", "minutes", "recipe", "figures"} <= set(weights.card)
    assert weights.path.stem == weights.title.replace(" ", "_")


def test_runtime_agrees_with_pytorch_in_9999_of_10000_bytes(opened, shipped_weights):
    net, runtime = opened(shipped_weights)
    tally = {"lr": [0, 0], "hr": [0, 0]}
    for picture in photographs():
        want = reference(net, picture[None])
        lr = want["lr"][0]
        small = runtime.downscale(picture)
        code = want["code"][0] if "code" in want else None
        found = {
            "lr": (small.rgb if small.alpha is None else np.dstack([small.rgb, small.alpha]), lr),
            # The HR of the same LR: where an LR byte differs, its surroundings in the HR may too.
            "hr": (
                runtime.network.up(lr[:, :, :3], lr[:, :, 3] if small.alpha is not None else None, code),
                want["restored"][0],
            ),
        }
        for kind, (got, right) in found.items():
            assert np.abs(got.astype(int) - right).max() <= 1
            tally[kind][0] += right.size
            tally[kind][1] += int(np.count_nonzero(got != right))
    allowed = {"lr": MAX_DIFFERENT_CORRECTED if net.corrections else MAX_DIFFERENT, "hr": MAX_DIFFERENT}
    for kind, (values, different) in tally.items():
        assert different <= allowed[kind] * values, tally


def test_alpha_buys_three_decibels(opened):
    mean = {}
    for model in ("dlv_irn_a", "irn"):
        _, net = opened(find_shipped(model, 2, "lite"))
        mean[model] = statistics.fmean(rescale.psnr_y(net.upscale(net.downscale(p)), p, 2) for p in photographs())
    assert mean["dlv_irn_a"] - mean["irn"] >= 3.0, mean


def test_odd_sizes_lose_less_than_a_third_of_a_decibel(opened, shipped_weights):
    _, net = opened(shipped_weights)
    scale = shipped_weights.scale
    loss = []
    for picture in photographs():
        even, odd = (
            picture[:-scale, :-scale],
            picture[: 1 - scale, : 1 - scale],
        )
        values = [rescale.psnr_y(net.upscale(net.downscale(np.ascontiguousarray(p))), p) for p in (even, odd)]
        loss.append(values[0] - values[1])
    assert max(loss) < 0.3
