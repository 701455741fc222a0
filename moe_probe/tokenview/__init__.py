"""The token view: a document's routing as bytes for a browser, and the script and style that show it.

One implementation serves the explorer, a standalone page and a notebook: `pack` makes the bytes, `javascript` defines
`decodeDocument(bytes)` and `mountTokenView(root, document, state, {onState, keys})`, `stylesheet` dresses it. It knows
nothing of Streamlit, and neither the script nor the style ever asks the network for anything.

The bytes are a magic word, the header's length, a JSON header, and arrays at offsets that the header names: the experts
as the smallest unsigned integers that hold them (all ones = dropped), weights and entropies as float16, as on disk.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_probe.errors import BadInputError, RunError
from moe_probe.palette import EXPERT_COLOURS, INK
from moe_probe.schema import DROPPED, SURPRISAL_COLUMN, TOKEN_COLUMNS, Router, expert_bits

if TYPE_CHECKING:
    import polars as pl

__all__ = ["PackableDocument", "content_key", "javascript", "pack", "router_titles", "stylesheet"]

VERSION = 1
MAGIC = b"MOEP"
_ALIGNMENT = 8
_SCRIPTS = ("element.js", "decode.js", "histogram.js", "card.js", "text.js", "table.js", "tokenview.js")


class PackableDocument(Protocol):
    """What `pack` needs of a document: `store.DocumentRouting` has it."""

    @property
    def name(self) -> str:
        """The document's name."""

    @property
    def tokens(self) -> pl.DataFrame:
        """A row a token: the columns of `schema.TOKEN_COLUMNS` and one for each label."""

    @property
    def routers(self) -> Sequence[Router]:
        """The run's routers in the order of their index."""

    def experts(self, *, router: int) -> NDArray[np.int32]:
        """Return the experts of a router, (tokens, slots), -1 = dropped."""

    def weights(self, *, router: int) -> NDArray[np.float32]:
        """Return the weights of a router, (tokens, slots), or raise RunError where they are not known."""

    def entropy(self, *, router: int) -> NDArray[np.float32] | None:
        """Return the entropy of a router in bits, (tokens,), or None where it is not known."""


