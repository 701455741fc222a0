"""Train the bundled model: a small Mixtral with a tokenizer of its own, by fixed steps, on one thread.

    python -m moe_probe_data.train_tiny_mixtral --out OUT --steps 400       a trial
    python -m moe_probe_data.train_tiny_mixtral --out OUT --steps 4000 --resume

A batch is a pure function of (seed, step) and the checkpoint holds weights, optimizer and step, so that a resumed run
equals an undisturbed one. Knows nothing of moe_probe: measure_tiny_mixtral.py does the measuring.

Each layer's load is balanced by itself (Fedus et al. 2021, eq. 4-6, and the z-loss of Zoph et al. 2022, eq. 5).
transformers' load_balancing_loss_func pools the layers, and single layers collapse.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from moe_probe_data.corpora import Text, read_corpora

PAD, BOS, EOS = "<pad>", "<s>", "</s>"  # ids 0, 1, 2
DOMAIN_WEIGHTS = {"english": 1.5, "technical": 0.7, "french": 0.8, "german": 0.8, "python": 1.2, "mathematics": 1.0}
MILESTONES = (0.02, 0.1, 0.3, 0.6)  # shares of the training at which a checkpoint is kept


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, the texts aside. Token counts are per step."""

    steps: int
    seed: int = 0
    hidden: int = 128
    layers: int = 6
    intermediate: int = 192
    heads: int = 4
    experts: int = 8
    vocabulary: int = 8192
    context: int = 1024
    window: int = 256
    batch: int = 12
    long_windows_from: float = (
        0.85  # share of the training from which windows fill the context, at as many tokens a step
    )
    learning_rate: float = 3e-3
    warmup_steps: int = 80
    decay_from: float = 0.5
    weight_decay: float = 0.1
    balance: float = 0.01
    z: float = 1e-3

    def shape(self, step: int) -> tuple[int, int]:
        """Windows in a batch and tokens in a window, at this step."""
        if step < self.long_windows_from * self.steps:
            return self.batch, self.window
        return max(1, self.batch * self.window // self.context), self.context

    def rate(self, step: int) -> float:
        """Learning rate: up over the warm-up, flat, then down in a straight line to 2 %."""
        left = (1 - step / self.steps) / (1 - self.decay_from)
        return self.learning_rate * min(1, (step + 1) / self.warmup_steps) * max(0.02, min(1, left))


def train_tokenizer(corpora: dict[str, list[Text]], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with single digits on the training documents.

    `<s>` is put first where special tokens are asked for, and only there.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(corpora), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]),
        ]
    )
    return wrap_tokenizer(tokenizer, recipe)


def wrap_tokenizer(tokenizer: Tokenizer, recipe: Recipe) -> PreTrainedTokenizerFast:
    """Give a tokenizer its special tokens and its longest input."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(corpora: dict[str, list[Text]], characters: int = 1_000_000) -> Iterable[str]:
    """About a million characters a domain, times its weight, spread evenly over its documents."""
    for domain, texts in corpora.items():
        train = [text.text for text in texts if not text.held_out]
        share = min(1.0, characters * DOMAIN_WEIGHTS.get(domain, 1.0) / max(1, sum(map(len, train))))
        taken = 0.0
        for text in train:
            taken += share
            if taken >= 1:
                taken -= 1
                yield text


def encode(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the ids of all documents in a row, (tokens,), each followed by `</s>`."""
    bodies = [text.text for text in texts]
    ids: list[int] = []
    for start in range(0, len(bodies), 64):
        for document in tokenizer(bodies[start : start + 64], add_special_tokens=False, verbose=False)["input_ids"]:
            ids += [*document, tokenizer.eos_token_id]
    return torch.tensor(ids, dtype=torch.long)


def batch_at(step: int, streams: dict[str, torch.Tensor], recipe: Recipe) -> torch.Tensor:
    """Return the windows of one step, (windows, 1 + tokens): `<s>` and then a stretch from anywhere in a domain."""
    rng, n_tokens, chosen = _draw(step, sorted(streams), recipe)
    windows = []
    for domain in chosen:
        stream = streams[domain]
        start = int(rng.integers(len(stream) - n_tokens))
        windows.append(torch.cat([torch.tensor([1]), stream[start : start + n_tokens]]))
    return torch.stack(windows)


def _draw(step: int, domains: list[str], recipe: Recipe) -> tuple[np.random.Generator, int, list[str]]:
    """The step's random numbers, the length of its windows and the domain of each."""
    rng = np.random.default_rng([recipe.seed, step])
    n_windows, n_tokens = recipe.shape(step)
    weights = np.array([DOMAIN_WEIGHTS.get(domain, 1.0) for domain in domains])
    chosen = rng.choice(len(domains), n_windows, p=weights / weights.sum())
    return rng, n_tokens, [domains[index] for index in chosen]


def tokens_seen(domains: Iterable[str], recipe: Recipe) -> dict[str, int]:
    """Return how many tokens of each domain the whole training draws."""
    seen = dict.fromkeys(sorted(domains), 0)
    for step in range(recipe.steps):
        _, n_tokens, chosen = _draw(step, list(seen), recipe)
        for domain in chosen:
            seen[domain] += n_tokens
    return seen


def new_model(recipe: Recipe) -> MixtralForCausalLM:
    """Build the untrained model; the same for the same recipe."""
    torch.manual_seed(recipe.seed)
    config = MixtralConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        head_dim=recipe.hidden // recipe.heads,
        num_local_experts=recipe.experts,
        num_experts_per_tok=2,
        max_position_embeddings=recipe.context,
        sliding_window=None,
        tie_word_embeddings=True,
        router_aux_loss_coef=recipe.balance,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model


