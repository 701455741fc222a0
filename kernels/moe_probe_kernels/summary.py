"""Summary: what the logits of all routers of a forward say of every token, and how often each expert was executed.

A token's entropy is that of the router's distribution over experts, in bits: the softmax of its logits, or where
experts are scored one by one (sigmoid, the root of softplus) the scores divided by their sum. Its margin is the lowest
selection score among the executed experts minus the highest among the others; selection scores may hold a correction
bias, and a mask of groups (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). It does not know models, nor which experts
ought to have been chosen.
"""

from __future__ import annotations

import torch

from moe_probe_kernels import summary_reference
from moe_probe_kernels.choosing import Way, choose
from moe_probe_kernels.scoring import ACTIVATIONS, Scoring, Summary


def summarise(
    logits: torch.Tensor,
    ids: torch.Tensor,
    scoring: Scoring,
    *,
    bias: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
    drops: bool = False,
    count: bool = True,
    way: Way | None = None,
) -> Summary:
    """Return entropy and margin of every token, and how often each expert was executed, for all layers at once.

    Nothing here waits for the device. A logit that is no number makes entropy and margin none. Of equally high groups
    those that hold an executed expert count as kept, then the lower ones. An id out of range is counted nowhere, and
    scored as the nearest expert: to find it is the caller's part.

    Args:
        logits: (layers, tokens, experts), any floating type.
        ids: executed experts, (layers, tokens, slots), any integer type.
        scoring: how the routers score.
        bias: (layers, experts), added to what selection is made by.
        weights: (layers, tokens, slots); with them, `share_error` is how far a token's are at most from being in
            proportion to the activated logits of its experts, per layer; logits that are no numbers take no part.
        keep: (tokens,) bool on the same device, False for padding, which is left out of `share_error` and the
            histogram; its entropy and margin mean nothing.
        drops: whether ids may be negative, where a slot held no expert. The margin is then that of the others; a token
            without any has that of the choice that was dropped, taken to be the best. Where `skips`, a negative id is
            the choice of none.
        count: whether to count how often each expert was executed; the kernel counts anyway.
        way: "triton" or "torch"; None for what the device has.

    Returns:
        Summary. A margin is infinite where no selectable expert was left out, negative where a higher score was passed
        over.

    Raises:
        ValueError: if the shapes do not agree, the groups do not divide the experts, or the way cannot be gone.

    Example:
        >>> logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
        >>> found = summarise(logits, torch.tensor([[[0]]]), Scoring())
        >>> found.entropy.item(), found.margin.item(), found.histogram.tolist(), found.ran
        (1.5, 0.25, [[1, 0, 0]], 'torch')
    """
    _check(logits, ids, scoring, bias, weights, keep)
    ran = choose(logits.device, way)
    if ran == "triton":
        from moe_probe_kernels import summary_kernel

        return summary_kernel.launch(logits, ids, scoring, bias, weights, keep, drops)
    return summary_reference.summarise(logits, ids, scoring, bias, weights, keep, drops, count)


def _check(
    logits: torch.Tensor,
    ids: torch.Tensor,
    scoring: Scoring,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    keep: torch.Tensor | None,
) -> None:
    if logits.dim() != 3 or ids.dim() != 3 or logits.shape[:2] != ids.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} must be (layers, tokens, experts), and ids {tuple(ids.shape)} (layers,"
            " tokens, slots)"
        )
    n_layers, n_tokens, n_experts = logits.shape
    if not 1 <= ids.shape[2] <= n_experts:
        raise ValueError(f"ids {tuple(ids.shape)}: {ids.shape[2]} slots of {n_experts} experts")
    if scoring.activation not in ACTIVATIONS:
        raise ValueError(f"activation {scoring.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    if scoring.rounded_to not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"rounded_to {scoring.rounded_to}: choose torch.float16 or torch.bfloat16, or None")
    if scoring.skips and scoring.n_groups > 1:
        raise ValueError(f"{scoring.n_groups} groups: the choice of none is in no group")
    if n_experts % scoring.n_groups or not 1 <= scoring.n_kept_groups <= scoring.n_groups:
        raise ValueError(
            f"{scoring.n_groups} groups, {scoring.n_kept_groups} of them kept: cannot be made of {n_experts} experts"
        )
    if scoring.best_of_group < 1:
        raise ValueError(f"best_of_group {scoring.best_of_group}: a group is scored by 1 expert or more")
    for name, tensor, shape in (
        ("bias", bias, (n_layers, n_experts)),
        ("weights", weights, tuple(ids.shape)),
        ("keep", keep, (n_tokens,)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} must be {shape}")
