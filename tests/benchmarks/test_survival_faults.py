"""Tools of the survival matrix that are broken: each costs its own rows and no others."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from rescale.container import State
from rescale.rescaler import load
from rescale_bench import survival_tools
from rescale_bench.survival import as_markdown, matrix
from rescale_bench.survival_tools import PILLOW, Package, Program, Tool
from rescale_export.probe import probe_picture


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return Program(name, (str(path),))


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
def test_one_bad_tool_costs_its_own_rows_only(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(survival_tools, "TIMEOUT_S", 0.5)
    wrong = written(tmp_path, "liar", '#!/bin/sh\necho liar 1.2.3\n[ "$2" ] && echo no picture > "$2"\nexit 0\n')
    broken = written(tmp_path, "broken", "#!/no/such/interpreter\n")
    hanging = written(tmp_path, "hanging", "#!/bin/sh\nexec sleep 60\n")
    babbling = written(tmp_path, "babbling", "#!/bin/sh\nprintf '\\377\\376 2.3.4'\n")
    programs = [wrong, broken, hanging, babbling]
    tools = [Tool(p.name, p, survival_tools._command(p, "IN", "OUT"), ("png", "webp")) for p in programs]
    tools += [Tool("empty", PILLOW, lambda data: b""), Tool("none", PILLOW, lambda data: None), Tool("nothing", PILLOW, bytes)]
    with load(bundle("dlv_irn_a", 2), threads=1) as net:
        found = matrix({"dlv_irn_a": net}, probe_picture(16, 16), tools=[*tools[:4], tools[6], *tools[4:6]])
    by_tool = {t.name: [r for r in found if r["tool"] == t.name] for t in tools}
    assert {r["state"] for r in by_tool["nothing"]} == {State.EXACT}
    for name in by_tool.keys() - {"nothing"}:
        assert len(by_tool[name]) == (6 if name in ("liar", "broken", "hanging", "babbling") else 4), name
        assert not [r for r in by_tool[name] if "state" in r], name
    reasons = {name: {r["failed"] for r in rows} for name, rows in by_tool.items() if name != "nothing"}
    (said,) = reasons["liar"]
    assert said.startswith("what it wrote: file: not a picture that can be read")
    assert reasons["broken"] == {"broken: cannot be started: No such file or directory"}
    assert reasons["hanging"] == {"hanging: not done after 0.5 s"}
    assert reasons["babbling"] == {"babbling: wrote no file"}
    assert all(reason.startswith("what it wrote: ") for reason in reasons["empty"] | reasons["none"])
    assert {r["tool"]: r["version"] for r in found if r["tool"] in {p.name for p in programs}} == {
        "liar": "liar 1.2.3",
        "broken": "broken (version unknown)",
        "hanging": "hanging (version unknown)",
        "babbling": "babbling 2.3.4",
    }
    text = as_markdown(found)
    assert "| liar | failed | failed | failed | failed |" in text
    assert "- broken on dlv_irn_a, alpha (webp): broken: cannot be started: No such file or directory" in text


def test_versions_of_packages_that_go_by_another_name(monkeypatch):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"PIL": ["no-such-package", "numpy"]})
    assert Package("no-such-pillow", "PIL").version() == f"numpy {metadata.version('numpy')}"
    assert Package("no-such-package", "no_such_module").version() == "no-such-package (version unknown)"


def test_a_package_that_does_not_fit_the_others_is_missing(tmp_path, monkeypatch):
    (tmp_path / "ill_fitting_package.py").write_text("raise RuntimeError('compiled for\\nanother numpy')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = "ill cannot be imported: compiled for another numpy"
    assert Package("ill", "ill_fitting_package").missing() == reason
