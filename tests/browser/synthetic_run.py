"""Small runs made up for the tests of the explorer: no model, but text, labels and routing that hang together.

An expert follows from the token's label in the middle layers and from chance elsewhere, so that pictures have something
to show, and everything follows from the seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_probe.schema import DROPPED, LabelSet, Router
from moe_probe.store.shards import RoutingBlock, tokens_table
from moe_probe.store.writer import RunWriter, ShardFacts

_TOKEN = re.compile(r" ?\w+| ?[^\w\s]|\s")
_TAGS = ("NOUN", "VERB", "DET", "ADJ", "ADP")
_DETERMINERS = {"the", "a", "an", "this", "that", "every", "each"}
_ADPOSITIONS = {"of", "in", "on", "to", "with", "by", "from", "for", "at", "as"}

HOSTILE = (
    'Markup is only text: <script>window.hacked = 1</script> and <img src=x onerror="window.hacked = 2">.\n'
    "So are :red[x] and $x^2$ and **bold** and `code` and [a link](http://example.com).\n"
    "A family 👩‍👩‍👧 and naïve café, two\ttabs\tand a very long word: " + "Donaudampfschiff" * 6 + "\n"
)
PROSE = (
    "The river bends twice before it reaches the town, and on its way it turns an old wheel that nobody needs.\n"
    "Every morning the baker walks along the bank with a basket of bread, greets the geese, and thinks of the sea.\n"
    "She once saw 3 ships in a harbour, or perhaps 4; the numbers changed as she grew older.\n"
    "\n"
    "A letter came on Tuesday. It said that the bridge would close, that a new road was planned, and that each family\n"
    "would receive a small sum for its trouble. The baker read it twice, folded it, and fed it to the oven.\n"
)
CODE = (
    "def area(shapes):\n    total = 0\n    for shape in shapes:\n        if shape.kind == 'circle':\n"
    "            total += 3.14 * shape.radius ** 2\n        else:\n            total += shape.width * shape.height\n"
    "    return total\n"
)
_SOURCES = {"upos": "made up", "shape": "rules", "domain": "folders"}
TEXTS = {"prose/river.txt": PROSE * 4, "hostile/<b>markup</b> :red[x] $x$.txt": HOSTILE * 3, "code/area.py": CODE * 5}


@dataclass(frozen=True)
class Shape:
    """How large a made-up model is."""

    n_layers: int = 6
    n_experts: int = 8
    n_slots: int = 2
    dropped_every: int = 0  # every so many tokens a last slot holds no expert; 0 = never
    routers_a_layer: int = 1
    weights: bool = True  # False: as a run that was imported from a trace without them
    scores: bool = True  # entropy and margin
    text: bool = True  # False: as a run that was imported from a trace without it

    @property
    def routers(self) -> list[Router]:
        """The model's routers."""
        blocks = ("attention", "mlp")[-self.routers_a_layer :]
        places = [(layer, block) for layer in range(self.n_layers) for block in blocks]
        return [
            Router(index, f"model.layers.{layer}.{block}", layer, self.n_experts, self.n_slots, "softmax top-k")
            for index, (layer, block) in enumerate(places)
        ]


def tokenise(text: str) -> list[str]:
    """Cut a text into pieces that make it up again."""
    return _TOKEN.findall(text)


def _tag(token: str) -> str:
    word = token.strip().lower()
    if not word:
        return "whitespace"
    if not word[0].isalnum():
        return "PUNCT"
    if word[0].isdigit():
        return "NUM"
    if word in _DETERMINERS:
        return "DET"
    if word in _ADPOSITIONS:
        return "ADP"
    return _TAGS[sum(map(ord, word)) % len(_TAGS)]


def _shape(token: str) -> str:
    word = token.strip()
    if not word:
        return "newline" if "\n" in token else "whitespace"
    if not word[0].isalnum():
        return "punctuation"
    return "number" if word[0].isdigit() else "capitalised" if word[0].isupper() else "word"


