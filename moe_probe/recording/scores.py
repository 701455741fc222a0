"""What a router's logits say beyond the executed experts: entropy, margin, and whether they explain the choice.

A token's probabilities are the router's distribution over experts: softmax of the logits, or for routers that score
experts one by one (sigmoid, the root of softplus) the scores divided by their sum. Its entropy is that of these
probabilities, in bits. Its margin is the lowest selection score among the chosen experts minus the
highest among the others. The selection score is what top-k was taken of; it may hold a correction bias and a mask of
groups (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), which the weights and the probabilities do not.

It never decides which experts were chosen: that is read from the experts' call. It does not know how models are
hooked, nor the arithmetic, which is `moe_probe_kernels.summary`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from moe_probe_kernels import summarise
from moe_probe_kernels.scoring import Activation
from moe_probe_kernels.scoring import Scoring as KernelScoring
from moe_probe_kernels.summary_reference import activate

BIAS_NAME = "e_score_correction_bias"

_TOP_K_SOFTMAX = "top-k softmax"
_TOP_K_SIGMOID = "top-k sigmoid"
_SIGMOID = "sigmoid top-k"
_SOFTMAX_AND_BIAS = "softmax + bias top-k"
_SIGMOID_AND_BIAS = "sigmoid + bias top-k"
_ONE_HOT = "softmax one-hot with capacity"
_SQRT_SOFTPLUS_AND_BIAS = "sqrtsoftplus + bias top-k"
_SPARSEMIXER = "sparsemixer"
_SOFTMAX_AND_BIAS_OR_SKIP = "softmax + bias top-k with skip"
_KINDS_OF_THEIR_OWN = {
    # Routers that the rule in `read_gate` would misname, with what they do.
    "AfmoeTokenChoiceRouter": _SIGMOID_AND_BIAS,
    "AriaTextTopKRouter": _TOP_K_SOFTMAX,
    "DeepseekV4HashRouter": "hash",
    "Ernie4_5_MoeTopKRouter": _SOFTMAX_AND_BIAS,
    "Ernie4_5_VLMoeMoeTopKRouter": _SOFTMAX_AND_BIAS,
    "FlintTopKRouter": _SIGMOID,
    "GptOssTopKRouter": _TOP_K_SOFTMAX,
    "GraniteMoeHybridTopKRouter": _TOP_K_SOFTMAX,
    "GraniteMoeSWATopKRouter": _TOP_K_SOFTMAX,
    "GraniteMoeSharedTopKRouter": _TOP_K_SOFTMAX,
    "GraniteMoeTopKRouter": _TOP_K_SOFTMAX,
    "HYV3TopKRouter": _SIGMOID_AND_BIAS,
    "JetMoeTopKGating": _TOP_K_SOFTMAX,
    "Kolibri1TopKRouter": _TOP_K_SIGMOID,
    "Lfm2MoeTopKRouter": _SIGMOID_AND_BIAS,
    "Llama4Router": _TOP_K_SIGMOID,
    "LongcatFlashTopkRouter": _SOFTMAX_AND_BIAS,
    "MiniMaxM2TopKRouter": _SIGMOID_AND_BIAS,
    "OpenAIPrivacyFilterTopKRouter": _TOP_K_SOFTMAX,
    "PhimoeTopKRouter": _SPARSEMIXER,
    "SwitchTransformersTop1Router": _ONE_HOT,
    "ZayaRouter": _SOFTMAX_AND_BIAS_OR_SKIP,
}
_SCORED: dict[str, tuple[Activation, bool]] = {
    # Kinds of their own that can be scored: the activation, and whether top-k is taken of the logits. Sparsemixer takes
    # the best logit, then the best of the others; its weights, each a softmax over logits near its own, take no part.
    _TOP_K_SOFTMAX: ("softmax", True),
    _TOP_K_SIGMOID: ("sigmoid", True),
    _SIGMOID: ("sigmoid", False),
    _SIGMOID_AND_BIAS: ("sigmoid", False),
    _SOFTMAX_AND_BIAS: ("softmax", False),
    _ONE_HOT: ("softmax", False),
    _SQRT_SOFTPLUS_AND_BIAS: ("sqrtsoftplus", False),
    _SPARSEMIXER: ("softmax", True),
    _SOFTMAX_AND_BIAS_OR_SKIP: ("softmax", False),
}
_RETURN_PROBABILITIES = {"DiffusionGemmaTextRouter", "Gemma4TextRouter"}
_SCORE_IN_THEIR_TYPE = {"DeepseekV4TopKRouter", "Lfm2MoeTopKRouter", "ZayaRouter"}
"""Classes that activate logits in the model's type, not in float32, before a float32 bias is added."""
_READ = {
    # Classes whose selection score is known from their definition; of others the first forward has to prove it.
    "DeepseekV3TopkRouter",
    "DeepseekV4TopKRouter",
    "DiffusionGemmaTextRouter",
    "Gemma4TextRouter",
    "GptOssTopKRouter",
    "GraniteMoeTopKRouter",
    "JetMoeTopKGating",
    "Llama4Router",
    "MixtralTopKRouter",
    "OlmoeTopKRouter",
    "PhimoeTopKRouter",
    "Qwen2MoeTopKRouter",
    "Qwen3MoeTopKRouter",
    "SwitchTransformersTop1Router",
    "ZayaRouter",
}
_MARGIN_ROUNDING = 1e-4
_SHARE_ROUNDING = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Scoring:
    """How a router makes selection scores of its logits.

    Routers with equal scoring are scored together. `known` says that the definition was read; otherwise the executed
    weights must turn out proportional to the activated logits before anything is believed.
    """

    activation: Activation
    of_logits: bool
    has_bias: bool
    n_groups: int
    n_kept_groups: int
    known: bool
    of_probabilities: bool = False  # the router returns probabilities in the place of logits
    best_of_group: int = 2  # how many of a group's experts make its score
    skips: bool = False  # there is one logit more than experts, the last: to go to none of them
    in_its_type: bool = False  # the scores are made in the logits' own type, else in float32
    rounded: bool = False  # the scores are rounded to the weights' type before the best is taken


