"""Lets a model write: prompts in batches, padded on the left, in; the ids that it wrote out, exactly.

Nothing is recorded here, so that whatever way of decoding transformers has can be used: what is recorded comes from
one more pass over what was written. It does not know documents or files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.models import LanguageModel
from moe_probe.models.sources import first_line
from moe_probe.tracing.forward import is_out_of_memory

_NOT_HERE = {
    "max_new_tokens": "it is an argument of its own",
    "max_length": "it counts the prompt too; use max_new_tokens",
    "num_return_sequences": "each document is continued once; give it several times, under different names",
    "streamer": "progress is told by on_progress",
    "return_dict_in_generate": "only the ids are wanted",
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values"),
        "it is made from the inputs",
    ),
}
_ONE_BY_ONE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
_STOPS = ("stop_strings", "stopping_criteria")


@dataclass(frozen=True, eq=False)
class Generator:
    """A model and how it writes.

    Attributes:
        config: what transformers is asked for.
        arguments: what of it is no setting: an assistant, processors of logits.
        assistant: what the assistant is called.
        seed: of all that is drawn at random; each batch draws from a seed of its own, so that it can be made alone.
        batch_size: prompts in a batch.
        max_new_tokens: tokens that a prompt is continued by at most.
    """

    lm: LanguageModel
    config: GenerationConfig
    arguments: Mapping[str, Any]
    assistant: str | None
    seed: int
    batch_size: int
    max_new_tokens: int

    def describe(self) -> dict[str, object]:
        """Return how the model writes, in values that JSON can hold."""
        settings = {
            name: _described(value)
            for name, value in self.config.to_diff_dict().items()
            if name not in ("transformers_version", "max_new_tokens")
        }
        mode = self.config.get_generation_mode(self.arguments.get("assistant_model"))
        return {
            "max_new_tokens": self.max_new_tokens,
            "method": mode.value.replace("_", " "),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "generation_config": settings,
            "arguments": {name: _described(value) for name, value in sorted(self.arguments.items())}
            | ({} if self.assistant is None else {"assistant_model": self.assistant}),
        }

    def write(self, number: int, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return what the model wrote after each prompt of batch `number`, the end of sequence included.

        Raises:
            BadInputError: if the model cannot write in the way that it is asked to.
            MoeProbeError: if a single prompt does not fit into memory.
        """
        return self._write(prompts, (number,))

    def _write(self, prompts: Sequence[Sequence[int]], key: tuple[int, ...]) -> list[list[int]]:
        try:
            return self._generate(prompts, key)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(prompts) == 1:
            raise MoeProbeError(
                f"{self.lm.name}: out of memory on {self.lm.device} while writing after a prompt of {len(prompts[0])}"
                " tokens; ask for fewer tokens, or load the model in fewer bits"
            )
        middle = (len(prompts) + 1) // 2
        return self._write(prompts[:middle], (*key, 0)) + self._write(prompts[middle:], (*key, 1))

    def _generate(self, prompts: Sequence[Sequence[int]], key: tuple[int, ...]) -> list[list[int]]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), int(self.config.pad_token_id))
        mask = torch.zeros_like(ids)
        for line, prompt in enumerate(prompts):
            ids[line, longest - len(prompt) :] = torch.tensor(prompt)
            mask[line, longest - len(prompt) :] = 1
        device = self.lm.device
        model: Any = self.lm.model
        with _seeded(np.random.SeedSequence([self.seed, *key]), device):
            try:
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=copy.deepcopy(self.config),
                    **self.arguments,
                )
            except ValueError as error:
                raise BadInputError(f"{self.lm.name}: it cannot write so: {first_line(error)}") from error
        return [self._ended(line) for line in written[:, longest:].tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        """Return the ids up to the first end of sequence; after it comes padding."""
        ends = self.config.eos_token_id
        known = {ends} if isinstance(ends, int) else set(ends or ())
        return ids[: next((place + 1 for place, token in enumerate(ids) if token in known), len(ids))]


def open_generator(
    lm: LanguageModel, *, max_new_tokens: int, batch_size: int, generation: Mapping[str, Any] | None
) -> Generator:
    """Check how a model is to write. Greedily with one beam, unless `generation` says otherwise.

    Raises:
        BadInputError: if something in `generation` has no place there, or a number cannot be used.
    """
    for name, number in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if number < 1:
            raise BadInputError(f"{name} {number}: use at least 1")
    given = dict(generation or {})
    for name in given:
        if name in _NOT_HERE:
            raise BadInputError(f"generation: {name} cannot be given: {_NOT_HERE[name]}")
    seed = given.pop("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise BadInputError(f"generation: seed {seed!r}: use a whole number from 0 on")
    asked = given.pop("generation_config", None)
    if asked is None:
        given = {"do_sample": False, "num_beams": 1} | given
    own: GenerationConfig | None = lm.model.generation_config
    config: GenerationConfig = copy.deepcopy(asked or own) or GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        arguments: dict[str, Any] = config.update(**given)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise BadInputError(f"{lm.name}: it cannot write so: {first_line(error)}") from error
    _complete(config, own, lm, max_new_tokens)
    helper = arguments.get("assistant_model")
    assistant = None if helper is None else type(helper).__name__
    if isinstance(helper, LanguageModel):
        arguments["assistant_model"] = helper.model
        assistant = f"{helper.name}, {helper.quantization or helper.model.dtype}".replace("torch.", "")
    if config.stop_strings is not None:
        arguments.setdefault("tokenizer", lm.tokenizer)
    # Assisted decoding takes one prompt at a time. Where a text may end otherwise than by an end of sequence, padding
    # after it could not be told from what the model wrote, so there is to be none.
    alone = any(arguments.get(name) is not None or getattr(config, name, None) is not None for name in _ONE_BY_ONE)
    stops = any(arguments.get(name) is not None or getattr(config, name, None) is not None for name in _STOPS)
    lm.model.eval()  # type: ignore[no-untyped-call]
    return Generator(lm, config, arguments, assistant, seed, 1 if alone or stops else batch_size, max_new_tokens)


def _complete(config: GenerationConfig, own: GenerationConfig | None, lm: LanguageModel, max_new_tokens: int) -> None:
    config.max_new_tokens = max_new_tokens
    config.num_return_sequences = 1
    config.return_dict_in_generate = False
    if config.eos_token_id is None and own is not None:
        config.eos_token_id = own.eos_token_id  # transformers would take it
    if config.pad_token_id is None:
        ends = config.eos_token_id
        candidates = (getattr(lm.tokenizer, "pad_token_id", None), ends if isinstance(ends, int) else (ends or [0])[0])
        config.pad_token_id = next(token for token in candidates if token is not None)


@contextmanager
def _seeded(seeds: np.random.SeedSequence, device: torch.device) -> Iterator[None]:
    """Draw from a seed while the block runs; torch's own generators go on afterwards as if nothing had been drawn."""
    devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]) >> 1)
        yield


def _described(value: object) -> object:
    """Return a value that JSON can hold in place of one that it may not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _described(one) for key, one in value.items()}
    if type(value) in (list, tuple, set):
        return [_described(one) for one in value]  # type: ignore[attr-defined]
    return str(getattr(value, "__qualname__", type(value).__name__))
