"""Foreign traces: what a file says is what the run holds, and what cannot be so is said or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from foreign_traces import (
    EXPERTS,
    LAYERS,
    SLOTS,
    npy,
    olmoe_object,
    prompt_object,
    routing,
    row_objects,
    sglang_response,
    vllm_response,
    weights_of,
    write_esft,
    write_lines,
)

from moe_probe.errors import BadInputError, MoeProbeError, RunError
from moe_probe.export import export_csv
from moe_probe.importers import import_and_say, import_run
from moe_probe.store import open_run
from moe_probe.tokenview import pack

SIZES = {"n_experts": EXPERTS, "n_slots": SLOTS, "n_layers": LAYERS}


def assert_holds(run, chosen, weights=None):
    """Compare a run with (tokens, layers, slots)."""
    assert run.n_tokens == len(chosen)
    for router in run.routers:
        place = router.index
        np.testing.assert_array_equal(run.experts(router=place), chosen[:, place])
        if weights is not None:
            np.testing.assert_array_equal(run.weights(router=place), weights[:, place].astype(np.float16))


@pytest.mark.parametrize("kind", ["prompts", "rows", "shuffled rows"])
def test_json_lines_of_either_kind_are_read_as_they_are(tmp_path, kind):
    parts = [routing(n, n) for n in (5, 9, 1)]
    scales = [weights_of(part, n) for n, part in enumerate(parts)]
    lines = []
    for number, (part, scale) in enumerate(zip(parts, scales, strict=True)):
        if kind == "prompts":
            lines.append(prompt_object(part, scale, layers=[2, 3, 5], name=f"d{number}", domain="news"))
        else:
            rows = [row | {"layer": (2, 3, 5)[row["layer"]]} for row in row_objects(part, scale, document=f"d{number}")]
            if kind == "shuffled rows":
                np.random.default_rng(number).shuffle(rows)
            lines += rows
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", lines), tmp_path / "run", n_experts=EXPERTS)
    assert_holds(run, np.concatenate(parts), np.concatenate(scales))
    assert [router.layer for router in run.routers] == [2, 3, 5]
    assert run.documents()["name"].to_list() == ["d0", "d1", "d2"]
    assert run.documents()["tokens"].to_list() == [5, 9, 1]
    assert run.document("d1").tokens["position"].to_list() == list(range(9))
    assert run.manifest["self_check"] == "not run: imported from jsonl"
    assert (run.complete, run.with_weights) == (True, [True] * 3)


def test_rows_without_a_document_begin_anew_with_the_first_layer_and_token(tmp_path):
    parts = [routing(4, 1), routing(6, 2)]
    path = write_lines(tmp_path / "a.jsonl", row_objects(parts[0]) + row_objects(parts[1]))
    run = import_run("jsonl", path, tmp_path / "run", n_experts=EXPERTS)
    assert_holds(run, np.concatenate(parts))
    assert run.documents()["tokens"].to_list() == [4, 6]
    assert any("name no document" in warning for warning in run.warnings)


def test_rows_may_bring_tokens_and_their_ids_in_any_order(tmp_path):
    chosen = routing(5)
    rows = [row | {"token": f" w{row['token_idx']}", "token_id": 50 + row["token_idx"]} for row in row_objects(chosen)]
    rows = [rows[0], *rows[:0:-1]]
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", rows), tmp_path / "run", n_experts=EXPERTS)
    assert_holds(run, chosen)
    assert run.tokens()["token_id"].to_list() == [50, 51, 52, 53, 54]
    assert run.tokens()["text"].to_list() == [" w0", " w1", " w2", " w3", " w4"]


def test_documents_may_cross_the_chunks_that_a_file_is_read_in(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_probe.importers.lines._CHUNK_BYTES", 100)
    monkeypatch.setattr("moe_probe.corpus.opening._BLOCK_BYTES", 64)
    parts = [routing(7, n) for n in range(3)]
    for kind in ("prompts", "rows"):
        lines = [prompt_object(part) for part in parts]
        if kind == "rows":
            lines = [row for n, part in enumerate(parts) for row in row_objects(part, document=n)]
        run = import_run("jsonl", write_lines(tmp_path / f"{kind}.jsonl", lines), tmp_path / kind, n_experts=EXPERTS)
        assert_holds(run, np.concatenate(parts))


def test_the_tokens_of_a_file_give_text_and_its_first_ones_may_be_special(tmp_path):
    tokens = ["<s>", "The", " cat", " sat"]
    line = {"prompt": "The cat sat", "tokens": tokens, "experts": routing(4).transpose(1, 0, 2).tolist()}
    run = import_run(
        "jsonl", write_lines(tmp_path / "a.jsonl", [line]), tmp_path / "run", labels=("shape", "domain"), language="en"
    )
    found = run.tokens()
    assert found["token"].to_list() == tokens
    assert found["text"].to_list() == ["", "The", " cat", " sat"]
    assert found["phase"].to_list() == ["special", "prompt", "prompt", "prompt"]
    assert found["word_initial"].to_list() == [False, True, True, True]
    assert found["shape"].to_list() == ["special", "capitalised", "word", "word"]
    assert found["char_end"].to_list() == [0, 3, 7, 11]
    assert len(set(found["token_id"].to_list())) == 4
    assert found["token_id"].max() < -1  # no id of a tokenizer


def test_tokens_that_do_not_add_up_to_the_prompt_are_said(tmp_path):
    line = {"prompt": "Something else", "tokens": ["a", "b"], "experts": routing(2).transpose(1, 0, 2).tolist()}
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [line]), tmp_path / "run")
    assert any("do not add up to the text" in warning for warning in run.warnings)


@pytest.mark.parametrize("form", ["lists", "npy"])
def test_both_forms_of_vllm_give_prompt_and_generated_tokens(tmp_path, form):
    chosen = routing(9)
    chosen[:, 0] = 0  # a dense layer
    path = write_lines(tmp_path / "a.jsonl", [vllm_response(chosen, 4, form)])
    run = import_run("vllm", path, tmp_path / "run", n_experts=EXPERTS)
    assert [router.layer for router in run.routers] == [1, 2]
    assert_holds(run, chosen[:, 1:])
    assert run.tokens()["phase"].to_list() == ["prompt"] * 4 + ["generated"] * 5
    assert run.tokens()["token_id"].to_list() == [0, 1, 2, 3, 100, 101, 102, 103, 104]
    assert run.manifest["model"]["name"] == "m"
    for said in ("layers 0 hold nothing but zeros", "last token never ran", "no weights", "no token strings"):
        assert any(said in warning for warning in run.warnings), said


def test_a_response_may_be_alone_in_its_file_or_one_of_a_list(tmp_path):
    chosen = routing(9)
    response = vllm_response(chosen, 4, "npy")
    for name, value in (("one", response), ("list", [response])):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value, indent=2))
        assert_holds(import_run("vllm", path, tmp_path / name), chosen)


def test_the_prompt_of_several_choices_is_taken_once(tmp_path):
    chosen, other = routing(9, 1), routing(9, 2)
    other[:4] = chosen[:4]
    response = vllm_response(chosen, 4, "npy")
    response["choices"].append(vllm_response(other, 4, "npy")["choices"][0])
    run = import_run("vllm", write_lines(tmp_path / "a.jsonl", [response]), tmp_path / "run")
    assert_holds(run, np.concatenate([chosen, other[4:]]))
    assert run.document(1).tokens["position"].to_list() == [4, 5, 6, 7, 8]


def test_a_cached_prefix_is_left_out_and_said(tmp_path):
    chosen = routing(9)
    chosen[:3] = -1
    response = vllm_response(chosen, 4, "lists")
    run = import_run("vllm", write_lines(tmp_path / "a.jsonl", [response]), tmp_path / "run")
    assert_holds(run, chosen[3:])
    assert run.tokens()["position"].to_list() == list(range(3, 9))
    assert any("3 of 9 tokens have no expert in any layer" in warning for warning in run.warnings)


@pytest.mark.parametrize("known", ["given", "from the model's config", "guessed"])
def test_responses_of_sglang_are_cut_into_layers_and_slots(tmp_path, known):
    chosen = routing(40)
    chosen[:, 1] = 0
    path = write_lines(tmp_path / "a.jsonl", [sglang_response(chosen, 4)])
    sizes = SIZES if known == "given" else {}
    if known == "from the model's config":
        config = {"num_local_experts": EXPERTS, "num_experts_per_tok": SLOTS, "num_hidden_layers": LAYERS}
        (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
        sizes = {"model": tmp_path}
    run = import_run("sglang", path, tmp_path / "run", **sizes)
    assert_holds(run, chosen[:, [0, 2]])
    assert run.tokens()["phase"].to_list() == ["prompt"] * 4 + ["generated"] * 36
    assert run.tokens()["token_id"].to_list() == [0, 1, 2, 3, *range(100, 136)]
    assert any("were not said" in warning for warning in run.warnings) == (known == "guessed")


def test_shared_experts_at_the_end_of_sglangs_rows_are_left_out(tmp_path):
    chosen = routing(20)
    shared = np.concatenate([chosen, np.full((20, LAYERS, 1), EXPERTS)], axis=2)
    path = write_lines(tmp_path / "a.jsonl", [sglang_response(shared, 4)])
    run = import_run("sglang", path, tmp_path / "run", n_experts=EXPERTS, n_slots=SLOTS + 1, n_layers=LAYERS)
    assert_holds(run, chosen)
    assert any("a shared expert, which is left out" in warning for warning in run.warnings)


def _recording(tmp_path: Path, chosen: np.ndarray, moved: np.ndarray | None = None, **more: object) -> Path:
    import torch

    table = np.tile(np.arange(EXPERTS), (LAYERS, 1)) if moved is None else moved
    padded = np.full((LAYERS, len(chosen), 8), -1, np.int32)
    padded[:, :, :SLOTS] = chosen.transpose(1, 0, 2)
    record = {
        "forward_pass_id": 7,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(len(chosen))),
        "positions": [*range(4), *range(len(chosen) - 4)],
        "extend_seq_lens": [4, len(chosen) - 4],
        "forward_mode": 1,
        "topk_ids_of_layer": torch.from_numpy(padded),
    }
    path = tmp_path / "recorded.pt"
    torch.save({"records": [record | more], "last_physical_to_logical_map": torch.from_numpy(table)}, path)
    return path


def test_a_recording_of_sglang_is_one_document_a_text_and_mapped_back(tmp_path):
    chosen = routing(10)
    moved = np.array([np.random.default_rng(layer).permutation(EXPERTS) for layer in range(LAYERS)])
    run = import_run("sglang", _recording(tmp_path, chosen, moved), tmp_path / "run", n_experts=EXPERTS)
    assert_holds(run, np.stack([moved[layer][chosen[:, layer]] for layer in range(LAYERS)], axis=1))
    assert run.documents()["tokens"].to_list() == [4, 6]
    assert any("mapped from physical places" in warning for warning in run.warnings)


def test_a_decoding_pass_of_sglang_is_a_document_and_said(tmp_path):
    chosen = routing(10)
    path = _recording(tmp_path, chosen, forward_mode=2, extend_seq_lens=None, positions=[50] * 10)
    run = import_run("sglang", path, tmp_path / "run")
    assert_holds(run, chosen)
    assert set(run.tokens()["phase"]) == {"generated"}
    assert run.tokens()["window_position"].to_list() == [50] * 10
    assert any("does not tell apart" in warning for warning in run.warnings)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    import torch

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"records": [Harmful()]}, tmp_path / "a.pt")
    with pytest.raises(BadInputError, match="no file of plain tensors"):
        import_run("sglang", tmp_path / "a.pt", tmp_path / "run")
    assert not (tmp_path / "made").exists()
    harmful = np.array([{"a": 1}], object)
    response = vllm_response(routing(9), 4, "npy")
    response["choices"][0]["routed_experts"] = npy(harmful)
    with pytest.raises(BadInputError, match="routed_experts has shape"):
        import_run("vllm", write_lines(tmp_path / "a.jsonl", [response]), tmp_path / "run")


def test_lines_of_olmoe_are_tokens_slots_layers(tmp_path):
    parts = [routing(6, 1), routing(8, 2)]
    path = write_lines(tmp_path / "a.jsonl", [olmoe_object(part) for part in parts])
    assert_holds(import_run("olmoe", path, tmp_path / "run", n_experts=EXPERTS), np.concatenate(parts))


def test_axes_in_another_order_are_refused(tmp_path):
    chosen = routing(30, layers=12)
    path = write_lines(tmp_path / "a.jsonl", [olmoe_object(chosen) | {"exp_ids": chosen.tolist()}])
    with pytest.raises(BadInputError, match=r"have an expert twice in a layer.*are the axes"):
        import_run("olmoe", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n_slots", [SLOTS, None])
def test_files_of_esft_are_sorted_by_weight(tmp_path, n_slots):
    parts = [routing(30, 1), routing(20, 2)]
    scales = [weights_of(part, 5) for part in parts]
    folder = write_esft(tmp_path / "t", [(p[..., ::-1], s[..., ::-1]) for p, s in zip(parts, scales, strict=True)])
    run = import_run("esft", folder, tmp_path / "run", n_experts=EXPERTS, n_slots=n_slots)
    assert_holds(run, np.concatenate(parts), np.concatenate(scales))
    assert [router.layer for router in run.routers] == [1, 2, 3]
    assert any("150 row(s) had their experts not in the order" in warning for warning in run.warnings)
    assert any("how many experts a token has was not said: 2" in w for w in run.warnings) == (n_slots is None)


def test_one_file_of_esft_is_one_layer_and_folders_of_processes_follow_one_another(tmp_path):
    parts = [routing(9, 1), routing(7, 2)]
    for rank, part in enumerate(parts):
        write_esft(tmp_path / "t" / f"rank_{rank}", [(part, weights_of(part))])
    run = import_run("esft", tmp_path / "t", tmp_path / "all", n_slots=SLOTS)
    assert_holds(run, np.concatenate(parts))
    one = import_run("esft", tmp_path / "t" / "rank_0" / "expert_weights_2.txt", tmp_path / "one", n_slots=SLOTS)
    assert_holds(one, parts[0][:, [1]])
    assert one.routers[0].layer == 2


def test_a_run_without_weights_says_so_wherever_they_are_asked_for(tmp_path):
    chosen = routing(9)
    path = write_lines(tmp_path / "a.jsonl", [olmoe_object(chosen)])
    run = import_run("olmoe", path, tmp_path / "run", n_experts=EXPERTS)
    assert run.with_weights == [False] * LAYERS
    assert [router["weights"] for router in run.manifest["routers"]] == [False] * LAYERS
    for ask in (lambda: run.weights(layer=1), lambda: run.document(0).weights(layer=1)):
        with pytest.raises(RunError, match="router 1 has no weights, for the run was imported"):
            ask()
    assert run.sql("select count(weight) as known, count(*) as n from assignments").row(0) == (0, 9 * LAYERS * SLOTS)
    assert run.sql("select * from routing").width == len(run.token_columns) + LAYERS * SLOTS
    assert b'"weights": null' in pack(run.document(0))
    names = {path.name for path in export_csv(run, tmp_path / "out", tokens=True)}
    assert {"tokens.csv", "load.csv"} <= names
    assert "weight_0_0" not in (tmp_path / "out" / "tokens.csv").read_text().splitlines()[0]


def test_partly_empty_rows_are_dropped_slots(tmp_path):
    chosen = routing(9)
    chosen[2, 1, 1] = -1
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [prompt_object(chosen)]), tmp_path / "run")
    assert_holds(run, chosen)
    assert any("1 slot(s) hold no expert and count as dropped" in warning for warning in run.warnings)


def test_rows_of_different_lengths_are_dropped_slots_and_lost_rows_are_left_out(tmp_path):
    chosen = routing(20)
    rows = row_objects(chosen, weights_of(chosen), document=1)
    rows[0]["experts"].pop()
    rows[0]["gating_probs"].pop()
    del rows[5 * LAYERS + 1]  # token 5 lacks layer 1
    del rows[-LAYERS * 3 : -LAYERS * 2]  # token 17 is gone
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", rows), tmp_path / "run")
    assert run.tokens()["position"].to_list() == [t for t in range(20) if t not in (5, 17)]
    assert run.experts(router=0)[0].tolist() == [chosen[0, 0, 0], -1]
    for said in ("1 slot(s) hold no expert", "1 of 19 tokens lack experts in some layers", "1 token(s) are missing"):
        assert any(said in warning for warning in run.warnings), said


def test_a_layer_that_is_zeros_in_one_document_alone_takes_the_document_with_it(tmp_path):
    parts = [routing(9, seed) for seed in range(4)]
    parts[2][:, 1] = 0
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [prompt_object(p) for p in parts]), tmp_path / "run")
    assert_holds(run, np.concatenate([parts[0], parts[1], parts[3]]))
    assert run.documents()["tokens"].to_list() == [9, 9, 0, 9]
    assert any("9 of 36 tokens are of documents in which a layer holds nothing" in w for w in run.warnings)


def test_stretches_that_never_change_and_slots_that_never_do_are_said(tmp_path):
    chosen = routing(80)
    chosen[10:30] = chosen[10]
    chosen[:, 2, 1] = 7
    chosen[:, 2, 0] %= 7
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [prompt_object(chosen)]), tmp_path / "run")
    assert_holds(run, chosen)
    assert any("20 token(s) are in stretches" in warning for warning in run.warnings)
    assert any("layer 2, slot 1: always expert 7" in warning for warning in run.warnings)


def test_a_rows_expert_twice_is_left_out(tmp_path):
    chosen = routing(20)
    chosen[3, 1] = 4
    chosen[7, 2] = 0
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [prompt_object(chosen)]), tmp_path / "run")
    assert_holds(run, np.delete(chosen, [3, 7], axis=0))
    assert any("2 of 20 tokens have an expert twice" in warning for warning in run.warnings)


def test_many_slots_are_looked_through_too(tmp_path):
    chosen = routing(30, slots=20, experts=40)
    chosen[3, 1, 19] = chosen[3, 1, 0]
    run = import_run("jsonl", write_lines(tmp_path / "a.jsonl", [prompt_object(chosen)]), tmp_path / "run")
    assert_holds(run, np.delete(chosen, 3, axis=0))


def _broken(chosen: np.ndarray, **more: object) -> list[dict[str, object]]:
    return [prompt_object(chosen) | more]


CHOSEN = routing(9)


@pytest.mark.parametrize(
    ("format", "lines", "message"),
    [
        ("jsonl", _broken(np.where(CHOSEN == 3, 8, CHOSEN)), "line 1: expert 8, where a router has 8"),
        ("jsonl", _broken(np.where(CHOSEN == 3, -2, CHOSEN)), "line 1: expert -2"),
        ("jsonl", _broken(CHOSEN, token_ids=[1, 2]), "9 rows of experts and 2 token ids"),
        ("jsonl", _broken(CHOSEN, layers=[1, 2]), "2 layers named, 3 given"),
        ("jsonl", _broken(CHOSEN, layers=[1, 2, 2]), "are not different numbers"),
        ("jsonl", _broken(CHOSEN, weights=[[[0.5]]]), "weights of shape"),
        (
            "jsonl",
            _broken(CHOSEN, weights=(weights_of(CHOSEN).transpose(1, 0, 2) * 1e9).tolist()),
            "no number that a run",
        ),
        ("jsonl", _broken(CHOSEN, experts=[[["a"]]]), "line 1: a field has the wrong type"),
        ("jsonl", _broken(CHOSEN, experts=[[[None]]]), "a null stands where a number is needed"),
        ("jsonl", _broken(CHOSEN, experts=[]), "no experts"),
        ("jsonl", [{"a": 1}], "its first object has no 'experts'"),
        ("jsonl", [prompt_object(CHOSEN), {"prompt": "x"}], "line 2: no 'experts'"),
        ("jsonl", [prompt_object(CHOSEN, layers=[0, 1, 2]), prompt_object(CHOSEN, layers=[0, 1, 4])], "same routers"),
        ("jsonl", [prompt_object(CHOSEN), prompt_object(CHOSEN, weights_of(CHOSEN))], "weights given, unlike"),
        ("jsonl", [prompt_object(CHOSEN, model="a"), prompt_object(CHOSEN, model="b")], "of model 'b'"),
        ("jsonl", row_objects(CHOSEN, document=1) * 2, "a layer and a token are said twice"),
        ("jsonl", [*row_objects(CHOSEN, token_id=1), {"layer": 0, "token_idx": 9, "experts": [1, 2]}], "no 'token_id'"),
        ("jsonl", _broken(np.zeros_like(CHOSEN)), "the trace holds no expert: every layer of it is zeros"),
        ("vllm", [{"id": 1}], "no 'choices'"),
        ("vllm", [{"choices": [{"text": "x"}]}], "no routed experts; was vLLM started with"),
        ("vllm", [vllm_response(CHOSEN, 4, "npy", prompt_token_ids=[1])], "9 rows of experts and 7 token ids"),
        (
            "vllm",
            [vllm_response(CHOSEN, 4, "lists", prompt_token_ids=[1])],
            "4 rows of prompt_routed_experts for a prompt",
        ),
        ("vllm", [{"choices": [{"routed_experts": npy(CHOSEN[0])}]}], "has shape"),
        ("vllm", [{"choices": [{"routed_experts": npy(CHOSEN)[:-8]}]}], "is not whole; was it cut short"),
        ("sglang", [sglang_response(CHOSEN, 4, routed_experts="AAA")], "no base64 of whole int32"),
        ("sglang", [sglang_response(CHOSEN, 4, prompt_tokens=90)], "9 rows of experts and 96 tokens by its own count"),
        ("sglang", [{"text": "x", "meta_info": {}}], "no meta_info.routed_experts"),
        ("olmoe", [{"input_ids": [1]}], "has no 'exp_ids'"),
    ],
)
def test_what_cannot_be_so_is_an_error_that_says_where(tmp_path, format, lines, message):
    path = write_lines(tmp_path / "trace.jsonl", lines)
    with pytest.raises(BadInputError, match=message) as caught:
        import_run(format, path, tmp_path / "run", **SIZES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no line"),
        ('{"experts": [[[1, 2]]]}\n{"experts": [[[1', r"line 2: no JSON .*was the file cut short"),
        ('{"experts": [[[1, 2]]]}\n[1]\n', "line 2: no JSON object but list"),
        ('{"experts": [[[1, 2]]]} {"experts": [[[1, 2]]]}\n', "line 1: no JSON"),
        ("nonsense\n", "line 1: no JSON"),
        ("[1, 2", "neither a JSON object a line nor JSON as a whole"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(BadInputError, match=message):
        import_run("jsonl", path, tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2\t\t0.5", "2 experts and 1 weights"),
        ("1\t2\t3\t\t0.5\t0.5\t0.5", "3 experts and 3 weights"),
        ("1\t2", "was the file cut short"),
        ("1\tx\t\t0.5\t0.5", "not numbers between tabs"),
        ("1\t2\t\t0.5\tnan", "a weight of nan"),
    ],
)
def test_a_broken_line_of_esft_is_an_error(tmp_path, line, message):
    path = tmp_path / "expert_weights_1.txt"
    path.write_text(line + "\n")
    with pytest.raises(BadInputError, match=message):
        import_run("esft", path, tmp_path / "run", n_slots=2)
    with pytest.raises(BadInputError, match="no file expert_weights_<layer>"):
        import_run("esft", write_lines(tmp_path / "a.txt", []), tmp_path / "run")


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(CHOSEN)])
    for message, arguments in (
        ("format 'x': choose esft, jsonl", ("x", path, {})),
        ("n_slots 0: give a number from 1 on", ("jsonl", path, {"n_slots": 0})),
        ("nowhere: no such file", ("jsonl", tmp_path / "nowhere", {})),
        ("label 'X'", ("jsonl", path, {"labels": ("X",)})),
        ("is a folder; give one file", ("jsonl", tmp_path, {})),
    ):
        with pytest.raises(BadInputError, match=message):
            import_run(arguments[0], arguments[1], tmp_path / "run", **arguments[2])
        assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_not_written_over(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(CHOSEN)])
    run = import_run("jsonl", path, tmp_path / "run")
    with pytest.raises(RunError, match="a run is there already"):
        import_run("jsonl", path, tmp_path / "run")
    names = ["documents.parquet", "plan.json", "routing", "run.json", "tokens"]
    assert sorted(entry.name for entry in run.path.iterdir()) == names


def test_the_command_says_each_warning_on_standard_error(tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(CHOSEN)])
    run = import_and_say("jsonl", path, tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert said == [f"moe-probe: warning: {warning}" for warning in run.warnings]
    assert len(said) == 3  # no weights, no number of experts, no token strings


def test_the_command_says_how_to_go_on_when_it_was_interrupted(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(CHOSEN)])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moe_probe.importers.checking.Checker.check", interrupted)
        with pytest.raises(MoeProbeError, match=r"^interrupted; import again$"):
            import_and_say("jsonl", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr("moe_probe.store.writer.RunWriter.publish", interrupted)
        with pytest.raises(MoeProbeError, match=r"^interrupted; import again, with --resume$"):
            import_and_say("jsonl", path, tmp_path / "run")
    assert import_and_say("jsonl", path, tmp_path / "run", resume=True).n_tokens == len(CHOSEN)


def test_the_same_file_gives_the_same_run(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(CHOSEN)])
    runs = [import_run("jsonl", path, tmp_path / name, n_experts=EXPERTS) for name in ("a", "b")]
    for name in ("plan.json", "documents.parquet", "tokens/part-000000.parquet", "routing/part-000000.parquet"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()


def test_a_tokenizer_gives_pieces_and_text(tmp_path):
    import moe_probe_data

    folder = Path(moe_probe_data.__file__).parent / "tiny-mixtral"
    from transformers import AutoTokenizer

    text = "Größe 🙂 and “quotes”\n\tend"
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    chosen = routing(len(ids))
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(chosen) | {"token_ids": ids}])
    run = import_run("jsonl", path, tmp_path / "run", n_experts=EXPERTS, tokenizer=str(folder), labels=("shape",))
    assert run.tokens()["token_id"].to_list() == ids
    assert "".join(run.tokens()["text"]).strip() == text
    assert run.tokens()["token"].to_list() == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids)
    with pytest.raises(BadInputError, match="cannot be loaded"):
        import_run("jsonl", path, tmp_path / "other", tokenizer=str(tmp_path))


REFERENCE = Path(os.environ.get("MOE_PROBE_REFERENCE", "/nonexistent")) / "deepseek_moe_16b_prompts.jsonl"


@pytest.mark.skipif(not REFERENCE.exists(), reason="MOE_PROBE_REFERENCE names no folder with the published trace")
def test_the_published_trace_of_moelens_is_read_as_it_is(tmp_path):
    run = import_run("jsonl", REFERENCE, tmp_path / "run", n_experts=64, labels=("shape",))
    lines = [json.loads(line) for line in REFERENCE.read_text().splitlines()]
    assert [router.layer for router in run.routers] == list(range(1, 28))
    for place in range(27):
        told = np.concatenate([np.array(line["experts"][place]) for line in lines])
        np.testing.assert_array_equal(run.experts(router=place), told)
        heavy = np.concatenate([np.array(line["weights"][place]) for line in lines])
        np.testing.assert_array_equal(run.weights(router=place), heavy.astype(np.float32).astype(np.float16))
    for number, line in enumerate(lines):
        tokens = run.document(number).tokens
        assert tokens["token"].to_list() == line["tokens"]
        assert "".join(tokens["text"]) == line["prompt"]
    assert run.warnings == ["there are no token ids: tokens are numbered by their strings, from -2 downwards"]
    assert open_run(run.path).sql("select count(*) as n from assignments")["n"][0] == 87 * 27 * 6
