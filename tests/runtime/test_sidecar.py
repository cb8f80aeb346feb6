"""What a sidecar carries lies beside its picture, and the two change together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from random_small import assert_same, small_of

from rescale import Small, State, png
from rescale.carrier import SIDECAR_SUFFIX
from rescale.errors import OutputError


def test_sidecar_lies_beside_and_is_found(tmp_path):
    small = small_of("irn_m", 2, 9, 9)
    path = tmp_path / "été s.png"
    small.save(path, carrier="sidecar")
    assert path.with_name(path.name + SIDECAR_SUFFIX).exists()
    assert_same(Small.open(path), small)
    shutil.copy(path, tmp_path / "alone.png")
    assert Small.open(tmp_path / "alone.png").state is State.FOREIGN


def test_a_picture_takes_its_place_after_its_sidecar(tmp_path, monkeypatch):
    """Killed in between, there is no picture that lacks what it needs."""
    replace, moved = os.replace, []
    monkeypatch.setattr(os, "replace", lambda source, target: moved.append(Path(target).name) or replace(source, target))
    small_of("irn_m", 2, 9, 9).save(tmp_path / "s.png", carrier="sidecar")
    assert moved == ["s.png.rescale", "s.png"]


def test_sidecar_helps_where_the_file_has_no_whole_block_and_never_hurts(tmp_path):
    small = small_of("irn_m", 2, 20, 20)
    path = tmp_path / "s.png"
    data, sidecar = small.encode(carrier="sidecar")
    damaged = png.insert(data, [(b"reSc", b"\0\0\0\1junk")])
    for content, beside, want in (
        (small.to_bytes(), b"", State.EXACT),
        (small.to_bytes(), b"junk", State.EXACT),
        (data, sidecar, State.EXACT),
        (damaged, sidecar, State.EXACT),
        (damaged, b"junk", State.DAMAGED),
        (data, b"junk", State.DAMAGED),
        (data, b"", State.DAMAGED),
    ):
        path.write_bytes(content)
        path.with_name("s.png.rescale").write_bytes(beside)
        assert Small.open(path).state is want, (len(content), len(beside))


def test_sidecar_and_picture_change_together_or_not_at_all(tmp_path, monkeypatch):
    import os

    old, new = small_of("irn_m", 2, 12, 10, seed=0), small_of("irn_m", 2, 12, 10, seed=2)
    path = tmp_path / "s.png"
    old.save(path, carrier="sidecar")
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        new.save(path, carrier="sidecar")
    assert_same(Small.open(path), old)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.png", "s.png.rescale"]


@pytest.mark.parametrize("old", [None, b"of another picture"])
def test_a_picture_that_cannot_take_its_place_leaves_no_sidecar(tmp_path, old):
    path = tmp_path / "s.png"
    path.mkdir()
    if old is not None:
        (tmp_path / "s.png.rescale").write_bytes(old)
    with pytest.raises(OutputError, match=r"s.png: cannot write: Is a directory"):
        small_of("irn_m", 2, 12, 10).save(path, carrier="sidecar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.png", *(["s.png.rescale"] if old else [])]
    assert old is None or (tmp_path / "s.png.rescale").read_bytes() == old


def test_names_as_long_as_the_file_system_allows(tmp_path):
    small = small_of("irn", 2, 4, 4)
    path = tmp_path / ("写" * 80 + ".png")
    small.save(path)
    assert_same(Small.open(path), small)


def test_a_strip_survives_what_reads_rgb_only(tmp_path):
    small = small_of("dlv_irn_a", 2, 31, 22)
    path = tmp_path / "s.png"
    small.save(path, layout="strip", carrier="sidecar")
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(path), cv2.imread(str(path)))
    assert_same(Small.open(path), small)