def routing_of(tags: Sequence[str], shape: Shape, router: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the experts (tokens, slots) and weights of one router."""
    rng = np.random.default_rng([seed, router])
    names = sorted(set(tags))
    favourite = rng.permutation(max(shape.n_experts, len(names)))[: len(names)] % shape.n_experts
    pull = 4.0 * np.sin(np.pi * (router + 1) / (len(shape.routers) + 1))
    scores = rng.gumbel(size=(len(tags), shape.n_experts)) + 0.8 * rng.normal(size=shape.n_experts)
    scores[np.arange(len(tags)), favourite[[names.index(tag) for tag in tags]]] += pull
    experts = np.argsort(-scores, axis=1, kind="stable")[:, : shape.n_slots]
    chosen = np.take_along_axis(scores, experts, axis=1)
    weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    if shape.dropped_every:
        experts[:: shape.dropped_every, -1] = DROPPED
    return experts.astype(np.int32), weights.astype(np.float32)


def make_run(path: Path, texts: Mapping[str, str] = TEXTS, shape: Shape = Shape(), *, seed: int = 7) -> Path:
    """Write a run of one shard and return its path."""
    routers = shape.routers
    documents, columns, tags = _token_rows(texts)
    scored = (shape.scores,) * len(routers)
    block = RoutingBlock(routers, list(scored), len(tags), weights=shape.weights)
    for router in routers:
        experts, weights = routing_of(tags, shape, router.index, seed)
        entropy = -(weights * np.log2(np.maximum(weights, 1e-9))).sum(axis=1)
        scores = (entropy, weights[:, -1]) if shape.scores else (None, None)
        block.fill(router.index, np.arange(len(tags)), experts, weights if shape.weights else None, *scores)
    labels = {
        "upos": tags,
        "shape": [_shape(text) for text in columns["text"]],
        "domain": [documents["domain"][d] for d in columns["document"]],
    }
    if not shape.text:
        columns |= {"text": [""] * len(tags), "token": [""] * len(tags)}
        documents["characters"] = [0] * len(texts)
        labels = {}
    with RunWriter(path) as writer:
        writer.publish_plan({"shards": [[0, 0, len(tags)]]})
        writer.write_documents([pa.table(documents)])
        facts = ShardFacts(scored, "passed")
        writer.write_shard(0, tokens_table(columns, labels), block.to_table(), facts)
        label_sets = [LabelSet(name, source, name == "upos") for name, source in _SOURCES.items() if name in labels]
        writer.publish(_about(len(texts), len(tags)), routers, label_sets, complete=True, weights=shape.weights)
    return path


def _token_rows(texts: Mapping[str, str]) -> tuple[dict[str, list], dict[str, list], list[str]]:
    names = list(texts)
    documents: dict[str, list] = {
        "document": list(range(len(names))),
        "name": names,
        "domain": [name.split("/")[0] for name in names],
        "language": ["en"] * len(names),
        "first_shard": [0] * len(names),
        "first_row": [],
        "tokens": [],
        "characters": [len(text) for text in texts.values()],
    }
    columns: dict[str, list] = {
        name: []
        for name in (
            "document", "position", "window_position", "token_id", "token", "text", "char_start", "char_end", "phase",
            "word_initial",
        )
    }  # fmt: skip
    for number, text in enumerate(texts.values()):
        documents["first_row"].append(len(columns["text"]))
        pieces = tokenise(text)
        documents["tokens"].append(len(pieces))
        at = 0
        for position, piece in enumerate(pieces):
            row = (number, position, position % 512, sum(map(ord, piece)) % 997, piece.replace(" ", "▁"), piece)
            row += (at, at + len(piece), "prompt", bool(piece.strip()) and piece[0] == " ")
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
            at += len(piece)
        assert at == len(text), "the pieces do not make up the text"
    return documents, columns, [_tag(text) for text in columns["text"]]


def _about(n_documents: int, n_tokens: int) -> dict[str, object]:
    return {
        "model": {"name": "made-up", "revision": None, "quantization": "4bit", "class": "MixtralForCausalLM"},
        "precision": [
            {
                "part": "experts",
                "dtype": "nf4",
                "bits_per_parameter": 4.13,
                "bytes": 1_240_000,
                "parameters": 2_400_000,
            },
            {"part": "router", "dtype": "float32", "bits_per_parameter": 32.0, "bytes": 65_536, "parameters": 16_384},
        ],
        "corpus": {"documents": n_documents, "tokens": n_tokens},
        "settings": {"surprisal": False},
        "versions": {"moe_probe": "0.1.0", "transformers": "5.24.0", "torch": "2.13.0"},
    }