class _Body:
    """The arrays behind the header, each at an aligned offset."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: NDArray[Any], kind: str) -> dict[str, int | str]:
        data = np.ascontiguousarray(array).tobytes()
        at: dict[str, int | str] = {"offset": self.size, "length": int(array.size), "type": kind}
        padding = -len(data) % _ALIGNMENT
        self.parts += [data, b"\0" * padding]
        self.size += len(data) + padding
        return at

    def add_unsigned(self, array: NDArray[Any]) -> dict[str, int | str]:
        bits = expert_bits(int(array.max(initial=0)) + 1)
        return self.add(array.astype(f"uint{bits}"), f"u{bits}")


def router_titles(routers: Sequence[Router]) -> list[str]:
    """Return what to call each router: its layer, and more where a layer has two.

    Example:
        >>> router_titles([Router(0, "layers.0.mlp", 0, 8, 2, "softmax top-k")])
        ['Layer 0']
        >>> two = [Router(0, "layers.0.attention", 0, 8, 2, ""), Router(1, "layers.0.mlp", 0, 8, 2, "")]
        >>> router_titles(two)
        ['Layer 0 · attention', 'Layer 0 · mlp']
    """
    routers_in = Counter(router.layer for router in routers)
    return [
        f"Layer {router.layer}" + (f" · {router.name.rsplit('.', 1)[-1]}" if routers_in[router.layer] > 1 else "")
        for router in routers
    ]


def pack(document: PackableDocument, *, start: int = 0, stop: int | None = None) -> bytes:
    """Return a document's tokens and routing as bytes that `decodeDocument` in the browser reads.

    Args:
        document: for example `run.document(0)`.
        start: the first token to pack.
        stop: the token before which to stop; None = the document's end.

    Raises:
        BadInputError: if `start` and `stop` do not name a stretch of the document.
    """
    n_tokens = document.tokens.height
    stop = n_tokens if stop is None else stop
    if not 0 <= start <= stop <= n_tokens:
        raise BadInputError(
            f"document {document.name!r}: tokens {start} to {stop} are not within its {n_tokens} tokens"
        )
    tokens = document.tokens.slice(start, stop - start)
    texts = tokens["text"].to_list()
    body = _Body()
    pieces, piece_codes = _code(tokens["token"].to_list())
    text = "".join(texts)
    header = {
        "version": VERSION,
        "name": document.name,
        "n_tokens": tokens.height,
        "first": int(tokens["position"][0]) if tokens.height else 0,
        "text": text,
        "monospace": _is_indented(text),
        # JavaScript counts UTF-16 units, so that is what the lengths are in.
        "lengths": body.add_unsigned(
            np.array([len(t.encode("utf-16-le", "surrogatepass")) // 2 for t in texts], np.int64)
        ),
        "pieces": pieces,
        "piece_codes": body.add_unsigned(piece_codes),
        "labels": [_pack_label(tokens, name, body) for name in _label_columns(tokens)],
        "routers": _pack_routers(document, start, stop, body),
        "palette": list(EXPERT_COLOURS),
        "ink": INK,
    }
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNMENT)
    return b"".join([MAGIC, struct.pack("<I", len(head)), head, *body.parts])


def content_key(packed: bytes) -> str:
    """Return a short name of packed bytes that changes whenever they do."""
    return hashlib.sha256(packed).hexdigest()[:16]


def javascript() -> str:
    """Return the script that defines `decodeDocument` and `mountTokenView`; it exports nothing and starts nothing."""
    folder = files(__name__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)


def stylesheet() -> str:
    """Return the view's style. It takes Streamlit's theme variables where they are set, else colours of its own."""
    return files(__name__).joinpath("tokenview.css").read_text(encoding="utf-8")


def _pack_routers(document: PackableDocument, start: int, stop: int, body: _Body) -> list[dict[str, Any]]:
    packed = []
    for router, title in zip(document.routers, router_titles(document.routers), strict=True):
        bits = expert_bits(router.n_experts)
        experts = document.experts(router=router.index)[start:stop]
        unsigned = np.where(experts == DROPPED, 2**bits - 1, experts).astype(f"uint{bits}")
        weights, entropy = _weights(document, router.index), document.entropy(router=router.index)
        packed.append(
            {
                "index": router.index,
                "name": router.name,
                "layer": router.layer,
                "title": title,
                "short": str(router.layer),
                "n_experts": router.n_experts,
                "n_slots": router.n_slots,
                "experts": body.add(unsigned, f"u{bits}"),
                "weights": None if weights is None else body.add(weights[start:stop].astype(np.float16), "f16"),
                "entropy": None if entropy is None else body.add(entropy[start:stop].astype(np.float16), "f16"),
            }
        )
    return packed


def _weights(document: PackableDocument, router: int) -> NDArray[np.float32] | None:
    try:
        return document.weights(router=router)
    except RunError:  # a run that was imported from a trace without weights
        return None


def _label_columns(tokens: pl.DataFrame) -> list[str]:
    known = {*TOKEN_COLUMNS, SURPRISAL_COLUMN}
    phase = ["phase"] if "phase" in tokens.columns and tokens["phase"].n_unique() > 1 else []
    return [name for name in tokens.columns if name not in known] + phase


def _pack_label(tokens: pl.DataFrame, name: str, body: _Body) -> dict[str, Any]:
    values, codes = _code([str(value) for value in tokens[name].to_list()])
    return {"name": name, "values": values, "codes": body.add_unsigned(codes)}


def _code(values: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct values in order of appearance, and each value's place among them."""
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(value, len(places)) for value in values], dtype=np.int64)
    return list(places), codes


def _is_indented(text: str) -> bool:
    """Say whether a text's lines are indented as code's are, so that its columns matter."""
    lines = [line for line in text[:20_000].split("\n") if line.strip()]
    return len(lines) > 3 and sum(line.startswith(("  ", "\t")) for line in lines) > 0.15 * len(lines)
