"""Reads a run on disk: its documents, tokens, experts and weights, whole, by shard, by document, or through SQL.

Only the shards that the manifest lists are read, and only after their tokens and routing were seen to have equally many
rows. It does not know torch, nor how a run is made or what is counted in it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from moe_probe.errors import BadInputError, RunError
from moe_probe.schema import (
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    SURPRISAL_COLUMN,
    TOKEN_COLUMNS,
    LabelSet,
    Router,
    check_version,
    entropy_column,
    expert_bits,
    margin_column,
    probabilities_file,
    routing_columns,
    routing_file,
    tokens_file,
)
from moe_probe.showing import as_html
from moe_probe.store import views
from moe_probe.store.columns import (
    Floats,
    Ints,
    expert_columns,
    experts_of,
    find_router,
    weight_columns,
    weights_of,
)
from moe_probe.store.document import NO_WEIGHTS, DocumentRouting
from moe_probe.store.files import read_footer, read_json
from moe_probe.store.part import Shard, read_rows, stacked
from moe_probe.store.shards import METADATA_KEY
from moe_probe.store.totals import LabelTotals, read_set, read_shards


def open_run(path: str | Path) -> Run:
    """Open a run.

    Raises:
        RunError: if there is none, if nothing of it is whole yet, or if it was written by a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such run; give the folder that was named with --out")
    if not (path / MANIFEST_FILE).exists():
        if (path / PLAN_FILE).exists():
            raise RunError(
                f"{path}: the run was interrupted before its first shard was whole; trace again with --resume"
            )
        raise RunError(f"{path}: no run, for it has no {MANIFEST_FILE}; give the folder that was named with --out")
    manifest = read_json(path / MANIFEST_FILE)
    check_version(manifest.get("schema_version"), path)
    missing = [key for key in ("routers", "labels", "shards", "complete", "corpus") if key not in manifest]
    if missing:
        raise RunError(f"{path / MANIFEST_FILE}: has no {missing[0]!r}; is this a run of moe_probe?")
    if manifest.get("counts_only"):
        # What was counted says of which shards: a kill may have come between it and the manifest.
        shards = read_shards(path)
        if len(shards) < len(manifest["shards"]):
            raise RunError(
                f"{path}: {MANIFEST_FILE} says that {len(manifest['shards'])} shard(s) were counted, and the counts are"
                f" of {len(shards)}; trace again with --resume"
            )
        manifest["shards"] = [{"number": number, "rows": rows} for number, (rows, _) in sorted(shards.items())]
    return Run(path, manifest)


