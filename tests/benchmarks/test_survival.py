"""What each tool leaves of an LR file. docs/survival.md shows the same table to users."""

from __future__ import annotations

import json
import math
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from rescale import carrier, png
from rescale.container import Small, State
from rescale.decode import decode_pixels
from rescale.picture import Picture, write_picture
from rescale.rescaler import load
from rescale_bench import survival, survival_tools
from rescale_bench.cli import main
from rescale_bench.pictures import sample
from rescale_bench.survival import LETTERS, as_markdown, judge, matrix, survivors
from rescale_bench.survival_tools import CHROMIUM, PILLOW, TOOLS, Package, Program, Tool, ToolError, premultiply
from rescale_export.probe import probe_picture

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("dlv_irn_a", "irn_m", "irn")
BY_NAME = {t.name: t for t in TOOLS}

# Each outcome: the state, and which of (P)ixels, (A)lpha, (L)atent and (M)arker are still what they were.
# PNG, -A: layout alpha; alpha with side-car; chunk; strip | -M: chunk; text; side-car | plain
# Layouts alpha and strip and the plain file have their marker as chunk and as text, and lose it where both are lost. Layout
# chunk and -M with carrier chunk have too much in their block for that, and lose it with the chunk.
KEEPS_ALL = (*["exact PAM"] * 4, *["exact PLM"] * 3, "exact PM")
KEEPS_TEXT = (
    *("exact PAM", "exact PAM", "foreign P", "exact PAM"),
    *("foreign P", "exact PLM", "exact PLM", "exact PM"),
)
KEEPS_PIXELS = (
    *("foreign PA", "exact PAM", "foreign P", "foreign PA"),
    *("foreign P", "foreign P", "exact PLM", "foreign P"),
)
DROPS_ALPHA = (
    *("foreign P", "auxiliary-stripped PM", "foreign P", "foreign PA"),
    *("foreign P", "foreign P", "exact PLM", "foreign P"),
)
# The latent stays in the text and the side-car, and is not used.
RESIZES_AND_KEEPS_TEXT = (
    *("pixels-changed M", "pixels-changed M", "foreign -", "pixels-changed M"),
    *("foreign -", "pixels-changed LM", "pixels-changed LM", "pixels-changed M"),
)
LOSSY = (
    *("foreign -", "pixels-changed M", "foreign -", "foreign -"),
    *("foreign -", "foreign -", "pixels-changed LM", "foreign -"),
)
LOSSY_BUT_FOR_ALPHA = (
    *("foreign A", "pixels-changed AM", "foreign -", "foreign -"),
    *("foreign -", "foreign -", "pixels-changed LM", "foreign -"),
)
# Opaque pixels come through whole: all forms but those with the plane in the alpha channel.
PREMULTIPLIES = (
    *("foreign A", "pixels-changed AM", "foreign P", "foreign PA"),
    *("foreign P", "foreign P", "exact PLM", "foreign P"),
)
PREMULTIPLIES_AND_KEEPS_CHUNKS = (*["pixels-changed AM"] * 2, *["exact PAM"] * 2, *["exact PLM"] * 3, "exact PM")

