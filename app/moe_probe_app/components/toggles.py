"""Buttons for the experts of a layer, each in its expert's colour; pressed ones are filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files

import streamlit as st

from moe_probe.palette import CONTEXT, INK, expert_colours


def expert_toggles(
    label: str, n_experts: int, *, key: str, on_change: Callable[[], None] | None = None, help: str | None = None
) -> tuple[int, ...]:
    """Show a button an expert and return those that are pressed, in order. The state under `key` decides.

    Args:
        label: what the buttons choose.
        n_experts: how many there are.
        key: of the buttons.
        on_change: called when one is pressed.
        help: a tooltip beside the label.
    """
    pressed: Sequence[int] = st.session_state.setdefault(key, [])
    colours = expert_colours([0] * n_experts, focus=list(pressed))
    container = f"expert_toggles_{key}"
    buttons = f".st-key-{container} button[data-variant]"
    worn = [
        f"{buttons}:nth-child({expert + 1}){{--mp-expert:{colours.get(expert, CONTEXT)}}}"
        for expert in range(n_experts)
    ]
    style = files(__package__).joinpath("toggles.css").read_text(encoding="utf-8")
    st.html(f"<style>{style}{buttons}{{--mp-ink:{INK}}}{''.join(worn)}</style>")
    with st.container(key=container):
        chosen = st.pills(
            label,
            range(n_experts),
            selection_mode="multi",
            key=key,
            on_change=on_change,
            help=help,
            persist_state="session",
        )
    return tuple(sorted(chosen))
