"""The measured halo: enough for the weights, never more than the receptive field, used by default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rescale
from rescale.bundle import Bundle
from rescale.network import Network
from rescale.variants import LATENT_STRIDE
from rescale_export import halo as module
from rescale_export.bundles import write_bundle
from rescale_export.graphs import receptive_field, split_graphs
from rescale_export.halo import LIMIT, measured_halo


def models(net):
    return {k: w.model({}).SerializeToString() for k, w in split_graphs(net).items()}


@pytest.mark.parametrize(("model", "scale"), [("irn", 2), ("dlv_irn_a", 4), ("irn_m", 2)])
def test_it_keeps_the_limit_and_the_next_smaller_one_does_not(make_net, model, scale):
    net = make_net(model, scale)
    found = measured_halo(models(net), scale, receptive_field(net))
    assert 0 < found["lr_pixels"] <= receptive_field(net)["upscale"]
    assert found["deviation"] <= LIMIT
    smaller = [h for h in module.CANDIDATES if h < found["lr_pixels"]]
    if smaller:
        graphs = {"downscale": module._Levels(models(net)["downscale"])}
        picture = module._pictures(scale, 40)[0]
        feed = {"hr": picture}
        whole = graphs["downscale"].of(graphs["downscale"].all(feed))
        exact = module._deviation(graphs["downscale"], feed, scale, 1, whole, receptive_field(net)["downscale"]).max()
        short = module._deviation(graphs["downscale"], feed, scale, 1, whole, 0).max()
        assert exact < 1e-2 < short


def test_without_corrections_a_single_value_that_is_far_off_counts(make_net, monkeypatch):
    def one_far_off(*arguments):
        return np.array([0.2 if arguments[-1] < 6 else 0.04] + [0.0] * 99, np.float32)

    net = make_net("irn", 2)
    monkeypatch.setattr(module, "_deviation", one_far_off)
    assert measured_halo(models(net), 2, receptive_field(net)) == {"lr_pixels": 6, "deviation": 0.04, "limit": LIMIT}


@pytest.mark.parametrize(("model", "corrections", "align"), [("irn_m", 2, LATENT_STRIDE), ("irn_m", 0, 1), ("irn_a", 2, 1)])
def test_tiles_begin_where_blocks_of_a_latent_do_that_corrections_look_at(make_net, monkeypatch, model, corrections, align):
    seen = set()

    def watch(graph, feed, step, aligned, whole, halo):
        seen.add(("hr" in feed, aligned))
        return np.zeros(1, np.float32)

    net = make_net(model, 2, corrections=corrections)
    monkeypatch.setattr(module, "_deviation", watch)
    monkeypatch.setattr(module, "ROOM", 4)
    measured_halo(models(net), 2, receptive_field(net))
    assert seen == {(True, align), (False, 1)}


def test_a_net_for_which_nothing_less_will_do_gets_its_receptive_field(make_net, monkeypatch):
    net = make_net("irn", 2)
    monkeypatch.setattr(module, "LIMIT", 0.0)
    assert measured_halo(models(net), 2, receptive_field(net)) == {"lr_pixels": 10, "deviation": 0.0, "limit": 0.0}


@pytest.mark.parametrize(("limit", "first", "rooms"), [(0.05, 48, [10]), (0.05, 4, [4]), (-1.0, 8, [8, 10])])
def test_pictures_have_the_room_that_is_needed(make_net, monkeypatch, limit, first, rooms):
    """Of a receptive field of 10: all of it has its turn where what was found is more than half of the room, and only then."""
    net = make_net("irn", 2)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    seen, made = [], module._pictures
    monkeypatch.setattr(module, "_pictures", lambda scale, room: seen.append(room) or made(scale, room))
    monkeypatch.setattr(module, "LIMIT", limit)
    monkeypatch.setattr(module, "ROOM", first)
    found = measured_halo(models(net), 2, receptive_field(net))
    assert seen == rooms
    assert found["lr_pixels"] == (10 if limit < 0 else min(module.CANDIDATES))


def test_a_net_without_subnets_needs_nearly_none(make_net):
    net = make_net("irn", 2)
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    assert measured_halo(models(net), 2, receptive_field(net))["lr_pixels"] == min(module.CANDIDATES)


def test_tiles_use_it_and_exact_tiles_do_not(make_net, tmp_path, picture):
    net = make_net("dlv_irn_a", 2)
    made = write_bundle(net, tmp_path / "b")
    assert (made.halo, made.receptive_field) == (made.manifest["halo"]["lr_pixels"], 10)
    with rescale.load(made.path, tile=(24, 24)) as fast, rescale.load(made.path, tile=(24, 24), exact=True) as exact:
        assert (fast.network.halos["downscale"], exact.network.halos["downscale"]) == (made.halo, 10)
        image = picture(130, 150)
        whole = Network(made, fast.runner).down(image)[0]
        for net_ in (fast, exact):
            delta = np.abs(net_.network.down(image)[0].astype(int) - whole.astype(int))
            assert delta.max() <= 1
            assert (delta > 0).mean() < 0.01


def test_a_manifest_without_it_means_the_receptive_field(bundle, tmp_path):
    import json
    import shutil

    shutil.copytree(bundle("irn", 2), tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    m = json.loads(manifest.read_text())
    del m["halo"]
    manifest.write_text(json.dumps(m))
    assert Bundle(tmp_path / "b").halo == Bundle(tmp_path / "b").receptive_field
