"""The arrays of an LR picture: nobody changes them behind its state, and planes that do not belong together are refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from random_small import assert_same, small_of

from rescale import Small, State
from rescale.errors import InputError, LrFileError


def test_arrays_of_an_lr_picture_cannot_be_changed_and_the_callers_can():
    mine = np.zeros((4, 5, 3), np.uint8)
    for model in ("dlv_irn_a", "dlv_irn_m"):
        small = replace(small_of(model, 2, 9, 7), source_alpha=np.ones(small_of(model, 2, 9, 7).block.hr_size[::-1], np.uint8))
        for one in (small, Small.from_bytes(small.to_bytes()), pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
            assert_same(one, small)
            for plane in (one.rgb, one.alpha, one.latent, one.source_alpha):
                if plane is not None:
                    with pytest.raises(ValueError, match="read-only"):
                        plane[:] = 0
    own = Small(mine, source_alpha=mine[:, :, 0])
    assert not own.rgb.flags.writeable
    assert not own.source_alpha.flags.writeable
    assert own.rgb.base is mine
    mine[:] = 1


def test_arrays_that_were_exchanged_are_never_exact():
    small = small_of("dlv_irn_a", 2, 9, 7)
    for exchanged, message in (
        ({"rgb": small.rgb[:5]}, r"alpha: a uint8 array of shape \(5, 9\) was expected, got uint8 \(7, 9\)"),
        ({"alpha": small.alpha / 255.0}, r"alpha: a uint8 array of shape \(7, 9\) was expected, got float64"),
        ({"latent": small.rgb}, r"latent: a uint8 array of shape \(4, 2, 3\) was expected"),
        ({"source_alpha": small.alpha}, "source_alpha: a uint8 array of shape"),
        ({"rgb": small.rgb.tolist()}, "an array was expected, got list"),
    ):
        with pytest.raises(InputError, match=message):
            replace(small, **exchanged)
    plain = small_of("irn", 2, 9, 7)
    with pytest.raises(LrFileError, match="it has 9x5 pixels where its marker says 9x7") as refusal:
        replace(plain, rgb=plain.rgb[:5]).require("irn", 2, plain.block.weights)
    assert refusal.value.state is State.CHANGED
