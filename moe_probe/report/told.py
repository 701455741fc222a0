"""What a report tells of: a run and its tables, each made once, when it is first asked for.

It knows neither pages nor words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from moe_probe.report.words import listed
from moe_probe.tables import balance, label_table, load_table, specialisation
from moe_probe.tables.distances import divergence
from moe_probe.tables.names import expert_names
from moe_probe.tables.neighbours import repetition
from moe_probe.tokenview import router_titles

if TYPE_CHECKING:
    from moe_probe.store import Run

ALL_DOMAINS = "all"
ANY_SLOT = "any"


@dataclass(eq=False)
class Told:
    """A run and its tables.

    Attributes:
        run: an open run.
    """

    run: Run
    _labels: dict[str, pl.DataFrame] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def titles(self) -> list[str]:
        """What to call each router in a sentence: `layer 3`."""
        return [title[:1].lower() + title[1:] for title in router_titles(self.run.routers)]

    @cached_property
    def two_routers(self) -> bool:
        """Whether some layer has two routers, so that tables must say which."""
        return max(Counter(router.layer for router in self.run.routers).values(), default=1) > 1

    @cached_property
    def domains(self) -> list[str]:
        """The domains of the documents that have one, sorted."""
        return self.run.documents()["domain"].drop_nulls().unique().sort().to_list()

    @cached_property
    def load(self) -> pl.DataFrame:
        """load.csv."""
        return load_table(self.run)

    @cached_property
    def balance(self) -> pl.DataFrame:
        """balance.csv."""
        return balance(self.run)

    @cached_property
    def repetition(self) -> pl.DataFrame:
        """repetition.csv, over all domains."""
        return over_all(repetition(self.run))

    @cached_property
    def experts(self) -> pl.DataFrame:
        """experts.csv."""
        return expert_names(self.run, tables={one.name: self.labels(one.name) for one in self.run.labels})

    @cached_property
    def divergence(self) -> pl.DataFrame:
        """How far the domains lie apart."""
        return divergence(self.run, "domain")

    def layers(self, routers: Sequence[int]) -> str:
        """Return routers as they stand in a sentence: `layer 3`, `layers 0 and 2`, `all 6 layers`."""
        if len(routers) == len(self.titles) > 1 and not self.two_routers:
            return f"all {len(self.titles):,} layers"
        if len(routers) < 2 or self.two_routers:
            return listed([self.titles[router] for router in routers])
        return f"layers {listed([str(self.run.routers[router].layer) for router in routers], 12)}"

    def has(self, label: str) -> bool:
        """Say whether the run has a label set."""
        return any(label_set.name == label for label_set in self.run.labels)

    def labels(self, label: str) -> pl.DataFrame:
        """Return the table of a label set, over all domains and within each."""
        if label not in self._labels:
            self._labels[label] = label_table(self.run, label)
        return self._labels[label]

    def specialisation(self, label: str) -> pl.DataFrame:
        """Return the information that experts give about a label set, over all domains."""
        return over_all(specialisation(self.run, label, within=False))


def over_all(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a table that are over all domains."""
    return frame.filter(pl.col("domain") == ALL_DOMAINS)


def best(frame: pl.DataFrame, column: str) -> dict[str, Any] | None:
    """Return the row with the greatest number in a column, the first of equals; None if there is none."""
    known = frame.filter(pl.col(column).is_not_null())
    return known.sort(column, descending=True, maintain_order=True).row(0, named=True) if len(known) else None
