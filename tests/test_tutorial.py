"""The tutorial: it runs from its first cell to its last, its claim comes out again, and what is stored is small."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

DOCS = Path(__file__).parent.parent / "docs"
MOST_BYTES = 400_000
CLAIM = re.compile(
    r"In layer (\d+), expert (\d+) is the first choice of “(\w+)” tokens ([\d.]+) times\n"
    r"as often as of all tokens \(95 % interval ([\d.]+) to ([\d.]+), n = [\d,]+;\n"
    r"q = ([\d.e-]+) over documents and ([\d.e-]+) over kinds of tokens\)\.\n"
    r"Without it, what follows such a token costs ([\d.]+) bits more than what follows others\n"
    r"\(([\d.]+) to ([\d.]+)\): ([\w ]+)\.\n"
)


def printed(notebook: Any) -> str:
    """Return what the cells print."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stdout"
    )


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(DOCS / "tutorial.ipynb", as_version=4)


@pytest.fixture(scope="module")
def fresh() -> Any:
    return runpy.run_path(str(DOCS / "tutorial.py"))["execute"]()


def test_its_claim_comes_out_again(stored: Any, fresh: Any) -> None:
    before, now = CLAIM.fullmatch(printed(stored)), CLAIM.fullmatch(printed(fresh))
    assert before is not None
    assert now is not None
    assert now.group(1, 2, 3, 12) == before.group(1, 2, 3, 12)
    # Another processor may round another way, and so send a few tokens elsewhere.
    for place in (4, 5, 6, 9, 10, 11):
        assert float(now[place]) == pytest.approx(float(before[place]), rel=0.25)


def test_its_claim_is_one_that_the_measures_allow(fresh: Any) -> None:
    claim = CLAIM.fullmatch(printed(fresh))
    assert claim is not None
    lift, low, high, by_document, by_type, cost, cost_low, cost_high = (float(claim[place]) for place in range(4, 12))
    assert 1.2 <= low <= lift <= high
    assert max(by_document, by_type) < 0.05
    assert 0 < cost_low <= cost <= cost_high
    assert claim[12].startswith("more than")


def test_every_cell_that_ends_in_a_value_shows_it(stored: Any, fresh: Any) -> None:
    shows = [
        [sorted(output.data) for output in cell.outputs if output.output_type in ("execute_result", "display_data")]
        for cell in stored.cells
        if cell.cell_type == "code"
    ]
    assert sum(bool(each) for each in shows) == len(shows) - 1  # the claim is printed
    for cell in fresh.cells:
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))
        assert not any(output.get("name") == "stderr" for output in cell.get("outputs", [])), cell.source


def test_what_is_stored_was_executed_in_order_is_small_and_names_no_machine(stored: Any) -> None:
    file = DOCS / "tutorial.ipynb"
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert file.stat().st_size < MOST_BYTES
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users|opt)/|\\\\Users\\\\", text)
