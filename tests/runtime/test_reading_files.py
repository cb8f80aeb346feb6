"""Reading whole files that anybody may have put there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rescale.files import open_regular, read_regular

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are files here")


def refused(path: Path, most: int = 100) -> str:
    with pytest.raises(OSError, match=r".") as caught:
        read_regular(path, most)
    return str(caught.value.strerror)


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "b"
    for data in (b"", b"x" * 100):
        path.write_bytes(data)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        assert read_regular(path, 100) == read_regular(str(link), 100) == data
    with open_regular(path) as source:
        assert source.read(3) == b"xxx"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Nor is memory asked for it: a file with holes may claim to be of any length."""
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, 1 << 40)
    assert refused(path) == "larger than 100 bytes"


@posix
def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert refused(tmp_path / name) == "a pipe or a device, not a file"
    assert refused(tmp_path) == os.strerror(errno.EISDIR)
    assert refused(tmp_path / "none") == os.strerror(errno.ENOENT)


def test_a_file_that_grows_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 50)
    real = os.fstat

    def fstat(number: int) -> os.stat_result:
        found = real(number)
        with path.open("ab") as f:
            f.write(b"more")
        return found

    monkeypatch.setattr("rescale.files.os.fstat", fstat)
    assert refused(path) == "it grows while it is read"
