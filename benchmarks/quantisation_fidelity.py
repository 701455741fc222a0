"""What quantisation changes: which experts tokens go to, by layer, margin and label, and what that costs in surprisal.

The model is traced unquantised, in 8 and in 4 bits, over the same text, one of the three in memory at a time. Printed
are, for 8 and 4 bits each beside the unquantised model: experts in common, same first choice and same set, with 95 %
intervals and what chance gives; and what it costs in surprisal, paired token by token. Deciles are of the unquantised
model's margin, 1 the closest to a tie. Unquantised means what `mp.load` makes of it: 16 bits (bfloat16) on a GPU,
float32 on a CPU; the table says which, from the tensors themselves.

    python benchmarks/quantisation_fidelity.py [MODEL [CORPUS]] [--max-tokens N] [--device-map cpu] [--out DIR]

Without arguments: the bundled model on the bundled sample. With --out the runs are kept there, each can be resumed and
opened in the explorer, and agreement.csv, surprisal.csv, precision.csv and columns.csv are written beside them.

Mixtral-8x7B, for anyone with one GPU of 48 GB and 64 GB of main memory (the text: any files, folders or JSONL that
`moe-probe trace` reads):

    python benchmarks/quantisation_fidelity.py mistralai/Mixtral-8x7B-v0.1 TEXTS --max-tokens 100000 --out mixtral

Computed from its configuration, its weights take 93.4 GB in 16 bits, 47.0 in 8 and 24.5 in 4, and while loading 2.9 GB
more (a GB is 10^9 bytes). 4 bits fit the GPU. 8 bits fit where 49.9 GB are free, as on cards of 48 GiB (51.5 GB); where
they are not, that row is left out and said so, since quantised weights are not shuttled. Of the 16 bits as many layers
as fit lie on the GPU and the others in main memory, from where they are brought to the GPU for each batch: slower, but
the same numbers. The estimate is printed first. None of this was run on a GPU by its authors.
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import moe_probe as mp
from moe_probe.corpus import Input
from moe_probe.errors import ModelTooLargeError, MoeProbeError
from moe_probe.export import write_table
from moe_probe.models.fit import Need, accelerators, estimate, free_bytes, gigabytes, is_on_gpu
from moe_probe.models.sources import find_source
from moe_probe.progress import progress_bar
from moe_probe.store import Run
from moe_probe.tables.all_layers import ALL_LAYERS_COLUMNS, agreement_over_layers
from moe_probe.tables.between import AGREEMENT_COLUMNS, ALL, agreement_table, comparison_warnings
from moe_probe.tables.columns import Column, columns_table
from moe_probe.tables.paired import pair_runs
from moe_probe.tables.surprisal import SURPRISAL_COLUMNS, surprisal_table
from moe_probe_data.measure_tiny_mixtral import sample_documents

UNQUANTISED = "unquantised"
PRECISIONS = {UNQUANTISED: None, "8bit": "8bit", "4bit": "4bit"}
ON_GPU = 0.88  # of the free memory; the rest is for activations
MEASURES = {"set_overlap": "experts in common", "first_choice": "same first choice", "exact_set": "same set"}
PRECISION = Column("precision", pl.String, "8bit, 4bit", "What is compared with the unquantised model.")
EXPERT_BITS = Column(
    "expert_bits", pl.Float64, "bits", "Bits a parameter of the experts, statistics of the quantisation included."
)
OURS = (PRECISION, EXPERT_BITS)

DeviceMap = str | dict[str, str | int | torch.device]


@dataclass(frozen=True)
class Fidelity:
    """What was found; each frame has the columns `precision` and `expert_bits` first."""

    agreement: pl.DataFrame
    surprisal: pl.DataFrame
    precision: pl.DataFrame


def skeleton(model: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model without weights."""
    source = find_source(model)
    config = AutoConfig.from_pretrained(source.location, **source.arguments)
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return built


def layer_of(tensor: str) -> str:
    """Return the path of a tensor's layer, or of its own module where it lies in none."""
    path = tensor.split(".")
    number = next((place for place, piece in enumerate(path) if piece.isdigit()), None)
    return ".".join(path[:-1] if number is None else path[: number + 1])


