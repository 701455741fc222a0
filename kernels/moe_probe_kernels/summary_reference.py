"""Summaries made by torch, on any device: what the kernel is held against, and what runs where there is none.

It does not check what it is given.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from moe_probe_kernels.scoring import LOWEST, Scoring, Summary

_FEW_EXPERTS = 16
"""Up to this many, on a CPU, an expert's logits of all tokens lie side by side: short last dimensions are slow."""


def summarise(
    logits: torch.Tensor,
    ids: torch.Tensor,
    scoring: Scoring,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    keep: torch.Tensor | None,
    drops: bool,
    count: bool,
) -> Summary:
    """Return what `summary.summarise` does, whose arguments these are."""
    n_logits = logits.shape[-1]
    histogram = _histogram(ids, n_logits - scoring.skips, keep) if count else None
    ids = ids.long().clamp(-1 if drops or scoring.skips else 0, n_logits - 1)
    if bias is None and not drops and _is_plain_softmax(scoring):
        return Summary(*_softmax_alone(logits, ids, scoring, weights, keep), histogram, "torch")
    activated, entropy = activate(logits, scoring)
    selection = _selection(logits, activated, bias, scoring)
    if scoring.n_groups > 1:
        selection = _masked_to_groups(selection, ids, scoring)
    if scoring.skips:
        ids = torch.where(ids < 0, n_logits - 1, ids)
    elif drops:
        best = selection.argmax(dim=-1, keepdim=True)
        best = torch.where((ids < 0).all(dim=-1, keepdim=True), best, ids.amax(dim=-1, keepdim=True))
        ids = torch.where(ids < 0, best, ids)  # an empty slot repeats another, which changes no extreme
    chosen = selection.gather(-1, ids).amin(dim=-1)
    passed_over = selection.scatter(-1, ids, -math.inf).amax(dim=-1)
    share_error = None if weights is None else _share_error(activated, ids, weights, keep)
    return Summary(entropy, chosen - passed_over, share_error, histogram, "torch")


def _is_plain_softmax(scoring: Scoring) -> bool:
    """Say whether the best logits are chosen, and nothing is made of them but a softmax."""
    changed = scoring.skips or scoring.in_its_type or scoring.rounded_to is not None
    return scoring.activation == "softmax" and scoring.n_groups == 1 and not changed


