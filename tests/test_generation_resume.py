"""A generated run that was stopped goes on without writing anything twice."""

from __future__ import annotations

import json
import threading

import pytest
import traced_models
from traced_models import files_of

import moe_probe as mp
from moe_probe.corpus import Document
from moe_probe.errors import MoeProbeError, RunError
from moe_probe.models import LanguageModel
from moe_probe.tracing import Progress, generate_and_trace, trace
from moe_probe.tracing.kept import GENERATED_FILE

OPTIONS = {
    "labels": ("shape",),
    "max_new_tokens": 6,
    "batch_size": 2,
    "generation": {"do_sample": True, "seed": 4},
    "shard_rows": 40,
    "context": 32,
    "batch_tokens": 64,
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts() -> list[Document]:
    return [Document(f"d{n}", traced_models.text(1 + n % 4, seed=n)) for n in range(9)]


@pytest.fixture(scope="module")
def undisturbed(lm, prompts, tmp_path_factory) -> mp.Run:
    return generate_and_trace(lm, prompts, tmp_path_factory.mktemp("undisturbed") / "run", **OPTIONS)


@pytest.fixture
def batches(lm, monkeypatch) -> list[int]:
    """Return a list that grows by the prompts of each batch that the model goes on with."""
    sizes: list[int] = []
    generate = lm.model.generate

    def counted(input_ids, **options):
        sizes.append(len(input_ids))
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(lm.model, "generate", counted)
    return sizes


def stop_in(phase: str, cancel: threading.Event, after: int):
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if [step.phase for step in seen].count(phase) == after:
            cancel.set()

    return watch


def test_cancelled_while_writing_it_goes_on_after_the_batches_that_are_kept(
    lm, prompts, undisturbed, batches, tmp_path
):
    cancel = threading.Event()
    with pytest.raises(MoeProbeError, match=r"cancelled while text was being written; 4 of 9 document\(s\) are kept"):
        generate_and_trace(
            lm, prompts, tmp_path / "run", on_progress=stop_in("generating", cancel, 2), cancel=cancel, **OPTIONS
        )
    assert batches == [2, 2]
    with pytest.raises(RunError, match="a trace that was stopped left generated text there; use --resume to go on"):
        generate_and_trace(lm, prompts, tmp_path / "run", **OPTIONS)
    assert generate_and_trace(lm, prompts, tmp_path / "run", resume=True, **OPTIONS).complete
    assert batches == [2, 2, 2, 2, 1]
    assert files_of(tmp_path / "run") == files_of(undisturbed.path)


def test_a_line_that_was_cut_short_is_written_again(lm, prompts, undisturbed, batches, tmp_path):
    lines = (undisturbed.path / GENERATED_FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    for whole, cut, left in ((3, 9, [2, 2, 1]), (0, 50, [2, 2, 2, 2, 1]), (1, 0, [2, 2, 2, 2, 1])):
        run = tmp_path / f"{whole}"
        (run / "tokens").mkdir(parents=True)
        (run / GENERATED_FILE).write_bytes(b"".join(lines[:whole]) + lines[whole][:cut])
        batches.clear()
        generate_and_trace(lm, prompts, run, resume=True, **OPTIONS)
        assert batches == left
        assert files_of(run) == files_of(undisturbed.path)


def test_cancelled_while_tracing_nothing_is_written_again(lm, prompts, undisturbed, batches, tmp_path):
    cancel = threading.Event()
    partial = generate_and_trace(
        lm, prompts, tmp_path / "run", on_progress=stop_in("tracing", cancel, 2), cancel=cancel, **OPTIONS
    )
    assert not partial.complete
    batches.clear()
    seen: list[Progress] = []
    run = generate_and_trace(lm, prompts, tmp_path / "run", resume=True, on_progress=seen.append, **OPTIONS)
    assert run.complete
    assert files_of(tmp_path / "run") == files_of(undisturbed.path)
    assert generate_and_trace(lm, prompts, tmp_path / "run", resume=True, **OPTIONS).complete  # nothing is left to do
    assert batches == []
    assert "generating" not in {step.phase for step in seen}


def test_progress_counts_the_tokens_that_are_written(lm, prompts, tmp_path):
    seen: list[Progress] = []
    run = generate_and_trace(lm, prompts, tmp_path / "run", on_progress=seen.append, **OPTIONS)
    done = [step.tokens_done for step in seen if step.phase == "generating"]
    assert len(done) == 5
    assert done == sorted(done)
    assert done[-1] == run.manifest["generation"]["generated_tokens"]
    assert list(dict.fromkeys(step.phase for step in seen)) == ["reading", "generating", "tracing"]


def test_a_run_that_was_made_otherwise_is_not_gone_on_with(lm, prompts, undisturbed, tmp_path):
    run = undisturbed.path
    before = files_of(run)
    for change, message in (
        ({"max_new_tokens": 7}, "max_new_tokens was 6 and is 7"),
        ({"generation": {"do_sample": True, "seed": 5}}, "seed was 4 and is 5"),
        ({"generation": {"num_beams": 2}}, 'method was "sample" and is "beam search"'),
        ({"batch_size": 3}, "batch_size was 2 and is 3"),
        ({"labels": ()}, "labels was "),
    ):
        with pytest.raises(RunError, match=rf"made from something else \(.*{message}"):
            generate_and_trace(lm, prompts, run, resume=True, **OPTIONS | change)
    with pytest.raises(RunError, match=r"made from something else \(prompts was "):
        generate_and_trace(lm, prompts[:-1], run, resume=True, **OPTIONS)
    with pytest.raises(RunError, match="a run is there already; use --resume"):
        generate_and_trace(lm, prompts, run, **OPTIONS)
    with pytest.raises(RunError, match="made from something else"):
        trace(lm, prompts, run, labels=("shape",), resume=True)
    assert files_of(run) == before
    trace(lm, prompts, tmp_path / "plain", labels=())
    with pytest.raises(RunError, match=r"was not generated, or its tokens/generated\.jsonl is gone"):
        generate_and_trace(lm, prompts, tmp_path / "plain", resume=True, **OPTIONS)


def test_kept_text_that_is_damaged_is_refused(lm, prompts, undisturbed, tmp_path):
    lines = (undisturbed.path / GENERATED_FILE).read_text().splitlines()
    for number, damage in enumerate(('{"generated": [["x"]]}', "{", '{"written": []}', "[]")):
        run = tmp_path / str(number)
        (run / "tokens").mkdir(parents=True)
        (run / GENERATED_FILE).write_text("\n".join([*lines[:2], damage]) + "\n")
        with pytest.raises(RunError, match=r"generated\.jsonl: is damaged \(.*\); choose another folder"):
            generate_and_trace(lm, prompts, run, resume=True, **OPTIONS)
    head = json.loads(lines[0])
    assert head["made_from"]["generation"]["max_new_tokens"] == 6
