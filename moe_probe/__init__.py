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
    "Profile": "tracing",
    "Router": "schema",
    "RouterSite": "recording",
    "Routing": "recording",
    "RoutingError": "errors",
    "Run": "store",
    "RunError": "errors",
    "SiteRecording": "recording",
    "UnsupportedModelError": "errors",
    "ablate": "intervening",
    "affinity": "tables",
    "agreement": "tables",
    "balance": "tables",
    "coactivation": "tables",
    "compare_runs": "comparing",
    "comparison_warnings": "tables",
    "divergence": "tables",
    "effect": "effects",
    "effect_map": "effects",
    "effect_table": "effects",
    "expert_names": "tables",
    "export_csv": "export",
    "find_routers": "recording",
    "force": "intervening",
    "generate_and_trace": "tracing",
    "import_run": "importers",
    "label_table": "tables",
    "load": "models",
    "load_counts": "counts",
    "load_table": "tables",
    "open_effects": "effects",
    "open_run": "store",
    "paths": "tables",
    "position": "tables",
    "read_documents": "corpus",
    "record": "recording",
    "repetition": "tables",
    "reroute": "intervening",
    "saturation": "tables",
    "show": "notebook",
    "specialisation": "tables",
    "surprisal_difference": "tables",
    "trace": "tracing",
    "transitions": "tables",
    "vocabulary": "tables",
    "vocabulary_summary": "tables",
    "write_report": "report",
    "write_run": "importers",
    "write_saturation": "comparing",
    "write_text_page": "tokenview.page",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from moe_probe.comparing import compare_runs as compare_runs
    from moe_probe.comparing import write_saturation as write_saturation
    from moe_probe.corpus import Document as Document
    from moe_probe.corpus import read_documents as read_documents
    from moe_probe.counts import load_counts as load_counts
    from moe_probe.effects import effect as effect
    from moe_probe.effects import effect_map as effect_map
    from moe_probe.effects import effect_table as effect_table
    from moe_probe.effects import open_effects as open_effects
    from moe_probe.errors import BadInputError as BadInputError
    from moe_probe.errors import ModelTooLargeError as ModelTooLargeError
    from moe_probe.errors import MoeProbeError as MoeProbeError
    from moe_probe.errors import RoutingError as RoutingError
    from moe_probe.errors import RunError as RunError
    from moe_probe.errors import UnsupportedModelError as UnsupportedModelError
    from moe_probe.export import export_csv as export_csv
    from moe_probe.importers import import_run as import_run
    from moe_probe.importers import write_run as write_run
    from moe_probe.intervening import ablate as ablate
    from moe_probe.intervening import force as force
    from moe_probe.intervening import reroute as reroute
    from moe_probe.models import LanguageModel as LanguageModel
    from moe_probe.models import load as load
    from moe_probe.notebook import show as show
    from moe_probe.recording import RouterSite as RouterSite
    from moe_probe.recording import Routing as Routing
    from moe_probe.recording import SiteRecording as SiteRecording
    from moe_probe.recording import find_routers as find_routers
    from moe_probe.recording import record as record
    from moe_probe.report import write_report as write_report
    from moe_probe.schema import LabelSet as LabelSet
    from moe_probe.schema import Router as Router
    from moe_probe.store import Run as Run
    from moe_probe.store import open_run as open_run
    from moe_probe.tables import affinity as affinity
    from moe_probe.tables import agreement as agreement
    from moe_probe.tables import balance as balance
    from moe_probe.tables import coactivation as coactivation
    from moe_probe.tables import comparison_warnings as comparison_warnings
    from moe_probe.tables import divergence as divergence
    from moe_probe.tables import expert_names as expert_names
    from moe_probe.tables import label_table as label_table
    from moe_probe.tables import load_table as load_table
    from moe_probe.tables import paths as paths
    from moe_probe.tables import position as position
    from moe_probe.tables import repetition as repetition
    from moe_probe.tables import saturation as saturation
    from moe_probe.tables import specialisation as specialisation
    from moe_probe.tables import surprisal_difference as surprisal_difference
    from moe_probe.tables import transitions as transitions
    from moe_probe.tables import vocabulary as vocabulary
    from moe_probe.tables import vocabulary_summary as vocabulary_summary
    from moe_probe.tokenview.page import write_text_page as write_text_page
    from moe_probe.tracing import Profile as Profile
    from moe_probe.tracing import generate_and_trace as generate_and_trace
    from moe_probe.tracing import trace as trace


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'moe_probe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"moe_probe.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
