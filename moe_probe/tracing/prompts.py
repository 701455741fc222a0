"""Turns documents into prompts: their own tokens, or those of a chat in which they are what the user says.

It does not know what is done with prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from moe_probe.corpus import Document
from moe_probe.corpus.document import Span
from moe_probe.errors import BadInputError
from moe_probe.models import LanguageModel
from moe_probe.tracing.encoding import EncodedDocument, Encoder

_STAND_IN = "What the user says."


class Chat:
    """A tokenizer's chat template: a document becomes the user's message, and the answer comes next.

    Attributes:
        encoder: the tokenizer, its prefix what the template itself begins with, if that is what begins any text.
    """

    def __init__(self, lm: LanguageModel, encoder: Encoder, n_embeddings: int) -> None:
        """Try the template.

        Raises:
            BadInputError: if the tokenizer has none, or it cannot be used.
        """
        tokenizer = lm.tokenizer
        if tokenizer is None or not tokenizer.chat_template:
            raise BadInputError(
                f"{lm.name}: its tokenizer has no chat template, so that there is no telling how it was taught to chat;"
                " leave chat out, or take a model that was tuned for it"
            )
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        self._name = lm.name
        rendered = self._render(_STAND_IN)
        self._place = rendered.find(_STAND_IN)
        begin = tuple(_encode_one(encoder, Document("chat", rendered)).ids[: len(encoder.prefix)].tolist())
        prefix = encoder.prefix if begin == encoder.prefix else ()
        self.encoder = Encoder(tokenizer, lm.name, n_embeddings, prefix=prefix)

    def prompts(self, documents: Iterable[Document]) -> Iterator[list[EncodedDocument]]:
        """Yield the chats encoded, without the special tokens that begin them all.

        Raises:
            BadInputError: if the template fails, or has changed a text whose stretches are labelled.
        """
        for group in self.encoder.encode(self._open(document) for document in documents):
            yield [self._without_prefix(encoded) for encoded in group]

    def _render(self, text: str) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise BadInputError(f"{self._name}: its chat template fails ({error}); leave chat out") from error
        assert isinstance(rendered, str), "a template renders one conversation to one text"
        return rendered

    def _open(self, document: Document) -> Document:
        rendered = self._render(document.text)
        labels = document.labels
        if labels and not all(isinstance(value, str) for value in labels.values()):
            if self._place < 0 or not rendered.startswith(document.text, self._place):
                raise BadInputError(
                    f"document {document.name!r}: the chat template of {self._name} changes its text, so that labels of"
                    " stretches of it cannot be placed; leave these labels out"
                )
            labels = {
                name: value if isinstance(value, str) else _moved(value, self._place) for name, value in labels.items()
            }
        return replace(document, text=rendered, labels=labels)

    def _without_prefix(self, encoded: EncodedDocument) -> EncodedDocument:
        n_prefix = len(self.encoder.prefix)
        if n_prefix == 0:
            return encoded
        document = encoded.document
        if tuple(encoded.ids[:n_prefix].tolist()) != self.encoder.prefix:
            raise BadInputError(
                f"document {document.name!r}: the chat template of {self._name} does not begin it with the special"
                " tokens that it begins other texts with; leave chat out"
            )
        cut = int(encoded.ends[n_prefix - 1])
        labels = None
        if document.labels is not None:
            labels = {
                name: value if isinstance(value, str) else _moved(value, -cut)
                for name, value in document.labels.items()
            }
        return replace(
            encoded,
            document=replace(document, text=document.text[cut:], labels=labels),
            ids=encoded.ids[n_prefix:],
            starts=encoded.starts[n_prefix:] - cut,
            ends=encoded.ends[n_prefix:] - cut,
        )


def _encode_one(encoder: Encoder, document: Document) -> EncodedDocument:
    return next(encoder.encode([document]))[0]


def _moved(spans: Sequence[Span], by: int) -> list[Span]:
    return [(start + by, end + by, value) for start, end, value in spans]
