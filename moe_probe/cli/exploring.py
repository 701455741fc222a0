"""`moe-probe explore` and `demo`: the web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import moe_probe as mp
from moe_probe.cli.options import Port, say_done


def explore(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of runs.")] = Path("runs"),
    port: Port = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    model: Annotated[
        str | None, typer.Option(help="A model to offer for new traces, beside the bundled one: a folder or a hub id.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Name or IPv4 address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            help="What every reader must know, 8 characters at least; better set MOE_PROBE_TOKEN, which is in no list"
            " of processes."
        ),
    ] = None,
) -> None:
    """Open the explorer in a browser."""
    from moe_probe_app.serve import main as serve

    serve(run, port=port, open_browser=browser, model=model, host=host, token=token)


def demo(
    browser: Annotated[bool, typer.Option(help="Open the explorer when the trace is done.")] = True,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    port: Port = None,
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
    say_done(run)
    if browser:
        explore(out, port=port, browser=True)