class Scores(NamedTuple):
    """Per token and router, and per router how far the executed weights are from the scoring's own shares."""

    entropy: torch.Tensor  # (layers, tokens) float32 bits
    margin: torch.Tensor  # (layers, tokens) float32
    share_error: torch.Tensor  # (layers,) float32


def find_bias(gate: nn.Module, block: nn.Module | None = None) -> tuple[nn.Module, str] | None:
    """Return the module that holds a router's correction bias and its name there, None where there is none.

    Some routers are handed it by their block, or keep it a module deeper.
    """
    holders = [(gate, BIAS_NAME)]
    if "+ bias" in _KINDS_OF_THEIR_OWN.get(type(gate).__name__, ""):
        deeper = getattr(gate, "moe_statics", None)
        holders += [(one, name) for one in (deeper, block) if one is not None for name in (BIAS_NAME, "expert_bias")]
        holders.append((gate, "balancing_biases"))
    return next(((one, name) for one, name in holders if isinstance(getattr(one, name, None), torch.Tensor)), None)


def read_gate(gate: nn.Module, block: nn.Module | None = None) -> tuple[str, Scoring | None]:
    """Return the kind of a router module, and its scoring where there is one to try; `block` is the module around it.

    The rule: a correction bias goes with sigmoid scores, everything else is a softmax; groups where there are several.
    """
    name = type(gate).__name__
    held = find_bias(gate, block)
    bias = None if held is None else getattr(*held)
    method = getattr(gate, "topk_method", None)  # DeepSeek-V2's: its groups are scored by their best expert, if at all
    n_groups = 1 if method == "greedy" else getattr(gate, "num_group", None) or 1
    activation: Activation = "softmax" if bias is None else "sigmoid"
    of_logits = False
    score_function = getattr(gate, "score_fn", None)
    kind = _KINDS_OF_THEIR_OWN.get(name)
    if kind is None and isinstance(score_function, nn.Module) and not isinstance(score_function, nn.Sigmoid):
        kind = f"{type(score_function).__name__.removesuffix('Activation').lower()} + bias top-k"
    if kind is not None:
        if kind not in _SCORED or (bias is None and "bias" in kind):
            return kind, None
        activation, of_logits = _SCORED[kind]
    else:
        parts = [activation] + ["bias"] * (bias is not None) + ["groups"] * (n_groups > 1)
        kind = f"{' + '.join(parts)} top-k"
    if bias is not None and bias.is_meta:
        return kind, None  # offloaded: the bias is not there when the scores are made
    scoring = Scoring(
        activation=activation,
        of_logits=of_logits,
        has_bias=bias is not None,
        n_groups=n_groups,
        n_kept_groups=getattr(gate, "topk_group", None) or 1,
        known=name in _READ,
        of_probabilities=name in _RETURN_PROBABILITIES,
        best_of_group=1 if method == "group_limited_greedy" else 2,
        skips=kind == _SOFTMAX_AND_BIAS_OR_SKIP,
        in_its_type=name in _SCORE_IN_THEIR_TYPE,
        rounded=kind == _ONE_HOT,
    )
    return kind, scoring


