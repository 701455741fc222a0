"""A document too large to be sent at once: its text first, then each layer by a request that needs the right key."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from test_tokenview import MadeUpDocument, array, document, unpack
from written_runs import HandMade

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, Shape, make_run

from moe_probe.errors import BadInputError
from moe_probe.schema import Router
from moe_probe.store import open_run
from moe_probe.store.excerpt import read_routing
from moe_probe.tokenview import pack, pack_routing, routing_bytes
from moe_probe_app import library, serve
from moe_probe_app.routes import routes
from moe_probe_app.settings import Settings, configure

SHAPE = Shape(n_layers=3, n_experts=16, n_slots=3, dropped_every=4)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of which every document counts as large."""
    make_run(tmp_path / "runs/one", TEXTS, SHAPE)
    monkeypatch.setattr(library, "SENT_BYTES", 0)
    configure(Settings(tmp_path / "runs"))
    yield tmp_path / "runs"
    configure(Settings(Path("runs")))


@pytest.fixture
def client(root: Path) -> TestClient:
    """The explorer's own routes behind its own checks."""
    checks = serve.middleware(serve.HOSTS, 80, None)
    return TestClient(Starlette(routes=routes(), middleware=checks), base_url="http://localhost")


def send(root: Path, name: str = "one", place: int = 0) -> library.PackedDocument:
    return library.packed_document(library.open_named(root, name), place)


def test_the_text_goes_first_and_the_routing_is_left_out(root: Path) -> None:
    sent = send(root)
    header, _ = unpack(sent.data)
    assert sent.partly
    assert header["text"] == TEXTS["prose/river.txt"]
    assert [router["experts"] for router in header["routers"]] == [None] * 3
    assert [(router["n_experts"], router["n_slots"]) for router in header["routers"]] == [(16, 3)] * 3


def test_a_small_document_is_sent_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "SENT_BYTES", 10_000_000)
    sent = send(root)
    assert not sent.partly
    assert unpack(sent.data)[0]["routers"][2]["experts"] is not None
    assert library.packed_layer(root, sent.key, 0) is None


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("router", [0, 2])
def test_a_layer_is_what_the_run_says_of_that_document_alone(
    client: TestClient, root: Path, place: int, router: int
) -> None:
    sent = send(root, place=place)
    answer = client.get("/_moe_probe/layer", params={"key": sent.key, "router": router})
    header, body = unpack(answer.content)
    (said,) = header["routers"]
    whole = open_run(root / "one").document(place)
    wanted = np.where(whole.experts(router=router) < 0, 255, whole.experts(router=router))
    assert said["index"] == router
    assert array(said["experts"], body).reshape(-1, 3).tolist() == wanted.tolist()
    assert array(said["weights"], body).reshape(-1, 3).tolist() == whole.weights(router=router).tolist()
    assert array(said["entropy"], body).tolist() == whole.entropy(router=router).tolist()


@pytest.mark.parametrize("token", [0, 3, 100])
def test_a_path_is_one_token_through_all_routers(client: TestClient, root: Path, token: int) -> None:
    answer = client.get("/_moe_probe/path", params={"key": send(root, place=1).key, "token": token})
    header, body = unpack(answer.content)
    whole = open_run(root / "one").document(1)
    for router in range(3):
        experts = whole.experts(router=router)[token]
        said = array(header["routers"][router]["experts"], body)
        assert said.tolist() == np.where(experts < 0, 255, experts).tolist()


KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("key={key}", 400),
        ("router=1", 400),
        ("key={key}&router=1&router=2", 400),
        ("key={key}&key={key}&router=1", 400),
        ("key={key}&router=1&run=..%2Fsecret", 400),
        ("key={key}&token=1", 400),
        ("key={key}&router=-1", 400),
        ("key={key}&router=1.0", 400),
        ("key={key}&router=%D9%A1", 400),  # a digit, but not one of ours
        ("key={key}&router=1%0A", 400),
        ("key={key}&router=99999999999999999999", 400),
        ("key=..%2F..%2Fetc%2Fpasswd&router=1", 400),
        ("key=%00&router=1", 400),
        ("key=&router=", 400),
        (f"key={KEY}&router=1", 404),
        ("key={key}&router=3", 404),
    ],
)
def test_what_is_asked_wrongly_gets_no_bytes(client: TestClient, root: Path, query: str, status: int) -> None:
    answer = client.get("/_moe_probe/layer?" + query.format(key=send(root).key))
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"MOEP" not in answer.content


def test_a_token_past_the_document_is_not_found(client: TestClient, root: Path) -> None:
    sent = send(root)
    n_tokens = unpack(sent.data)[0]["n_tokens"]
    assert client.get(f"/_moe_probe/path?key={sent.key}&token={n_tokens - 1}").status_code == 200
    assert client.get(f"/_moe_probe/path?key={sent.key}&token={n_tokens}").status_code == 404


def test_under_a_foreign_host_name_there_is_no_layer(client: TestClient, root: Path) -> None:
    address = f"/_moe_probe/layer?key={send(root).key}&router=0"
    assert client.get(address).status_code == 200
    assert client.get(address, headers={"Host": "evil.example"}).status_code == 400


def test_with_a_token_the_layer_needs_it_too(root: Path) -> None:
    checks = serve.middleware(serve.HOSTS, 80, "a long enough secret")
    client = TestClient(Starlette(routes=routes(), middleware=checks), base_url="http://localhost")
    address = f"/_moe_probe/layer?key={send(root).key}&router=0"
    assert client.get(address).status_code == 401
    assert b"MOEP" not in client.get(address + "&token=wrong").content


