"""What is no fault of a file: memory that is short, names that no system takes, files that cannot be removed or take too long."""

from __future__ import annotations

import json
import os
import struct
import time

import pytest
from PIL import ImageFile

import rescale
from rescale import jxl
from rescale.cli import main
from rescale.errors import BundleError, InputError, OutputError
from rescale.files import machine_mark


def short_of_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("read", [rescale.open_picture, rescale.Small.open])
def test_a_lack_of_memory_is_no_damage_of_the_file(here, monkeypatch, read):
    monkeypatch.setattr(ImageFile.ImageFile, "load", short_of_memory)
    with pytest.raises(MemoryError):
        read("photo.png")


def test_nor_of_a_jpeg_xl(monkeypatch):
    class Codec:
        jpegxl_decode = staticmethod(short_of_memory)

    monkeypatch.setattr(jxl, "_codec", Codec)
    monkeypatch.setattr(jxl, "picture_size", lambda data, name: (8, 8))
    with pytest.raises(MemoryError):
        jxl.decode(b"", "a.jxl", 100)


def test_a_lack_of_memory_costs_no_other_file(here, capsys, monkeypatch):
    os.mkdir("lr")
    for name in ("a", "b"):
        assert main(["down", "photo.png", f"lr/{name}.png", *here]) == 0
    capsys.readouterr()
    load, loads = ImageFile.ImageFile.load, []

    def short_at_first(self):
        loads.append(1)
        return short_of_memory() if len(loads) == 1 else load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", short_at_first)
    assert main(["verify", "lr", "--json"]) == 1
    out, err = capsys.readouterr()
    *lines, counts = map(json.loads, out.splitlines())
    assert lines[0]["error"] == "lr/a.png: not enough memory"
    assert (lines[1]["state"], counts["errors"], counts["exact"]) == ("exact", 1, 1)
    assert err == "error: lr/a.png: not enough memory\n"


def test_the_pages_of_a_tiff_are_not_counted():
    """Pillow looks for each among those before it: 64,000 of them took 25 s."""
    count, entries = 20_000, [(256, 4, 1), (257, 4, 1), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 1)]
    size = 2 + 12 * len(entries) + 4
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    pages = (struct.pack("<H", len(entries)) + body + struct.pack("<I", 12 + (i + 1) * size) for i in range(count))
    last = struct.pack("<H", len(entries)) + body + bytes(4)
    begun = time.process_time()
    with pytest.raises(InputError, match="has several frames"):
        rescale.read_picture(b"II*\0" + struct.pack("<I", 12) + bytes(4) + b"".join(pages) + last)
    assert time.process_time() - begun < 1.5


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png"], ids=["too long", "null byte"])
def test_a_name_that_no_system_takes(here, picture, tmp_path, name):
    with pytest.raises(OutputError, match="cannot write: "):
        rescale.write_picture(tmp_path / name, picture(8, 8))
    with pytest.raises(BundleError, match="cannot read: "):
        rescale.load(str(tmp_path / name))


def test_what_cannot_be_removed_is_in_no_pictures_way(here, picture):
    os.mkdir("photos")
    rescale.write_picture("photos/p.png", picture(8, 8))
    left = f"out/.rescale.{machine_mark()}-999999999-0123abcd.tmp"
    os.makedirs(left)
    assert main(["down", "photos", "out", *here]) == 0
    assert sorted(os.listdir("out")) == [os.path.basename(left), "p.png"]


def test_a_foreign_file_is_told_as_such_whatever_its_size(here, error_of):
    code, err = error_of(["up", "photo.png", "o.png", "--max-pixels", "2000", *here])
    assert code == 3
    assert "marker" in err


@pytest.mark.parametrize("limit", ["inf", "1e9", "nan"])
def test_no_wait_without_an_end(capsys, limit):
    assert main(["doctor", "--limit", limit]) == 2