def shuttled(bare: PreTrainedModel, need: Need, free: int, gpu: torch.device) -> dict[str, str | int | torch.device]:
    """Put what is in no layer, and as many layers as fit, on the GPU; the last layers in main memory.

    Room is left for one layer more, which is brought over when its turn comes, and for activations.
    """
    sizes: Counter[str] = Counter()
    for holding in need.held:
        sizes[layer_of(holding.name)] += holding.bytes
    left = ON_GPU * free - need.layer_bytes
    layers = [path for path in sizes if path.rpartition(".")[2].isdigit()]
    left -= sum(size for path, size in sizes.items() if path not in layers)
    # A head that is tied to the embedding takes nothing, but the loader asks where it is.
    places: dict[str, str | int | torch.device] = dict.fromkeys([*sizes, *map(layer_of, bare.state_dict())], gpu)
    for path in layers:
        left -= sizes[path]
        if left < 0:
            places[path] = "cpu"
    return places


def plan(model: str, device_map: str) -> dict[str, DeviceMap]:
    """Print what each precision takes and where it goes; return the device maps of those that can be traced."""
    gpus = accelerators() if device_map == "auto" else []
    bare = skeleton(model, torch.bfloat16 if is_on_gpu(device_map) else torch.float32)
    maps: dict[str, DeviceMap] = {}
    for name, quantization in PRECISIONS.items():
        need = estimate(bare, quantization)
        maps[name], where = device_map, f"device_map {device_map}"
        if gpus and need.peak_bytes > sum(map(free_bytes, gpus)):
            if quantization is None:
                gpu = max(gpus, key=free_bytes)
                maps[name] = spread = shuttled(bare, need, free_bytes(gpu), gpu)
                away = sum(place == "cpu" for place in spread.values())
                where = f"{away} layers in main memory, the others on {gpu}"
            else:
                del maps[name]
                where = f"left out, for only {gigabytes(sum(map(free_bytes, gpus)))} are free on the GPU"
        print(f"{name:12} {gigabytes(need.weight_bytes):>9}, while loading {gigabytes(need.peak_bytes):>9}: {where}")
    if set(maps) == {UNQUANTISED}:
        raise ModelTooLargeError(f"{model}: neither 8 nor 4 bits fit, so that there is nothing to compare")
    return maps


def trace_all(
    model: str,
    documents: Sequence[Input],
    maps: dict[str, DeviceMap],
    folder: Path,
    labels: Sequence[str],
    max_tokens: int | None,
) -> dict[str, Run]:
    """Trace the precisions one after another; go on with runs that are there."""
    runs = {}
    for name, device_map in maps.items():
        lm = mp.load(model, quantization=PRECISIONS[name], device_map=device_map)
        with progress_bar() as on_progress:
            runs[name] = mp.trace(
                lm,
                documents,
                folder / name,
                labels=labels if name == UNQUANTISED else (),  # the others are compared by its labels
                max_tokens=max_tokens,
                surprisal=True,
                resume=True,
                on_progress=on_progress,
            )
        del lm
        gc.collect()
        torch.cuda.empty_cache()
    return runs


def compare_all(runs: dict[str, Run], labels: Sequence[str]) -> Fidelity:
    """Compare each quantised run with the unquantised one."""
    agreed, foretold = [], []
    for name, run in runs.items():
        if name == UNQUANTISED:
            continue
        pair = pair_runs(runs[UNQUANTISED], run, labels)
        ours = [pl.lit(name).alias(PRECISION.name), pl.lit(experts(run)["bits_per_parameter"]).alias(EXPERT_BITS.name)]
        by_layer = agreement_table(pair, labels)
        both = pl.concat([agreement_over_layers(pair, by_layer, labels), by_layer], how="diagonal")
        agreed.append(both.select(*ours, pl.all()))
        foretold.append(surprisal_table(pair, labels).select(*ours, pl.all()))
    held = [
        pl.DataFrame(run.manifest["precision"]).select(pl.lit(name).alias(PRECISION.name), pl.all())
        for name, run in runs.items()
    ]
    return Fidelity(pl.concat(agreed), pl.concat(foretold), pl.concat(held))


def experts(run: Run) -> dict[str, object]:
    """Return how a run's experts were held."""
    row: dict[str, object] = next(row for row in run.manifest["precision"] if row["part"] == "experts")
    return row


def share(row: dict[str, object], name: str, form: str = ".1%") -> str:
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    interval = "" if low is None else f" ({low:{form}} to {high:{form}})"
    return f"{row[name]:{form}}{interval}"