def _softmax_alone(
    logits: torch.Tensor,
    ids: torch.Tensor,
    scoring: Scoring,
    weights: torch.Tensor | None,
    keep: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return entropy, margin and share error of routers that nearly all are like, in fewer passes than the rule."""
    read = _read(logits, scoring)
    n_experts = read.shape[-1]
    along = 0 if n_experts <= _FEW_EXPERTS and read.device.type == "cpu" else -1
    read = read.movedim(-1, along).contiguous()
    slots = ids.movedim(-1, along)
    shifted = (read - read.amax(dim=along, keepdim=True)).clamp_min_(LOWEST)
    raised = shifted.exp()
    total = raised.sum(dim=along)
    # As in `activate`. What is no longer needed is written over, for memory is what takes the time.
    entropy = (total.log() - shifted.mul_(raised).sum(dim=along) / total).div_(math.log(2))
    number = torch.arange(total.numel(), device=read.device).view(total.shape).unsqueeze(along)
    strides = (total.numel(), 1) if along == 0 else (1, n_experts)  # of an expert and of a token
    places = (slots * strides[0]).add_(number, alpha=strides[1]).reshape(-1)
    shares = raised.view(-1).index_select(0, places).view(slots.shape)
    error = None if weights is None else _error_of(shares.movedim(along, -1), weights, keep)
    selection = shifted.copy_(read) if scoring.of_logits else raised
    chosen = selection.view(-1).index_select(0, places).view(slots.shape).amin(dim=along)
    passed_over = selection.view(-1).index_fill_(0, places, -math.inf).view(selection.shape).amax(dim=along)
    if not scoring.of_logits:
        chosen, passed_over = chosen.div_(total), passed_over.div_(total)  # each rounded, as probabilities are
    return entropy, chosen - passed_over, error


def activate(logits: torch.Tensor, scoring: Scoring) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a router makes of its logits, and the entropy of their shares; in torch, on any device.

    Args:
        logits: (layers, tokens, experts), any floating type; probabilities where the scoring is of them.
        scoring: how the routers score.

    Returns:
        The activated logits in float32, (layers, tokens, experts), of which only a softmax's add up to 1, and the
        entropy in bits, (layers, tokens).
    """
    logits = _read(logits, scoring)
    if scoring.activation == "softmax":
        # In place where the tensor is our own: half the time of a small router's.
        shifted = (logits - logits.amax(dim=-1, keepdim=True)).clamp_min_(LOWEST)
        activated = shifted.exp()
        total = activated.sum(dim=-1, keepdim=True)
        # ln Σeˣ − Σ x·eˣ / Σeˣ, without the 0·ln 0 of p·ln p where a probability underflows
        entropy = total.log() - shifted.mul_(activated).sum(dim=-1, keepdim=True) / total
        activated = activated.div_(total)
    else:
        activated = _activate_one_by_one(logits, scoring)
        total = activated.sum(dim=-1, keepdim=True)
        entropy = total.log() + torch.special.entr(activated).sum(dim=-1, keepdim=True) / total
    return activated, entropy.squeeze(-1) / math.log(2)


def _read(returned: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return logits in float32, of what a router returned in their place."""
    return returned.float().log() if scoring.of_probabilities else returned.float()


def _activate_one_by_one(logits: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return scores that do not hang on the other experts', in the type of the logits."""
    return logits.sigmoid() if scoring.activation == "sigmoid" else functional.softplus(logits).sqrt()


def _selection(
    logits: torch.Tensor,
    activated: torch.Tensor,
    bias: torch.Tensor | None,
    scoring: Scoring,
) -> torch.Tensor:
    """Return selection scores in float32, (layers, tokens, experts), before groups are masked."""
    selection = _read(logits, scoring) if scoring.of_logits else activated
    if scoring.in_its_type:
        soft = scoring.activation == "softmax"
        selection = logits.softmax(dim=-1) if soft else _activate_one_by_one(logits, scoring)
        selection = selection.float() if scoring.skips else selection
    elif bias is not None:
        bias = bias.float()
    if bias is not None:
        selection = selection + bias.unsqueeze(1)
    return (selection if scoring.rounded_to is None else selection.to(scoring.rounded_to)).float()


def _masked_to_groups(selection: torch.Tensor, ids: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return selection scores with −inf in the groups that are not kept."""
    size = selection.shape[-1] // scoring.n_groups
    grouped = selection.view(*selection.shape[:-1], scoring.n_groups, size)  # (layers, tokens, groups, experts in it)
    scores = _sum_of_best(grouped, min(scoring.best_of_group, size))
    # A negative id is in no group: it points at the first one, and adds nothing to it.
    uses = torch.zeros_like(scores, dtype=torch.int32)
    executed = uses.scatter_add(-1, ids.clamp_min(0) // size, (ids >= 0).int()) > 0
    higher = scores.unsqueeze(-2) > scores.unsqueeze(-1)  # (..., group, other group)
    tied = scores.unsqueeze(-2) == scores.unsqueeze(-1)
    number = torch.arange(scoring.n_groups, device=scores.device)
    lower = number < number.unsqueeze(-1)
    first = executed.unsqueeze(-2) & ~executed.unsqueeze(-1)
    alike = executed.unsqueeze(-2) == executed.unsqueeze(-1)
    before = higher | (tied & (first | (alike & lower)))
    hidden = before.sum(dim=-1) >= scoring.n_kept_groups
    return grouped.masked_fill(hidden.unsqueeze(-1), -math.inf).flatten(-2)


def _sum_of_best(grouped: torch.Tensor, n_best: int) -> torch.Tensor:
    """Add up the highest scores of each group, (layers, tokens, groups): so few are found faster one by one."""
    best = grouped.max(dim=-1, keepdim=True)
    total = best.values
    for _ in range(n_best - 1):
        grouped = grouped.scatter(-1, best.indices, -math.inf)
        best = grouped.max(dim=-1, keepdim=True)
        total = total + best.values
    return total.squeeze(-1)


def _share_error(
    activated: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """Return how far a token's weights are at most from being in proportion to its activated logits, (layers,)."""
    return _error_of(activated.gather(-1, ids), weights, keep)


def _error_of(shares: torch.Tensor, weights: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Do what `_share_error` does, given the activated logits of the executed experts, (layers, tokens, slots)."""
    if not shares.shape[1]:
        return shares.new_zeros(len(shares))
    shares = shares / shares.sum(dim=-1, keepdim=True)
    weights = weights.float()
    error = (weights / weights.sum(dim=-1, keepdim=True) - shares).abs()
    error = error.masked_fill(shares.isnan(), 0)
    if keep is not None:
        error = error.masked_fill(~keep.view(1, -1, 1), 0)
    return error.amax(dim=(1, 2))


def _histogram(ids: torch.Tensor, n_experts: int, keep: torch.Tensor | None) -> torch.Tensor:
    """Count the executed experts of each layer, (layers, experts) int32."""
    counted = (ids >= 0) & (ids < n_experts)
    if keep is not None:
        counted = counted & keep.view(1, -1, 1)
    histogram = torch.zeros(len(ids), n_experts, dtype=torch.int32, device=ids.device)
    places = ids.long().clamp(0, n_experts - 1).flatten(1)
    return histogram.scatter_add_(1, places, counted.flatten(1).int())
