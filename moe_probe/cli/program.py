"""The program `moe-probe`: its commands, its exit status, its errors.

Exit status: 0 done, 1 the work failed, 2 bad arguments or bad input. Errors are one line on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, cast

import typer

import moe_probe as mp
from moe_probe.cli.causing import ablate
from moe_probe.cli.exploring import demo, explore
from moe_probe.cli.telling import compare, export, info, report, saturation
from moe_probe.cli.tracing import import_, label, trace
from moe_probe.errors import MoeProbeError

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
    "ray": "cluster",
    "spacy": "trace",
    "streamlit": "explore",
    "torch": "trace",
    "transformers": "trace",
}

# What typer raises for wrong arguments; it exports only this child of it.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])


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


_COMMANDS: tuple[Callable[..., None], ...] = (
    trace,
    info,
    label,
    export,
    report,
    compare,
    saturation,
    ablate,
    import_,
    explore,
    demo,
)
for _command in _COMMANDS:
    app.command(name=_command.__name__.rstrip("_"))(_command)


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
