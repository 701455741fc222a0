"""SQL over a run: views that DuckDB reads from the run's files, and nothing else.

`routing` is joined to its tokens by position: both sides list the same shards in the same order, and their row counts
were compared. `assignments` is the long form, one row an executed assignment. It does not know what a query is for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import polars as pl

from moe_probe.errors import BadInputError
from moe_probe.schema import DOCUMENTS_FILE, Router, routing_file, tokens_file
from moe_probe.store.columns import expert_columns, weight_columns


def connect(
    path: Path, shards: Sequence[int], routers: Sequence[Router], token_columns: Sequence[str], routing: Sequence[str]
) -> duckdb.DuckDBPyConnection:
    """Return a connection that holds the views and can open no file but the run's.

    Args:
        path: the run.
        shards: those to read, in order.
        routers: all routers of the run.
        token_columns: columns of the tokens files.
        routing: columns of the routing files.
    """
    root = path.resolve()
    tokens = [str(root / tokens_file(shard)) for shard in shards]
    routed = [str(root / routing_file(shard)) for shard in shards]
    documents = str(root / DOCUMENTS_FILE)
    connection = duckdb.connect(":memory:")
    connection.execute("SET preserve_insertion_order = true")
    connection.execute("SET parquet_metadata_cache = true")  # a view names the same files for every router
    connection.execute(f"SET temp_directory = {_text(tempfile.gettempdir() + '/moe_probe_duckdb')}")
    connection.execute(f"CREATE VIEW documents AS SELECT * FROM {_files([documents])}")
    if shards:
        sides = f"{_files(tokens)} AS t POSITIONAL JOIN {_files(routed)} AS r"
        chosen = [f"t.{_name(column)}" for column in token_columns] + [f"r.{_name(column)}" for column in routing]
        connection.execute(f"CREATE VIEW tokens AS SELECT {_names(token_columns)} FROM {_files(tokens)}")
        connection.execute(f"CREATE VIEW routing AS SELECT {', '.join(chosen)} FROM {sides}")
        assignments = _assignments(_files(tokens), _files(routed), routers, token_columns, frozenset(routing))
        connection.execute(f"CREATE VIEW assignments AS {assignments}")
    # From here on a query reads the files listed above; it cannot open another, nor lift the ban.
    files = [*tokens, *routed, documents]
    allowed = ", ".join(_text(name) for name in dict.fromkeys([*files, *map(_no_pattern, files)]))
    connection.execute(f"SET allowed_paths = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> pl.DataFrame:
    """Return what one SELECT gives.

    Raises:
        BadInputError: if it is anything but one SELECT, or DuckDB refuses it.
    """
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise BadInputError(
                f"sql {_one_line(sql)!r}: give one SELECT; a run is read, never written, through its views routing,"
                " assignments, tokens and documents"
            )
        with connection.cursor() as cursor:
            return pl.DataFrame(cursor.sql(sql).to_arrow_table())
    except duckdb.Error as error:
        raise BadInputError(f"sql {_one_line(sql)!r}: {_one_line(str(error), 300)}") from error


def _assignments(
    tokens: str, routing: str, routers: Sequence[Router], token_columns: Sequence[str], there: Collection[str]
) -> str:
    """Return one branch a router, so that a query that names a layer reads that layer's columns alone.

    Each branch joins the files itself: to go through the view `routing`, or to have a branch a slot, takes DuckDB up to
    a hundred times longer to plan where there are hundreds of columns. A weight that is not `there` is null.
    """
    branches = []
    for router in routers:
        experts = ", ".join(expert_columns(router))
        weights = ", ".join(name if name in there else "NULL::FLOAT" for name in weight_columns(router))
        slots = ", ".join(map(str, range(router.n_slots)))
        branches.append(
            f"SELECT * FROM (SELECT {_names(token_columns)}, {router.layer} AS layer, {router.index} AS router,"
            f" unnest([{slots}]) AS slot, unnest([{experts}]) AS expert, unnest([{weights}]) AS weight"
            f" FROM {tokens} AS t POSITIONAL JOIN {routing} AS r) WHERE expert IS NOT NULL"
        )
    return " UNION ALL ".join(branches)


def _files(paths: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(_text(_no_pattern(path)) for path in paths)}], hive_partitioning = false)"


def _no_pattern(path: str) -> str:
    """Return a pattern that means this path alone: DuckDB expands patterns in all names."""
    return path.translate({ord(sign): f"[{sign}]" for sign in "[*?"})


def _names(columns: Sequence[str]) -> str:
    return ", ".join(_name(column) for column in columns)


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _one_line(text: str, limit: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