PNG = {
    "Pillow: open, save as PNG": KEEPS_PIXELS,
    "Pillow: the same, passing text on": KEEPS_TEXT,
    "Pillow: lossless WebP, exact": KEEPS_PIXELS,
    # No alpha code is stored as 0, so there is no hidden colour to lose; the same holds for cwebp and oxipng --alpha.
    "Pillow: lossless WebP, not exact": KEEPS_PIXELS,
    "OpenCV: imread, imwrite": DROPS_ALPHA,
    "OpenCV: imread unchanged, imwrite": KEEPS_PIXELS,
    "libvips: copy": KEEPS_TEXT,
    "libvips: thumbnail, half size": RESIZES_AND_KEEPS_TEXT,
    "ImageMagick: re-encode": KEEPS_TEXT,
    "ImageMagick: -strip": KEEPS_PIXELS,
    "ImageMagick: -resize 50%": RESIZES_AND_KEEPS_TEXT,
    "oxipng -o 4": KEEPS_ALL,
    "oxipng -o 4 --strip safe": KEEPS_PIXELS,
    "oxipng -o 4 --strip all": KEEPS_PIXELS,
    "oxipng -o 4 --alpha": KEEPS_ALL,
    "optipng": KEEPS_ALL,
    "optipng -strip all": KEEPS_PIXELS,
    "pngcrush": KEEPS_ALL,
    "cwebp -lossless": KEEPS_PIXELS,
    "Pillow: JPEG, quality 95": LOSSY,
    "Pillow: lossy WebP, quality 95": LOSSY_BUT_FOR_ALPHA,
    "8-bit premultiply, computed": PREMULTIPLIES,
    "8-bit premultiply, chunks kept": PREMULTIPLIES_AND_KEEPS_CHUNKS,
    "Chromium: canvas to PNG": PREMULTIPLIES,
}

# WebP, -A: layout alpha; chunk | -M: chunk; text
WEBP_KEEPS_PIXELS = ("foreign PA", "foreign P", "foreign P", "foreign P")
WEBP = {
    "Pillow: open, save as PNG": WEBP_KEEPS_PIXELS,
    "Pillow: lossless WebP, exact": WEBP_KEEPS_PIXELS,
    "Pillow: lossless WebP, not exact": WEBP_KEEPS_PIXELS,
    "OpenCV: imread, imwrite": ("foreign P",) * 4,
    "OpenCV: imread unchanged, imwrite": WEBP_KEEPS_PIXELS,
    # It keeps XMP; ImageMagick 6 does not.
    "libvips: copy": ("exact PAM", "foreign P", "foreign P", "exact PLM"),
    "libvips: thumbnail, half size": ("pixels-changed M", "foreign -", "foreign -", "pixels-changed LM"),
    "ImageMagick: re-encode": WEBP_KEEPS_PIXELS,
    "ImageMagick: -resize 50%": ("foreign -",) * 4,
    "Pillow: JPEG, quality 95": ("foreign -",) * 4,
    "Pillow: lossy WebP, quality 95": ("foreign A", "foreign -", "foreign -", "foreign -"),
    "Chromium: canvas to PNG": ("foreign A", "foreign P", "foreign P", "foreign P"),
}


@pytest.fixture(scope="module")
def nets(bundle):
    with ExitStack() as stack:
        yield {m: stack.enter_context(load(bundle(m, 2), threads=1)) for m in MODELS}


