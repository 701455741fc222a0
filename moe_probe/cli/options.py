"""What several commands take, how it is read, and what they say when they are done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moe_probe.errors import BadInputError

if TYPE_CHECKING:
    from moe_probe.store import Run

Model = Annotated[str, typer.Argument(help="'tiny-mixtral' (bundled), a folder, or a model hub id.")]
Inputs = Annotated[
    list[str],
    typer.Argument(help="Text, JSONL, CSV, Parquet or CoNLL-U files (.gz and .zst too), folders, or - for stdin."),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]
NewRun = Annotated[Path, typer.Option(help="Folder of the new run.")]
Labels = Annotated[str, typer.Option(help="Labels to give every token, separated by commas.")]
Language = Annotated[str | None, typer.Option(help="Language of documents that do not say theirs, for example en.")]
Tagger = Annotated[str | None, typer.Option(help="spaCy pipeline for upos, xpos and stmoe; by default en_core_web_sm.")]
Quantization = Annotated[
    Literal["4bit", "8bit"] | None, typer.Option(help="Hold the experts in 4 or 8 bits; the router never is.")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 … as in accelerate.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Context = Annotated[int | None, typer.Option(min=2, help="Tokens that the model sees at once.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Stop after this many tokens.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the web page; a free one if not given.")]


def names_in(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas.

    Raises:
        BadInputError: if one is there twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(set(names)) < len(names):
        raise BadInputError(f"labels {text!r}: a label is named twice")
    return names


def numbers_in(text: str) -> list[int]:
    """Return whole numbers that are separated by commas.

    Raises:
        BadInputError: if something else is there.
    """
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise BadInputError(f"experts {text!r}: give their indices separated by commas, for example 3 or 0,2") from None


def say_done(run: Run) -> None:
    """Print what a new run holds, and how to look at it."""
    print(
        f"{run.path}: {run.n_tokens:,} tokens of {run.n_documents:,} document(s) through {len(run.routers)} routers"
        + ("" if run.complete else "; not complete, --resume goes on")
    )
    print(f"look at it: moe-probe explore {run.path}")
