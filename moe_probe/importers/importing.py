"""import_run(): a foreign trace becomes a run.

The trace is read once, and its shards are written as it is read; they are a run when all of it was. Where documents
show late what all shards must have in common (a layer that held nothing before, more slots, wider numbers), it is read
once more. Memory grows with the longest document and with a few numbers a document.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moe_probe.errors import BadInputError
from moe_probe.importers import esft, jsonl, olmoe, sglang, vllm
from moe_probe.importers.behind import Behind, behind
from moe_probe.importers.checking import Checker
from moe_probe.importers.rows import token_table
from moe_probe.importers.sharding import Shards
from moe_probe.importers.source import Source
from moe_probe.importers.trace import Sizes, Trace, read_sizes
from moe_probe.importers.words import Words
from moe_probe.importers.writing import Imported, Reading, shard_facts, write_imported
from moe_probe.labels import open_labeller
from moe_probe.schema import check_label_name
from moe_probe.store import Run, open_run
from moe_probe.store.writer import RunWriter
from moe_probe.watching import OnProgress, Watch

_READERS: dict[str, Callable[[Source], Generator[Trace, None, None]]] = {
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
        resume: import again into a folder where an import of the same was cut short as it ended; one that was cut
            short before leaves nothing.
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
    with RunWriter(out, resume=resume) as writer, behind() as disk:
        imported = Imported(format, path, None if model is None else str(model), language, labellers)
        task = _Task(imported, sizes, Words(tokenizer), writer, disk, watch)
        reading = task.read()
        if reading.shards.lost:
            disk.wait()
            writer.drop_staged()
            reading = task.read(reading)
        write_imported(writer, reading)
    return open_run(out)


@dataclass(frozen=True)
class _Task:
    """What is to be imported, and with what; `imported` is of no document yet."""

    imported: Imported
    sizes: Sizes
    words: Words
    writer: RunWriter
    disk: Behind
    watch: Watch

    def read(self, before: Reading | None = None) -> Reading:
        """Read the trace, and make shards of its documents.

        Args:
            before: the reading before this one, which showed what all documents have in common.

        Raises:
            BadInputError: the trace cannot be read, or cannot be what a model did.
            MoeProbeError: the disk is full.
        """
        path, format = self.imported.path, self.imported.format
        if before is not None and not (path.is_file() or path.is_dir()):
            raise BadInputError(
                f"{path}: later documents have other layers, slots or experts than the first ones, so that it must"
                " be read twice; save it as a file first, or give n_experts if it was not given"
            )
        form = before.checker.form if before else None
        checker = Checker(self.sizes.n_experts, self.words)
        source = Source(path, self.sizes, checker.findings)
        imported = self.imported.afresh()
        tokens = partial(token_table, labellers=imported.labellers, language=imported.language)
        shards = Shards(self.writer, self.disk, tokens, partial(shard_facts, format), form)
        self.watch.begin("reading", 0, before.checker.findings.rows if before else None)
        with closing(_READERS[format](source)) as traces:
            for trace in traces:
                kept = checker.check(trace)
                imported.note(kept)
                shards.add(kept, checker.form)
                self.watch.step(checker.findings.rows)
        if not checker.findings.rows:
            raise BadInputError(f"{path}: holds no token; is it a trace of the format {format!r}?")
        checker.finish()
        imported.leave_out(checker.form.places, checker.findings)
        checker.refuse_if_mostly_bad()
        digest = source.digest()
        if before is not None and (digest != before.digest or checker.form != form):
            raise BadInputError(f"{path}: was changed while it was read; import it when it is whole")
        return Reading(shards, checker, imported, digest)
