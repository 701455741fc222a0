"""What a router's logits say beyond the executed experts: entropy, margin, and whether they explain the choice.

A token's probabilities are the router's distribution over experts: softmax of the logits, or for routers that score
experts one by one (sigmoid, the root of softplus) the scores divided by their sum. Its entropy is that of these
probabilities, in bits. Its margin is the lowest selection score among the chosen experts minus the
highest among the others. The selection score is what top-k was taken of; it may hold a correction bias and a mask of
groups (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), which the weights and the probabilities do not.

It never decides which experts were chosen: that is read from the experts' call. It does not know how models are
hooked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional

BIAS_NAME = "e_score_correction_bias"
Activation: TypeAlias = Literal["softmax", "sigmoid", "sqrtsoftplus"]

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
_LOWEST = -1e4
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
        ids: executed experts, (layers, tokens, slots), in range.
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
    given, logits = logits, _logits(scoring, logits)
    activated, entropy = _activate(scoring, logits)
    selection = logits if scoring.of_logits else activated
    if scoring.in_its_type:
        selection = _ACTIVATIONS[scoring.activation](given)
        selection = selection.float() if scoring.skips else selection  # Zaya adds its bias in float32 always
    elif bias is not None:
        bias = bias.float()
    if bias is not None:
        selection = selection + bias.unsqueeze(1)
    selection = selection.to(weights.dtype).float() if scoring.rounded else selection.float()
    if scoring.n_groups > 1:
        selection = _masked_to_groups(selection, scoring)
    if scoring.skips:
        ids = torch.where(ids < 0, logits.shape[-1] - 1, ids)
    elif drops:
        best = selection.argmax(dim=-1, keepdim=True)
        best = torch.where((ids < 0).all(dim=-1, keepdim=True), best, ids.amax(dim=-1, keepdim=True))
        ids = torch.where(ids < 0, best, ids)  # an empty slot repeats another, which changes no extreme
    chosen = selection.gather(-1, ids).amin(dim=-1)
    passed_over = selection.scatter(-1, ids, -math.inf).amax(dim=-1)
    # A scoring that was read needs no proof.
    share_error = logits.new_zeros(len(logits)) if scoring.known else _share_error(activated, ids, weights)
    return Scores(entropy / math.log(2), chosen - passed_over, share_error)


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
    activated, _ = _activate(scoring, _logits(scoring, logits))
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


def _logits(scoring: Scoring, returned: torch.Tensor) -> torch.Tensor:
    """Return logits in float32, of what a router returned in their place."""
    return returned.float().log() if scoring.of_probabilities else returned.float()


def _activate(scoring: Scoring, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return activated float32 logits, (layers, tokens, experts), and the entropy of their shares in nats."""
    if scoring.activation == "softmax":
        # The bound keeps a masked logit, −inf, from making 0·(−inf); its exponential is 0 already.
        shifted = (logits - logits.amax(dim=-1, keepdim=True)).clamp_min(_LOWEST)
        activated = shifted.exp()
        total = activated.sum(dim=-1, keepdim=True)
        # ln Σeˣ − Σ x·eˣ / Σeˣ, without the 0·ln 0 of p·ln p where a probability underflows
        entropy = total.log() - (activated * shifted).sum(dim=-1, keepdim=True) / total
        activated = activated / total
    else:
        activated = _ACTIVATIONS[scoring.activation](logits)
        total = activated.sum(dim=-1, keepdim=True)
        entropy = total.log() + torch.special.entr(activated).sum(dim=-1, keepdim=True) / total
    return activated, entropy.squeeze(-1)


_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: functional.softplus(logits).sqrt(),  # DeepSeek-V4's affinities
}


def _masked_to_groups(selection: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return selection scores with −inf in the groups whose best experts do not add up to enough."""
    grouped = selection.view(*selection.shape[:-1], scoring.n_groups, -1)  # (layers, tokens, groups, experts in it)
    group_scores = grouped.topk(min(scoring.best_of_group, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
    kept = group_scores.topk(scoring.n_kept_groups, dim=-1).indices
    hidden = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, kept, False)
    return grouped.masked_fill(hidden.unsqueeze(-1), -math.inf).flatten(-2)


def _share_error(activated: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return how far a token's weights are at most from being in proportion to its activated logits, (layers,)."""
    shares = activated.gather(-1, ids)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    weights = weights.float()
    errors = (weights / weights.sum(dim=-1, keepdim=True) - shares).abs()
    # Logits that are no numbers are told of by themselves.
    return errors.masked_fill(shares.isnan(), 0).amax(dim=(1, 2))