class Run:
    """One model's routing on one corpus, on disk. Get one from `open_run`.

    Attributes:
        path: its folder.
        manifest: what run.json holds.
        routers: where the model chooses experts, in order.
        with_scores: for each router, whether its entropy and margin are known.
        with_weights: for each router, whether its weights are known; they are in every run that was traced.
        with_probabilities: for each router, whether its whole distribution over experts was recorded.
        counts_only: whether the run holds counts in the place of tokens; whatever needs a token is then refused.
        labels: the label sets of its tokens.
        shards: numbers of the shards that are whole, in order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Take a manifest as it is; `open_run` checks it."""
        self.path = path
        self.manifest = manifest
        fields = ("index", "name", "layer", "n_experts", "n_slots", "kind")
        self.routers = [Router(**{field: router[field] for field in fields}) for router in manifest["routers"]]
        self.with_scores: list[bool] = [router["scores"] for router in manifest["routers"]]
        self.with_weights: list[bool] = [router.get("weights", True) for router in manifest["routers"]]
        self.with_probabilities: list[bool] = [router.get("probabilities", False) for router in manifest["routers"]]
        self.counts_only = bool(manifest.get("counts_only", False))
        self.labels = [LabelSet(**label) for label in manifest["labels"]]
        self._rows: dict[int, int] = {shard["number"]: shard["rows"] for shard in manifest["shards"]}
        self.shards = sorted(self._rows)
        self._checked: set[int] = set()
        self._stale: set[str] = set()

    @property
    def n_tokens(self) -> int:
        """Token rows in the run."""
        return sum(self._rows.values())

    @property
    def n_documents(self) -> int:
        """Documents of the corpus; in a run that is not complete, those of which a token is there."""
        return int(self.manifest["corpus"]["documents"]) if self.complete else self.documents().height

    @property
    def complete(self) -> bool:
        """Whether the whole corpus was traced."""
        return bool(self.manifest["complete"])

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run should know."""
        return list(self.manifest.get("warnings", []))

    @property
    def token_columns(self) -> list[str]:
        """The columns of the tokens, in order."""
        labels = [label.name for label in self.labels if label.name not in TOKEN_COLUMNS]
        surprisal = [SURPRISAL_COLUMN] if self.manifest.get("settings", {}).get("surprisal") else []
        return [*TOKEN_COLUMNS, *labels, *surprisal]

    def documents(self) -> pl.DataFrame:
        """Return a row a document: document, name, domain, language, first_shard, first_row, tokens, characters.

        In a run that is not complete these are the documents of which a token is there, and `tokens` counts those that
        are.
        """
        return self._documents.drop("_start", "_end")

    def tokens(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a row a token, in the order of the corpus; all columns, or those named.

        Raises:
            BadInputError: if there is no such column.
        """
        return stacked([shard.tokens(columns) for shard in self.iter_shards()], self.token_schema(columns))

    def experts(self, layer: int | None = None, *, router: int | None = None) -> Ints:
        """Return the experts of a router, (tokens, slots): slot 0 is the first choice; -1 where a slot held none.

        Args:
            layer: the transformer block, where it has one router.
            router: the router's index, instead.
        """
        chosen = self.routers[self.router_index(layer, router)]
        parts = [experts_of(shard.routing(expert_columns(chosen)), chosen) for shard in self.iter_shards()]
        return np.concatenate(parts) if parts else np.zeros((0, chosen.n_slots), np.int32)

    def weights(self, layer: int | None = None, *, router: int | None = None) -> Floats:
        """Return the factors that the experts' outputs were multiplied by, (tokens, slots), as float16 holds them.

        Raises:
            RunError: if the run was imported from a trace without weights.
        """
        chosen = self.routers[self.router_index(layer, router)]
        if not self.with_weights[chosen.index]:
            raise RunError(f"{self.path}: router {chosen.index} {NO_WEIGHTS}")
        parts = [weights_of(shard.routing(weight_columns(chosen)), chosen) for shard in self.iter_shards()]
        return np.concatenate(parts) if parts else np.zeros((0, chosen.n_slots), np.float32)

    def entropy(self, layer: int | None = None, *, router: int | None = None) -> Floats | None:
        """Return the entropy of a router's scores in bits, (tokens,), or None where they are not known."""
        self.need_tokens("the entropy of tokens")
        index = self.router_index(layer, router)
        return self._score(index, entropy_column(index))

    def margin(self, layer: int | None = None, *, router: int | None = None) -> Floats | None:
        """Return how far the last chosen selection score was above the first unchosen one, (tokens,), or None."""
        self.need_tokens("the margin of tokens")
        index = self.router_index(layer, router)
        return self._score(index, margin_column(index))

    def probabilities(self, layer: int | None = None, *, router: int | None = None) -> Floats | None:
        """Return a router's distribution over its experts, (tokens, experts), as float16 holds it.

        It is the one whose entropy is known: softmax of the logits, or sigmoid scores divided by their sum, before a
        correction bias, groups and top-k. A row of NaN is a token whose logits were no numbers.

        Returns:
            None where the router's scores are not known, as for `entropy`.

        Raises:
            RunError: if the run was traced without probabilities.
        """
        self.need_tokens("the probabilities of tokens")
        chosen = self.routers[self.router_index(layer, router)]
        if not any("probabilities" in one for one in self.manifest["routers"]) and self.shards:
            raise RunError(f"{self.path}: the run has no probabilities; trace anew with --probabilities")
        if self.shards and not self.with_probabilities[chosen.index]:
            return None
        parts = [shard.probabilities(chosen) for shard in self.iter_shards()]
        return np.concatenate(parts) if parts else np.zeros((0, chosen.n_experts), np.float32)

    def document(self, document: int | str) -> DocumentRouting:
        """Return one document, by number or name, with its tokens and all routers; reads that part of the files alone.

        Raises:
            BadInputError: if the run has no such document.
        """
        row = self._find(document)
        routed = self.routing_columns()
        routing = [
            read_rows(self.path / routing_file(number), routed, first, count)
            for number, first, count in self._parts(row)
        ]
        return DocumentRouting(
            number=row["document"],
            name=row["name"],
            routers=tuple(self.routers),
            tokens=self.document_tokens(document),
            routing=stacked(routing, self._routing_schema()),
        )

    def document_tokens(self, document: int | str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a row a token of one document, by number or name: all columns, or those named.

        Raises:
            BadInputError: if the run has no such document or column.
        """
        schema = self.token_schema(columns)
        parts = [
            read_rows(self.path / tokens_file(number), list(schema), first, count)
            for number, first, count in self._parts(self._find(document))
        ]
        self.refuse_stale(schema)
        return stacked(parts, schema)

    def iter_shards(self) -> Iterator[Shard]:
        """Yield the shards that the manifest lists, in order, each checked before it is read."""
        for number in self.shards:
            self._check(number)
            yield Shard(self, number, self._rows[number])

    def sql(self, query: str) -> pl.DataFrame:
        """Return what one SELECT of DuckDB's SQL gives.

        The views are `routing` (a row a token: its columns and every router's), `assignments` (a row an executed
        assignment: the token's columns, layer, router, slot, expert, weight), `tokens` and `documents`. A query can
        read nothing but the run and writes nothing. In a run that is not complete, `documents` lists the whole corpus.

        Raises:
            BadInputError: if it is anything but one SELECT, or DuckDB refuses it.
        """
        if not self.shards:
            raise RunError(f"{self.path}: no shard is whole yet; go on with it: trace again with --resume")
        return views.query(self._connection, query)

    def label_values(self, name: str) -> list[str]:
        """Return the values that a label (or `phase`) has in this run, sorted.

        Raises:
            BadInputError: if the run has no such label.
        """
        known = [*(label.name for label in self.labels), "phase"]
        if name not in known:
            raise BadInputError(f"label {name!r}: the run has {', '.join(known)}; add it with moe-probe label")
        if self.counts_only:
            return list(self.totals(name).labels) if self.shards else []
        values: set[str] = set()
        for shard in self.iter_shards():
            values.update(shard.tokens([name])[name].unique().to_list())
        return sorted(values)

    def router_index(self, layer: int | None = None, router: int | None = None) -> int:
        """Return the index of the router that is meant by a layer or by an index.

        Raises:
            BadInputError: if there is none, or `layer` means two.
        """
        return find_router(self.routers, layer, router)

    def totals(self, label: str) -> LabelTotals:
        """Return what was counted of a label set in a run that holds counts only; `counts.load_counts` reads it.

        Raises:
            RunError: if the counts are damaged, are of other shards, or have no such label set.
        """
        return read_set(self.path, label, self.routers, self.shards)

    def need_tokens(self, what: str) -> None:
        """Refuse what cannot be told of counts alone.

        Args:
            what: it, for the message.

        Raises:
            RunError: if the run holds counts only.
        """
        if self.counts_only:
            raise RunError(
                f"{self.path}: {what} cannot be had, for the run holds counts only, and no tokens, experts or weights;"
                " trace again without --counts-only"
            )

    def _repr_html_(self) -> str:
        """Show a card of what the run holds in a notebook."""
        return as_html(self)

    def _find(self, document: int | str) -> dict[str, Any]:
        by = pl.col("document") == document if isinstance(document, int) else pl.col("name") == document
        found = self._documents.filter(by)
        if not found.height:
            raise BadInputError(
                f"document {document!r}: the run has no such document; it has {self._documents.height}, for example"
                f" {self._documents['name'].head(3).to_list()}"
            )
        return found.row(0, named=True)

    def _parts(self, row: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
        """Yield the shards that a document lies in: number, its first row there, how many rows."""
        for number, begin in self._offsets.items():
            first = max(row["_start"] - begin, 0)
            last = min(row["_end"] - begin, self._rows.get(number, 0))
            if first < last:
                self._check(number)
                yield number, first, last - first

    @cached_property
    def _documents(self) -> pl.DataFrame:
        path = self.path / DOCUMENTS_FILE
        try:
            frame = pl.read_parquet(path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{path}: missing or damaged ({type(error).__name__}); trace again with --resume") from error
        begins = np.array([*self._offsets.values(), 0], np.int64)
        shards = frame["first_shard"].fill_null(-1).to_numpy()
        start = begins[shards] + frame["first_row"].fill_null(0).to_numpy()
        end = start + frame["tokens"].to_numpy()
        frame = frame.with_columns(pl.Series("_start", start), pl.Series("_end", end))
        if self.complete:
            return frame
        here = self._rows_before(end) - self._rows_before(start)
        return frame.with_columns(pl.Series("tokens", here)).filter(pl.col("tokens") > 0)

    @cached_property
    def _offsets(self) -> dict[int, int]:
        """For each shard of the plan, the rows of the corpus before it."""
        rows = [self._rows[number] for number in self.shards]
        if not self.complete:
            rows = [rows for _, _, rows in read_json(self.path / PLAN_FILE)["shards"]]
        return dict(enumerate(np.cumsum([0, *rows])[:-1].tolist()))

    def _rows_before(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many rows of the run lie before each place in the corpus."""
        planned = np.array([*self._offsets.values()], np.int64)
        there = np.array([self._rows.get(number, 0) for number in self._offsets], np.int64)
        before = np.cumsum(there) - there
        shard = np.clip(np.searchsorted(planned, places, side="right") - 1, 0, None)
        return before[shard] + np.minimum(places - planned[shard], there[shard]) if len(planned) else places * 0

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        for number in self.shards:
            self._check(number)
        self.refuse_stale(self.token_columns)
        routed = self.routing_columns()
        return views.connect(self.path, self.shards, self.routers, self.token_columns, routed)

    def _check(self, number: int) -> None:
        """Refuse a shard whose files do not have the rows that the manifest says."""
        self.need_tokens("rows of tokens (tokens, experts, weights, a document, SQL)")
        if number in self._checked:
            return
        probabilities = [probabilities_file(number)] * any(self.with_probabilities)
        for name in (tokens_file(number), *probabilities, routing_file(number)):
            footer = read_footer(self.path / name)
            if footer.num_rows != self._rows[number]:
                raise RunError(
                    f"{self.path / name}: {footer.num_rows} rows where {MANIFEST_FILE} says {self._rows[number]};"
                    " delete the shard's files and trace again with --resume"
                )
            self._note_other_sources(footer)
        self._checked.add(number)

    def _note_other_sources(self, footer: pq.FileMetaData) -> None:
        """Remember labels that were made otherwise than the manifest says: a relabelling was cut short."""
        made = json.loads((footer.metadata or {}).get(METADATA_KEY, b"{}")).get("labels", {})
        self._stale |= {label.name for label in self.labels if made.get(label.name, label.source) != label.source}

    def refuse_stale(self, columns: Collection[str]) -> None:
        """Raise `RunError` for a label whose relabelling was cut short, so that shards have it of two makings."""
        for name in sorted(self._stale & set(columns)):
            raise RunError(
                f"{self.path}: label {name!r} is of two makings, for a relabelling was cut short;"
                f" finish it with moe-probe label {self.path} --with {name}"
            )

    def token_schema(self, columns: Sequence[str] | None) -> dict[str, pl.DataType]:
        """Return the types of some columns, for a run without rows."""
        types: dict[str, pl.DataType] = dict.fromkeys(TOKEN_COLUMNS, pl.Int32())
        types |= dict.fromkeys(("token", "text", "phase", *(label.name for label in self.labels)), pl.String())
        types |= {"word_initial": pl.Boolean(), SURPRISAL_COLUMN: pl.Float32()}
        for name in columns or ():
            if name not in self.token_columns:
                raise BadInputError(f"column {name!r}: the tokens have {', '.join(self.token_columns)}")
        return {name: types[name] for name in columns or self.token_columns}

    def _routing_schema(self) -> dict[str, pl.DataType]:
        """Return the types of the routing columns, for a document without rows."""
        types: dict[str, pl.DataType] = dict.fromkeys(self.routing_columns(), pl.Float32())
        for router in self.routers:
            kind = {8: pl.UInt8(), 16: pl.UInt16(), 32: pl.UInt32()}[expert_bits(router.n_experts)]
            types |= dict.fromkeys(expert_columns(router), kind)
        return types

    def routing_columns(self) -> list[str]:
        """Return the columns of the routing files."""
        return routing_columns(self.routers, self.with_scores, self.with_weights)

    def _score(self, router: int, column: str) -> Floats | None:
        if not self.with_scores[router]:
            return None
        parts = [shard.routing([column])[column].to_numpy() for shard in self.iter_shards()]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)
