"""Measurements that are kept in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale.errors import InputError, OutputError
from rescale_bench.store import Store, digest

calm = settings(deadline=None, max_examples=60)

values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False), lambda v: st.lists(v, max_size=3), max_leaves=5
)


@calm
@given(key=st.dictionaries(st.text(max_size=4), values, max_size=3), value=st.lists(st.integers(), max_size=4))
def test_what_is_put_is_got_under_the_same_key_alone(
    tmp_path_factory: pytest.TempPathFactory, key: dict[str, Any], value: list[int]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    assert store.get(key) is None
    store.put(key, value)
    assert Store(store.folder).get(key) == value
    assert store.get(key | {"other": 1}) is None
    Store(None).put(key, value)
    assert Store(None).get(key) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "points")
    store.put({"a": 1}, [1])
    (file,) = (tmp_path / "deep" / "points").iterdir()
    file.write_text(file.read_text()[:-9])
    with pytest.raises(InputError, match=rf"{file.name}: not a measurement that this command kept: .*; delete it"):
        store.get({"a": 1})


def test_what_the_reader_refuses_is_a_damaged_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put({"a": 1}, ["1e9", "x"])
    assert store.get({"a": 1}, lambda v: v[0]) == "1e9"
    for read in (lambda v: float(v[1]), lambda v: v["b"], lambda v: {}[v[0]], lambda v: int(float("1e999"))):
        with pytest.raises(InputError, match=r"json: not a measurement that this command kept: .*; delete it"):
            store.get({"a": 1}, read)


def test_names_that_are_no_text_can_be_kept(tmp_path: Path) -> None:
    """A file's name on Linux is bytes; what is not UTF-8 in it comes as lone surrogates."""
    key = {"name": b"a\xff.png".decode(errors="surrogateescape")}
    Store(tmp_path).put(key, key["name"])
    assert Store(tmp_path).get(key) == key["name"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file.points: cannot make this folder"):
        Store(tmp_path / "file" / "points")


def test_pictures_that_differ_in_shape_alone_are_told_apart() -> None:
    assert digest(np.zeros((2, 3, 3), np.uint8)) != digest(np.zeros((3, 2, 3), np.uint8))
