"""The names, types and version of a run on disk; nothing else knows column names.

It does not know how rows are made, written or read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from moe_probe.errors import BadInputError, RunError

SCHEMA_VERSION = 1

MANIFEST_FILE = "run.json"
PLAN_FILE = "plan.json"
DOCUMENTS_FILE = "documents.parquet"
TOKENS_FOLDER = "tokens"
ROUTING_FOLDER = "routing"
PROBABILITIES_FOLDER = "probabilities"
COUNTS_FOLDER = "counts"

DROPPED = -1
"""In Python, the expert of a slot that held none. On disk it is null."""

HAND_WRITTEN = "hand-written"
"""The kind of a router that the caller's own function reads."""

SINK_POSITIONS = 4
"""Measures leave out tokens with `window_position` below this: the first tokens of a window route oddly."""

CONTINUATION = "continuation"
WHITESPACE = "whitespace"
NEWLINE = "newline"
SPECIAL = "special"
UNTAGGED = "untagged"
NOT_WORDS = (CONTINUATION, WHITESPACE, NEWLINE, SPECIAL)
"""Label values that never stand for a whole word."""

TOKEN_COLUMNS = (
    "document",
    "position",
    "window_position",
    "token_id",
    "token",
    "text",
    "char_start",
    "char_end",
    "phase",
    "word_initial",
)
SURPRISAL_COLUMN = "surprisal"
RESERVED = {*TOKEN_COLUMNS, SURPRISAL_COLUMN, "row", "shard", "cluster", "domain_of_document"} - {"phase"}

_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ROUTING_NAME = re.compile(r"(expert|weight|entropy|margin|probabilities)(_\d+)+")


@dataclass(frozen=True)
class Router:
    """One place where a model chooses experts.

    `name` is the dotted path of its MoE block, `layer` its transformer block (0-based), `index` its place in
    `run.routers`, `kind` how it chooses (for example `softmax top-k`).
    """

    index: int
    name: str
    layer: int
    n_experts: int
    n_slots: int
    kind: str

    def as_dict(self) -> dict[str, int | str]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LabelSet:
    """What a run knows about one set of labels.

    `word_level` says that the taxonomy cuts the text into words itself, so that its own `continuation` value, not the
    `word_initial` column, tells which tokens start a word. `source` names what made the labels.
    """

    name: str
    source: str
    word_level: bool

    def as_dict(self) -> dict[str, str | bool]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)


def tokens_file(shard: int) -> str:
    """Return the path of a shard's tokens inside its run."""
    return f"{TOKENS_FOLDER}/part-{shard:06d}.parquet"


def routing_file(shard: int) -> str:
    """Return the path of a shard's routing inside its run."""
    return f"{ROUTING_FOLDER}/part-{shard:06d}.parquet"


def probabilities_file(shard: int) -> str:
    """Return the path of a shard's probabilities inside its run; there where they were asked for."""
    return f"{PROBABILITIES_FOLDER}/part-{shard:06d}.parquet"


def expert_column(router: int, slot: int) -> str:
    """Return the column of the expert that a router's slot held."""
    return f"expert_{router}_{slot}"


def weight_column(router: int, slot: int) -> str:
    """Return the column of the factor that a router's slot was multiplied by."""
    return f"weight_{router}_{slot}"


def entropy_column(router: int) -> str:
    """Return the column of a router's entropy in bits."""
    return f"entropy_{router}"


def margin_column(router: int) -> str:
    """Return the column of a router's margin between the last chosen and the first unchosen selection score."""
    return f"margin_{router}"


def probabilities_column(router: int) -> str:
    """Return the column of a router's distribution over experts, a list of float16 as long as it has experts."""
    return f"probabilities_{router}"


def expert_bits(n_experts: int) -> int:
    """Return the width of the unsigned integer that holds an expert's index: 8, 16 or 32.

    Example:
        >>> expert_bits(8), expert_bits(255), expert_bits(256), expert_bits(1_000_000)
        (8, 8, 16, 32)
    """
    return 8 if n_experts <= 255 else 16 if n_experts <= 65_535 else 32


def check_label_name(name: str) -> str:
    """Return `name` if a label may be called so.

    Raises:
        BadInputError: if the name is no lower-case identifier or is that of a column which every run has.
    """
    if not _LABEL_NAME.fullmatch(name):
        raise BadInputError(f"label {name!r}: a label's name is a lower-case word such as 'upos'")
    if name in RESERVED or _ROUTING_NAME.fullmatch(name):
        raise BadInputError(f"label {name!r}: every run has a column of that name already; choose another")
    return name


def check_version(version: object, path: object) -> None:
    """Refuse a run whose schema this version cannot read.

    Raises:
        RunError: if `version` is newer than `SCHEMA_VERSION`, or no version at all.
    """
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path}: schema version {version!r} is no version; is this a run of moe_probe?")
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path}: the run has schema version {version}, this moe_probe reads up to {SCHEMA_VERSION}; "
            "upgrade moe_probe"
        )


def routing_columns(
    routers: Sequence[Router], with_scores: Sequence[bool], with_weights: Sequence[bool] | None = None
) -> list[str]:
    """Return the columns of a routing file in their order on disk.

    `with_scores[i]` says that the entropy and margin of router i are known, `with_weights[i]` that its weights are;
    None: those of all routers, as in every run but an imported one.
    """
    columns: list[str] = []
    weighted_routers = with_weights or (True,) * len(routers)
    for router, scored, weighted in zip(routers, with_scores, weighted_routers, strict=True):
        columns += [expert_column(router.index, slot) for slot in range(router.n_slots)]
        if weighted:
            columns += [weight_column(router.index, slot) for slot in range(router.n_slots)]
        if scored:
            columns += [entropy_column(router.index), margin_column(router.index)]
    return columns