def test_a_layer_may_not_be_posted_and_is_for_the_page_alone(client: TestClient, root: Path) -> None:
    address = f"/_moe_probe/layer?key={send(root).key}&router=0"
    assert client.post(address).status_code == 405
    answer = client.get(address, headers={"Origin": "http://evil.example"})
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers


def test_a_run_written_anew_answers_to_its_new_key_only(client: TestClient, root: Path) -> None:
    before = send(root)
    assert client.get(f"/_moe_probe/layer?key={before.key}&router=0").status_code == 200
    (root / "one").rename(root.parent / "kept")
    make_run(root / "one", TEXTS, SHAPE, seed=99)
    after = send(root)
    assert after.data == before.data  # the text is the same, the routing is not
    assert after.key != before.key
    assert client.get(f"/_moe_probe/layer?key={before.key}&router=0").status_code == 404
    assert client.get(f"/_moe_probe/layer?key={after.key}&router=0").status_code == 200


def test_two_runs_of_one_text_have_two_keys(root: Path) -> None:
    make_run(root / "two", TEXTS, SHAPE, seed=99)
    one, two = send(root), send(root, "two")
    assert one.data == two.data
    assert one.key != two.key
    assert library.packed_layer(root, one.key, 1) != library.packed_layer(root, two.key, 1)


def test_a_run_that_left_the_root_is_not_read(client: TestClient, root: Path) -> None:
    sent = send(root)
    (root / "one").rename(root.parent / "outside")
    (root / "one").symlink_to(root.parent / "outside", target_is_directory=True)
    assert client.get(f"/_moe_probe/layer?key={sent.key}&router=0").status_code == 404


def test_a_file_cut_short_is_not_found_and_not_a_crash(client: TestClient, root: Path) -> None:
    sent = send(root)
    part = root / "one/routing/part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-200])
    library._open.clear()
    assert client.get(f"/_moe_probe/layer?key={sent.key}&router=0").status_code == 404


def test_no_more_keys_are_remembered_than_a_reader_needs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "KNOWN_DOCUMENTS", 2)
    keys = [send(root, place=place).key for place in (0, 1, 2)]
    assert len(library._known) == 2
    assert [library.packed_layer(root, key, 0) is None for key in keys] == [True, False, False]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> HandMade:
    """Three routers of different kinds over documents that lie across shards of ten rows."""
    return HandMade(tmp_path_factory.mktemp("made") / "run", [7, 23, 0, 12], shard_rows=10)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_one_router_of_a_document_across_shards(made: HandMade, number: int) -> None:
    rows = made.document == number
    run = open_run(made.path)
    for router in range(3):
        read = read_routing(run, number, routers=[router])
        assert read.experts(router=router).tolist() == made.experts[router][rows].tolist()
        assert read.weights(router=router) == pytest.approx(made.weights[router][rows], abs=1e-3)
        assert (read.entropy(router=router) is None) == (router == 1)
        assert not [name for name in read.routing.columns if name.split("_")[1] != str(router)]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (9, 11), (5, 23), (22, 23), (4, 4), (0, None)])
def test_a_stretch_of_a_document_across_shards(made: HandMade, start: int, stop: int | None) -> None:
    rows = np.flatnonzero(made.document == 1)[start:stop]
    read = read_routing(open_run(made.path), 1, start=start, stop=stop)
    for router in range(3):
        assert read.experts(router=router).reshape(-1).tolist() == made.experts[router][rows].reshape(-1).tolist()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"routers": [3]}, "router 3: the run has 3, from 0"),
        ({"routers": [-1]}, "router -1"),
        ({"start": 3, "stop": 2}, "tokens 3 to 2 are not within its 23 tokens"),
        ({"stop": 24}, "tokens 0 to 24 are not within its 23 tokens"),
    ],
)
def test_a_part_that_is_not_there_is_refused(made: HandMade, asked: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        read_routing(open_run(made.path), 1, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_experts", [8, 300])
def test_the_size_foretold_is_the_size_of_the_arrays(n_experts: int) -> None:
    one = document(["a", " b", "c"] * 8, n_experts=n_experts, n_slots=4, n_routers=3)
    foretold = routing_bytes(one.routers, 24, weights=[True] * 3, scores=[False] * 3)
    parts = [pack_routing(one, [index]) for index in range(3)]
    assert sum(len(part) - 8 - struct.unpack_from("<I", part, 4)[0] for part in parts) == foretold


def test_without_text_the_ids_stand_in_and_without_ids_a_sign() -> None:
    class Numbers(MadeUpDocument):
        ids = (5, 40, 5)

        @property
        def tokens(self):
            return super().tokens.with_columns(token_id=np.array(self.ids))

    one = Numbers(["", "", ""], document(["a", "b", "c"]).chosen, document(["a"]).routers)
    header, body = unpack(pack(one))
    assert (header["stand_ins"], header["text"]) == ("ids", " 5 40 5")
    assert array(header["lengths"], body).tolist() == [2, 3, 2]
    Numbers.ids = (-1, -1, -1)
    header, _ = unpack(pack(one))
    assert (header["stand_ins"], header["text"]) == ("signs", " ▯ ▯ ▯")
    assert unpack(pack(document(["", "a"])))[0]["stand_ins"] is None


def test_two_routers_of_a_layer_have_two_short_names() -> None:
    routers = [Router(i, f"layers.{i // 2}.{'ab'[i % 2]}", i // 2, 8, 2, "") for i in range(4)]
    one = document(["a"], n_routers=4)
    one.routers = routers
    header = json.loads(json.dumps(unpack(pack(one))[0]))
    assert [router["short"] for router in header["routers"]] == ["0·1", "0·2", "1·1", "1·2"]
