"""The command line: parse, make one call of the Python API, print.

- `options`: what several commands take, and how it is read
- `tracing`: trace, label, import
- `telling`: info, export, report, compare, saturation
- `causing`: ablate
- `exploring`: explore, demo
- `program`: all of them as `moe-probe`, its exit status and its one-line errors

It knows no model, no file format and no measure.
"""

from moe_probe.cli.program import app, main

__all__ = ["app", "main"]
