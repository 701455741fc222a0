"""write_run(): what was recorded in memory becomes a run.

It does not know models, nor how a recording is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.importers.kept import Kept
from moe_probe.importers.rows import token_table
from moe_probe.importers.words import Words
from moe_probe.importers.writing import Imported, about_import, document_table
from moe_probe.schema import HAND_WRITTEN, Router
from moe_probe.store import Run, open_run
from moe_probe.store.plan import Windowing, fingerprint, lay_out, plan_json, shard_rows_for, shard_windows
from moe_probe.store.shards import RoutingBlock
from moe_probe.store.writer import RunWriter, ShardFacts

if TYPE_CHECKING:
    from moe_probe.recording import Routing

RECORDING = "a recording"
_NO_EXPERTS = np.zeros((0, 0, 0), np.int16)


def write_run(
    routing: Routing,
    out: str | Path,
    *,
    tokens: Sequence[str] | None = None,
    documents: Sequence[str] | None = None,
    model: str | None = None,
) -> Run:
    """Write what `record` recorded as a run, a document a sequence.

    Args:
        routing: `recording.routing()`.
        out: the run's folder: new or empty.
        tokens: the text of each recorded token, in the order of the rows; '' for a special one. None: unknown. Tokens
            of the same text are one type.
        documents: the name of each sequence.
        model: what to call the model.

    Raises:
        BadInputError: if there are no tokens, or other numbers of names or texts than of sequences or tokens, or if the
            routers recorded different tokens, as those of an encoder and a decoder do.
        RunError: if there is a run already.
        RoutingError: if a weight is no number that a run can hold.
    """
    n_tokens = routing.n_tokens
    if not n_tokens:
        raise BadInputError("nothing was recorded: the routing has no token; run the model while recording")
    sequences = routing.sequence(0)
    if any(not np.array_equal(routing.sequence(router.index), sequences) for router in routing.routers):
        raise BadInputError("the routers recorded different tokens (an encoder and a decoder?): no run can hold both")
    order = np.argsort(sequences, kind="stable")
    numbers, counts = np.unique(sequences, return_counts=True)
    for what, given, wanted in (("tokens", tokens, n_tokens), ("documents", documents, len(numbers))):
        if given is not None and len(given) != wanted:
            raise BadInputError(f"{what}: {len(given)} given for {wanted} recorded; give one each")
    texts = [""] * n_tokens if tokens is None else [tokens[row] for row in order.tolist()]
    names = [f"sequence {number}" for number in numbers.tolist()] if documents is None else list(documents)
    if len(set(names)) < len(names):
        raise BadInputError("documents: a name is given twice; each sequence needs its own")
    imported = Imported(RECORDING, Path(out), model, None, {})
    ids = Words().numbers(texts)
    for name, rows in zip(names, np.split(np.arange(n_tokens), np.cumsum(counts)[:-1]), strict=True):
        imported.note(_kept(name, routing.position(0)[order[rows]], [texts[row] for row in rows.tolist()], ids[rows]))
    _write(routing, Path(out), order, (texts, ids), imported)
    return open_run(out)


def _kept(name: str, positions: npt.NDArray[np.int32], texts: list[str], ids: npt.NDArray[np.int32]) -> Kept:
    flags = np.zeros(len(texts), np.bool_)
    return Kept(name, None, (), (), _NO_EXPERTS, None, positions, positions, ids, flags, flags, texts, texts)


def _write(
    routing: Routing,
    out: Path,
    order: npt.NDArray[np.int64],
    words: tuple[list[str], npt.NDArray[np.int32]],
    imported: Imported,
) -> None:
    routers, (texts, ids) = routing.routers, words
    scores = tuple(routing.entropy(router.index) is not None for router in routers)
    width = sum(6 * router.n_slots + 4 for router in routers)
    layout = lay_out(imported.rows, Windowing(max(imported.rows)), shard_rows_for(routing.n_tokens, width))
    positions = routing.position(0)[order]
    digest = fingerprint({"routers": [router.as_dict() for router in routers], "texts": texts})
    facts = ShardFacts(scores, _checked(routers), _warnings(any(texts)))
    with RunWriter(out) as writer:
        writer.publish_plan(plan_json({"recording": digest}, layout))
        writer.write_documents([document_table(imported, layout)])
        begin = 0
        for shard in layout.shards:
            rows = order[begin : begin + shard.rows]
            documents = []
            for window in shard_windows(layout, shard.number):
                part = slice(begin, begin + window.end - window.first)
                documents.append(
                    (window.document, _kept(imported.names[window.document], positions[part], texts[part], ids[part]))
                )
                begin = part.stop
            writer.write_shard(shard.number, token_table(documents, {}, None), _routing(routing, rows, scores), facts)
        about = about_import(imported, layout, digest, None, None)
        writer.publish(about, routers, [], complete=True)


def _checked(routers: Sequence[Router]) -> str:
    """Return what the manifest says of a self-check."""
    by_hand = all(router.kind == HAND_WRITTEN for router in routers)
    return f"not run: {HAND_WRITTEN} router" if by_hand else "as recorded: see the recording"


def _warnings(with_texts: bool) -> tuple[str, ...]:
    if with_texts:
        return ("there are no token ids: tokens are numbered by their strings, from -2 downwards",)
    return ("the recording was written without the tokens' texts", "token ids are not known (-1)")


def _routing(routing: Routing, rows: npt.NDArray[np.int64], scores: Sequence[bool]) -> pa.Table:
    block = RoutingBlock(routing.routers, scores, len(rows))
    for router in routing.routers:
        entropy, margin = routing.entropy(router.index), routing.margin(router.index)
        block.fill(
            router.index,
            slice(0, len(rows)),
            routing.experts(router.index)[rows],
            routing.weights(router.index)[rows],
            None if entropy is None else entropy[rows],
            None if margin is None else margin[rows],
        )
    return block.to_table()
