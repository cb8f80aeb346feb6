"""Options that commands share: which bundles to measure, on which pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale.cli_options import memory_option

MODEL, SCALE = "dlv_irn_a", 2
"""What speed and report measure where nothing is named."""

Bundles = Annotated[
    list[Path] | None,
    typer.Argument(help="Bundles made by rescale-export. Default: all weights that ship.", metavar="[BUNDLE...]"),
]
Models = Annotated[list[str] | None, typer.Option(help="Shipped model to measure; repeat for several.")]
Scales = Annotated[list[int] | None, typer.Option(help="Shipped weights' scale, 2 or 4; repeat for several. Default: both.")]
Sizes = Annotated[
    list[str] | None, typer.Option(help="Shipped weights' size, lite, medium or full; repeat for several. Default: all.")
]
Data = Annotated[
    list[Path] | None, typer.Option(help="Folder of HR pictures; repeat for several. Default: scikit-image's photographs.")
]
Limit = Annotated[int, typer.Option(help="Pictures per folder at most; 0: all.", min=0)]
Memory = Annotated[int | None, memory_option("Budget for one run of a backend, such as 2GB. Default: half of what is free.")]
Precision = Annotated[str, typer.Option(help="Which of the bundle's graphs: fp32, mixed or fp16.")]
