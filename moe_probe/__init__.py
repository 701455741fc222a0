"""moe_probe: which expert every token was really sent to, and what each expert of a Mixture-of-Experts is an expert in.

Names are loaded when they are first used, so that `import moe_probe` costs nothing and needs neither torch nor Polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "BadInputError": "errors",
    "Document": "corpus",
    "LabelSet": "schema",
    "LanguageModel": "models",
    "ModelTooLargeError": "errors",
    "MoeProbeError": "errors",
    "Router": "schema",
    "Routing": "recording",
    "RoutingError": "errors",
    "Run": "store",
    "RunError": "errors",
    "UnsupportedModelError": "errors",
    "balance": "tables",
    "export_csv": "export",
    "find_routers": "recording",
    "load": "models",
    "load_counts": "counts",
    "open_run": "store",
    "read_documents": "corpus",
    "record": "recording",
    "specialisation": "tables",
    "trace": "tracing",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from moe_probe.corpus import Document as Document
    from moe_probe.corpus import read_documents as read_documents
    from moe_probe.counts import load_counts as load_counts
    from moe_probe.errors import BadInputError as BadInputError
    from moe_probe.errors import ModelTooLargeError as ModelTooLargeError
    from moe_probe.errors import MoeProbeError as MoeProbeError
    from moe_probe.errors import RoutingError as RoutingError
    from moe_probe.errors import RunError as RunError
    from moe_probe.errors import UnsupportedModelError as UnsupportedModelError
    from moe_probe.export import export_csv as export_csv
    from moe_probe.models import LanguageModel as LanguageModel
    from moe_probe.models import load as load
    from moe_probe.recording import Routing as Routing
    from moe_probe.recording import find_routers as find_routers
    from moe_probe.recording import record as record
    from moe_probe.schema import LabelSet as LabelSet
    from moe_probe.schema import Router as Router
    from moe_probe.store import Run as Run
    from moe_probe.store import open_run as open_run
    from moe_probe.tables import balance as balance
    from moe_probe.tables import specialisation as specialisation
    from moe_probe.tracing import trace as trace


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"moe_probe.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