def balance_losses(router_logits: tuple[torch.Tensor, ...], k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Load balance and z-loss, each of a layer by itself, then averaged. Balance is 1 at a uniform load."""
    balance, z = [], []
    for logits in router_logits:  # (tokens, experts)
        logits = logits.float()
        probability = logits.softmax(-1)
        n_experts = logits.shape[-1]
        load = functional.one_hot(probability.topk(k, -1).indices, n_experts).float().sum(1).mean(0) / k
        balance.append(n_experts * (load * probability.mean(0)).sum())
        z.append(torch.logsumexp(logits, -1).square().mean())
    return torch.stack(balance).mean(), torch.stack(z).mean()


def new_optimizer(model: MixtralForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Decay the matrices, not the norms."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def train_step(
    model: MixtralForCausalLM, optimizer: torch.optim.AdamW, step: int, streams: dict[str, torch.Tensor], recipe: Recipe
) -> dict[str, float]:
    """One update. Losses in nats."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(step)
    ids = batch_at(step, streams, recipe)  # (windows, 1 + tokens)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(ids[:, :-1], output_router_logits=True)
        logits = model.lm_head(out.last_hidden_state)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    balance, z = balance_losses(out.router_logits)
    (loss + recipe.balance * balance + recipe.z * z).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.item(), "balance": balance.item(), "z": z.item()}


@torch.no_grad()
def held_out_loss(
    model: MixtralForCausalLM, streams: dict[str, torch.Tensor], window: int, windows: int = 8
) -> dict[str, float]:
    """Mean loss in nats per token and domain, over the first windows of each held-out stream."""
    losses = {}
    for domain, stream in streams.items():
        n = min(windows, len(stream) // window)
        if n:
            body = stream[: n * window].view(n, window)
            ids = torch.cat([torch.ones(n, 1, dtype=torch.long), body], 1)
            losses[domain] = round(model(ids, labels=ids, output_router_logits=False).loss.item(), 4)
    return losses


def save_model(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """float16 weights and the tokenizer; float16 changes ≤ 0.02 % of the first choices, bfloat16 ten times that."""
    half = MixtralForCausalLM(model.config).half()
    half.load_state_dict({name: value.to(torch.float16) for name, value in model.state_dict().items()})
    half.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def publish(folder: Path, target: Path) -> None:
    """Put a saved model in the place of another, file by file, by rename."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        beside = target / f".{path.name}.new"
        shutil.copyfile(path, beside)
        os.replace(beside, target / path.name)


def train(
    corpora: dict[str, list[Text]], recipe: Recipe, out: Path, *, resume: bool = False, stop_at: int | None = None
) -> Path:
    """Train to the end (or to `stop_at`, to be resumed) and return the folder of the finished model.

    Writes into OUT: tokenizer/, untrained/, step-XXXXXX/ at the milestones, checkpoint.pt, log.jsonl, final/.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{checkpoint} exists; pass --resume or another --out")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = wrap_tokenizer(Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json")), recipe)
    else:
        tokenizer = train_tokenizer(corpora, recipe)
        tokenizer.save_pretrained(out / "tokenizer")
    streams = {domain: encode((t for t in texts if not t.held_out), tokenizer) for domain, texts in corpora.items()}
    held_out = {domain: encode((t for t in texts if t.held_out), tokenizer) for domain, texts in corpora.items()}
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    first = 0
    if checkpoint.exists():
        first = _load_checkpoint(checkpoint, model, optimizer, recipe)
    else:
        (out / "recipe.json").write_text(
            json.dumps(asdict(recipe) | {"training_tokens": {d: len(s) for d, s in streams.items()}}, indent=2) + "\n"
        )
        save_model(model, tokenizer, out / "untrained")
    milestones = {max(1, round(share * recipe.steps)) for share in MILESTONES}
    started = time.perf_counter()
    for step in range(first, recipe.steps if stop_at is None else stop_at):
        losses = train_step(model, optimizer, step, streams, recipe)
        done = step + 1
        if done % 25 == 0 or done == recipe.steps:
            speed = (done - first) * recipe.batch * recipe.window / (time.perf_counter() - started)
            _log(out, {"step": done, **{k: round(v, 4) for k, v in losses.items()}, "tokens_per_second": round(speed)})
        if done % 500 == 0 or done == stop_at:
            _save_checkpoint(checkpoint, model, optimizer, done, recipe)
        if done % 500 == 0 or done == recipe.steps:
            _log(out, {"step": done, "held_out_loss": held_out_loss(model, held_out, recipe.window)})
        if done in milestones:
            save_model(model, tokenizer, out / f"step-{done:06d}")
    if stop_at is None:
        save_model(model, tokenizer, out / "final")
    return out / "final"


def _save_checkpoint(
    path: Path, model: MixtralForCausalLM, optimizer: torch.optim.AdamW, step: int, recipe: Recipe
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "recipe": asdict(recipe)}
    torch.save(state | {"torch_rng": torch.get_rng_state()}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def _load_checkpoint(path: Path, model: MixtralForCausalLM, optimizer: torch.optim.AdamW, recipe: Recipe) -> int:
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise ValueError(f"{path} was written with another recipe: {state['recipe']}; give the same or another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    return int(state["step"])


def _log(out: Path, row: dict[str, object]) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the bundled model. See data/README.md.")
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints go, outside the repository")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=Recipe.layers)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--publish", type=Path, help="put the finished model into this folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed, layers=arguments.layers)
    final = train(read_corpora(), recipe, arguments.out, resume=arguments.resume)
    if arguments.publish:
        publish(final, arguments.publish)


if __name__ == "__main__":
    main()
