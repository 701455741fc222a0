"""Measure the bundled model on held-out text beside the same model untrained, and write its card.

    python -m moe_probe_data.measure_tiny_mixtral --training OUT --target data

OUT is the folder that train_tiny_mixtral.py wrote. The target gets tiny-mixtral/README.md and checkpoint-runs/. Knows
nothing of training or Markdown; the measures themselves are moe_probe's.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

import moe_probe as mp
from moe_probe.measures.intervals import Estimate
from moe_probe.measures.repetition import Repetition, repetition
from moe_probe.measures.specialisation import (
    Information,
    count_pairs,
    held_out_bits,
    mutual_information_bits,
    type_folds,
    type_level_bits,
    whole_unit_null_bits,
)
from moe_probe_data import SAMPLE, card
from moe_probe_data.corpora import Text, read_corpora
from moe_probe_data.train_tiny_mixtral import Recipe, encode, held_out_loss, tokens_seen

LANGUAGES = {"french": "fr", "german": "de", "python": "python"} | dict.fromkeys(
    ("english", "technical", "science", "mathematics"), "en"
)
NOT_A_TAG = ("continuation", "whitespace", "special", "untagged")
DOMAIN_TOKENS = 12_000  # as many of every domain, so that I(expert; domain) does not depend on the mixture
DOCUMENT_TOKENS = 1_200
SINKS = 4  # the first tokens of a window route oddly


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer's first choices know. Bits above chance, shares, each with its 95 % interval."""

    pos_types: Information | None
    pos_held_out: Estimate | None
    pos_occurrences: Information | None
    domain: Information | None
    domain_document_null: float | None
    repetition: dict[str, Repetition | None]
    load: NDArray[np.float64]  # (experts,) shares of assignments, held-out text of all domains alike


def held_out_documents(corpora: dict[str, list[Text]]) -> list[mp.Document]:
    """Return what the model never saw: English in full, of the other domains what the measures need."""
    documents = []
    for domain, texts in corpora.items():
        characters = 0
        for text in (t for t in texts if t.held_out):
            in_full = LANGUAGES.get(domain) == "en" and domain != "mathematics"
            body = text.text if in_full else text.text[:8_000]
            if in_full or characters < 120_000:
                characters += len(body)
                documents.append(mp.Document(text.name, body, domain=domain, language=LANGUAGES.get(domain)))
    return documents


def sample_documents() -> list[mp.Document]:
    """Return the sample corpus with its languages, so that French and German get no English tags."""
    documents = mp.read_documents(SAMPLE)
    return [dataclasses.replace(found, language=found.language or LANGUAGES[str(found.domain)]) for found in documents]


def measure_run(run: mp.Run) -> list[Layer]:
    """Measure every layer of a run of the held-out documents."""
    tokens = run.tokens().with_row_index("row").filter(pl.col("window_position") >= SINKS)
    documents = run.documents().select("document", "domain")
    if "domain" not in tokens.columns:
        tokens = tokens.join(documents, on="document", maintain_order="left")
    return [_measure_layer(tokens, run.experts(router=router.index), router.n_experts) for router in run.routers]


def _measure_layer(tokens: pl.DataFrame, experts: NDArray[np.int32], n_experts: int) -> Layer:
    english = tokens.filter(pl.col("domain").cast(pl.String).is_in(["english", "technical"]))
    words = english.filter(pl.col("word_initial") & ~pl.col("upos").cast(pl.String).is_in(NOT_A_TAG))
    balanced = _balanced(tokens)
    first = experts[:, 0]
    types = _codes(words["token_id"])
    names = [str(words["token"][int(i)]) for i in np.unique(types, return_index=True)[1]]
    tags = _codes(words["upos"].cast(pl.String))
    chosen = first[words["row"].to_numpy()]
    expert_counts = count_pairs(types, chosen, (len(names), n_experts))
    label_counts = count_pairs(types, tags, (len(names), int(tags.max()) + 1))
    folds = type_folds(names)
    units = _codes(balanced["document"])
    domains = _codes(balanced["domain"].cast(pl.String))
    of_unit = domains[np.unique(units, return_index=True)[1]]
    domain_experts = first[balanced["row"].to_numpy()]
    assigned = experts[balanced["row"].to_numpy()]
    return Layer(
        pos_types=type_level_bits(expert_counts, label_counts, folds),
        pos_held_out=held_out_bits(expert_counts, label_counts, folds),
        pos_occurrences=mutual_information_bits(_by_cluster(_codes(words["document"]), chosen, tags, n_experts)),
        domain=mutual_information_bits(_by_cluster(units, domain_experts, domains, n_experts)),
        domain_document_null=whole_unit_null_bits(
            count_pairs(units, domain_experts, (int(units.max()) + 1, n_experts)), of_unit
        ),
        repetition={
            str(domain): _repetition(part, experts, n_experts)
            for (domain,), part in sorted(
                balanced.group_by("domain", maintain_order=True), key=lambda item: str(item[0])
            )
        },
        load=np.bincount(assigned.ravel(), minlength=n_experts) / assigned.size,
    )


def _balanced(tokens: pl.DataFrame) -> pl.DataFrame:
    """The first tokens of each document, as many of every domain."""
    head = tokens.filter(pl.col("position") < DOCUMENT_TOKENS)
    return head.filter(pl.int_range(pl.len()).over("domain") < DOMAIN_TOKENS)


