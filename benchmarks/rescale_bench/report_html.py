"""The page of a report: one file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from rescale_bench import report_plots, report_text
from rescale_bench.speed_report import DEFINITIONS
from rescale_bench.speed_worker import DIRECTIONS

if TYPE_CHECKING:
    from rescale_bench.report import Found

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def page(found: Found) -> str:
    """HTML with its styles, script, plots and pictures inside, under a policy that forbids every request."""
    import jinja2
    from markupsafe import Markup

    report = found.report
    cases = report["speed"]["cases"]
    script = _asset("report.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    words = [(d, report_text.WORDS[d]) for d in DIRECTIONS]

    def plots(draw: Any, of: Any) -> list[tuple[str, Any]]:
        timed = {d for case in (of if isinstance(of, list) else [of]) for c in case["competitors"] for d in c["directions"]}
        # What `report_plots` draws of texts is escaped by matplotlib.
        return [(word, Markup(draw(of, d))) for d, word in words if d in timed]

    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_asset("report.html")).render(
        report=report,
        found=report["findings"],
        policy=Markup(POLICY.format(digest)),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        throughput=plots(report_plots.throughput, cases),
        latency=plots(report_plots.latency, cases[0]),
        latency_of=report_text.resolution(cases[0]),
        latency_runs=[len(d["whole"]["times"]) for c in cases[0]["competitors"] for d in c["directions"].values()],
        parts=plots(report_plots.parts, cases[-1]),
        parts_of=report_text.resolution(cases[-1]),
        parts_check=report_text.parts_check(cases),
        busy=report_text.busy(report["machine"]),
        speed_tables=[report_text.speed_table(case) for case in cases],
        quality=report_text.quality_table(report),
        parity=report_text.parity_table(report),
        heat=None if found.heat is None else Markup(report_plots.heat(found.heat)),
        worst=found.heat,
        pictures=found.pictures,
        not_run=report_text.not_run(report),
        machine=report_text.machine_rows(report),
        definitions={
            "Speed": DEFINITIONS,
            "Quality": report["quality"]["definitions"],
            "Parity": report["parity"]["definitions"],
        },
    )


def _asset(name: str) -> str:
    return resources.files("rescale_bench").joinpath("page", name).read_text(encoding="utf-8")
