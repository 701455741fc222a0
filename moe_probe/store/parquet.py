"""Puts the tables of a shard into Parquet files, and reads back what a shard says of itself.

What the manifest says about routing (self-check, warnings) lies in the routing file, so that a resumed run ends as an
undisturbed one. It does not know in what order the files of a run are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.schema import SCHEMA_VERSION, probabilities_file, routing_file, tokens_file
from moe_probe.store.columnar import write_columns
from moe_probe.store.files import count_rows, read_footer
from moe_probe.store.shards import METADATA_KEY

_ROW_GROUP_ROWS = 131_072
_WIDE_ROW_GROUP_ROWS = 65_536
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardFacts:
    """What is known about a shard beside its rows.

    `scores[i]` says that the entropy and margin of router i are known. `warnings` are sentences for the manifest.
    `probabilities[i]` says that those of router i are known; empty where they were not asked for. `flagged` rows have
    some that are no numbers.
    """

    scores: tuple[bool, ...]
    self_check: str
    warnings: tuple[str, ...] = ()
    probabilities: tuple[bool, ...] = ()
    flagged: int = 0


def write_tokens(path: Path, tokens: pa.Table) -> None:
    """Write a tokens file: every column compressed, statistics for those that readers look up.

    Strings have a dictionary. Numbers have none, for most of them ascend: with one a file takes up to a third longer to
    write, and is smaller only where documents are much alike.
    """
    with pq.ParquetWriter(
        path,
        tokens.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[field.name for field in tokens.schema if not pa.types.is_primitive(field.type)],
        write_statistics=["document", "position", "window_position", "token_id"],
        store_schema=False,
    ) as writer:
        writer.write_table(tokens, row_group_size=_ROW_GROUP_ROWS)
        writer.add_key_value_metadata(tokens.schema.metadata or {})


def write_probabilities(path: Path, probabilities: pa.Table) -> None:
    """Write a probabilities file: lists of float16, plain, zstd level 1; a file without rows of lists has them too."""
    with pq.ParquetWriter(
        path,
        probabilities.schema,
        use_dictionary=False,
        compression="zstd",
        compression_level=1,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(probabilities, row_group_size=_WIDE_ROW_GROUP_ROWS)


def write_routing(path: Path, routing: pa.Table, facts: ShardFacts) -> None:
    """Write a routing file.

    Experts are dictionary-encoded, which is near their entropy, and not compressed. Weights and scores are float16,
    plain, zstd level 1: with a dictionary they would be 3 to 7 % smaller and take twice the time to write.

    Raises:
        ValueError: if a column is of a type that routing does not have.
    """
    slots = max((int(name.split("_")[2]) + 1 for name in routing.column_names if name.startswith("expert_")), default=0)
    said = json.dumps({"schema_version": SCHEMA_VERSION, **_said(facts)})
    with path.open("wb", buffering=_BUFFER_BYTES) as file:  # a column's pages are short, and there are hundreds
        write_columns(file, routing, _ROW_GROUP_ROWS if slots <= 2 else _WIDE_ROW_GROUP_ROWS, {METADATA_KEY: said})


def _said(facts: ShardFacts) -> dict[str, object]:
    """Return what a routing file says of its shard; of probabilities only where they were asked for."""
    said = asdict(facts)
    return said if facts.probabilities else {name: said[name] for name in ("scores", "self_check", "warnings")}


def all_warnings(facts: Sequence[ShardFacts]) -> list[str]:
    """Return what a reader of the shards should know, each once."""
    warnings = list(dict.fromkeys(warning for one in facts for warning in one.warnings))
    if flagged := sum(one.flagged for one in facts):
        warnings.append(
            f"{flagged:,} token row(s) have a router whose logits are no numbers: their probabilities, entropy and"
            " margin are null, and their experts mean nothing"
        )
    return warnings


def read_facts(run: Path, number: int, rows: int) -> ShardFacts:
    """Return what a shard of a run says of itself, if each of its files has the rows that the plan gives it.

    Raises:
        RunError: naming the file that has not.
    """
    footer = read_footer(run / routing_file(number))
    facts = json.loads((footer.metadata or {}).get(METADATA_KEY, b"{}"))
    known = tuple(facts.get("probabilities", ()))
    names = [tokens_file(number)] + [probabilities_file(number)] * any(known)
    for name, found in (
        (routing_file(number), footer.num_rows),
        *((name, count_rows(run / name)) for name in names),
    ):
        if found != rows:
            raise RunError(
                f"{run / name}: {found} rows where the plan has {rows}; delete the shard's files and use --resume"
            )
    return ShardFacts(
        tuple(facts["scores"]), facts["self_check"], tuple(facts["warnings"]), known, facts.get("flagged", 0)
    )