def _codes(column: pl.Series) -> NDArray[np.int64]:
    return np.unique(column.to_numpy(), return_inverse=True)[1].astype(np.int64)


def _by_cluster(
    clusters: NDArray[np.int64], experts: NDArray[np.int32], labels: NDArray[np.int64], n_experts: int
) -> NDArray[np.int64]:
    """Count (clusters, experts, labels)."""
    n_labels = int(labels.max()) + 1
    n_clusters = int(clusters.max()) + 1
    return count_pairs(clusters, experts * n_labels + labels, (n_clusters, n_experts * n_labels)).reshape(
        n_clusters, n_experts, n_labels
    )


def _repetition(part: pl.DataFrame, experts: NDArray[np.int32], n_experts: int) -> Repetition | None:
    return repetition(
        experts[part["row"].to_numpy()],
        part["document"].to_numpy(),
        part["position"].to_numpy(),
        part["window_position"].to_numpy(),
        n_experts,
    )


def losses(folder: Path, corpora: dict[str, list[Text]], window: int) -> dict[str, float]:
    """Return the held-out loss of a saved model, in nats per token and domain."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    streams = {domain: encode((t for t in texts if t.held_out), tokenizer) for domain, texts in corpora.items()}
    return held_out_loss(model, streams, window, windows=10_000 // window)


def trace(model: Path, documents: Iterable[mp.Document], out: Path, quantization: str | None = None) -> mp.Run:
    """Trace one model from scratch, replacing a run that is there."""
    shutil.rmtree(out, ignore_errors=True)
    language_model = mp.load(str(model), quantization=quantization)
    return mp.trace(language_model, list(documents), out, labels=("upos", "shape", "domain"))


def precision_agreement(training: Path, scratch: Path) -> dict[str, float]:
    """Return the share of first choices on the sample corpus, all layers, that are those of the float32 weights."""
    full = scratch / "float32"
    model = AutoModelForCausalLM.from_pretrained(training / "final", dtype=torch.float32)
    model.load_state_dict(torch.load(training / "checkpoint.pt", weights_only=True)["model"])
    model.save_pretrained(full)
    AutoTokenizer.from_pretrained(training / "final").save_pretrained(full)
    reference = trace(full, sample_documents(), scratch / "run-float32")
    runs = {"float16 weights, as bundled": trace(training / "final", sample_documents(), scratch / "run-float16")}
    for bits in ("8bit", "4bit"):
        runs[f"{bits[0]}-bit experts"] = trace(
            training / "final", sample_documents(), scratch / f"run-{bits}", quantization=bits
        )
    return {
        name: float(
            np.mean([run.experts(router=r.index)[:, 0] == reference.experts(router=r.index)[:, 0] for r in run.routers])
        )
        for name, run in runs.items()
    }


def trace_checkpoints(training: Path, target: Path) -> list[str]:
    """Trace the earlier checkpoints on the sample corpus into `target`; only the runs are kept, not the weights."""
    steps = sorted(training.glob("step-*"))
    for folder in steps:
        run = target.resolve() / folder.name
        with contextlib.chdir(training):  # so that the run says step-001800 and not where that lay
            trace(Path(folder.name), sample_documents(), run)
        shutil.rmtree(run / "counts", ignore_errors=True)
    return [folder.name for folder in steps]


def facts(training: Path, recipe: dict[str, Any], checkpoints: list[str]) -> dict[str, Any]:
    """Return what the card says about the model and its training beside the recipe."""
    model = AutoModelForCausalLM.from_pretrained(training / "final")
    log = [json.loads(line) for line in (training / "log.jsonl").read_text().splitlines()]
    speed = [row["tokens_per_second"] for row in log if "tokens_per_second" in row][-1]
    domains = sorted(recipe["training_tokens"])
    fields = {field.name: recipe[field.name] for field in dataclasses.fields(Recipe)}
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "k": model.config.num_experts_per_tok,
        "tokens_per_second": speed,
        "minutes": recipe["steps"] * recipe["batch"] * recipe["window"] / speed / 60,
        "seen": tokens_seen(domains, Recipe(**fields)),
        "checkpoints": checkpoints,
        "even_guess": math.log(recipe["vocabulary"]),
        "domain_entropy": math.log2(len(domains)),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the bundled model and write its card. See data/README.md.")
    parser.add_argument("--training", type=Path, required=True, help="the --out of train_tiny_mixtral")
    parser.add_argument("--target", type=Path, required=True, help="the folder data/ of the repository")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more do not help so small a model, and on a busy machine they wait for each other
    training: Path = arguments.training
    corpora = read_corpora()
    documents = held_out_documents(corpora)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        agreement = precision_agreement(training, scratch)
        layers = {
            name: measure_run(trace(training / path, documents, scratch / path))
            for name, path in (("trained", "final"), ("untrained", "untrained"))
        }
    loss = {
        (name, window): losses(training / path, corpora, window)
        for name, path in (("trained", "final"), ("untrained", "untrained"))
        for window in (256, 1024)
    }
    checkpoints = trace_checkpoints(training, arguments.target / "checkpoint-runs")
    recipe = json.loads((training / "recipe.json").read_text())
    written = card.write_card(facts(training, recipe, checkpoints), corpora, recipe, loss, layers, agreement)
    (arguments.target / "tiny-mixtral" / "README.md").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
