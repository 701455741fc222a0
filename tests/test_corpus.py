"""Documents from every kind of input: exactly, lazily, with their place in each message."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.corpus import CODE_LANGUAGES, Document, Input, read_documents
from moe_probe.errors import BadInputError


def _names_and_texts(inputs: Input | list[Input]) -> list[tuple[str, str]]:
    return [(document.name, document.text) for document in read_documents(inputs)]


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _spans(document: Document, label: str) -> list[tuple[str, str]]:
    spans = (document.labels or {})[label]
    assert not isinstance(spans, str)
    return [(document.text[start:end], value) for start, end, value in spans]


# Text files


def test_a_text_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "note.txt", "Hello")
    assert list(read_documents(path)) == [Document("note.txt", "Hello")]
    assert list(read_documents(str(path), language="en")) == [Document("note.txt", "Hello", language="en")]


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_comes_back_exactly_plain_or_compressed(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("exact")
    data = b"\xef\xbb\xbf" + text.encode()
    for path in (
        _write(folder / "a.txt", data),
        _write(folder / "a.txt.gz", gzip.compress(data)),
        _write(folder / "a.txt.zst", zstandard.compress(data)),
    ):
        assert _names_and_texts(path) == [(path.name, text)]


def test_line_endings_and_odd_spaces_are_kept(tmp_path: Path) -> None:
    text = "one\r\ntwo\rthree\n\n\x85\u2028 four \t"
    assert _names_and_texts(_write(tmp_path / "a", text)) == [("a", text)]


def test_a_byte_order_mark_is_no_part_of_the_text_in_any_format(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    for name, content in {
        "a.txt": "hi",
        "a.jsonl": '{"text": "hi"}',
        "a.csv": "text\nhi\n",
        "a.conllu": "1\thi\t_\tINTJ\t_\t_\t0\troot\t_\t_\n",
    }.items():
        path = _write(tmp_path / name, mark + content.encode())
        assert [document.text for document in read_documents(path)] == ["hi"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.conllu"])
def test_invalid_utf_8_is_refused_with_file_and_byte(tmp_path: Path, name: str) -> None:
    content = {"a.jsonl": b'{"text": "na\xc3\xafv\xff"}\n', "a.conllu": b"# text = na\xc3\xafv\xff\n"}
    path = _write(tmp_path / name, content.get(name, b"text\nna\xc3\xafve\xff\n"))
    place = path.read_bytes().index(b"\xff")
    with pytest.raises(BadInputError, match=rf"{name}: byte {place} is 0xff, not UTF-8; convert the file"):
        list(read_documents(path))


def test_the_byte_of_invalid_utf_8_counts_from_the_start_of_a_long_file(tmp_path: Path) -> None:
    rows = _jsonl(*({"text": "é" * 500} for _ in range(3000)))
    path = _write(tmp_path / "a.jsonl.gz", gzip.compress(rows.encode() + b'{"text": "\x80"}'))
    place = len(rows.encode()) + len(b'{"text": "')
    with pytest.raises(BadInputError, match=rf"a\.jsonl\.gz: byte {place} of the decompressed data is 0x80"):
        list(read_documents(path))


def test_utf_16_is_recognised_with_and_without_its_mark(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="byte 0 is 0xff, not UTF-8; it looks like UTF-16"):
        list(read_documents(_write(tmp_path / "a.txt", "hi".encode("utf-16"))))
    with pytest.raises(BadInputError, match=r"b\.txt: byte 1 is NUL, so this is no text; if it is UTF-16"):
        list(read_documents(_write(tmp_path / "b.txt", "hi".encode("utf-16-le"))))


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress), ("A.TXT.ZST", zstandard.compress)],
)
def test_compressed_data_that_is_broken_or_cut_short_is_refused(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(random.Random(0).randbytes(5000).hex().encode())
    for broken in (packed[:-20], packed[: len(packed) // 2], b"no such thing"):
        with pytest.raises(BadInputError, match=rf"{name}: broken (gzip|zstandard) data \(.*\); was the file copied"):
            list(read_documents(_write(tmp_path / name, broken)))


def test_compressed_data_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    for name, pack in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress)):
        assert _names_and_texts(_write(tmp_path / name, pack(b"one ") + pack(b"two"))) == [(name, "one two")]


def test_standard_input_is_one_document_and_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\r\n🙂".encode())))
    for _ in range(2):
        assert list(read_documents("-", language="en")) == [Document("stdin", "one\r\n🙂", language="en")]


def test_invalid_utf_8_on_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xe9")))
    with pytest.raises(BadInputError, match="standard input: byte 2 is 0xe9, not UTF-8"):
        list(read_documents("-"))


# JSON Lines


def test_each_line_of_jsonl_is_a_document_with_what_it_states(tmp_path: Path) -> None:
    rows = [
        {"text": "Hi", "name": "greeting", "domain": "chat", "language": "en", "labels": {"mood": "glad"}, "more": 1},
        {"text": "Bye", "id": 7, "domain": None, "labels": {"upos": [[0, 3, "INTJ"]]}},
        {"text": "So\r\nlong"},
    ]
    path = _write(tmp_path / "a.jsonl", _jsonl(*rows) + "\n  \n")
    assert list(read_documents(path, language="de")) == [
        Document("greeting", "Hi", "chat", "en", {"mood": "glad"}),
        Document("7", "Bye", None, "de", {"upos": ((0, 3, "INTJ"),)}),
        Document("a.jsonl#3", "So\r\nlong", None, "de"),
    ]


def test_a_name_counts_lines_so_that_blank_ones_and_empty_texts_do_not_move_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"text": ""}\n{"text": "y"}')
    assert _names_and_texts(path) == [("a.jsonl#1", "x"), ("a.jsonl#4", "y")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x", "id": 1}', "a.jsonl, line 2: no 'text' in it (it has 'body', 'id'); each row needs one"),
        ("{}", "a.jsonl, line 2: no 'text' in it (it is empty)"),
        ('{"text": null}', "a.jsonl, line 2: no 'text' in it"),
        ('{"text": 5}', "a.jsonl, line 2: 'text' is of type int, not a string"),
        ('{"text": "x"', "a.jsonl, line 2: not JSON ("),
        ('["x"]', "a.jsonl, line 2: a list, not a JSON object with a 'text' in it"),
        ('{"text": "x", "domain": ["a"]}', "a.jsonl, line 2: 'domain' is ['a']; give a string"),
        ('{"text": "x", "labels": [1]}', "a.jsonl, line 2: its labels are no JSON object"),
        ('{"text": "x", "labels": {"mood": 3}}', "label 'mood': of type int; give a string, or a list of"),
        ('{"text": "x", "labels": {"Mood": "y"}}', "label 'Mood': a label's name is a lower-case word"),
        ('{"text": "x", "labels": {"text": "y"}}', "label 'text': every run has a column of that name already"),
        ('{"text": "x", "labels": {"mood": [[0, 2, "y"]]}}', "span 0 to 2 lies outside the text of 1 characters"),
        ('{"text": "ab\\ud83d"}', "character 2 is '\\ud83d', half of a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = _write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(BadInputError) as raised:
        list(read_documents(path))
    assert message in str(raised.value)
    assert "line 2" in str(raised.value)


def test_jsonl_is_read_no_further_than_asked(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "fine"}\nbroken\n')
    documents = read_documents(path)
    assert next(documents).text == "fine"
    with pytest.raises(BadInputError, match="line 2: not JSON"):
        next(documents)


def test_reading_a_long_jsonl_takes_the_memory_of_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for _ in range(300):
            file.write(json.dumps({"text": "x" * 100_000}) + "\n")
    tracemalloc.start()
    read = sum(len(document.text) for document in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == 30_000_000
    assert peak < 6_000_000


# Tables


def test_csv_keeps_line_breaks_quotes_and_long_cells_exactly(tmp_path: Path) -> None:
    long = "y" * 300_000
    content = f'id,text,domain,labels\na,"one\r\n""two"", three",news,"{{""mood"": ""sad""}}"\r\n,{long},,\n'
    path = _write(tmp_path / "a.csv", content)
    assert list(read_documents(path)) == [
        Document("a", 'one\r\n"two", three', "news", None, {"mood": "sad"}),
        Document("a.csv#2", long),
    ]


def test_tsv_is_divided_by_tabs(tmp_path: Path) -> None:
    assert _names_and_texts(_write(tmp_path / "a.tsv", "name\ttext\nn\ta, b\n")) == [("n", "a, b")]


def test_csv_without_a_text_column_names_the_columns_there_are(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a\.csv: no column 'text'; the columns are 'body', 'id'"):
        list(read_documents(_write(tmp_path / "a.csv", "body,id\nx,1\n")))


def test_a_row_of_csv_that_does_not_fit_the_header_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a\.csv, line 4: 1 cells under 2 columns"):
        list(read_documents(_write(tmp_path / "a.csv", 'id,text\n1,"a\nb"\n2\n')))
    with pytest.raises(BadInputError, match=r"b\.csv, line 2: malformed \(.*expected after"):
        list(read_documents(_write(tmp_path / "b.csv", 'id,text\n1,"a"b\n')))


def test_parquet_rows_are_documents_and_structures_are_labels(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["Hi", "", "Bye"],
            "domain": ["chat", "chat", None],
            "labels": [{"mood": "glad", "tone": None}, None, {"mood": None, "tone": "low"}],
            "vector": [[1.0], [2.0], [3.0]],
        }
    )
    expected = [
        Document("a.parquet#1", "Hi", "chat", None, {"mood": "glad"}),
        Document("a.parquet#3", "Bye", None, None, {"tone": "low"}),
    ]
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_documents(tmp_path / "a.parquet")) == expected
    packed = _write(tmp_path / "a.parquet.zst", zstandard.compress((tmp_path / "a.parquet").read_bytes()))
    assert [document.text for document in read_documents(packed)] == ["Hi", "Bye"]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadInputError, match=r"a\.parquet: no column 'text'; the columns are 'body', 'id'"):
        list(read_documents(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "b.parquet")
    with pytest.raises(BadInputError, match=r"b\.parquet, row 2: no 'text' in it"):
        list(read_documents(tmp_path / "b.parquet"))
    with pytest.raises(BadInputError, match=r"c\.parquet: cannot be read as Parquet \("):
        list(read_documents(_write(tmp_path / "c.parquet", "PAR0")))
    invalid = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": invalid}), tmp_path / "d.parquet")
    with pytest.raises(BadInputError, match=r"d\.parquet, row 1: invalid UTF-8 at byte 1"):
        list(read_documents(tmp_path / "d.parquet"))


# CoNLL-U

_TREEBANK = """\
# newdoc id = first
# sent_id = 1
# text = I don't  know.
1\tI\ti\tPRON\t_\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\t_\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\t_\t_\t4\tadvmod\t_\t_
4\tknow\tknow\tVERB\t_\t_\t0\troot\t_\tSpaceAfter=No
4.1\tit\tit\tPRON\t_\t_\t_\t_\t4:obj\t_
5\t.\t.\tPUNCT\t_\t_\t4\tpunct\t_\t_

