"""Uploaded files: what is read of them, what they may be called, and that none makes more than it may."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moe_probe.corpus.opening import Source, at_most, read_blocks, read_text
from moe_probe.errors import BadInputError
from moe_probe_app.components import upload

ROWS = [{"text": "One two.", "domain": "prose"}, {"text": "Three."}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONLLU = b"# text = Geese fly\n1\tGeese\tgoose\tNOUN\t_\t_\t2\t_\t_\t_\n2\tfly\tfly\tVERB\t_\t_\t0\t_\t_\t_\n\n"
BOUND = 1_000_000


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def zstandard_bomb(n_blocks: int) -> bytes:
    """Return a frame of blocks that each say "one byte, 128 KB of it" in four bytes; see RFC 8878, 3.1.1.2."""
    header = bytes.fromhex("28b52ffd") + bytes([0, 0x58])  # magic number; no options; a window of 2 MB
    block = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"a"
    last = (1 | 1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"a"
    return header + block * (n_blocks - 1) + last


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", "Größe\n".encode(), {"a.txt": "Größe\n"}),
        ("A b.MD", b"# One", {"A b.MD": "# One"}),
        ("a.jsonl", LINES, {"a.jsonl#1": "One two.", "a.jsonl#2": "Three."}),
        ("a.csv", b"text,domain\nOne,x\n", {"a.csv#1": "One"}),
        ("a.conllu", CONLLU, {"a.conllu": "Geese fly"}),
        ("a.parquet", parquet(pa.Table.from_pylist(ROWS)), {"a.parquet#1": "One two.", "a.parquet#2": "Three."}),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0), {"a.jsonl.gz#1": "One two.", "a.jsonl.gz#2": "Three."}),
        ("a.txt.zst", zstandard.compress(b"One"), {"a.txt.zst": "One"}),
        ("notes.gz", gzip.compress(b"One", mtime=0), {"notes.gz": "One"}),
    ],
)
def test_a_file_becomes_the_documents_that_it_holds(name: str, data: bytes, texts: dict[str, str]) -> None:
    documents = upload.read_upload(name, data, language="en")
    assert {document.name: document.text for document in documents} == texts
    assert {document.language for document in documents} == {"en"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("/etc/cron.d/x.txt", "x.txt"),
        ("C:\\Windows\\a.txt", "a.txt"),
        ("..\\..\\a.txt", "a.txt"),
        ("a\0b\n.txt", "ab.txt"),
        ("x" * 5_000 + ".txt", "x" * 76 + ".txt"),
        ("<script>alert(1)</script>.txt", "script>.txt"),
        ("\u202etxt.exe.txt", "txt.exe.txt"),
    ],
)
def test_a_name_is_shown_and_never_a_path(
    name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written: list[Path] = []
    write = Path.write_bytes

    def seen(path: Path, data: bytes) -> int:
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", seen)
    assert [document.name for document in upload.read_upload(name, b"One")] == [shown]
    assert [path.name for path in written] == ["upload.txt"]
    assert written[0].parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a.zip", "a.exe", "a", ".gz.exe", "a.tar.gz", "a.zip.zst", "a.parquet.gz", "a.txt.gz.gz", "a.pkl", ""]
)
def test_other_kinds_of_files_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadInputError, match="not a kind of file that is read here"):
        upload.read_upload(name, b"One")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\xff\xfe", "a.txt: byte 0"),
        ("a.txt", b"", "a.txt: it holds no text"),
        ("a.txt.gz", b"One", "a.txt.gz: broken gzip data"),
        ("a.txt.zst", b"One", "a.txt.zst: broken zstandard data"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl"),
        ("a.jsonl", b'{"text": 1}', "a.jsonl, line 1"),
        ("a.parquet", b"PAR1" + b"x" * 40 + b"PAR1", "a.parquet: cannot be read as Parquet"),
        ("a.csv", b"no\nOne\n", "a.csv: no column 'text'"),
    ],
)
def test_what_cannot_be_read_is_said_under_the_files_own_name(name: str, data: bytes, said: str) -> None:
    with pytest.raises(BadInputError) as refused:
        upload.read_upload(name, data)
    assert str(refused.value).startswith(said)
    assert tempfile.gettempdir() not in str(refused.value)


def _zip(data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", data)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"a" * (BOUND + 1)),
        ("a.txt.gz", gzip.compress(b"a" * 60_000_000, mtime=0)),
        ("a.jsonl.gz", gzip.compress(b'{"text": "' + b"a" * 60_000_000 + b'"}', mtime=0)),
        ("a.txt.gz", gzip.compress(b"a" * 600_000, mtime=0) * 2),
        ("a.txt.zst", zstandard.compress(b"a" * 60_000_000)),
        ("a.txt.zst", zstandard_bomb(262_144)),
        ("a.csv.zst", b"".join(zstandard.compress(b"text\n" + b"a" * 600_000) for _ in range(2))),
    ],
    ids=["plain", "gzip", "gzip of a line", "two gzip members", "zstandard", "34 GB in a megabyte", "two frames"],
)
def test_a_bomb_is_refused_while_it_is_decompressed(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_BYTES", BOUND)
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match=r"more than 1,000,000 bytes( when decompressed)?, which is the most"):
            upload.read_upload(name, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * BOUND


def test_a_zip_is_refused_unopened() -> None:
    with pytest.raises(BadInputError, match="not a kind of file"):
        upload.read_upload("a.zip", _zip(b"a" * 10_000_000))


def test_a_parquet_value_that_is_stored_once_counts_in_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_BYTES", BOUND)
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["a" * 900_000]))
    data = parquet(pa.table({"text": once}), store_schema=False)
    assert len(data) < BOUND
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(BadInputError, match="more than 1,000,000 bytes when decompressed"):
        upload.read_upload("a.parquet", data)
    assert pool.max_memory() - before < 24 * BOUND


def test_a_parquet_column_that_is_not_text_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_BYTES", BOUND)
    data = parquet(pa.table({"text": ["a"] * 400_000, "id": [7] * 400_000}))
    with pytest.raises(BadInputError, match="more than 1,000,000 bytes when decompressed"):
        upload.read_upload("a.parquet", data)
    nested = parquet(pa.table({"text": ["a"], "labels": [{"upos": "NOUN"}]}))
    with pytest.raises(BadInputError, match="column 'labels' is nested"):
        upload.read_upload("a.parquet", nested)


def test_documents_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_DOCUMENTS", 3)
    assert len(upload.read_upload("a.csv", b"text\n" + b"a\n" * 3)) == 3
    with pytest.raises(BadInputError, match=r"a\.csv: more than 3 documents"):
        upload.read_upload("a.csv", b"text\n" + b"a\n" * 4)


def test_the_bound_is_exact_and_ends_with_its_block(tmp_path: Path) -> None:
    for name, pack in (("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"x" * 3_000_000))
        source = Source(str(path), name)
        with at_most(3_000_000):
            assert len(read_text(source)) == 3_000_000
        with at_most(2_999_999), pytest.raises(BadInputError, match="more than 2,999,999 bytes"):
            list(read_blocks(source))
        assert sum(map(len, read_blocks(source))) == 3_000_000