def score(
    scoring: Scoring,
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    drops: bool = False,
) -> Scores:
    """Return entropy and margin of every token of several routers of one scoring.

    Args:
        scoring: how the routers score.
        logits: (layers, tokens, experts), any floating type; NaN goes through to entropy and margin.
        ids: executed experts, (layers, tokens, slots). One out of range is scored as the nearest expert: to find it
            is the caller's part.
        weights: executed weights, (layers, tokens, slots).
        bias: (layers, experts) correction biases where the scoring has one.
        drops: whether ids may be -1, where a slot held no expert. The margin is then that of the others; a token
            without any has that of the choice that was dropped, taken to be the best.

    Returns:
        Scores. A margin is infinite where no selectable expert was left out, and negative where a higher score was
        passed over, which the true selection score never allows.

    Example:
        >>> scoring = Scoring("softmax", False, False, 1, 1, True)
        >>> logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
        >>> scores = score(scoring, logits, torch.tensor([[[0]]]), torch.tensor([[[0.5]]]), None)
        >>> scores.entropy.item(), scores.margin.item()
        (1.5, 0.25)
    """
    told = summarise(
        logits,
        ids,
        _restated(scoring, weights.dtype),
        bias=bias,
        weights=None if scoring.known else weights,  # a scoring that was read needs no proof
        drops=drops,
        count=False,
    )
    error = told.share_error
    return Scores(told.entropy, told.margin, told.entropy.new_zeros(len(logits)) if error is None else error)


def probabilities(scoring: Scoring, logits: torch.Tensor) -> torch.Tensor:
    """Return the distribution over experts of every token of several routers of one scoring.

    Args:
        scoring: how the routers score.
        logits: (layers, tokens, experts), any floating type.

    Returns:
        (layers, tokens, experts) float32. They add up to 1, or to what is left of it where a router may skip all
        experts. NaN for all experts of a token with a logit that is NaN, or with no score above zero.

    Example:
        >>> probabilities(Scoring("sigmoid", False, True, 1, 1, True), torch.tensor([[[0.5, 0.25, 0.25]]]).logit())
        tensor([[[0.5000, 0.2500, 0.2500]]])
    """
    activated, _ = activate(logits, _restated(scoring, logits.dtype))
    if scoring.activation != "softmax":
        activated = activated / activated.sum(dim=-1, keepdim=True)
    # One number that is none leaves none of the others with a meaning.
    spoilt = activated.isnan().any(dim=-1, keepdim=True)
    activated = activated.masked_fill(spoilt, math.nan)
    return activated[..., :-1] if scoring.skips else activated


def explains(
    scoring: Scoring, n_slots: int, weight_dtype: torch.dtype, lowest_margin: float, share_error: float
) -> bool:
    """Say whether a scoring accounts for what was executed: no higher score passed over, weights in proportion.

    A single slot's share is 1 whatever the scores, so that only a scoring whose definition was read is believed there.
    """
    if not lowest_margin >= -_MARGIN_ROUNDING:
        return False
    if scoring.known:
        return True
    return n_slots > 1 and share_error <= _SHARE_ROUNDING.get(weight_dtype, 1e-2)


def _restated(scoring: Scoring, weight_dtype: torch.dtype) -> KernelScoring:
    """Return a scoring in the kernels' words; they know no kinds of routers."""
    narrow = weight_dtype in (torch.float16, torch.bfloat16)
    return KernelScoring(
        activation=scoring.activation,
        of_logits=scoring.of_logits,
        of_probabilities=scoring.of_probabilities,
        n_groups=scoring.n_groups,
        # A router that makes no use of its groups may still say how many it would keep.
        n_kept_groups=scoring.n_kept_groups if scoring.n_groups > 1 else 1,
        best_of_group=scoring.best_of_group,
        skips=scoring.skips,
        in_its_type=scoring.in_its_type,
        rounded_to=weight_dtype if scoring.rounded and narrow else None,
    )
