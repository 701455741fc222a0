"""A packed document, read back byte by byte by a reader that shares nothing with the packer."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS
from moe_probe.schema import DROPPED, Router
from moe_probe.tokenview import content_key, javascript, pack, router_titles, stylesheet

TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f16": "<f2"}


@dataclass
class MadeUpDocument:
    """A document as `pack` wants one."""

    texts: Sequence[str]
    chosen: Sequence[np.ndarray]
    routers: Sequence[Router]
    labels: dict[str, Sequence[str]] = field(default_factory=dict)
    name: str = "made/up.txt"
    bits: np.ndarray | None = None

    @property
    def tokens(self) -> pl.DataFrame:
        n = len(self.texts)
        columns: dict[str, object] = {
            "document": [0] * n,
            "position": list(range(40, 40 + n)),
            "token": [text.replace(" ", "▁") for text in self.texts],
            "text": list(self.texts),
            "phase": ["prompt"] * n,
        }
        return pl.DataFrame(columns | self.labels)

    def experts(self, *, router: int) -> np.ndarray:
        return self.chosen[router]

    def weights(self, *, router: int) -> np.ndarray:
        return (self.chosen[router] + 2).astype(np.float32) / 8

    def entropy(self, *, router: int) -> np.ndarray | None:
        return self.bits


def document(
    texts: Sequence[str], n_experts: int = 8, n_slots: int = 2, n_routers: int = 2, **more: Any
) -> MadeUpDocument:
    rng = np.random.default_rng(3)
    routers = [Router(i, f"layers.{i}.mlp", i, n_experts, n_slots, "softmax top-k") for i in range(n_routers)]
    chosen = [rng.permuted(np.tile(np.arange(n_experts), (len(texts), 1)), axis=1)[:, :n_slots] for _ in routers]
    return MadeUpDocument(texts, [one.astype(np.int32) for one in chosen], routers, **more)


def unpack(packed: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and what lies behind it."""
    magic, length = struct.unpack_from("<4sI", packed)
    assert magic == b"MOEP"
    return json.loads(packed[8 : 8 + length]), packed[8 + length :]


def array(at: dict[str, Any], body: bytes) -> np.ndarray:
    assert at["offset"] % 8 == 0
    return np.frombuffer(body, TYPES[at["type"]], at["length"], at["offset"])


def test_experts_weights_entropy_and_labels_come_back_as_they_went_in() -> None:
    bits = np.array([0.5, 1.25, 3.0], np.float32)
    one = document(["The", " cat", "\n"], labels={"upos": ["DET", "NOUN", "whitespace"]}, bits=bits)
    header, body = unpack(pack(one))
    for router, said in zip(one.routers, header["routers"], strict=True):
        assert array(said["experts"], body).reshape(3, 2).tolist() == one.experts(router=router.index).tolist()
        assert array(said["weights"], body).reshape(3, 2).tolist() == one.weights(router=router.index).tolist()
        assert array(said["entropy"], body).tolist() == [0.5, 1.25, 3.0]
        assert (said["n_experts"], said["n_slots"], said["title"]) == (8, 2, f"Layer {router.layer}")
    (label,) = header["labels"]
    assert [label["values"][code] for code in array(label["codes"], body)] == ["DET", "NOUN", "whitespace"]
    assert (header["name"], header["first"], header["text"]) == ("made/up.txt", 40, "The cat\n")
    assert header["palette"] == list(EXPERT_COLOURS)


def test_a_dropped_slot_is_all_ones_and_no_expert_is() -> None:
    one = document(["a", "b"], n_experts=255)
    one.chosen[0][1] = [254, DROPPED]
    header, body = unpack(pack(one))
    at = header["routers"][0]["experts"]
    assert at["type"] == "u8"
    assert array(at, body)[2:].tolist() == [254, 255]


def test_more_than_255_experts_take_two_bytes() -> None:
    one = document(["a"], n_experts=1024)
    one.chosen[0][0] = [1023, DROPPED]
    header, body = unpack(pack(one))
    assert array(header["routers"][0]["experts"], body).tolist() == [1023, 65535]


def test_an_unknown_entropy_stays_unknown() -> None:
    header, _ = unpack(pack(document(["a"])))
    assert header["routers"][0]["entropy"] is None


def test_a_stretch_of_a_document_knows_where_it_starts() -> None:
    one = document(["a", "b", "c", "d"])
    header, body = unpack(pack(one, start=1, stop=3))
    assert (header["text"], header["first"], header["n_tokens"]) == ("bc", 41, 2)
    assert array(header["routers"][1]["experts"], body).reshape(2, 2).tolist() == one.experts(router=1)[1:3].tolist()


def test_a_stretch_outside_the_document_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"document 'made/up.txt': tokens 1 to 5 are not within its 2 tokens"):
        pack(document(["a", "b"]), start=1, stop=5)


def test_an_empty_document_can_be_packed() -> None:
    header, _ = unpack(pack(document([])))
    assert (header["n_tokens"], header["text"]) == (0, "")


def test_indented_text_is_shown_in_columns() -> None:
    prose, code = document(["One.\nTwo.\nThree.\nFour.\n"]), document(["if a:\n    b\n    c\nelse:\n    d\n"])
    assert [unpack(pack(one))[0]["monospace"] for one in (prose, code)] == [False, True]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.sampled_from(["a", " ", "é", "漢", "👩", "\u200d", "\u0301", "\n", "<", "$"]), max_size=4)
    )
)
def test_lengths_cut_the_text_as_javascript_counts_it(texts: list[str]) -> None:
    assume(any(texts))  # without any text others stand in; see test_partly_sent
    header, body = unpack(pack(document(texts)))
    units = header["text"].encode("utf-16-le")
    ends = 2 * np.cumsum(array(header["lengths"], body).astype(int))
    pieces = [units[start:end].decode("utf-16-le") for start, end in zip([0, *ends], ends, strict=False)]
    assert pieces == texts


def test_the_key_changes_with_the_routing() -> None:
    one = document(["a", "b"])
    before = content_key(pack(one))
    one.chosen[1][0, 0] = (one.chosen[1][0, 0] + 1) % 8
    assert content_key(pack(one)) != before


def test_two_routers_of_a_layer_are_told_apart() -> None:
    routers = [Router(i, name, 4, 8, 2, "") for i, name in enumerate(("layers.4.attention", "layers.4.mlp"))]
    assert router_titles(routers) == ["Layer 4 · attention", "Layer 4 · mlp"]


def test_neither_script_nor_style_asks_the_network_or_makes_markup_of_text() -> None:
    script = javascript()
    for word in (
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "eval(",
        "document.write",
    ):
        assert word not in script, word
    assert set(re.findall(r"https?://[^'\"\s]+", script + stylesheet())) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in stylesheet()
    assert "@import" not in stylesheet()