def matrix_as_of_a_large_picture(nets, tools):
    """The alpha plane and latent of this picture would be small enough to be written as text too; the limit is set below them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carrier, "COPIED_BYTES", 256)
        return matrix(nets, probe_picture(61, 47), tools=tools)


@pytest.fixture(scope="module")
def rows(nets):
    """The whole matrix but for the browser, which takes a second a file."""
    return matrix_as_of_a_large_picture(nets, [t for t in TOOLS if t.needs is not CHROMIUM])


@pytest.fixture(scope="module")
def browser_rows(nets):
    return matrix_as_of_a_large_picture(nets, [t for t in TOOLS if t.needs is CHROMIUM])


def outcomes(rows, tool, container):
    if reason := BY_NAME[tool].missing():
        pytest.skip(reason)
    here = [r for r in rows if r["tool"] == tool and r.get("container") == container]
    assert not [r["failed"] for r in here if "failed" in r]
    return tuple(f"{r['state']} {survivors(r)}" for r in here)


def test_every_tool_has_an_expectation():
    assert list(PNG) == [t.name for t in TOOLS]
    assert list(WEBP) == [t.name for t in TOOLS if "webp" in t.takes]


@pytest.mark.parametrize("tool", [t.name for t in TOOLS if t.needs is not CHROMIUM])
def test_what_is_left_of_a_png(rows, tool):
    assert outcomes(rows, tool, "png") == PNG[tool]


@pytest.mark.parametrize("tool", [t.name for t in TOOLS if t.needs is not CHROMIUM and "webp" in t.takes])
def test_what_is_left_of_a_webp(rows, tool):
    assert outcomes(rows, tool, "webp") == WEBP[tool]


@pytest.mark.parametrize("tool", [t.name for t in TOOLS if t.needs is not CHROMIUM])
def test_alpha_plane_in_a_side_car_needs_the_pixels_only(nets, tool):
    if reason := BY_NAME[tool].missing():
        pytest.skip(reason)
    data, sidecar = nets["dlv_irn_a"].downscale(probe_picture(61, 47)).encode("png", "chunk", "sidecar")
    side_car_of_a_latent = PNG[tool][6].split()[0]
    assert Small.from_bytes(BY_NAME[tool].run(data), sidecar=sidecar).state == side_car_of_a_latent


@pytest.mark.slow
@pytest.mark.parametrize("container", ["png", "webp"])
def test_what_a_browser_leaves(browser_rows, container):
    expected = {"png": PNG, "webp": WEBP}[container]["Chromium: canvas to PNG"]
    assert outcomes(browser_rows, "Chromium: canvas to PNG", container) == expected


def exact_means_untouched(rows):
    ran = [r for r in rows if "state" in r]
    assert {State.EXACT, State.CHANGED, State.FOREIGN} <= {r["state"] for r in ran}
    for r in ran:
        # None is a part that the form does not have.
        assert (r["state"] == State.EXACT) == all(r[part] is not False for part in LETTERS), r


def test_exact_means_that_nothing_changed_and_only_that(rows):
    exact_means_untouched(rows)


@pytest.mark.slow
def test_exact_means_that_nothing_changed_in_a_browser_too(browser_rows):
    if reason := CHROMIUM.missing():
        pytest.skip(reason)
    exact_means_untouched(browser_rows)


def test_restored_as_well_as_from_the_file_as_written(rows, nets):
    picture = probe_picture(61, 47)
    for model, net in nets.items():
        small = net.downscale(picture)
        whole = survival._restored(net, small.to_bytes(), None, picture, True)
        without = survival._restored(net, small.to_bytes(carrier="sidecar"), None, picture, True)
        assert (whole["state"], without["state"]) == ("exact", "foreign")
        here = [r for r in rows if r.get("model") == model]
        assert {r["psnr_y"] for r in here if r["state"] == "exact"} == {whole["psnr_y"]}
        # Pixels without their marker: restored without auxiliary data, padding cut off.
        assert without["psnr_y"] in {r["psnr_y"] for r in here if r["state"] == "foreign" and r["pixels"]}


def test_alpha_plane_is_trusted_where_the_marker_is_all_that_is_lost(rows):
    ran = [r for r in rows if r.get("model") == "dlv_irn_a"]
    for r in ran:
        lost = r["state"] in (State.FOREIGN, State.CHANGED) and r["alpha"] and r["form"].startswith("alpha")
        assert (r["psnr_y_trusted"] is not None) == lost, r
    (exact,) = {r["psnr_y"] for r in ran if r["state"] == State.EXACT}
    assert {r["psnr_y_trusted"] for r in ran if r["pixels"]} == {None, exact}


def test_any_small_marker_travels_as_text_too(nets):
    rows = matrix(nets, probe_picture(16, 16), tools=[BY_NAME["Pillow: the same, passing text on"]])
    assert {r["state"] for r in rows} == {"exact"}


def test_marker_is_taken_from_the_copy_that_can_be_read(nets):
    small = nets["dlv_irn_a"].downscale(probe_picture(16, 16))
    data = small.to_bytes()
    broken = bytearray(data)
    broken[data.index(b"reSc") + 20] ^= 1
    assert Small.from_bytes(bytes(broken)).state is State.EXACT
    assert survivors(judge(small, data, bytes(broken), None)) == "PAM"


def small_of(rgb, alpha, weights="ab" * 32):
    height, width = rgb.shape[:2]
    source = Picture(np.zeros((2 * height, 2 * width, 3), np.uint8))
    return Small.create(rgb, alpha, None, model="dlv_irn_a", scale=2, weights=weights, source=source)


def test_a_marker_that_says_something_else_did_not_survive():
    planes = probe_picture(40, 41), np.full((40, 41), 128, np.uint8)
    small = small_of(*planes)
    assert survivors(judge(small, small.to_bytes(), small_of(*planes, weights="cd" * 32).to_bytes(), None)) == "PA"


@pytest.mark.parametrize("scale", [2, 4])
def test_a_border_of_the_scale_does_not_count(scale):
    hr = probe_picture(40, 48)
    again = 255 - hr
    inside = (slice(scale, -scale), slice(scale, -scale))
    again[inside] = hr[inside]
    assert survival._psnr_y(again, hr, scale) == math.inf
    again[scale, scale] ^= 255
    assert survival._psnr_y(again, hr, scale) < math.inf


def pictures_that_optimisers_reduce():
    """Gray, palette and two colours, opaque or nearly: what optimisers store in fewer channels and bits."""
    rng = np.random.default_rng(0)
    gray = np.repeat(rng.integers(0, 256, (40, 41, 1), dtype=np.uint8), 3, 2)
    few = (rng.integers(0, 3, (40, 41, 3)) * 100).astype(np.uint8)
    neutral, two = np.full((40, 41), 128, np.uint8), rng.integers(127, 129, (40, 41), dtype=np.uint8)
    pairs = {"gray": (gray, neutral), "gray, two alphas": (gray, two), "palette": (few, neutral), "palette, two alphas": (few, two)}
    return pairs | {"black": (np.zeros_like(few), neutral), "one pixel": (few[:1, :1], two[:1, :1])}


@pytest.mark.parametrize("case", pictures_that_optimisers_reduce())
@pytest.mark.parametrize("tool", [name for name, outcome in PNG.items() if outcome is KEEPS_ALL])
def test_optimisers_may_store_it_differently(tool, case):
    if reason := BY_NAME[tool].missing():
        pytest.skip(reason)
    small = small_of(*pictures_that_optimisers_reduce()[case])
    for layout in ("alpha", "chunk", "strip"):
        data = small.to_bytes(layout=layout)
        after = BY_NAME[tool].run(data)
        assert Small.from_bytes(after).state is State.EXACT
        assert survivors(judge(small, data, after, None)) == "PAM"


@pytest.mark.parametrize("tool", ["oxipng -o 4", "optipng", "pngcrush"])
def test_optimisers_keep_a_marker_of_several_chunks(tool):
    if reason := BY_NAME[tool].missing():
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    data = small_of(np.full((1100, 1100, 3), 77, np.uint8), rng.integers(1, 256, (1100, 1100), dtype=np.uint8)).to_bytes(
        layout="chunk"
    )
    assert data.count(b"reSc") > 1
    assert Small.from_bytes(BY_NAME[tool].run(data)).state is State.EXACT


def test_premultiply_is_the_formula():
    pixels = np.array([[[200, 0, 255, 3], [200, 7, 255, 255], [9, 9, 9, 0]]], np.uint8)
    # 200 * 3 / 255 = 2.35 is stored as 2, and 2 * 255 / 3 = 170.
    assert premultiply(pixels).tolist() == [[[170, 0, 255, 3], [200, 7, 255, 255], [0, 0, 0, 0]]]


@pytest.mark.slow
def test_a_browser_premultiplies_by_that_formula():
    if reason := CHROMIUM.missing():
        pytest.skip(reason)
    alpha, colour = np.mgrid[1:256, 0:256].astype(np.uint8)
    pixels = np.dstack([colour, colour[:, ::-1], colour, alpha])
    seen = decode_pixels(BY_NAME["Chromium: canvas to PNG"].run(png.encode(pixels)), "canvas")
    difference = np.abs(seen.astype(int) - premultiply(pixels))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.03
    assert not difference[:, :, 3].any()


def test_missing_and_failing_tools_are_shown(nets):
    def fail(data):
        raise ToolError("out of ink")

    tools = [
        Tool("broken", PILLOW, fail),
        Tool("no library", Package("no-such-package", "no_such_package_here"), bytes),
        Tool("no program", Program("Nonesuch", ("no-such-program-here",)), bytes),
        Tool("nothing", PILLOW, bytes),
    ]
    found = matrix({"irn": nets["irn"]}, probe_picture(16, 16), tools=tools)
    assert [r["tool"] for r in found] == ["broken", "no library", "no program", "nothing"]
    assert (found[0]["failed"], found[3]["state"]) == ("out of ink", "exact")
    text = as_markdown(found)
    assert "| broken | failed |" in text
    assert "- broken on irn, chunk (png): out of ink" in text
    assert "- no library: no-such-package not installed" in text
    assert "- no program: Nonesuch not installed (looked for no-such-program-here)" in text
    assert re.search(r"\| nothing \| \*\*exact\*\* PM \d+\.\d\d \|", text)


def test_a_program_that_fails_says_so():
    with pytest.raises(ToolError, match=r"^Python: exit code 3: no$"):
        Program("Python", (sys.executable,)).run("-c", "import sys; print('no', file=sys.stderr); sys.exit(3)")


def test_forms_of_models_that_are_not_there_are_left_out(nets):
    rows = matrix({"latent model": nets["irn_m"]}, probe_picture(16, 16), states_only=["latent model"], tools=TOOLS[:1])
    assert [(r["container"], r["form"]) for r in rows] == [
        *(("png", "chunk"), ("png", "text"), ("png", "side-car")),
        *(("webp", "chunk"), ("webp", "text")),
    ]
    assert {r["psnr_y"] for r in rows} == {None}
    assert {r["alpha"] for r in rows} == {None}


def test_command(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(survival_tools, "TOOLS", TOOLS[:1])
    write_picture(tmp_path / "hr.png", probe_picture(20, 24))
    common = ["survival", str(bundle("irn", 2)), "--picture", str(tmp_path / "hr.png")]
    assert main([*common, "--out", str(tmp_path / "rows.json")]) == 0
    assert (
        "### LR files in PNG\n\n| Tool | irn: chunk |\n|---|---|\n| Pillow: open, save as PNG | foreign P "
        in capsys.readouterr().out
    )
    assert main([*common, "--json", "--states-only", "irn"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["psnr_y"] is None
    (written,) = json.loads((tmp_path / "rows.json").read_text())
    assert written | {"psnr_y": None} == row


def test_default_picture_is_there():
    assert sample("chelsea.png").shape == (300, 451, 3)


def test_command_refuses_what_it_cannot_measure(bundle, capsys):
    path = str(bundle("irn", 2))
    assert main(["survival", path, path]) == 1
    assert "a second bundle of irn" in capsys.readouterr().err
    assert main(["survival", path, "--states-only", "irn_m"]) == 1
    assert "--states-only irn_m: no such bundle given; there is irn" in capsys.readouterr().err


def test_page_shows_what_is_tested():
    tables = re.split(r"### LR files in ", (ROOT / "docs" / "survival.md").read_text(encoding="utf-8"))[1:]
    assert [t.split("\n")[0] for t in tables] == ["PNG", "WebP"]
    for table, expected in zip(tables, (PNG, WEBP), strict=True):
        shown = {}
        for line in table.splitlines():
            cells = [c.strip().replace("*", "") for c in line.strip("|").split("|")]
            if cells[0] in expected:
                # Behind state and parts come figures, which depend on the weights.
                shown[cells[0]] = tuple(" ".join(c.split()[:2]) for c in cells[1:])
        assert shown == expected
