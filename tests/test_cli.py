"""The command line: what a person types, what comes back, and with which exit status."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import moe_probe as mp
from moe_probe.cli import app, main

ROOT = Path(__file__).parent.parent
TEXT = "The quick brown fox jumps over the lazy dog.\n\nTwo plus two is 4.\n"


def run_main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "fox.txt").write_text(TEXT)
    with pytest.raises(SystemExit) as stopped:
        main(
            ["trace", "tiny-mixtral", str(folder / "fox.txt"), "--out", str(folder / "run"), "--labels", "shape,domain"]
        )
    assert stopped.value.code == 0
    return folder / "run"


def test_a_trace_says_what_it_did_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    out = tmp_path / "run"
    assert run_main("trace", "tiny-mixtral", tmp_path / "fox.txt", "--out", out, "--quantization", "4bit") == 0
    printed = capsys.readouterr().out
    run = mp.open_run(out)
    assert f"{run.n_tokens:,} tokens of 1 document(s) through {len(run.routers)} routers" in printed
    assert f"moe-probe explore {out}" in printed
    assert "".join(run.tokens(["text"])["text"]) == TEXT


def test_info_tells_precision_self_check_and_load(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("info", run_folder) == 0
    printed = capsys.readouterr().out
    for word in ("tiny-mixtral", "self-check", "passed", "experts", "router", "float32", "effective experts"):
        assert word in printed


def test_export_writes_every_table_and_the_token_table(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("export", run_folder, "--out", tmp_path / "tables", "--tokens") == 0
    listed = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"load.csv", "balance.csv", "domain.csv", "shape.csv", "columns.csv", "tokens.csv", "run.json"} <= listed
    with (tmp_path / "tables/tokens.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == mp.open_run(run_folder).n_tokens


def test_label_adds_labels_without_tracing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    out = tmp_path / "run"
    assert run_main("trace", "tiny-mixtral", tmp_path / "fox.txt", "--out", out, "--labels", "domain") == 0
    before = mp.open_run(out).experts(layer=0).tolist()
    assert run_main("label", out, "--with", "upos,shape", "--language", "en") == 0
    assert "upos" in capsys.readouterr().out
    run = mp.open_run(out)
    assert run.experts(layer=0).tolist() == before
    assert "NOUN" in run.label_values("upos")


def test_standard_input_is_a_document_beside_files_and_no_progress_bar_is_drawn_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    command = [sys.executable, "-m", "moe_probe.cli", "trace", "tiny-mixtral", str(tmp_path / "fox.txt"), "-", "--out"]
    typed = "Typed, not read."
    done = subprocess.run([*command, str(tmp_path / "run"), "--labels", ""], input=typed.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    run = mp.open_run(tmp_path / "run")
    assert ["".join(run.document_tokens(number)["text"]) for number in run.documents()["document"]] == [TEXT, typed]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace", "tiny-mixtral"], "Missing argument"),
        (["trace", "tiny-mixtral", "no-such-file.txt", "--out", "RUN"], "no-such-file.txt"),
        (["trace", "./no-such-model", "TEXT", "--out", "RUN"], "no-such-model"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--labels", "upos,upos"], "named twice"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--labels", "shpae"], "'shpae'"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--labels", "Part Of Speech"], "'Part Of Speech'"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--context", "99999"], "99999"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--dtype", "float7"], "float7"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--quantization", "3bit"], "3bit"),
        (["trace", "tiny-mixtral", "TEXT", "--out", "RUN", "--tagger", "no_such_pipeline"], "no_such_pipeline"),
        (["info", "no-such-run"], "no-such-run"),
        (["export", "TEXT", "--out", "RUN"], "fox.txt"),
        (["explore", "no-such-run"], "no-such-run"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_arguments_exit_2_with_one_line_that_names_them(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    places = {"TEXT": str(tmp_path / "fox.txt"), "RUN": str(tmp_path / "run")}
    assert run_main(*(places.get(argument, argument) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("moe-probe: ")
    assert words in printed.err


def test_an_existing_run_is_not_overwritten(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run_folder / "run.json").read_text())
    assert run_main("trace", "tiny-mixtral", run_folder.parent / "fox.txt", "--out", run_folder) == 2
    assert "--resume" in capsys.readouterr().err
    assert json.loads((run_folder / "run.json").read_text()) == before


def test_a_missing_extra_is_named_with_its_command(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import moe_probe.cli\n"
        f"moe_probe.cli.main(['trace', 'tiny-mixtral', 'x', '--out', {str(tmp_path)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "moe-probe: this needs torch: pip install 'moe-probe[trace]'\n"


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert all(f"moe-probe {name}" in readme for name in missing)


def test_a_report_is_one_file(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert run_main("report", run_folder, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert "<title>The routing of tiny-mixtral" in out.read_text()
    assert run_main("report", run_folder, "--out", tmp_path) == 2
    assert "a report is one file, and this is a folder" in capsys.readouterr().err


def test_two_runs_are_compared_and_other_models_warned_of(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_folder.parent / "fox.txt"
    options = ["--labels", "shape,domain"]
    assert run_main("trace", "tiny-mixtral", text, "--out", tmp_path / "run", "--quantization", "8bit", *options) == 0
    capsys.readouterr()
    assert run_main("compare", run_folder, tmp_path / "run", "--out", tmp_path / "out") == 0
    written = capsys.readouterr()
    names = {Path(line).name for line in written.out.splitlines()}
    assert {"agreement.csv", "load_difference.csv", "columns.csv", "compare.html"} <= names
    assert run_main("compare", run_folder, run_folder.parent, "--out", tmp_path / "out") == 2
    assert "no run" in capsys.readouterr().err


def test_saturation_is_written_for_runs_of_one_text(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("saturation", run_folder, "--reference", run_folder, "--out", tmp_path) == 0
    assert {"saturation.csv", "saturation.html"} <= {Path(line).name for line in capsys.readouterr().out.splitlines()}


def test_ablating_writes_the_effect_and_tells_the_report(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = run_folder.parent / "fox.txt", tmp_path / "effects"
    options = ["--label", "shape", "--out", out]
    assert run_main("ablate", "tiny-mixtral", text, "--layer", 2, "--experts", "1,3", *options) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "effect.csv"), str(out / "columns.csv")]
    with (out / "effect.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["experts"] for row in rows} == {"1 3"}
    assert {row["carried_by"] for row in rows} == {"predicted", "routed"}
    assert {row["verdict"] for row in rows} <= {"not shown", "not enough data", "this text only"}
    assert run_main("report", run_folder, "--out", tmp_path / "report.html", "--effects", out) == 0
    assert "Does switching an expert off hurt the tokens" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --layer and --experts, or --map"),
        (["--experts", "1"], "give --layer and --experts, or --map"),
        (["--map", "--experts", "1", "--layer", "1"], "give --layer and --experts, or --map"),
        (["--layer", "1", "--experts", "one"], "experts 'one': give their indices separated by commas"),
    ],
)
def test_wrong_ablations_are_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("ablate", "no-such-model", "no-such-file", "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_foreign_trace_becomes_a_run_and_its_traps_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"layer": layer, "token_idx": token, "experts": [token % 4, 4 + layer], "gating_probs": [0.25, 0.75]}
        for token in range(12)
        for layer in range(2)
    ]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_main("import", "jsonl", tmp_path / "trace.jsonl", "--out", tmp_path / "run", "--n-experts", 8) == 0
    written = capsys.readouterr()
    assert "12 tokens" in written.out
    assert "warning: " in written.err
    run = mp.open_run(tmp_path / "run")
    assert run.experts(layer=1)[:3].tolist() == [[5, 0], [5, 1], [5, 2]]  # by weight, the heaviest first
    assert run_main("import", "jsonl", tmp_path / "none", "--out", tmp_path / "other") == 2


def test_prompts_are_gone_on_with_and_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fox.txt").write_text("The quick brown fox")
    options = ["--generate", 6, "--labels", "shape", "--out", tmp_path / "run"]
    assert run_main("trace", "tiny-mixtral", tmp_path / "fox.txt", *options) == 0
    capsys.readouterr()
    run = mp.open_run(tmp_path / "run")
    phases = run.tokens(["phase"])["phase"].to_list()
    assert phases[0] == "prompt"
    assert phases[-1] in ("generated", "special")
    assert phases == sorted(phases, key=("prompt", "generated", "special").index)
    assert run_main("label", tmp_path / "run", "--with", "phase") == 2
    assert "was generated, and only its trace knows what was prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat"], "give --generate N too"),
        (["--beams", 2], "give --generate N too"),
        (["--generate", 3, "--max-tokens", 5], "leave out --max-tokens and --stride"),
        (["--generate", 3, "--engine", "ray"], "leave out --engine, --ray-address and --workers"),
        (["--generate", 3, "--workers", 2], "leave out --engine, --ray-address and --workers"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    arguments: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("trace", "no-such-model", "no-such-file", "--out", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err


def test_probabilities_tell_their_size_first_and_the_profile_comes_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    command = ("trace", "tiny-mixtral", tmp_path / "fox.txt", "--out", tmp_path / "run", "--labels", "domain")
    assert run_main(*command, "--probabilities", "--profile") == 0
    run = mp.open_run(tmp_path / "run")
    said = capsys.readouterr().err
    assert f"probabilities will take up to 0.1 MB: {run.n_tokens} tokens × 6 routers × 8 experts × 2 bytes" in said
    assert said.index("probabilities will take") < said.index("Where the time went")
    probabilities = run.probabilities(layer=2)
    assert probabilities.shape == (run.n_tokens, 8)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=0.01)
    assert (probabilities.argmax(axis=1) == run.experts(layer=2)[:, 0]).mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "a token is needed; set MOE_PROBE_TOKEN, or give --token"),
        (["--host", "0.0.0.0", "--token", "short"], "too easily guessed"),
    ],
)
def test_the_explorer_lets_nobody_in_without_a_token(
    arguments: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("explore", tmp_path, "--no-browser", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_trace_on_ray_without_ray_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fox.txt").write_text(TEXT)
    monkeypatch.setitem(sys.modules, "ray", None)
    status = run_main("trace", "tiny-mixtral", tmp_path / "fox.txt", "--out", tmp_path / "run", "--engine", "ray")
    assert status in (1, 2)
    assert "pip install 'moe-probe[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
