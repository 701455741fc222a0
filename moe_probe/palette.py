"""The eight colours of experts, and which expert wears which.

With 64 or 256 experts a hue each is noise: at most eight wear a colour, the reader's picks or the most used, and the
rest are context. It does not know texts, charts or browsers.
"""

from __future__ import annotations

from collections.abc import Sequence

EXPERT_COLOURS = ("#FFD2FF", "#968700", "#7878F0", "#1ED2A5", "#C3A5FF", "#D25A96", "#87FF96", "#F0A51E")
"""Chosen to stay apart for normal, protan, deutan and tritan sight: the least ΔE-OK over all pairs is 12.4."""

INK = "#111111"
"""Text on any of the colours, in the light and in the dark theme."""

CONTEXT = "#9AA0A6"
"""Experts without a colour of their own, where something must be drawn for them."""


def expert_colours(loads: Sequence[int], focus: Sequence[int] = ()) -> dict[int, str]:
    """Return the colour of each expert that wears one.

    Up to eight experts always wear their own. Of more, those that the reader picked wear one, in the order of picking,
    or without a pick those used most (ties to the lower index).

    Args:
        loads: (experts,) how often each was used in what is shown.
        focus: experts that the reader picked; those that do not exist are passed over, those after the eighth too.

    Example:
        >>> expert_colours([5, 0])
        {0: '#FFD2FF', 1: '#968700'}
        >>> many = [0] * 64
        >>> many[40] = 9
        >>> expert_colours(many), expert_colours(many, focus=[7, 3])
        ({40: '#FFD2FF'}, {7: '#FFD2FF', 3: '#968700'})
    """
    n_experts = len(loads)
    if n_experts <= len(EXPERT_COLOURS):
        shown = list(range(n_experts))
    else:
        shown = list(dict.fromkeys(expert for expert in focus if 0 <= expert < n_experts))
        if not shown:
            used = [expert for expert in range(n_experts) if loads[expert] > 0]
            shown = sorted(used, key=lambda expert: (-loads[expert], expert))
    return dict(zip(shown, EXPERT_COLOURS, strict=False))
