"""The command line: parse, make one call of the Python API, print.

It knows no model, no file format and no measure. Exit status: 0 done, 1 the work failed, 2 bad arguments or bad input.
Errors are one line on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

import moe_probe as mp
from moe_probe.errors import BadInputError, MoeProbeError

if TYPE_CHECKING:
    from moe_probe.store import Run

app = typer.Typer(
    name="moe-probe",
    help="See which experts of a Mixture-of-Experts language model every token was really sent to.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXTRA_OF = {
    "accelerate": "trace",
    "bitsandbytes": "trace",
    "plotly": "explore",
    "spacy": "trace",
    "streamlit": "explore",
    "torch": "trace",
    "transformers": "trace",
}

# What typer raises for wrong arguments; it exports only this child of it.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

Model = Annotated[str, typer.Argument(help="'tiny-mixtral' (bundled), a folder, or a model hub id.")]
Inputs = Annotated[
    list[str],
    typer.Argument(help="Text, JSONL, CSV, Parquet or CoNLL-U files (.gz and .zst too), folders, or - for stdin."),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]
Labels = Annotated[str, typer.Option(help="Labels to give every token, separated by commas.")]
Language = Annotated[str | None, typer.Option(help="Language of documents that do not say theirs, for example en.")]
Tagger = Annotated[str | None, typer.Option(help="spaCy pipeline for upos, xpos and stmoe; by default en_core_web_sm.")]


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """See which experts of a Mixture-of-Experts language model every token was really sent to."""
    if show_version:
        print(f"moe-probe {mp.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def trace(
    model: Model,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    quantization: Annotated[
        Literal["4bit", "8bit"] | None, typer.Option(help="Hold the experts in 4 or 8 bits; the router never is.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device_map: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 … as in accelerate.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run model code that comes with the checkpoint.")] = False,
    labels: Labels = "upos,shape,domain",
    language: Language = None,
    tagger: Tagger = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after this many tokens.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a batch, padding included.")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens that the model sees at once.")] = None,
    stride: Annotated[int, typer.Option(min=0, help="Tokens by which windows of a long document overlap.")] = 0,
    special: Annotated[bool, typer.Option(help="Record the special tokens too.")] = False,
    surprisal: Annotated[bool, typer.Option(help="Record each token's surprisal.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted.")] = False,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Take the texts for prompts: write so many tokens after each, trace both.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="With --generate: put prompts into the chat template.")] = False,
    sample: Annotated[bool, typer.Option("--sample", help="With --generate: sample, not the likeliest.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="With --generate: beams of the search.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --generate: of the sampling.")] = None,
) -> None:
    """Run a model over texts and record which experts every token was sent to."""
    if generate is None and (chat or sample or beams is not None or seed is not None):
        raise BadInputError("--chat, --sample, --beams and --seed say how to generate; give --generate N too")
    if generate is not None and (max_tokens is not None or stride):
        raise BadInputError("--generate takes prompts whole, in one window; leave out --max-tokens and --stride")
    language_model = mp.load(
        model,
        quantization=quantization,
        dtype=dtype,
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    from moe_probe.progress import progress_bar

    with progress_bar() as on_progress:
        if generate is not None:
            run = mp.generate_and_trace(
                language_model,
                inputs,
                out,
                max_new_tokens=generate,
                chat=chat,
                generation={"do_sample": sample, "num_beams": beams or 1, "seed": seed or 0},
                labels=_names(labels),
                language=language,
                tagger=tagger,
                batch_tokens=batch_tokens,
                context=context,
                special=special,
                surprisal=surprisal,
                resume=resume,
                on_progress=on_progress,
            )
        else:
            run = mp.trace(
                language_model,
                inputs,
                out,
                labels=_names(labels),
                language=language,
                tagger=tagger,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                context=context,
                stride=stride,
                special=special,
                surprisal=surprisal,
                resume=resume,
                on_progress=on_progress,
            )
    _say_done(run)


@app.command()
def info(run: RunFolder) -> None:
    """Print what is in a run: corpus, precision, self-check, load of every layer."""
    from moe_probe.info import describe

    describe(mp.open_run(run))


@app.command()
def label(
    run: RunFolder,
    with_: Annotated[str, typer.Option("--with", help="Labels to add or replace, separated by commas.")],
    tagger: Tagger = None,
    language: Language = None,
) -> None:
    """Add labels to a run, or replace them, without tracing again."""
    from moe_probe.progress import progress_bar
    from moe_probe.relabelling import relabel

    with progress_bar() as on_progress:
        labelled = relabel(run, _names(with_), tagger=tagger, language=language, on_progress=on_progress)
    print(f"{run}: labels {', '.join(label_set.name for label_set in labelled.labels)}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write the tables to.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Write the token-to-expert table too.")] = False,
    format_: Annotated[Literal["csv", "parquet"], typer.Option("--format", help="Format of the tables.")] = "csv",
) -> None:
    """Write all tables of a run, with a dictionary of their columns."""
    for path in mp.export_csv(mp.open_run(run), out, tokens=tokens, format=format_):
        print(path)


@app.command()
def report(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    effects: Annotated[
        Path | None, typer.Option(help="A folder that `moe-probe ablate` wrote, to tell of too.")
    ] = None,
) -> None:
    """Write what a run shows as one HTML file that needs no network."""
    measured = None if effects is None else mp.open_effects(effects)
    print(mp.write_report(mp.open_run(run), out, effects=measured))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="The folder of a run, the reference.")],
    run_b: Annotated[Path, typer.Argument(help="The folder of another run over the same text.")],
    out: Annotated[Path, typer.Option(help="Folder to write the tables and the page to.")],
) -> None:
    """Compare two runs over the same text: agreement by layer, margin and label, and what it costs."""
    first, second = mp.open_run(run_a), mp.open_run(run_b)
    for warning in mp.comparison_warnings(first, second):
        print(f"moe-probe: warning: {warning}", file=sys.stderr)
    for path in mp.compare_runs(first, second, out):
        print(path)


@app.command()
def saturation(
    runs: Annotated[list[Path], typer.Argument(help="Runs of earlier checkpoints over the same text.")],
    reference: Annotated[Path, typer.Option(help="The run of the last checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write saturation.csv and saturation.html to.")],
) -> None:
    """Tell how early in its training each layer's routing was what it is at the end."""
    for path in mp.write_saturation([mp.open_run(run) for run in runs], mp.open_run(reference), out):
        print(path)


