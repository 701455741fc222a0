"""The token view: a document's routing as bytes for a browser, and the script and style that show it.

One implementation serves the explorer, a standalone page and a notebook: `pack` makes the bytes, `javascript` defines
`decodeDocument(bytes)` and `mountTokenView(root, document, state, {onState, keys})`, `stylesheet` dresses it. It knows
nothing of Streamlit, and neither the script nor the style ever asks the network for anything: where a document is too
large to come at once, `pack` leaves the routing out, `pack_routing` makes it router by router, and whoever mounts the
view gives `bringLater(document, ask)` a way to ask for it.

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

__all__ = [
    "PackableDocument",
    "PackableRouting",
    "content_key",
    "is_indented",
    "javascript",
    "pack",
    "pack_routing",
    "router_titles",
    "routing_bytes",
    "stylesheet",
    "three_routers",
]

VERSION = 1
MAGIC = b"MOEP"
_ALIGNMENT = 8
_SIGN = "▯"
_NOT_HERE: dict[str, dict[str, int | str] | None] = {"experts": None, "weights": None, "entropy": None}
_SCRIPTS = (
    "element.js",
    "later.js",
    "decode.js",
    "histogram.js",
    "card.js",
    "text.js",
    "table.js",
    "picture.js",
    "export.js",
    "tokenview.js",
)


class PackableRouting(Protocol):
    """What `pack_routing` needs of a document: `store.DocumentRouting` has it."""

    @property
    def routers(self) -> Sequence[Router]:
        """The run's routers in the order of their index."""

    def experts(self, *, router: int) -> NDArray[np.int32]:
        """Return the experts of a router, (tokens, slots), -1 = dropped."""

    def weights(self, *, router: int) -> NDArray[np.float32]:
        """Return the weights of a router, (tokens, slots), or raise RunError where they are not known."""

    def entropy(self, *, router: int) -> NDArray[np.float32] | None:
        """Return the entropy of a router in bits, (tokens,), or None where it is not known."""


class PackableDocument(PackableRouting, Protocol):
    """What `pack` needs of a document: `store.DocumentRouting` has it."""

    @property
    def name(self) -> str:
        """The document's name."""

    @property
    def tokens(self) -> pl.DataFrame:
        """A row a token: the columns of `schema.TOKEN_COLUMNS` and one for each label."""


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