1\tYes\tyes\tINTJ\t_\t_\t0\troot\t_\tA=b|SpaceAfter=No
2\t!\t!\tPUNCT\t_\t_\t1\tpunct\t_\tSpaceAfter=No

# newpar
1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\t_\t_\t3\tcase\t_\t_
2\tle\tle\tDET\t_\t_\t3\tdet\t_\t_
3\tpain\tpain\t_\t_\t_\t0\troot\t_\t_

# newdoc
1\t1 000\t1000\tNUM\t_\t_\t0\troot\t_\t_

"""


def test_a_treebank_gives_its_text_and_its_gold_parts_of_speech(tmp_path: Path) -> None:
    first, second = read_documents(_write(tmp_path / "a.conllu", _TREEBANK), language="en")
    assert (first.name, first.language) == ("first", "en")
    assert first.text == "I don't  know. Yes!\n\ndu pain"
    assert _spans(first, "upos") == [
        ("I", "PRON"),
        ("do", "AUX"),
        ("n't", "PART"),
        ("know", "VERB"),
        (".", "PUNCT"),
        ("Yes", "INTJ"),
        ("!", "PUNCT"),
        ("du", "ADP"),
    ]
    assert second == Document("a.conllu#2", "1 000", None, "en", {"upos": ((0, 5, "NUM"),)})


def test_a_treebank_without_newdoc_is_one_document_named_after_the_file(tmp_path: Path) -> None:
    rows = "1\ta\t_\tX\t_\t_\t_\t_\t_\tSpaceAfter=No\n\n1\tb\t_\tX\t_\t_\t_\t_\t_\t_\n\n1\tc\t_\tX\t_\t_\t_\t_\t_\t_"
    assert _names_and_texts(_write(tmp_path / "a.conllu", rows)) == [("a.conllu", "ab c")]
    assert _names_and_texts(_write(tmp_path / "b.conllu", rows.replace("\n", "\r\n"))) == [("b.conllu", "ab c")]


def test_a_treebank_gives_its_own_tags_beside_the_universal_ones(tmp_path: Path) -> None:
    rows = [
        "# text = I don't du 1",
        "1\tI\ti\tPRON\tPRP\t_\t_\t_\t_\t_",
        "2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_",
        "2\tdo\tdo\tAUX\tVBP\t_\t_\t_\t_\t_",
        "3\tn't\tnot\tPART\tRB\t_\t_\t_\t_\t_",
        "4-5\tdu\t_\t_\t_\t_\t_\t_\t_\t_",
        "4\tde\tde\tADP\tIN\t_\t_\t_\t_\t_",
        "5\tle\tle\tDET\tDT\t_\t_\t_\t_\t_",
        "6\t1\t1\tNUM\t_\t_\t_\t_\t_\t_",
    ]
    (document,) = read_documents(_write(tmp_path / "a.conllu", "\n".join(rows) + "\n\n"))
    assert _spans(document, "xpos") == [("I", "PRP"), ("do", "VBP"), ("n't", "RB"), ("du", "IN")]
    assert [value for _, value in _spans(document, "upos")] == ["PRON", "AUX", "PART", "ADP", "NUM"]


def test_a_treebank_without_tags_of_its_own_brings_no_such_label(tmp_path: Path) -> None:
    first, second = read_documents(_write(tmp_path / "a.conllu", _TREEBANK))
    assert set(first.labels or ()) == set(second.labels or ()) == {"upos"}
    empty = _TREEBANK.replace("\tPRON\t_\t", "\tPRON\t\t", 1)  # the format wants an underscore there
    assert next(read_documents(_write(tmp_path / "b.conllu", empty))).labels == first.labels


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1\tI\ti\t", "1\tI\t", r"line 4: 9 columns found where CoNLL-U has 10"),
        ("1\tI\ti\t", "one\tI\ti\t", r"line 4: 'one' is no word's number such as 3, 3-4 or 3\.1"),
        ("\tPRON\t", "\t\t", r"line 4: an empty form or part of speech"),
        ("text = I", "text = You", r"line 4: the form 'I' is not what '# text' has there, 'Y'"),
        ("4\tknow", "4\tknew", r"line 8: the form 'knew' is not what '# text' has there, 'know'"),
    ],
)
def test_a_bad_row_of_a_treebank_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _write(tmp_path / "a.conllu", _TREEBANK.replace(old, new, 1))
    with pytest.raises(BadInputError, match=rf"a\.conllu, {message}"):
        list(read_documents(path))


# Folders, names, arguments


def test_a_folder_gives_its_files_in_order_with_the_first_sub_folder_as_domain(tmp_path: Path) -> None:
    for name in (
        "z.txt",
        "b/one.txt",
        "b/deep/er/two.txt",
        "a/rows.jsonl",
        ".git/config",
        "b/.hidden",
        "b/__pycache__/x.pyc",
        "b/empty.txt",
    ):
        content = {"a/rows.jsonl": '{"text": "r", "domain": "own"}\n{"text": "s"}', "b/empty.txt": ""}.get(name, name)
        _write(tmp_path / "in" / name, content)
    (tmp_path / "in/b/loop").symlink_to(tmp_path / "in")
    found = [(document.name, document.domain) for document in read_documents(tmp_path / "in")]
    assert found == [
        ("a/rows.jsonl#1", "own"),
        ("a/rows.jsonl#2", "a"),
        ("b/deep/er/two.txt", "b"),
        ("b/one.txt", "b"),
        ("z.txt", None),
    ]
    assert list(read_documents(tmp_path / "in")) == list(read_documents(tmp_path / "in"))


def test_a_folder_called_after_a_language_gives_it_to_its_texts_but_not_to_its_programs(tmp_path: Path) -> None:
    for name in ("french/a.txt", "DE/b.txt", "science/c.txt", "french/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    languages = {document.name: document.language for document in read_documents(tmp_path, language="en")}
    assert languages == {"DE/b.txt": "de", "french/a.txt": "fr", "french/d.py": "python", "science/c.txt": "en"}


def test_a_suffix_tells_the_language_of_code_and_nothing_of_prose(tmp_path: Path) -> None:
    for name in ("a.py", "b.RS", "c.txt", "d.py.gz"):
        _write(tmp_path / name, gzip.compress(b"x") if name.endswith("gz") else "x")
    languages = [document.language for document in read_documents(tmp_path)]
    assert languages == ["python", "rust", None, "python"]
    with_argument = [document.language for document in read_documents(tmp_path, language="en")]
    assert with_argument == ["python", "rust", "en", "python"]
    assert {"python", "c", "javascript"} <= CODE_LANGUAGES


def test_documents_pass_through_and_take_the_language_they_lack() -> None:
    own = [Document("a", "x"), Document("b", "y", language="fr")]
    assert list(read_documents(own)) == own
    assert [document.language for document in read_documents(own, language="en")] == ["en", "fr"]


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [_write(tmp_path / folder / "a.txt", "x") for folder in ("one", "two")]
    with pytest.raises(
        BadInputError, match=r"two documents are called 'a\.txt', the first from .*one/a\.txt, the second"
    ):
        list(read_documents(paths))
    rows = _write(tmp_path / "r.jsonl", _jsonl({"text": "x", "id": "k"}, {"text": "y", "id": "k"}))
    with pytest.raises(BadInputError, match="two documents are called 'k'"):
        list(read_documents(rows))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.conllu", "a.txt.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b"")
    with pytest.raises(BadInputError, match=rf"{name}: it holds no text; leave it out"):
        list(read_documents(path))


def test_what_cannot_be_read_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = _write(tmp_path / "in/a.txt", "x")
    with pytest.raises(BadInputError, match=r"gone\.txt: no such file or folder"):
        read_documents([good, tmp_path / "gone.txt"])
    with pytest.raises(BadInputError, match=r"b\.safetensors: \.safetensors files hold no plain text"):
        read_documents(_write(tmp_path / "b.safetensors", "x"))
    with pytest.raises(BadInputError, match=r"c\.tar\.gz: \.tar files hold no plain text"):
        read_documents(_write(tmp_path / "c.tar.gz", "x"))
    _write(tmp_path / "in/pic.PNG", b"\x89PNG")
    with pytest.raises(BadInputError, match=r"pic\.PNG: \.png files hold no plain text; leave it out \(read are text"):
        read_documents(tmp_path / "in")
    (tmp_path / "bare/sub").mkdir(parents=True)
    with pytest.raises(BadInputError, match="bare: no file with text in this folder"):
        read_documents(tmp_path / "bare")
    (tmp_path / "bare/sub/link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="link: a broken link"):
        read_documents(tmp_path / "bare")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="pipe: neither a file nor a folder; to read from a pipe, give '-'"):
        read_documents(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="no input: name at least one file, folder or '-'"):
        read_documents([])
    with pytest.raises(BadInputError, match="input 3 is of type int; give a path, '-', or a Document"):
        read_documents([3])  # type: ignore[list-item]


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    documents = read_documents(_write(tmp_path / "a.txt", "x"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(BadInputError, match=r"a\.txt: cannot be read \(No such file"):
        next(documents)


# Documents


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ""}, "document 'a': its text is empty; leave it out"),
        ({"name": ""}, "a document without a name: give each document one"),
        ({"text": None}, "document 'a': its text is missing, not a string"),
        ({"name": 3}, "document 3: its name is of type int, not a string"),
        ({"domain": ""}, "document 'a': its domain is ''; give a word, or leave it out"),
        ({"labels": {"mood": ""}}, "document 'a', label 'mood': an empty value; leave the label out"),
        ({"labels": "x"}, "document 'a': its labels are of type str, not a mapping from a label's name"),
        ({"labels": {"mood": [(0, "x")]}}, "label 'mood': (0, 'x') is no [start, end, value] with two whole numbers"),
        ({"labels": {"mood": [(0, 1.5, "x")]}}, "label 'mood': (0, 1.5, 'x') is no [start, end, value]"),
        ({"labels": {"mood": [(1, 1, "x")]}}, "label 'mood': span 1 to 1 lies outside the text of 5 characters"),
        (
            {"labels": {"mood": [(0, 3, "x"), (2, 4, "y")]}},
            "label 'mood': span 2 to 4 begins before 3, where the one before it ends",
        ),
    ],
)
def test_a_document_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError) as raised:
        Document(**{"name": "a", "text": "hello", **fields})  # type: ignore[arg-type]
    assert message in str(raised.value)
