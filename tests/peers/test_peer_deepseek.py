"""A real trace of a real model: DeepSeek-MoE 16B, ten prompts, 27 layers, 6 of 64 experts, counted twice.

Data: github.com/Resource-Efficient-AI-Lab/MoELens, deepseek_routing_trace (MIT). Its weights come sorted. The oracle is
Python's sets, token by token.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from reference_data import reference

sys.path.insert(0, str(Path(__file__).parents[1]))

from hand_made_runs import write_run

from moe_probe.counts import load_counts
from moe_probe.counts.pairs import iter_coactivation_counts
from moe_probe.measures.repetition import repetition
from moe_probe.store import Run

N_EXPERTS, N_SLOTS = 64, 6
Prompt = dict[str, list]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    lines = reference("deepseek_moe_16b_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(
        Path(tmp_path_factory.mktemp("deepseek")) / "run",
        [np.concatenate([np.array(prompt["experts"][layer]) for prompt in prompts]) for layer in range(27)],
        weights=[np.concatenate([np.array(prompt["weights"][layer]) for prompt in prompts]) for layer in range(27)],
        n_experts=N_EXPERTS,
        documents=np.repeat(np.arange(len(prompts)), [len(prompt["tokens"]) for prompt in prompts]),
        token=[token for prompt in prompts for token in prompt["tokens"]],
        layers=prompts[0]["layers"],
        names=[prompt["prompt"] for prompt in prompts],
    )


def test_the_trace_has_the_shape_that_its_source_says(run: Run):
    assert (run.n_tokens, len(run.routers), run.n_documents) == (87, 27, 10)
    assert [router.layer for router in run.routers] == list(range(1, 28))


def test_loads_are_those_of_a_plain_count(run: Run, prompts: list[Prompt]):
    for slots in ("any", 0):
        counts = load_counts(run, "phase", slots, "all")
        for layer in range(27):
            rows = [row if slots == "any" else row[:1] for prompt in prompts for row in prompt["experts"][layer]]
            plain = Counter(expert for row in rows for expert in row)
            assert counts[layer].sum(axis=1).tolist() == [plain[expert] for expert in range(N_EXPERTS)]


def test_the_first_choice_is_the_most_probable_expert(run: Run, prompts: list[Prompt]):
    with np.load(reference("deepseek_moe_16b_gate_probabilities.npz")) as file:
        probabilities = np.concatenate([file[f"prompt_{number}"] for number in range(len(prompts))], axis=1)
    for layer in range(27):
        experts = run.experts(router=layer)
        chosen = np.take_along_axis(probabilities[layer], experts, axis=1)
        assert (np.diff(chosen, axis=1) <= 1e-6).all()
        assert chosen[:, 0] == pytest.approx(probabilities[layer].max(axis=1), abs=1e-6)


def test_pairs_are_those_of_sets_token_by_token(run: Run, prompts: list[Prompt]):
    for (router, counts), layer in zip(iter_coactivation_counts(run), range(27), strict=True):
        plain: Counter[tuple[int, int]] = Counter()
        for prompt in prompts:
            for chosen in prompt["experts"][layer]:
                plain.update(combinations(sorted(chosen), 2))
        together = counts.together.sum(axis=0)
        assert router.index == layer
        assert {(a, b): int(together[a, b]) for a, b in zip(*np.nonzero(np.triu(together)), strict=True)} == plain


def test_repetition_is_that_of_sets_token_by_token(run: Run, prompts: list[Prompt]):
    document = np.repeat(np.arange(len(prompts)), [len(prompt["tokens"]) for prompt in prompts])
    position = np.concatenate([np.arange(len(prompt["tokens"])) for prompt in prompts])
    for layer in range(27):
        same, met = [], []
        for prompt in prompts:
            rows = prompt["experts"][layer]
            for before, after in pairwise(rows):
                same.append(before[0] == after[0])
                met.append(bool(set(before) & set(after)))
        found = repetition(run.experts(router=layer), document, position, position, N_EXPERTS)
        assert found.pairs == len(same) == 77
        assert (found.first.value, found.either.value) == pytest.approx((np.mean(same), np.mean(met)), abs=1e-12)