def three_routers(count: int) -> list[int]:
    """Return the first, the middle and the last of so many routers, as Fig. 8 of Mixtral shows layers 0, 15 and 31.

    Example:
        >>> three_routers(32), three_routers(2), three_routers(0)
        ([0, 15, 31], [0, 1], [])
    """
    return sorted({0, (count - 1) // 2, count - 1}) if count else []


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


def pack(document: PackableDocument, *, start: int = 0, stop: int | None = None, routing: bool = True) -> bytes:
    """Return a document's tokens and routing as bytes that `decodeDocument` in the browser reads.

    A document of which no token has a text is shown by its tokens' ids, or by signs where those are unknown too; the
    header's `stand_ins` says so.

    Args:
        document: for example `run.document(0)`.
        start: the first token to pack.
        stop: the token before which to stop; None = the document's end.
        routing: False leaves experts, weights and entropies out: `pack_routing` gives them router by router.

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
    stand_ins = None
    if texts and not any(texts):
        stand_ins, texts = _stand_ins(tokens)
    body = _Body()
    pieces, piece_codes = _code(tokens["token"].to_list())
    text = "".join(texts)
    header = {
        "version": VERSION,
        "name": document.name,
        "n_tokens": tokens.height,
        "first": int(tokens["position"][0]) if tokens.height else 0,
        "text": text,
        "stand_ins": stand_ins,
        "monospace": is_indented(text),
        # JavaScript counts UTF-16 units, so that is what the lengths are in.
        "lengths": body.add_unsigned(
            np.array([len(t.encode("utf-16-le", "surrogatepass")) // 2 for t in texts], np.int64)
        ),
        "pieces": pieces,
        "piece_codes": body.add_unsigned(piece_codes),
        "labels": [_pack_label(tokens, name, body) for name in _label_columns(tokens)],
        "routers": [
            said | (_pack_router(document, said["index"], start, stop, body) if routing else _NOT_HERE)
            for said in _describe(document.routers)
        ],
        "palette": list(EXPERT_COLOURS),
        "ink": INK,
    }
    return _joined(header, body)


def pack_routing(document: PackableRouting, routers: Sequence[int]) -> bytes:
    """Return what some routers did with a document's tokens, as bytes that `decodeRouting` in the browser reads.

    Args:
        document: all of it, or a stretch.
        routers: the routers' indices.
    """
    body = _Body()
    described = _describe(document.routers)
    packed = [described[index] | _pack_router(document, index, 0, None, body) for index in routers]
    return _joined({"version": VERSION, "routers": packed}, body)


def routing_bytes(routers: Sequence[Router], n_tokens: int, *, weights: Sequence[bool], scores: Sequence[bool]) -> int:
    """Return how many bytes the routing of a document takes when it is packed.

    Args:
        routers: of the run.
        n_tokens: of the document.
        weights: for each router, whether its weights are known.
        scores: for each router, whether its entropies are.

    Example:
        >>> mixtral = [Router(index, f"layers.{index}.mlp", index, 8, 2, "softmax top-k") for index in range(32)]
        >>> routing_bytes(mixtral, 50_000, weights=[True] * 32, scores=[True] * 32)
        12800000
    """
    known = zip(routers, weights, scores, strict=True)
    return n_tokens * sum(
        router.n_slots * (expert_bits(router.n_experts) // 8 + 2 * weighted) + 2 * scored
        for router, weighted, scored in known
    )


def content_key(*packed: bytes) -> str:
    """Return a short name of packed bytes that changes whenever they do."""
    digest = hashlib.sha256()
    for part in packed:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def javascript() -> str:
    """Return the script that defines `decodeDocument` and `mountTokenView`; it exports nothing and starts nothing."""
    folder = files(__name__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)


def stylesheet() -> str:
    """Return the view's style. It takes Streamlit's theme variables where they are set, else colours of its own."""
    return files(__name__).joinpath("tokenview.css").read_text(encoding="utf-8")


def _joined(header: dict[str, Any], body: _Body) -> bytes:
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNMENT)
    return b"".join([MAGIC, struct.pack("<I", len(head)), head, *body.parts])


def _describe(routers: Sequence[Router]) -> list[dict[str, Any]]:
    """Return what the header says of each router, whether or not its arrays are there."""
    return [
        {
            "index": router.index,
            "name": router.name,
            "layer": router.layer,
            "title": title,
            "short": short,
            "n_experts": router.n_experts,
            "n_slots": router.n_slots,
        }
        for router, title, short in zip(routers, router_titles(routers), _short_titles(routers), strict=True)
    ]


def _short_titles(routers: Sequence[Router]) -> list[str]:
    """`3`, and `3·1`, `3·2` where a layer has two routers."""
    routers_in = Counter(router.layer for router in routers)
    seen: Counter[int] = Counter()
    titles = []
    for router in routers:
        seen[router.layer] += 1
        titles.append(f"{router.layer}" + (f"·{seen[router.layer]}" if routers_in[router.layer] > 1 else ""))
    return titles


def _pack_router(
    document: PackableRouting, index: int, start: int, stop: int | None, body: _Body
) -> dict[str, dict[str, int | str] | None]:
    bits = expert_bits(document.routers[index].n_experts)
    experts = document.experts(router=index)[start:stop]
    unsigned = np.where(experts == DROPPED, 2**bits - 1, experts).astype(f"uint{bits}")
    weights, entropy = _weights(document, index), document.entropy(router=index)
    return {
        "experts": body.add(unsigned, f"u{bits}"),
        "weights": None if weights is None else body.add(weights[start:stop].astype(np.float16), "f16"),
        "entropy": None if entropy is None else body.add(entropy[start:stop].astype(np.float16), "f16"),
    }


def _stand_ins(tokens: pl.DataFrame) -> tuple[str, list[str]]:
    """Return what is shown of tokens without text, and what that is: ids where they are known, else a sign each."""
    ids = tokens["token_id"].to_list()
    if min(ids) < 0:
        return "signs", [f" {_SIGN}"] * len(ids)
    return "ids", [f" {token_id}" for token_id in ids]


def _weights(document: PackableRouting, router: int) -> NDArray[np.float32] | None:
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


def is_indented(text: str) -> bool:
    """Say whether a text's lines are indented as code's are, so that its columns matter."""
    lines = [line for line in text[:20_000].split("\n") if line.strip()]
    return len(lines) > 3 and sum(line.startswith(("  ", "\t")) for line in lines) > 0.15 * len(lines)