def print_agreement(title: str, rows: pl.DataFrame, key: str) -> None:
    print(f"\n  {title}")
    print(f"    {'':14}" + "".join(f"{heading:<30}{'chance':<9}" for heading in MEASURES.values()) + "n")
    for row in rows.iter_rows(named=True):
        told = "".join(f"{share(row, name):<30}{row[f'{name}_chance']:<9.1%}" for name in MEASURES)
        print(f"    {str(row[key])[:13]:14}{told}{row['n']:,}")


def print_surprisal(rows: pl.DataFrame) -> None:
    print("\n  surprisal that it costs, bits a token")
    for row in rows.iter_rows(named=True):
        name = "all tokens" if row["label_set"] == ALL else f"{row['label_set']} {row['label']}"
        interval = "" if row["ci_low"] is None else f" ({row['ci_low']:+.4f} to {row['ci_high']:+.4f})"
        means = f"{row['surprisal_a']:7.3f} → {row['surprisal_b']:.3f}"
        changed = f"{row['difference']:+.4f}{interval}"
        print(f"    {name[:25]:26}{changed:32}{means}   n = {row['n']:,}")


def print_all(found: Fidelity, runs: dict[str, Run], labels: Iterable[str]) -> None:
    full = runs[UNQUANTISED]
    held = experts(full)
    print(f"\nunquantised: experts {held['dtype']}, {held['bits_per_parameter']:.2f} bits a parameter")
    for name in [name for name in runs if name != UNQUANTISED]:
        held = experts(runs[name])
        rows = found.agreement.filter(pl.col(PRECISION.name) == name)
        pooled = rows.filter(pl.col("layer").is_null())
        print(f"\n{name}: experts {held['dtype']}, {held['bits_per_parameter']:.2f} bits a parameter")
        for warning in comparison_warnings(full, runs[name]):
            print(f"  note: {warning}")
        layers = rows.filter(pl.col("layer").is_not_null(), label_set=ALL, decile=ALL)
        print_agreement("by layer", layers, "layer")
        print_agreement("all layers", pooled.filter(label_set=ALL, decile=ALL), "label")
        deciles = pooled.filter(pl.col("decile") != ALL)
        print_agreement("by tenth of the margin, 1 the closest to a tie, all layers", deciles, "decile")
        for label in labels:
            print_agreement(f"by {label}, all layers", pooled.filter(label_set=label), "label")
        print_surprisal(found.surprisal.filter(pl.col(PRECISION.name) == name))


def write(found: Fidelity, out: Path) -> None:
    """Write what was found, and what its columns mean."""
    merged = [*AGREEMENT_COLUMNS, next(column for column in ALL_LAYERS_COLUMNS if column.name == "routers")]
    empty = {"layer": " Empty: all layers together.", "router": " Empty: all of them together."}
    empty["n"] = " In rows of all layers: decisions, a token in a router being one."
    told = [column._replace(definition=column.definition + empty.get(column.name, "")) for column in merged]
    tables = {"agreement": found.agreement, "surprisal": found.surprisal, "precision": found.precision}
    tables["columns"] = columns_table({"agreement": [*OURS, *told], "surprisal": [*OURS, *SURPRISAL_COLUMNS]})
    for name, frame in tables.items():
        print(write_table(frame, out / f"{name}.csv"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-mixtral")
    parser.add_argument("corpus", nargs="*", help="files or folders; the bundled sample if left out")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--device-map", default="auto", help="auto, cpu, cuda:0, …")
    parser.add_argument("--labels", default="upos,domain", help="of the tokens, separated by commas")
    parser.add_argument("--out", type=Path, help="keeps the runs and the tables")
    given = parser.parse_args(arguments)
    labels = [name.strip() for name in given.labels.split(",") if name.strip()]
    documents = given.corpus or sample_documents()
    try:
        maps = plan(given.model, given.device_map)
        kept: AbstractContextManager[str] = nullcontext(str(given.out)) if given.out else tempfile.TemporaryDirectory()
        with kept as folder:
            runs = trace_all(given.model, documents, maps, Path(folder) / "runs", labels, given.max_tokens)
            full = runs[UNQUANTISED]
            print(f"{given.model}: {full.n_tokens:,} tokens of {full.n_documents:,} documents")
            found = compare_all(runs, labels)
            print_all(found, runs, labels)
            if given.out:
                write(found, given.out)
    except MoeProbeError as error:
        parser.exit(error.exit_status, f"{error}\n")


if __name__ == "__main__":
    main()
