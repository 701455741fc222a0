"""Turns documents into token ids and the characters that each token owns.

It does not know windows, runs or models beyond their tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError
from moe_probe.labels.align import Pieces, own

Ints = npt.NDArray[np.int32]

_CHARACTERS_AT_ONCE = 500_000
_DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document as the model gets it, without special tokens around it.

    `ids`, `starts` and `ends` are (tokens,): the token's id, and the characters of `document.text` that it owns.
    `number` is the document's place in the corpus. `n_prompt` says how many tokens a model was given before it wrote
    the others; None where no model wrote anything.
    """

    number: int
    document: Document
    ids: Ints
    starts: Ints
    ends: Ints
    n_prompt: int | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens in the document."""
        return len(self.ids)

    def cut(self, n_tokens: int) -> EncodedDocument:
        """Return the document with its first tokens only; the text stays whole, so that labels see all of it."""
        return replace(self, ids=self.ids[:n_tokens], starts=self.starts[:n_tokens], ends=self.ends[:n_tokens])


class Encoder:
    """A tokenizer, checked to be one that says which characters a token covers.

    Attributes:
        prefix: the special tokens that the tokenizer puts before any text.
        n_pieces: how many token ids the tokenizer knows.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        model_name: str,
        n_embeddings: int,
        *,
        prefix: tuple[int, ...] | None = None,
    ) -> None:
        """Check a tokenizer.

        Args:
            tokenizer: the model's.
            model_name: what messages call the model.
            n_embeddings: how many token ids the model knows.
            prefix: the special tokens before a text where they are not those that the tokenizer itself puts there.

        Raises:
            BadInputError: if there is none, or it does not say which characters a token covers.
        """
        if tokenizer is None:
            raise BadInputError(
                f"{model_name}: the model came without a tokenizer, and a trace starts from text; put the tokenizer's"
                " files (tokenizer.json) into the model's folder"
            )
        if not tokenizer.is_fast:
            raise BadInputError(
                f"{model_name}: its tokenizer {type(tokenizer).__name__} is a slow one, which does not say which"
                " characters a token covers; convert it to a fast one (tokenizer.json)"
            )
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._n_embeddings = n_embeddings
        self._is_special = np.zeros(n_embeddings, np.bool_)
        self._is_special[[token for token in tokenizer.all_special_ids if token < n_embeddings]] = True
        self._pieces: dict[int, str] = {}
        self.prefix = _prefix(tokenizer) if prefix is None else prefix
        self.n_pieces = len(tokenizer)

    @property
    def name(self) -> str:
        """The tokenizer's class."""
        return type(self._tokenizer).__name__

    def find_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the pieces of token ids; "" where the model knows more ids than the tokenizer, and may write them."""
        new = [token for token in ids if token not in self._pieces]
        found = zip(new, self._tokenizer.convert_ids_to_tokens(new), strict=True)
        self._pieces |= {token: piece if isinstance(piece, str) else "" for token, piece in found}
        return [self._pieces[token] for token in ids]

    def pieces(self, encoded: EncodedDocument) -> Pieces:
        """Return what each token owns, and which are special ones that the text itself spells out."""
        return Pieces(encoded.starts, encoded.ends, self._is_special[encoded.ids])

    def encode(self, documents: Iterable[Document]) -> Iterator[list[EncodedDocument]]:
        """Yield the documents encoded, in order, some at once.

        Raises:
            BadInputError: if a token has an id that the model does not know.
        """
        number = 0
        for group in grouped(documents, _CHARACTERS_AT_ONCE, _DOCUMENTS_AT_ONCE):
            yield self._encode(number, group)
            number += len(group)

    def _encode(self, number: int, documents: Sequence[Document]) -> list[EncodedDocument]:
        found = self._tokenizer(
            [document.text for document in documents],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        encoded: list[EncodedDocument] = []
        for document, ids, offsets in zip(documents, found["input_ids"], found["offset_mapping"], strict=True):
            array = np.array(ids, np.int32)
            if len(array) and array.max() >= self._n_embeddings:
                raise BadInputError(
                    f"{self._model_name}: its tokenizer gives the id {array.max()} where the model knows"
                    f" {self._n_embeddings} ids; is it the model's own tokenizer?"
                )
            # One by one, for numpy is slow at pairs.
            spans = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
            starts, ends = own(document.text, spans)
            encoded.append(EncodedDocument(number + len(encoded), document, array, starts, ends))
        return encoded


def grouped(documents: Iterable[Document], characters: int, count: int) -> Iterator[list[Document]]:
    """Yield documents in groups of about so many characters, and at most `count` of them."""
    group: list[Document] = []
    held = 0
    for document in documents:
        group.append(document)
        held += len(document.text)
        if held >= characters or len(group) >= count:
            yield group
            group, held = [], 0
    if group:
        yield group


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens before a text. Those after it are not fed: a window is not the end of its text."""
    found = tokenizer("a", return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
    ids, mask = found["input_ids"], found["special_tokens_mask"]
    length = next((place for place, special in enumerate(mask) if not special), len(mask))
    return tuple(ids[:length])
