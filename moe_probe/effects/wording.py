"""What a table of effects says, in a sentence: whom switching experts off hurts, by how much, beyond what.

It computes nothing: every number is in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from moe_probe.effects.passes import How
from moe_probe.effects.table import MORE_THAN_ANY, MORE_THAN_CONTROLS
from moe_probe.labels.plain import plain_names
from moe_probe.measures.verdicts import NOT_SHOWN, THIS_TEXT_ONLY

_STRONGEST_FIRST = (MORE_THAN_ANY, MORE_THAN_CONTROLS, THIS_TEXT_ONLY)
_MOST_NAMED = 4


def experts_text(experts: Sequence[int]) -> str:
    """Return what some experts are called.

    Example:
        >>> experts_text([3]), experts_text([0, 2]), experts_text([0, 2, 5])
        ('expert 3', 'experts 0 and 2', 'experts 0, 2 and 5')
    """
    if len(experts) == 1:
        return f"expert {experts[0]}"
    return f"experts {_listed([str(expert) for expert in experts])}"


def effect_sentence(table: pl.DataFrame, *, how: How = "ablate") -> str:
    """Return what is shown, or that nothing is, in plain words.

    Args:
        table: from `effect`, or of `effect_table` the rows of one router and its experts switched off together.
        how: what was done to the experts.
    """
    if table.is_empty():
        return "Nothing was measured."
    first = table.row(0, named=True)
    names = _Names(table)
    experts = experts_text([int(expert) for expert in first["experts"].split()])
    done = f"Switching off {experts} of layer {first['layer']}"
    if how == "reroute":
        done = f"Sending the tokens of {experts} of layer {first['layer']} to the next best"
    rows = table.sort("difference", "label", descending=[True, False], nulls_last=True)
    for verdict in _STRONGEST_FIRST:
        held = rows.filter(verdict=verdict)
        if not held.is_empty():
            return _shown(done, verdict, held, rows, names)
    if rows.filter(verdict=NOT_SHOWN).is_empty():
        return f"There is too little text to tell which tokens suffer when {experts} of layer {first['layer']} " + (
            "is missing: take more documents." if " " not in first["experts"] else "are missing: take more documents."
        )
    most = rows.filter(verdict=NOT_SHOWN).row(0, named=True)
    return (
        f"It was not shown that {_lower(done)} hurts any kind of token more than its controls do. The largest "
        f"difference where there is text enough: {names.of(most['label'])}, {_bits(most)}."
    )


class _Names:
    """What the labels of a table are called, and which token of the two is meant."""

    def __init__(self, table: pl.DataFrame) -> None:
        first = table.row(0, named=True)
        self._names = plain_names(first["label_set"], table["label"].to_list())
        self._routed = first["carried_by"] == "routed"

    def of(self, label: str) -> str:
        return f"tokens that follow {self._names[label]}" if self._routed else self._names[label]


def _shown(done: str, verdict: str, held: pl.DataFrame, rows: pl.DataFrame, names: _Names) -> str:
    most = held.row(0, named=True)
    here = f"In this text, {_lower(done)}" if verdict == THIS_TEXT_ONLY else done
    said = (
        f"{here} hurts {names.of(most['label'])}: {_bits(most)} more surprisal than all other tokens, {_beyond(most)}."
    )
    others = [names.of(label) for label in held["label"][1 : 1 + _MOST_NAMED]]
    if others:
        said += f" Likewise, less strongly: {_listed(others)}."
    if verdict == MORE_THAN_ANY:
        weaker = [names.of(label) for label in rows.filter(verdict=MORE_THAN_CONTROLS)["label"][:_MOST_NAMED]]
        if weaker:
            said += f" More than the controls, but not more than every other expert: {_listed(weaker)}."
    if verdict == THIS_TEXT_ONLY:
        said += " With so few documents this says nothing about other texts."
    return said


def _beyond(row: dict[str, Any]) -> str:
    """Return what an effect exceeds: its controls, as far as it has them."""
    controls = []
    if row["over_random"] is not None:
        controls.append("dropping as many assignments at random")
    count = row["matched_experts"]
    if count:
        controls.append(f"switching off {'the other expert' if count == 1 else f'one of {count} experts'} of like load")
    if row["verdict"] == MORE_THAN_ANY:
        return ", and ".join([f"more than {one}" for one in controls[:1]] + ["more than any other expert of the layer"])
    said = f"more than {' or '.join(controls)}"
    if row["verdict"] == MORE_THAN_CONTROLS:
        return f"{said}; that it is more than for every other expert was not shown"
    return said


def _bits(row: dict[str, Any]) -> str:
    low, high = row["difference_ci_low"], row["difference_ci_high"]
    interval = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    return f"{row['difference']:+.2f} bits{interval}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
