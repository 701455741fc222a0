"""Compare runs over the same tokens: write what they agree on, and where they part, as tables and as one page.

| module | what it knows |
|---|---|
| `page` | what compare.html says of two runs |
| `training` | what saturation.html says of the checkpoints of a training |

Two precisions of a model, two engines, the checkpoints of a training. Numbers are made in `tables.between` and
`tables.surprisal`; nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.comparing.page import comparison_page
from moe_probe.comparing.training import saturation_page
from moe_probe.errors import BadInputError
from moe_probe.export import write_table
from moe_probe.store.files import writing
from moe_probe.tables.between import (
    AGREEMENT_COLUMNS,
    ALL,
    LOAD_DIFFERENCE_COLUMNS,
    SATURATION_COLUMNS,
    agreement_table,
    load_difference_table,
    saturation,
)
from moe_probe.tables.columns import columns_table
from moe_probe.tables.paired import pair_runs
from moe_probe.tables.surprisal import SURPRISAL_COLUMNS, has_surprisal, surprisal_table

if TYPE_CHECKING:
    from moe_probe.store import Run

__all__ = ["compare_runs", "comparison_page", "saturation_page", "write_saturation"]

PAGE_FILE = "compare.html"
SATURATION_FILE = "saturation.html"


def compare_runs(run_a: Run, run_b: Run, out: str | Path) -> list[Path]:
    """Write how two runs over the same tokens agree and differ to a folder.

    agreement.csv has a row a router, and one for each tenth of its tokens by run_a's margin; agreement_by_<label>.csv
    a row for each value of each of run_a's label sets; load_difference.csv a row an expert; where both runs have
    surprisal, surprisal.csv says by how much that of the same tokens differs; columns.csv holds the meaning of every
    column; compare.html shows all of it. The same runs give the same bytes.

    Args:
        run_a: an open run; margins and labels are its.
        run_b: another of the same documents, in the same order.
        out: a folder, made if it is not there.

    Returns:
        The files, in the order in which they were written.

    Raises:
        BadInputError: the runs are of different text or different routers, or `out` is a file or the folder of a run.
        MoeProbeError: a file cannot be written.
    """
    folder = Path(out)
    _refuse_folder(folder, (run_a, run_b))
    labels = [label_set.name for label_set in run_a.labels]
    pair = pair_runs(run_a, run_b, labels)
    agreed = agreement_table(pair, labels)
    moved = load_difference_table(pair)
    tables = {"agreement": agreed.filter(label_set=ALL)}
    tables |= {f"agreement_by_{label}": agreed.filter(label_set=label) for label in labels}
    tables |= {"load_difference": moved}
    columns = dict.fromkeys(tables, AGREEMENT_COLUMNS) | {"load_difference": LOAD_DIFFERENCE_COLUMNS}
    foretold = surprisal_table(pair, labels) if has_surprisal(run_a) and has_surprisal(run_b) else None
    if foretold is not None:
        tables |= {"surprisal": foretold}
        columns |= {"surprisal": SURPRISAL_COLUMNS}
    tables |= {"columns": columns_table(columns)}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [write_table(frame, folder / f"{name}.csv") for name, frame in tables.items()]
    paths.append(comparison_page(pair, agreed, moved, foretold).write(folder / PAGE_FILE))
    return paths


def write_saturation(runs: Sequence[Run], reference: Run, out: str | Path) -> list[Path]:
    """Write how early in a training each layer settles on the experts that it has at the end.

    saturation.csv has a row for each run and router: how often it chose the experts of the reference; columns.csv the
    meaning of every column; saturation.html shows both. The same runs give the same bytes.

    Args:
        runs: open runs of a training's checkpoints over the same documents, in the order of training. Their steps are
            read from their names, such as step-000060.
        reference: that of the last checkpoint.
        out: a folder, made if it is not there.

    Returns:
        The files, in the order in which they were written.

    Raises:
        BadInputError: no run is given, one is of other text or other routers than the reference, or `out` is a file or
            the folder of a run.
        MoeProbeError: a file cannot be written.
    """
    folder = Path(out)
    _refuse_folder(folder, (*runs, reference))
    settled = saturation(runs, reference)
    tables = {"saturation": settled, "columns": columns_table({"saturation": SATURATION_COLUMNS})}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [write_table(frame, folder / f"{name}.csv") for name, frame in tables.items()]
    paths.append(saturation_page(runs, reference, settled).write(folder / SATURATION_FILE))
    return paths


def _refuse_folder(folder: Path, runs: Sequence[Run]) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder}: a comparison is written to a folder, and this is a file; choose another name")
    if folder.resolve() in {run.path.resolve() for run in runs}:
        raise BadInputError(f"{folder}: this is one of the runs; choose another folder for the comparison")
