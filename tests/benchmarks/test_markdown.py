"""Names of files and folders in Markdown reports: text, whatever characters they have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import rescale
from rescale_bench import markdown, quality_report
from rescale_bench.cli import main

NAMES = ("a|b.png", "<img src=x onerror=alert(1)>.png", "two\nlines.png")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_ends_no_cell_no_line_and_begins_no_html(name: str) -> None:
    line = markdown.row([name, "1.00"])
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "\n" not in line
    assert "<" not in line


def test_paths_that_tell_bundles_apart() -> None:
    report = {"tables": [], "told_apart": {"irn": "a<b>|c"}, "protocol": {}, "definitions": {}, "missing": []}
    assert "- irn: a&lt;b>\\|c\n" in quality_report.as_markdown(report, each=False)


def test_names_in_a_page_of_psnr(bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a<b>"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        rescale.write_picture(folder / name, np.random.default_rng(i).integers(0, 255, (20, 24, 3), np.uint8))
    page = tmp_path / "p.md"
    assert main(["psnr", str(bundle("irn", 2)), "--data", str(folder), "--each", "--markdown", str(page)]) == 0
    text = page.read_text()
    assert "<" not in text.replace("< ", "")
    assert "## a&lt;b>, x2 (3 pictures)" in text
    tables = [[line for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    for rows in filter(None, tables):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1, rows
    assert r"| a\|b.png |" in text
    assert "(two lines.png)" in text or "| two lines.png |" in text
