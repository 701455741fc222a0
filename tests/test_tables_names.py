"""Lines that say what an expert is an expert in, and never more than the verdicts do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.counts import TypeCounts, load_rows
from moe_probe.measures.verdicts import NOT_ENOUGH, NOT_SHOWN, SPECIALISED, THIS_TEXT_ONLY
from moe_probe.schema import LabelSet
from moe_probe.store import Run
from moe_probe.tables import label_table, schema_of
from moe_probe.tables.labels import LABEL_COLUMNS
from moe_probe.tables.names import EXPERT_COLUMNS, _shown_types, expert_names, name_line
from moe_probe.tables.snippets import Snippets, Wanted, shown_token

N_DOCUMENTS = 40
WORDS = {
    "VBD": [f" {stem}ed" for stem in ("walk", "talk", "jump", "look", "ask", "call", "play", "wait", "open", "help")],
    "NNS": [f" {stem}s" for stem in ("cat", "dog", "car", "tree", "book", "hand", "door", "road", "boat", "lamp")],
    "DT": [f" {word}" for word in ("the", "a", "this", "that", "these", "those", "some", "any", "each", "no")],
}


def write_text_run(
    folder: Path, *, expert_of=None, n: int = 6000, documents: int = N_DOCUMENTS, seed: int = 0, **more
) -> Run:
    """Write a run of words with xpos tags; `expert_of(tag, token id, rng)` says where a word goes."""
    rng = np.random.default_rng(seed)
    tags = rng.choice(list(WORDS), n)
    words = [WORDS[tag][rng.integers(10)] for tag in tags]
    vocabulary = {
        word: number for number, word in enumerate(sorted({word for some in WORDS.values() for word in some}))
    }
    ids = [vocabulary[word] for word in words]
    experts = [[(expert_of or _planted)(tag, number, rng)] for tag, number in zip(tags, ids, strict=True)]
    return write_run(
        folder,
        [np.array(experts)],
        labels={"xpos": tags.tolist(), **more.pop("labels", {})},
        word_level=("xpos", "shape"),
        documents=np.arange(n) * documents // n,
        names=[f"d{number}" for number in range(documents)],
        token=words,
        token_id=ids,
        **more,
    )


def _planted(tag: str, number: int, rng: np.random.Generator) -> int:
    return 1 if tag == "VBD" and rng.random() < 0.7 else int(rng.integers(4))


def cell(
    label: str, verdict: str, *, expert: int = 0, domain: str = "all", share: float = 0.4, low: float = 2.0
) -> dict:
    """A row of a label table."""
    return {
        **{"layer": 0, "router": 0, "slot": "any", "tokens": "word_initial", "domain": domain, "expert": expert},
        **{"label": label, "assignments": round(100 * share), "p_label_given_expert": share, "lift": low * 1.1},
        **{"ci_low": low, "ci_high": low * 1.2, "verdict": verdict, "n": 400},
    }


def table(*cells: dict) -> pl.DataFrame:
    return pl.DataFrame(list(cells), schema_of(LABEL_COLUMNS))


def names_from(tmp_path: Path, *, documents: int = N_DOCUMENTS, **tables: pl.DataFrame) -> pl.DataFrame:
    """Return the names in a run of four experts whose label tables are given."""
    n = 80
    labels = {name: [frame["label"].min() or "a"] * n for name, frame in tables.items()}
    run = write_run(
        tmp_path / "run",
        [np.arange(n)[:, None] % 4],
        labels=labels,
        word_level=("upos", "xpos", "stmoe", "shape"),
        documents=np.arange(n) * documents // n,
    )
    return expert_names(run, tables=tables)


# From a run to its lines


def test_an_expert_for_the_past_tense_is_called_so_by_as_much_as_its_table_says(tmp_path):
    run = write_text_run(tmp_path / "run")
    frame = expert_names(run)
    assert frame.columns == list(schema_of(EXPERT_COLUMNS))
    assert frame["expert"].to_list() == [0, 1, 2, 3]
    row = frame.row(1, named=True)
    fact = label_table(run, "xpos").row(
        by_predicate=(pl.col("slot") == "any") & (pl.col("expert") == 1) & (pl.col("label") == "VBD"), named=True
    )
    assert fact["verdict"] == SPECIALISED
    for column in ("lift", "ci_low", "ci_high"):
        assert row[column] == fact[column]
    assert row["share_of_its_tokens"] == fact["p_label_given_expert"]
    assert row["share_of_all_tokens"] == pytest.approx(1 / 3, abs=0.02)
    assert row["n"] == int((run.experts(0) == 1).sum())
    assert row["name"].startswith("verbs in the past tense, 1.8× (")
    assert row["name"].endswith(f"{round(100 * row['share_of_its_tokens'])} % of its tokens that begin a word")
    assert (row["label_set"], row["label"], row["domain"], row["confidence"]) == ("xpos", "VBD", "all", "all text")
    assert (row["slot"], row["tokens"]) == ("any", "word_initial")
    assert row["top_labels"] == "xpos VBD 1.8×"
    assert row["share"] == pytest.approx(row["n"] / 6000)
    assert row["uniform"] == 0.25
    assert set(row["top_tokens_by_lift"].split()) == {word.strip() for word in WORDS["VBD"]}
    snippets = row["snippets"].split(" ‖ ")
    assert len(snippets) == 3
    assert all(snippet.split("⟦")[1].split("⟧")[0].endswith("ed") for snippet in snippets)


def test_experts_that_get_a_random_share_have_nothing_above_chance(tmp_path):
    run = write_text_run(tmp_path / "run", expert_of=lambda tag, number, rng: int(rng.integers(4)))
    frame = expert_names(run)
    assert set(frame["name"]) == set(frame["confidence"]) == {"nothing above chance"}
    nameless = ("top_labels", "label_set", "label", "lift", "ci_low", "ci_high", "share_of_its_tokens", "snippets")
    assert all(frame[column].null_count() == 4 for column in nameless)
    assert frame["n"].sum() == 6000
    assert frame["share"].sum() == pytest.approx(1)


def test_a_router_that_is_a_hash_of_the_word_has_nothing_above_chance(tmp_path):
    # Single words are far above chance here, so that a test over occurrences alone would give every expert a name.
    named = 0
    for seed in range(3):
        places = np.random.default_rng(seed).integers(0, 4, 30).tolist()
        run = write_text_run(tmp_path / str(seed), seed=seed, expert_of=lambda _, number, __, at=places: at[number])
        cells = label_table(run, "xpos").filter(pl.col("slot") == "any")
        assert (cells["q_value"] < 0.05).sum() > 3
        named += (expert_names(run)["confidence"] == "all text").sum()
    assert named == 0


def test_of_fewer_than_five_documents_nothing_is_said_but_of_that_text(tmp_path):
    frame = expert_names(write_text_run(tmp_path / "planted", documents=3))
    assert frame["name"][1].startswith("this text only: verbs in the past tense, 1.8× (")
    assert frame["confidence"][1] == "this text only"
    evenly = write_text_run(tmp_path / "random", documents=3, expert_of=lambda tag, number, rng: int(rng.integers(4)))
    frame = expert_names(evenly)
    assert set(frame["name"]) == {"this text only: nothing above chance"}
    assert set(frame["confidence"]) == {"this text only"}


def test_the_same_run_gives_the_same_frame_and_renamed_experts_the_same_lines(tmp_path):
    run = write_text_run(tmp_path / "run")
    frame = expert_names(run)
    assert expert_names(run).equals(frame)
    swapped = write_text_run(tmp_path / "swapped", expert_of=lambda tag, number, rng: 3 - _planted(tag, number, rng))
    assert expert_names(swapped)["name"].to_list() == frame["name"].to_list()[::-1]


def test_tables_that_are_made_already_are_not_made_again(tmp_path, monkeypatch):
    run = write_text_run(tmp_path / "run")
    tables = {"xpos": label_table(run, "xpos")}
    expected = expert_names(run)
    monkeypatch.setattr("moe_probe.tables.candidates.label_table", None)
    assert expert_names(run, tables=tables).equals(expected)


def test_an_expert_for_one_domain_is_called_that_and_not_after_its_words(tmp_path):
    n = 8000
    domains = ["law", "sea"] * 20
    in_sea = [domains[row * N_DOCUMENTS // n] == "sea" for row in range(n)]
    rng = np.random.default_rng(1)
    turns = iter(
        np.where(in_sea, np.where(rng.random(n) < 0.6, 2, rng.integers(0, 4, n)), rng.integers(0, 4, n)).tolist()
    )
    # The words are the same in both, so that no test over types could tell: the verdict is given by hand.
    run = write_text_run(
        tmp_path / "run",
        n=n,
        expert_of=lambda tag, number, rng: next(turns),
        domains=domains,
        labels={"domain": [domains[row * N_DOCUMENTS // n] for row in range(n)]},
    )
    fact = cell("sea", SPECIALISED, expert=2, share=0.7, low=1.4)
    frame = expert_names(run, tables={"domain": table(fact)})
    assert frame["name"][2] == "text of the domain sea, 1.5× (1.4–1.7), 70 % of its tokens"
    assert (frame["label_set"][2], frame["confidence"][2]) == ("domain", "all text")
    assert set(frame["name"][[0, 1, 3]]) == {"nothing above chance"}


# From verdicts to lines


def test_the_label_that_the_expert_tells_most_about_gives_the_name(tmp_path):
    upos = table(
        cell("VERB", SPECIALISED, share=0.5, low=1.5),  # .29 bits
        cell("NOUN", SPECIALISED, share=0.1, low=9.0),  # .32 bits
        cell("DET", NOT_SHOWN, share=0.9, low=9.0),
        cell("ADJ", SPECIALISED, expert=1, share=0.3, low=2.0),
    )
    shape = table(
        cell("number", SPECIALISED, share=0.2, low=4.0), cell("word", SPECIALISED, expert=1, share=0.9, low=1.1)
    )
    frame = names_from(tmp_path, upos=upos, shape=shape)
    assert frame["label"].to_list() == ["number", "ADJ", None, None]
    assert frame["name"][0] == "numbers in digits, 4.4× (4.0–4.8), 20 % of its tokens that begin a word"
    assert frame["top_labels"].to_list()[:2] == [
        "shape number 4.4×; upos NOUN 9.9×; upos VERB 1.7×",
        "upos ADJ 2.2×; shape word 1.2×",
    ]


def test_of_labels_that_tell_as_much_the_finest_set_and_then_the_first_label_wins(tmp_path):
    same = {"share": 0.3, "low": 2.0}
    frame = names_from(
        tmp_path,
        shape=table(cell("punctuation", SPECIALISED, **same)),
        upos=table(cell("PUNCT", SPECIALISED, **same)),
        xpos=table(cell("VBD", SPECIALISED, **same), cell("VB", SPECIALISED, **same)),
        stmoe=table(cell("punctuation", SPECIALISED, **same)),
    )
    assert (
        frame["top_labels"][0]
        == "xpos VB 2.2×; xpos VBD 2.2×; upos PUNCT 2.2×; stmoe punctuation 2.2×; shape punctuation 2.2×"
    )


def test_where_nothing_is_specialised_the_line_says_whether_anything_was_tested(tmp_path):
    frame = names_from(
        tmp_path,
        upos=table(
            cell("NOUN", NOT_SHOWN, low=3.0),
            cell("VERB", NOT_ENOUGH, low=3.0),
            cell("NOUN", NOT_ENOUGH, expert=1, low=3.0),
            cell("NOUN", NOT_ENOUGH, expert=2),
            cell("NOUN", NOT_SHOWN, expert=2, domain="sea"),
        ),
    )
    assert frame["name"].to_list() == ["nothing above chance", *["not enough data"] * 3]
    assert frame["confidence"].to_list() == frame["name"].to_list()
    assert frame["lift"].null_count() == 4


def test_what_holds_of_one_text_names_an_expert_only_where_nothing_holds_of_all(tmp_path):
    frame = names_from(
        tmp_path,
        upos=table(
            cell("NOUN", THIS_TEXT_ONLY, share=0.9, low=5.0),
            cell("VERB", SPECIALISED, share=0.1, low=1.3),
            cell("NOUN", THIS_TEXT_ONLY, expert=1, low=5.0),
            cell("DET", NOT_SHOWN, expert=1),
            cell("NOUN", THIS_TEXT_ONLY, expert=2, domain="sea", low=5.0),
        ),
    )
    assert frame["name"].to_list() == [
        "verbs, 1.4× (1.3–1.6), 10 % of its tokens that begin a word",
        "this text only: common nouns, 5.5× (5.0–6.0), 40 % of its tokens that begin a word",
        "not enough data",
        "not enough data",
    ]
    assert frame["top_labels"].to_list()[:2] == ["upos VERB 1.4×", "upos NOUN 5.5×"]


def test_a_name_over_all_text_says_in_how_many_domains_it_holds(tmp_path):
    both = ("law", "sea")
    cells = [cell("NOUN", SPECIALISED, expert=expert) for expert in range(4)]
    cells += [cell("NOUN", SPECIALISED, domain="law"), cell("NOUN", NOT_SHOWN, domain="sea")]
    cells += [cell("NOUN", NOT_SHOWN, expert=1, domain=domain) for domain in both]
    cells += [cell("NOUN", THIS_TEXT_ONLY, expert=2, domain="law"), cell("NOUN", NOT_ENOUGH, expert=2, domain="sea")]
    cells += [cell("NOUN", NOT_ENOUGH, expert=3, domain=domain) for domain in both]
    cells += [cell("VERB", SPECIALISED, expert=3, domain="law", share=0.01)]  # of another label: says nothing of this
    frame = names_from(tmp_path, upos=table(*cells))
    size = "common nouns, 2.2× (2.0–2.4), 40 % of its tokens that begin a word"
    assert frame["name"].to_list() == [
        f"{size}; also within 1 of 2 domains with enough text",
        f"{size}; not shown within any one domain",
        f"{size}; also within 1 of 1 domain with enough text, in that text only",
        size,
    ]
    assert frame["confidence"].to_list() == ["within domains", "all text only", "all text", "all text"]


def test_a_name_that_holds_in_one_domain_only_says_in_which(tmp_path):
    frame = names_from(
        tmp_path,
        upos=table(
            cell("NOUN", NOT_SHOWN, share=0.9, low=9.0),
            cell("NOUN", SPECIALISED, domain="the sea"),
            cell("VERB", SPECIALISED, domain="law", share=0.1),
        ),
    )
    size = "2.2× (2.0–2.4), 40 % of its tokens that begin a word"
    assert frame["name"][0] == f"common nouns in text of the domain the sea, {size}"
    assert (frame["confidence"][0], frame["domain"][0]) == ("one domain", "the sea")
    assert frame["top_labels"][0] == "upos NOUN 2.2×"


def test_what_only_says_what_a_token_is_not_names_nobody(tmp_path):
    other = cell("other", SPECIALISED, share=0.9, low=3.0)
    frame = names_from(tmp_path, stmoe=table(other, cell("verbs", NOT_SHOWN)), mood=table(other | {"expert": 1}))
    assert frame["name"].to_list()[:2] == [
        "nothing above chance",
        "tokens with the mood other, 3.3× (3.0–3.6), 90 % of its tokens",
    ]


def test_shares_say_which_tokens_they_are_of_where_some_have_no_label(tmp_path):
    n = 80
    run = write_run(
        tmp_path / "run",
        [np.arange(n)[:, None] % 4],
        labels={name: ["untagged"] * 40 + ["x"] * 40 for name in ("upos", "code", "mood", "domain")},
        documents=np.arange(n) * N_DOCUMENTS // n,
    )
    tables = {
        name: table(cell(label, SPECIALISED, expert=expert))
        for expert, (name, label) in enumerate(
            [("upos", "VERB"), ("code", "string"), ("mood", "sad"), ("domain", "sea")]
        )
    }
    assert [line.split(" of its ")[1] for line in expert_names(run, tables=tables)["name"]] == [
        *("tokens that begin a tagged word", "tokens in code", "tokens that have a mood", "tokens that have a domain"),
    ]


@pytest.mark.parametrize(
    ("numbers", "line"),
    [
        ((3.14, 2.71, 3.58, 0.408), "3.1× (2.7–3.6), 41 % of its tokens"),
        ((1.249, 1.049, 1.451, 0.004), "1.2× (1.0–1.5), less than 1 % of its tokens"),
        ((2.0, 1.9, 2.1, 1.0), "2.0× (1.9–2.1), 100 % of its tokens"),
        ((9.94, 9.4, 10.2, 0.999), "9.9× (9.4–11), more than 99 % of its tokens"),
        ((1234.4, 999.9, 1500.1, 0.005), "1,234× (999–1,501), 0 % of its tokens"),
        ((2.0, None, float("inf"), 0.5), "2.0× (?–∞), 50 % of its tokens"),
    ],
)
def test_numbers_are_rounded_so_that_an_interval_never_gets_narrower(numbers, line):
    facts = dict(zip(("lift", "ci_low", "ci_high", "share"), numbers, strict=True))
    same = {
        "plain": "verbs",
        "domain": "all",
        "reach": 0,
        "whose": "tokens",
        "within": 0,
        "within_text": 0,
        "not_within": 0,
    }
    assert name_line(same | facts) == f"verbs, {line}"


def test_domains_that_hold_surely_and_of_their_text_only_are_told_apart():
    facts = {
        "plain": "verbs",
        "domain": "all",
        "reach": 0,
        "whose": "tokens",
        "lift": 2,
        "ci_low": 2,
        "ci_high": 2,
        "share": 1,
    }
    line = name_line(facts | {"within": 2, "within_text": 1, "not_within": 3})
    assert line.endswith("; also within 2 (and 1 more in that text only) of 6 domains with enough text")


# Bad runs

RUNS = {
    "empty run": (np.zeros((0, 2), int), []),
    "one token": (np.array([[1, 0]]), ["VBD"]),
    "all dropped": (np.full((3, 2), -1), ["VBD", "DT", "VBD"]),
    "a label of one value": (np.array([[0, 1], [2, 3], [1, 0]]), ["VBD"] * 3),
    "nothing tagged": (np.array([[0, 1], [2, 3], [1, 0]]), ["untagged"] * 3),
    "no whole word": (np.array([[0, 1], [2, 3], [1, 0]]), ["continuation"] * 3),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("n_experts", [4, 300])
def test_runs_that_say_nothing_give_lines_that_say_so(tmp_path, case, n_experts):
    experts, tags = RUNS[case]
    frame = expert_names(
        write_run(tmp_path / "run", [experts], labels={"xpos": tags}, word_level=("xpos",), n_experts=n_experts)
    )
    assert frame.columns == list(schema_of(EXPERT_COLUMNS))
    assert frame.height == (0 if case == "empty run" else n_experts)
    assert set(frame["name"]) <= {"not enough data"}
    assert not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)
    if case == "all dropped":
        assert frame["share"].null_count() == n_experts
        assert frame["top_tokens_by_count"].null_count() == n_experts


@pytest.mark.filterwarnings("error")
def test_a_run_with_one_expert_or_without_labels_has_not_enough_data_for_names(tmp_path):
    one = expert_names(write_text_run(tmp_path / "one", n=600, expert_of=lambda *_: 0, n_experts=1))
    assert one["share"].to_list() == [1.0]
    assert one["name"].to_list() == ["not enough data"]  # it has no other to be compared with
    bare = expert_names(write_run(tmp_path / "bare", [np.zeros((50, 1), int)]))
    assert set(bare["name"]) == {"not enough data"}
    assert bare["n"].to_list() == [50, 0, 0, 0]


# Tokens and snippets


def test_a_token_is_shown_as_one_word():
    assert [shown_token(text) for text in (" the", "\n", "  ", "a b", "\t", "")] == ["the", "⏎", "␣␣", "a␣b", "⇥", ""]


def test_a_type_without_one_text_is_shown_as_the_tokenizers_piece():
    # Type 8 is the first byte of two characters, type 9 a later one; type 10 does not occur in these rows.
    rows = [(7, " cat"), (7, "cat"), (8, "é"), (8, "è"), (9, ""), (9, ""), (11, "\n")]
    frame = pl.DataFrame(rows, {"token_id": pl.Int32, "text": pl.String}, orient="row")
    pieces = ("▁cat", "Ã", "©", "Ġdog", "Ċ")
    types = TypeCounts(LabelSet("phase", "", False), np.arange(7, 12), pieces, ("prompt",), np.ones((5, 1), np.int64))
    assert _shown_types(frame, types) == ["cat", "Ã", "©", "dog", "⏎"]


def _snippets(tmp_path, token, **more):
    experts = more.pop("experts", np.ones((len(token), 1), int))
    run = write_run(
        tmp_path / "run",
        [experts],
        token=token,
        labels={"mood": ["x" if "!" in one else "y" for one in token]},
        word_level=(),
        **more,
    )
    return run, Snippets(load_rows(run, ["text", "mood"]))


def test_a_snippet_marks_the_token_and_not_the_space_before_it(tmp_path):
    run, snippets = _snippets(tmp_path, ["Oh", " no", "!\n", "\nStop", " it"])
    assert snippets.of(run.routers[0], {1: Wanted("mood", "x")}) == {1: ["Oh no⟦!⟧ Stop it"]}
    assert snippets.of(run.routers[0], {}) == {}


def test_marks_in_the_text_itself_are_not_taken_for_ours_and_long_contexts_are_cut(tmp_path):
    token = ["start", *[" word"] * 20, " ⟦a⟧ ‖", " !", *[" word"] * 20, " end"]
    run, snippets = _snippets(tmp_path, token)
    ((snippet,),) = snippets.of(run.routers[0], {1: Wanted("mood", "x")}).values()
    assert snippet.count("⟦") == snippet.count("⟧") == 1
    assert "[a] | ⟦!⟧ word" in snippet
    assert snippet.startswith("… word")
    assert snippet.endswith("word…")
    assert len(snippet) < 100


def test_a_snippet_ends_where_its_document_does(tmp_path):
    run, snippets = _snippets(tmp_path, ["one", " two", " !", "three", " four"], documents=[0, 0, 0, 1, 1])
    assert snippets.of(run.routers[0], {1: Wanted("mood", "x")}) == {1: ["one two ⟦!⟧"]}


def test_snippets_show_what_the_expert_was_given_in_any_slot_beyond_the_first_tokens_of_a_window(tmp_path):
    token = ["a!", "b!", "c!", "d!", "e!"]
    experts = np.array([[1, 0], [0, 1], [0, -1], [1, 2], [2, 3]])
    run, snippets = _snippets(tmp_path, token, experts=experts, window_position=[9, 9, 9, 3, 9])
    found = snippets.of(run.routers[0], {1: Wanted("mood", "x"), 3: Wanted("mood", "x"), 2: Wanted("mood", "nowhere")})
    marked = {expert: {one.split("⟦")[1].split("⟧")[0] for one in some} for expert, some in found.items()}
    assert marked == {1: {"a!", "b!"}, 3: {"e!"}}


def test_snippets_of_a_domain_come_from_it(tmp_path):
    token = [f"w{number}!" for number in range(40)]
    run, snippets = _snippets(
        tmp_path, token, documents=np.arange(40) // 10, names=list("abcd"), domains=["sea", "law", "sea", None]
    )
    found = snippets.of(run.routers[0], {1: Wanted("mood", "x", "law")})[1]
    assert len(found) == 3
    assert all(10 <= int(one.split("⟦w")[1].split("!")[0]) < 20 for one in found)
    assert snippets.of(run.routers[0], {1: Wanted("mood", "x", "nowhere")}) == {}


def test_three_snippets_come_from_different_documents_and_types_where_there_are(tmp_path):
    token = [*["same!"] * 50, "else!", "more!"]
    run, snippets = _snippets(tmp_path, token, documents=[*[0] * 50, 1, 2], token_id=[*[1] * 50, 2, 3])
    found = snippets.of(run.routers[0], {1: Wanted("mood", "x")})[1]
    assert sorted(one.split("⟦")[1].split("⟧")[0] for one in found) == ["else!", "more!", "same!"]
    only, alone = _snippets(tmp_path / "only", ["same!"] * 30, token_id=[1] * 30)
    assert len(alone.of(only.routers[0], {1: Wanted("mood", "x")})[1]) == 3


def test_every_column_has_a_unit_and_a_meaning():
    for column in EXPERT_COLUMNS:
        assert len(column.unit) > 2
        assert len(column.definition) > 10
