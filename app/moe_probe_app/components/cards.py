"""A card for each expert of a layer, to read and to press: a component of its own for the browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files

import streamlit as st

_HTML = '<div class="mpx-root" data-testid="cards"></div>\n'
_KEY = "expert_cards"


@dataclass(frozen=True)
class Card:
    """What a card says: text as it is, never markup."""

    expert: int
    colour: str
    name: str
    far: str
    share: str
    tokens: str


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_view = st.components.v2.component("moe_probe_cards", html=_HTML, css=_read("cards.css"), js=_read("cards.js"))


def show(cards: list[Card], *, label: str, pressed: int, on_pick: Callable[[int], None]) -> None:
    """Show cards in the order given.

    Args:
        cards: of one layer.
        label: what they are, for a screen reader.
        pressed: the expert whose card is.
        on_pick: called with the expert whose card the reader pressed.
    """

    def picked() -> None:
        expert = st.session_state[_KEY].get("picked")
        if isinstance(expert, int) and any(card.expert == expert for card in cards):
            on_pick(expert)

    data = {"cards": [asdict(card) for card in cards], "label": label, "pressed": pressed}
    _view(data=data, key=_KEY, on_picked_change=picked)
