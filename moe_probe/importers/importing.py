"""import_run(): a foreign trace becomes a run.

The trace is read once. What is found in it is checked and kept on disk; when all of it was read, it is known how many
rows there are, how many experts, and which layers hold any, and the run is written. A thread reads the next documents
while one is checked, and makes the next shard while one is written. Memory grows with the longest document and with a
few numbers a document.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from moe_probe.errors import BadInputError
from moe_probe.importers import esft, jsonl, olmoe, sglang, vllm
from moe_probe.importers.ahead import ahead
from moe_probe.importers.checking import Checker
from moe_probe.importers.findings import Findings
from moe_probe.importers.source import Source
from moe_probe.importers.spool import Spool
from moe_probe.importers.trace import Sizes, Trace, read_sizes
from moe_probe.importers.words import Words
from moe_probe.importers.writing import Imported, write_imported
from moe_probe.labels import open_labeller
from moe_probe.schema import check_label_name
from moe_probe.store import Run, open_run
from moe_probe.store.writer import SPOOL_FILE, RunWriter
from moe_probe.watching import OnProgress, Watch

_READERS: dict[str, Callable[[Source], Iterator[Trace]]] = {
    "esft": esft.read,
    "jsonl": jsonl.read,
    "olmoe": olmoe.read,
    "sglang": sglang.read,
    "vllm": vllm.read,
}
FORMATS = tuple(_READERS)


def import_run(
    format: str,
    path: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    n_experts: int | None = None,
    n_slots: int | None = None,
    n_layers: int | None = None,
    tokenizer: Any = None,
    labels: Sequence[str] = (),
    language: str | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Run:
    """Make a run of what another tool recorded.

    What cannot be so (an expert twice in a row, a row that lacks layers) is left out, counted and said in the run's
    warnings; where it is most of the trace, or a number can be no expert at all, nothing is written. A trace without
    weights gives a run without: `Run.weights` then raises, and what is made of weights is null.

    Args:
        format: one of `FORMATS`.
        path: the trace: a file (also .gz or .zst where it is text), for `esft` also a folder.
        out: the run's folder: new or empty.
        model: the model's name, or its folder, whose config.json then says the three sizes that follow.
        n_experts: experts of a router; if not known the highest seen and one more, and a warning.
        n_slots: experts of a token, where the file does not say (`esft`, `sglang`); guessed if not known.
        n_layers: layers, where the file does not say (`sglang`); guessed if not known.
        tokenizer: the model's: one of transformers, or the folder or name of one. Without it tokens have the strings
            that the file has, or none.
        labels: taxonomies; see `moe_probe.labels`. A document without text is `untagged`.
        language: of the texts; also the language of the tagger.
        resume: go on with an import of the same that was cut short.
        on_progress: called as the work goes on.

    Raises:
        BadInputError: the trace cannot be read, or cannot be what a model did; the message names file and line.
        RunError: a run is there already, or is being written by another process.
        MoeProbeError: the disk is full.
    """
    if format not in _READERS:
        raise BadInputError(f"format {format!r}: choose {', '.join(FORMATS)}")
    for name, value in (("n_experts", n_experts), ("n_slots", n_slots), ("n_layers", n_layers)):
        if value is not None and value < 1:
            raise BadInputError(f"{name} {value}: give a number from 1 on")
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"{path}: no such file")
    known = read_sizes(model)
    sizes = Sizes(n_experts or known.n_experts, n_slots or known.n_slots, n_layers or known.n_layers)
    labellers = {name: open_labeller(check_label_name(name), language=language or "en") for name in labels}
    watch = Watch(on_progress, threading.Event())
    with RunWriter(out, resume=resume) as writer, Spool(writer.path / SPOOL_FILE) as spool:
        checker = Checker(sizes.n_experts, Words(tokenizer))
        source = Source(path, sizes, Findings())  # apart, so that what is said never hangs on which thread is quicker
        imported = Imported(format, path, str(model) if model is not None else None, language, labellers)
        watch.begin("reading", 0, None)
        with closing(_traces(source, format)) as traces:
            for trace in traces:
                kept = checker.check(trace)
                spool.add(kept)
                imported.note(kept)
                watch.step(checker.findings.rows)
        checker.findings.include(source.findings)
        if not checker.findings.rows:
            raise BadInputError(f"{path}: holds no token; is it a trace of the format {format!r}?")
        write_imported(writer, spool, checker, imported, source.digest(), watch)
    return open_run(out)


def _traces(source: Source, format: str) -> Generator[Trace, None, None]:
    """Yield the documents of a source; from the first on that takes time to read, a thread reads the next ones."""
    traces = _READERS[format](source)
    for trace in traces:
        yield trace
        if not trace.unpacked:
            break
    else:
        return
    with ahead(traces) as others:
        yield from others