@app.command()
def ablate(
    model: Model,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder to write effect.csv to; what was measured is kept there too.")],
    layer: Annotated[int | None, typer.Option(min=0, help="The layer; with --map all layers if not given.")] = None,
    experts: Annotated[str | None, typer.Option(help="Experts to switch off together, for example 3 or 0,2.")] = None,
    map_: Annotated[bool, typer.Option("--map", help="Switch off every expert by itself.")] = False,
    label: Annotated[str, typer.Option(help="The label that tokens are told apart by.")] = "upos",
    how: Annotated[
        Literal["ablate", "reroute"], typer.Option(help="Set weights to zero, or let the next best expert step in.")
    ] = "ablate",
    quantization: Annotated[
        Literal["4bit", "8bit"] | None, typer.Option(help="Hold the experts in 4 or 8 bits; the router never is.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device_map: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 … as in accelerate.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    language: Language = None,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens that the model sees at once.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after this many tokens.")] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a batch, padding included.")] = 2_048,
    budget_seconds: Annotated[
        float | None, typer.Option(min=0, help="With --map: begin no batch after so long.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random control and of the order of the batches.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with what was measured before.")] = False,
) -> None:
    """Switch experts off and measure, label by label, what that does to the surprisal of every token."""
    chosen = _numbers(experts) if experts is not None else None
    if map_ == (chosen is not None) or (chosen is not None and layer is None):
        raise BadInputError("ablate: give --layer and --experts, or --map (with or without --layer)")
    language_model = mp.load(model, quantization=quantization, dtype=dtype, device_map=device_map, revision=revision)
    from moe_probe.export import export_effects
    from moe_probe.progress import progress_bar

    with progress_bar() as on_progress:
        if chosen is None:
            mp.effect_map(
                language_model,
                inputs,
                out,
                label=label,
                layers=None if layer is None else [layer],
                how=how,
                language=language,
                context=context,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                budget_seconds=budget_seconds,
                seed=seed,
                resume=resume,
                on_progress=on_progress,
            )
        else:
            mp.effect(
                language_model,
                inputs,
                cast(int, layer),
                chosen,
                label=label,
                how=how,
                language=language,
                context=context,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                seed=seed,
                resume=resume,
                out=out,
                on_progress=on_progress,
            )
    for path in export_effects(mp.open_effects(out), out):
        print(path)


