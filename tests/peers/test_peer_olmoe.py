"""OLMoE's published counts give the paper's percentages, and its scripts' measures are ours in their exact modes.

Counts: github.com/allenai/OLMoE, scripts/routing_output (Apache-2.0), 208,896 tokens of each of five domains, first,
middle and last layer of OLMoE-1B-7B and of Mixtral 8x7B. Paper: Muennighoff et al. 2024 (arXiv 2409.02060), section 5.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from reference_data import reference
from scipy import stats
from sklearn.metrics import mutual_info_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from hand_made_runs import write_run

from moe_probe.counts.pairs import iter_coactivation_counts
from moe_probe.measures.agreement import agreements
from moe_probe.measures.association import cramers_v, information_bits
from moe_probe.measures.balance import load_balance
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.coactivation import coactivation
from moe_probe.measures.lift import label_lift
from moe_probe.measures.shares import clustered_shares
from moe_probe.measures.vocabulary import chance_top_shares, top_shares
from moe_probe.tables.load import load_table

TOKENS = 208_896
DOMAINS = ("github", "arxiv", "c4", "book", "wikipedia")
SLOTS = {"mixtral_8x7b": 2, "olmoe_1b_7b": 8}

# Typed from the published counts: Mixtral's assignments by domain and expert, first layer, both choices.
MIXTRAL_ARXIV_FIRST_LAYER = (55_713, 52_019, 52_619, 50_522, 44_401, 66_285, 44_770, 51_463)
OLMOE_ARXIV_FIRST_LAYER_EXPERT_0 = 204_013  # of 208,896 tokens, eight choices each: 97.66 %


def published(model: str, which: str = "all") -> np.ndarray:
    """(domains, layers, experts)."""
    with np.load(reference("olmoe_paper_expert_counts.npz")) as file:
        return np.stack([file[f"{model}/{which}/{domain}"] for domain in DOMAINS])


def test_typed_counts_give_the_papers_percentages():
    counts = np.array([OLMOE_ARXIV_FIRST_LAYER_EXPERT_0, 8 * TOKENS - OLMOE_ARXIV_FIRST_LAYER_EXPERT_0])
    assert round(100 * 8 * clustered_shares(counts[None]).share[0], 2) == 97.66
    mixtral = np.array(MIXTRAL_ARXIV_FIRST_LAYER)
    assert mixtral.sum() == 2 * TOKENS
    shares = 2 * clustered_shares(mixtral[None]).share
    assert [round(100 * share, 1) for share in shares] == [26.7, 24.9, 25.2, 24.2, 21.3, 31.7, 21.4, 24.6]


def test_the_load_table_in_olmoes_convention_gives_the_papers_percentage(tmp_path):
    # Expert 0 holds a slot of 125 of 128 tokens, 97.66 %, as in OLMoE's first layer on arXiv; uniform is 8 of 64.
    rng = np.random.default_rng(0)
    experts = np.stack([1 + rng.permutation(63)[:8] for _ in range(128)])
    experts[:125, 5] = 0
    run = write_run(tmp_path / "run", [experts], n_experts=64)
    row = load_table(run, convention="olmoe").filter(slot="any", expert=0).row(0, named=True)
    assert (round(100 * row["share"], 2), row["uniform"], row["assignments"]) == (97.66, 0.125, 125)
    row = load_table(run).filter(slot="any", expert=0).row(0, named=True)
    assert (round(100 * row["share"], 2), row["uniform"]) == (12.21, 1 / 64)


@pytest.mark.parametrize("model", SLOTS)
def test_published_counts_give_shares_of_tokens_as_published(model):
    for which, n_slots in (("all", SLOTS[model]), ("first", 1)):
        counts = published(model, which)
        assert (counts.sum(axis=2) == n_slots * TOKENS).all()
        for of_layer in counts.reshape(-1, counts.shape[2]):
            assert n_slots * clustered_shares(of_layer[None]).share == pytest.approx(of_layer / TOKENS, abs=1e-15)


def test_published_counts_reach_the_papers_extremes():
    olmoe, mixtral = published("olmoe_1b_7b") / TOKENS, published("mixtral_8x7b") / TOKENS
    assert round(100 * olmoe[DOMAINS.index("arxiv"), 0, 0], 2) == 97.66
    assert olmoe.max() == olmoe[DOMAINS.index("arxiv"), 0, 0]
    assert round(100 * mixtral.max(), 1) == 33.2
    assert tuple(published("mixtral_8x7b")[DOMAINS.index("arxiv"), 0]) == MIXTRAL_ARXIV_FIRST_LAYER
    assert published("olmoe_1b_7b")[DOMAINS.index("arxiv"), 0, 0] == OLMOE_ARXIV_FIRST_LAYER_EXPERT_0


def test_on_real_mixtral_counts_significance_is_huge_and_the_effect_tiny():
    for layer, (chi_squared, bits) in enumerate([(8_935, 0.0031), (10_830, 0.0037), (25_772, 0.0089)]):
        table = published("mixtral_8x7b")[:, layer].T  # (experts, domains)
        found = stats.chi2_contingency(table)
        assert round(found.statistic) == chi_squared
        v = cramers_v(table, corrected=False)
        assert v == pytest.approx(math.sqrt(found.statistic / table.sum() / 4), abs=1e-12)
        assert 0.03 < v < 0.06
        assert cramers_v(table) == pytest.approx(v, abs=2e-4)  # the correction is nothing at this size
        assert information_bits(table) == pytest.approx(mutual_info_score(None, None, contingency=table) / math.log(2))
        assert information_bits(table) == pytest.approx(bits, abs=1e-4)


@pytest.mark.parametrize("model", SLOTS)
def test_lift_and_balance_of_real_counts_are_what_scipy_and_algebra_give(model):
    table = published(model)[:, 2].T
    expected = stats.contingency.expected_freq(table)
    assert label_lift(table).lift == pytest.approx(table / expected, rel=1e-12)
    assert cell_estimates(np.stack([table, table[:, ::-1]])).expected == pytest.approx(
        stats.contingency.expected_freq(table + table[:, ::-1]), rel=1e-12
    )
    loads = table.sum(axis=1)
    found = load_balance(loads)
    assert found.max_violation == pytest.approx(loads.max() / loads.mean() - 1, rel=1e-12)
    assert found.coefficient_of_variation == pytest.approx(stats.variation(loads), rel=1e-12)
    assert found.load_entropy_bits == pytest.approx(stats.entropy(loads, base=2), rel=1e-12)
    differences = np.abs(loads[:, None] - loads).sum() / loads.sum()
    assert found.gini == pytest.approx(differences / (2 * loads.size), rel=1e-12)


def draw_sets(rng: np.random.Generator, n_tokens: int, n_experts: int, n_slots: int) -> np.ndarray:
    return np.argsort(rng.gumbel(size=(n_tokens, n_experts)) + np.linspace(0, 2, n_experts), axis=1)[:, :n_slots]


def test_set_overlap_is_olmoes_router_saturation():
    # Section 5.1: of the k experts of a token, how many the earlier checkpoint had too; a mean over tokens.
    rng = np.random.default_rng(0)
    later, earlier = draw_sets(rng, 300, 16, 4), draw_sets(rng, 300, 16, 4)
    earlier[::3] = later[::3]
    saturation = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(later.tolist(), earlier.tolist(), strict=True)])
    (found,) = agreements(later, earlier, np.arange(300) // 10, [np.arange(300)], n_experts=16)
    assert found.set_overlap.value == pytest.approx(saturation, abs=1e-12)
    assert found.first_choice.value == pytest.approx(np.mean(later[:, 0] == earlier[:, 0]), abs=1e-12)


@pytest.mark.parametrize("adjacent", [False, True])
def test_adjacent_pairs_are_those_of_olmoes_script_and_all_pairs_those_of_its_text(tmp_path, adjacent):
    # Section 5.2: how often b was chosen where a was. The script pairs each rank with the next one only.
    experts = draw_sets(np.random.default_rng(1), 400, 8, 4)
    together, alone = np.zeros((8, 8), int), np.bincount(experts.ravel(), minlength=8)
    for chosen in experts.tolist():
        pairs = pairwise(chosen) if adjacent else ((a, b) for a in chosen for b in chosen if a < b)
        for a, b in pairs:
            together[a, b] += 1
            together[b, a] += 1
    run = write_run(tmp_path / "run", [experts], n_experts=8, documents=np.arange(400) // 40)
    ((_, counts),) = iter_coactivation_counts(run, adjacent=adjacent)
    found = coactivation(counts.together, counts.loads, counts.sizes, adjacent=adjacent)
    assert found.together.tolist() == together.tolist()
    off = ~np.eye(8, dtype=bool)
    assert found.b_given_a[off] == pytest.approx((together / alone[:, None])[off], abs=1e-12)
    if adjacent:
        assert together.sum() == 2 / 4 * sum(4 * 3 for _ in experts)  # 2/k of all pairs


def test_olmoes_vocabulary_specialisation_finds_three_quarters_where_routing_is_random():
    # Section 5.4: the share of a type's commonest expert, a mean over all types, also those seen once. 64 experts.
    rng = np.random.default_rng(2)
    ids = np.minimum(rng.zipf(1.35, 60_000), 50_000)
    loads = np.ones(64, int)
    counts = np.zeros((50_001, 64), np.int64)
    np.add.at(counts, (ids, rng.integers(0, 64, ids.size)), 1)
    seen = counts[counts.any(axis=1)]
    as_published = float(np.mean(top_shares(seen)))
    assert as_published == pytest.approx(np.mean(seen.max(axis=1) / seen.sum(axis=1)), abs=1e-12)
    assert 0.74 < as_published < 0.8
    # The null beside it gives the same: there is nothing to see.
    assert float(np.mean(chance_top_shares(seen.sum(axis=1), loads))) == pytest.approx(as_published, abs=0.005)
    often = seen[seen.sum(axis=1) >= 10]
    assert float(np.mean(top_shares(often))) < 0.2
