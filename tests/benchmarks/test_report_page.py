"""The page of a report: one file that asks for nothing, that everybody can use, and that shows what others wrote as text."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rescale_bench.report import Found
from rescale_bench.report_html import page
from rescale_bench.report_plots import SERIES, VARIABLES
from rescale_bench.report_text import findings, markdown

VOID = {"meta", "img", "input", "br"}
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


class Outline(HTMLParser):
    """Tags in their order; raises where they are not nested."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []
    return parsed


def test_the_page_asks_the_network_for_nothing(found: Found) -> None:
    text = page(found)
    parsed = outline(text)
    links = [
        v for _, a in parsed.seen for k, v in a.items() if k in ("src", "href", "xlink:href", "srcset", "action", "data") and v
    ]
    assert links
    assert all(v.startswith(("data:image/", "#")) for v in links)
    names = {v for _, a in parsed.seen for k, v in a.items() if k.startswith("xmlns")}
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= names
    assert not re.search(r"url\((?!#)|@import", text)
    (policy,) = (a["content"] for a in parsed.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not any(k.startswith("on") for _, a in parsed.seen for k in a)


def test_the_page_can_be_used_without_eyes_mouse_or_script(found: Found) -> None:
    parsed = outline(page(found))
    assert all("alt" in a for a in parsed.of("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in parsed.of("svg"))
    sliders = [a for a in parsed.of("input") if a["type"] == "range"]
    assert len(sliders) == len(found.pictures) == 2
    assert all(a["aria-label"] for a in sliders)
    assert all("hidden" in a for a in parsed.of("div") if a.get("class") == "viewer")
    assert all("open" in a for a in parsed.of("details")[:2])
    ids = [a["id"] for _, a in parsed.seen if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {(a["href"] or "")[1:] for a in parsed.of("a")}
    assert targets == {"quality", "speed", "latency", "parity", "bytes"} <= set(ids)
    crops = [a for a in parsed.of("img") if a.get("data-key")]
    for picture in found.pictures:
        mine = [a for a in crops if (a["alt"] or "").startswith(picture.name)]
        assert [a["data-key"] for a in mine] == ["source", "restored", "lr", "bicubic", "difference"]


def test_plots_take_the_pages_colours(found: Found) -> None:
    text = page(found)
    drawn = re.findall(r"<svg .*?</svg>", text, re.S)
    assert len(drawn) == 6 + (found.heat is not None)
    for svg in drawn:
        root = ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert not any(c in svg for c in VARIABLES)
        assert "var(--ink)" in svg
        assert root.findall(".//{*}text")
    assert "var(--s0)" in drawn[0]
    assert len(set(SERIES)) == len(SERIES)


def test_texts_from_elsewhere_are_escaped(found: Found) -> None:
    evil = copy.deepcopy(found.report)
    evil["bundle"]["model"] = evil["command"] = evil["machine"]["cpu"] = "<script>alert(1)</script>"
    for case in evil["speed"]["cases"]:
        case["model"] = "<b>x</b>"
        case["missing"] = {"x": "<i>why</i>"}
        for c in case["competitors"]:
            c["name"] = "<u>&amp; y"
    evil["findings"] = findings(evil)
    text = page(Found(evil, found.pictures, found.heat))
    outline(text)
    assert text.count("<script>") == 1
    assert not re.search(r"<(b|i)>\w", text.replace('<b class="', ""))
    assert "<u>" not in text


def test_a_report_without_a_run_that_went_well_can_be_written(found: Found) -> None:
    data = copy.deepcopy(found.report)
    for case in data["speed"]["cases"]:
        for c in case["competitors"]:
            c |= {
                "failed": dict.fromkeys(c["directions"], "too little memory"),
                "directions": {},
                "round_trip": None,
                "times_faster": {},
            }
    data["findings"] = findings(data)
    assert "Nothing was timed: every run failed." in markdown(data)
    text = page(replace(found, report=data))
    outline(text)
    assert "Nothing was timed: every run failed." in text
    assert "too little memory" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_slider(found: Found, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(found))
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    parsed = outline(done.stdout)
    viewers = [a for a in parsed.of("div") if a.get("class") == "viewer"]
    assert len(viewers) == 2
    assert not any("hidden" in a for a in viewers)
    stages = [a for a in parsed.of("img") if a.get("class") == "over"]
    assert all((a["src"] or "").startswith("data:image/png") and "inset" in (a["style"] or "") for a in stages)