@app.command(name="import")
def import_(
    format_: Annotated[
        Literal["jsonl", "vllm", "sglang", "olmoe", "esft"],
        typer.Argument(metavar="FORMAT", help="jsonl, vllm, sglang, olmoe or esft."),
    ],
    path: Annotated[Path, typer.Argument(help="The file, or for esft the folder, that another tool wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    model: Annotated[str | None, typer.Option(help="Its name, or its folder, whose config.json gives sizes.")] = None,
    n_experts: Annotated[int | None, typer.Option(min=1, help="Experts a layer, where the file does not say.")] = None,
    n_slots: Annotated[int | None, typer.Option(min=1, help="Experts a token, where the file does not say.")] = None,
    n_layers: Annotated[int | None, typer.Option(min=1, help="Layers, where the file does not say.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A folder or a hub id, to make text of token ids.")] = None,
    labels: Annotated[str, typer.Option(help="Labels to give every token, separated by commas; they need text.")] = "",
    language: Language = None,
    resume: Annotated[bool, typer.Option(help="Go on with an import that was interrupted.")] = False,
) -> None:
    """Make a run of what another tool recorded: vLLM, SGLang, OLMoE's scripts, ESFT, or JSON lines."""
    from moe_probe.importers import import_and_say

    run = import_and_say(
        format_,
        path,
        out,
        model=model,
        n_experts=n_experts,
        n_slots=n_slots,
        n_layers=n_layers,
        tokenizer=tokenizer,
        labels=_names(labels),
        language=language,
        resume=resume,
    )
    _say_done(run)


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")] = Path("runs"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the web page; a free one if not given.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    model: Annotated[
        str | None, typer.Option(help="A model to offer for new traces, beside the bundled one: a folder or a hub id.")
    ] = None,
) -> None:
    """Open the explorer in a browser."""
    from moe_probe_app.serve import main as serve

    serve(run, port=port, open_browser=browser, model=model)


@app.command()
def demo(
    browser: Annotated[bool, typer.Option(help="Open the explorer when the trace is done.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the web page.")] = None,
) -> None:
    """Trace the sample texts with the bundled model in 4 bits, then open the explorer."""
    import moe_probe_data
    from moe_probe.progress import progress_bar

    language_model = mp.load("tiny-mixtral", quantization="4bit")
    with progress_bar() as on_progress:
        run = mp.trace(
            language_model,
            [moe_probe_data.SAMPLE],
            out,
            labels=("upos", "shape", "code", "domain"),
            language="en",
            resume=out.exists(),
            on_progress=on_progress,
        )
    _say_done(run)
    if browser:
        explore(out, port=port, browser=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the entry point of `moe-probe`."""
    try:
        status = app(list(arguments) if arguments is not None else None, standalone_mode=False)
    except MoeProbeError as error:
        _fail(str(error), error.exit_status)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"this needs {error.name}: pip install 'moe-probe[{extra}]'", 1)
    except KeyboardInterrupt:
        _fail("interrupted; whole shards are kept, --resume goes on", 1)
    except _UsageError as error:
        _fail(f"{' '.join(error.format_message().split())} (see moe-probe --help)", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print(f"moe-probe: {message}", file=sys.stderr)
    sys.exit(status)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(set(names)) < len(names):
        raise BadInputError(f"labels {text!r}: a label is named twice")
    return names


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise BadInputError(f"experts {text!r}: give their indices separated by commas, for example 3 or 0,2") from None


def _say_done(run: Run) -> None:
    print(
        f"{run.path}: {run.n_tokens:,} tokens of {run.n_documents:,} document(s) through {len(run.routers)} routers"
        + ("" if run.complete else "; not complete, --resume goes on")
    )
    print(f"look at it: moe-probe explore {run.path}")


if __name__ == "__main__":
    main()
