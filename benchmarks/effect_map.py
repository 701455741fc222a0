"""What switching an expert off costs: beside a forward from its layer upward, and the whole map of the bundled model.

Claims: a pass of the effect map takes at most 1.15 × a forward from the changed layer upward, so that the layers below
are not computed again; the map of the bundled model on the sample corpus takes less than 10 minutes on two cores.

The rival is the same model with its lower layers cut off, fed with the hidden states that they gave: what a forward
from that layer upward costs if nothing else is done, head and surprisal included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import moe_probe as mp
from moe_probe.effects.batches import Batches
from moe_probe.effects.passes import Pass, changed_pass, plain_pass
from moe_probe.effects.prefix import Kept, find_layers
from moe_probe.recording.routers import find_routers
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import surprisal_bits
from moe_probe_data import SAMPLE


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def upper_half(lm: mp.LanguageModel, batch: object, kept: Kept, first: int) -> Callable[[], object]:
    """Return a forward of the layers from `first` on, by hand."""
    model = lm.model.model
    hidden = kept.output_below(first)
    if hidden is None:
        hidden = model.embed_tokens(torch.from_numpy(batch.ids))
    positions = torch.arange(hidden.shape[1])[None].expand(hidden.shape[0], -1)
    mask = torch.from_numpy(batch.mask) if batch.is_padded else None

    def run() -> object:
        with torch.inference_mode():
            from transformers.masking_utils import create_causal_mask

            causal = create_causal_mask(
                config=model.config,
                inputs_embeds=hidden,
                attention_mask=mask,
                cache=None,
                position_ids=positions,
            )
            rotary = model.rotary_emb(hidden, positions)
            state = hidden
            for layer in model.layers[first:]:
                state = layer(state, attention_mask=causal, position_ids=positions, position_embeddings=rotary)
            return surprisal_bits(lm, model.norm(state), batch)

    return run


def main() -> None:
    """Time passes layer by layer, then the whole map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lm = mp.load("tiny-mixtral")
    layers = find_layers(lm.model, find_routers(lm.model))
    with tempfile.TemporaryDirectory() as folder:
        run = mp.trace(lm, [SAMPLE], Path(folder) / "run", labels=("shape",), language="en")
        prefix = Encoder(lm.tokenizer, lm.name, 2**31).prefix
        batches = Batches(run, prefix, "shape", batch_tokens=2_048, seed=0)
        batch, kept = batches.batch(0), Kept()
        plain_pass(lm, batch, layers, kept)
        ratios = {}
        for layer in range(len(layers)):
            one = Pass(layer, layer, (0,))
            rival = upper_half(lm, batch, kept, layer)
            pairs = []
            for _ in range(asked.repeats):
                theirs = seconds(rival)
                ours = seconds(lambda one=one: changed_pass(lm, batch, layers, kept, one, how="ablate", seed=(0,)))
                pairs.append(ours / theirs)
            ratios[layer] = statistics.median(pairs)
            print(f"layer {layer}: {ratios[layer]:.3f} × a forward from there upward")
        start = time.perf_counter()
        measured = mp.effect_map(lm, [SAMPLE], Path(folder) / "map", label="shape", language="en")
        minutes = (time.perf_counter() - start) / 60
        n_passes = len(measured.manifest["passes"])
    print(f"the whole map: {minutes:.1f} minutes, {n_passes} passes over {run.n_tokens:,} tokens")
    claims = {"pass ≤ 1.15 × a forward upward": max(ratios.values()) <= 1.15, "map < 10 minutes": minutes < 10}
    for claim, held in claims.items():
        print(f"{claim}: {'held' if held else 'MISSED'}")
    sys.exit(not all(claims.values()))


if __name__ == "__main__":
    main()
