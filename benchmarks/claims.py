"""What the bundled model says of the literature's claims, beside the same model before training.

    python benchmarks/claims.py [--out DIR]

Traces held-out text (`moe_probe_data.corpora` says which Debian packages it is read from) with the bundled model and
with the untrained one, which a seed makes anew, and prints the table of the README: how much a router's first choice
tells of the part of speech *within* one domain, how many expert × part-of-speech cells are specialised, how much it
tells of the domain, and by how much neighbours are more alike than their tokens make them. Claim: no layer of the
untrained model has a specialised cell within the domain, or a bit that holds on unseen words.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import polars as pl
import torch

import moe_probe as mp
from moe_probe_data import MODEL
from moe_probe_data.corpora import CorpusMissingError, read_corpora
from moe_probe_data.measure_tiny_mixtral import held_out_documents
from moe_probe_data.train_tiny_mixtral import Recipe, new_model

DOMAIN = "english"
NAMES = ("trained", "untrained")


def untrained(folder: Path) -> Path:
    """Write the model as it was before its first step."""
    new_model(Recipe(steps=1)).save_pretrained(folder)
    mp.load(str(MODEL)).tokenizer.save_pretrained(folder)
    return folder


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval, for a table."""
    if value is None:
        return "–"
    ends = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{value:.2f}{ends}".replace("-0.00", "0.00").replace("-", "−")


def facts(run: mp.Run) -> dict[str, list[str]]:
    """Return the columns of the table, a value a layer, and what decides the claim."""
    syntax = mp.specialisation(run, "upos").filter(domain=DOMAIN).sort("router")
    cells = mp.label_table(run, "upos").filter(domain=DOMAIN, slot="0")
    counted = cells.group_by("router").agg(
        specialised=(pl.col("verdict") == "specialised").sum(),
        documents=(pl.col("q_value") < 0.05).sum(),
        tested=pl.col("type_q_value").is_not_null().sum(),
    )
    counted = counted.sort("router")
    domain = mp.specialisation(run, "domain", within=False).sort("router")
    alike = mp.repetition(run).filter(domain="all").sort("router")
    return {
        "type level": [
            interval(*row) for row in syntax.select("type_level_bits", "type_ci_low", "type_ci_high").rows()
        ],
        "unseen words": [
            interval(*row) for row in syntax.select("held_out_bits", "held_out_ci_low", "held_out_ci_high").rows()
        ],
        "by occurrence": [interval(value, None, None) for value in syntax["mutual_information_bits"]],
        "cells": [f"{one} of {of}" for one, of in counted.select("specialised", "tested").rows()],
        "cells, documents only": [f"{one}" for one in counted["documents"]],
        "domain": [interval(*row) for row in domain.select("type_level_bits", "type_ci_low", "type_ci_high").rows()],
        "neighbours": [
            interval(*row) for row in alike.select("excess_first", "excess_ci_low", "excess_ci_high").rows()
        ],
        "_holds": [str(one > 0) for one in syntax["held_out_ci_low"]],
        "_cells": [str(one) for one in counted["specialised"]],
    }


def main() -> None:
    """Trace, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the two runs here, and use those that are there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.out or Path(scratch)
        models = {"trained": MODEL, "untrained": untrained(Path(scratch) / "model")}
        try:
            documents = held_out_documents(read_corpora())
        except CorpusMissingError as error:
            print(f"not measured: {error}")
            return
        found = {}
        for name, model in models.items():
            if (folder / name / "run.json").exists():
                run = mp.open_run(folder / name)
            else:
                run = mp.trace(mp.load(str(model)), documents, folder / name, labels=("upos", "shape", "domain"))
            found[name] = facts(run)
    columns = [name for name in found["trained"] if not name.startswith("_")]
    print("| layer | " + " | ".join(f"{name}, {which}" for name in columns for which in NAMES) + " |")
    print("|---" * (1 + 2 * len(columns)) + "|")
    for layer in range(len(found["trained"]["domain"])):
        print(f"| {layer} | " + " | ".join(found[which][name][layer] for name in columns for which in NAMES) + " |")
    none = set(found["untrained"]["_holds"]) == {"False"} and set(found["untrained"]["_cells"]) == {"0"}
    some = "0" not in found["trained"]["_cells"]
    print(f"untrained: no specialised cell within {DOMAIN}, no bit on unseen words: {'held' if none else 'MISSED'}")
    print(f"trained: specialised cells in every layer: {'held' if some else 'MISSED'}")
    sys.exit(not (none and some))


if __name__ == "__main__":
    main()
