"""The text view as one file: how large, what it may do, and what it says. The browser tests open it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, make_run
from test_tokenview import document

from moe_probe.errors import BadInputError
from moe_probe.store import Run, open_run
from moe_probe.tokenview import pack
from moe_probe.tokenview.page import standalone, write_text_page
from moe_probe.tokenview.squeeze import squeeze

MEGABYTE = 1_000_000
# RFC 1924, less "<", which could end an element of a page.
SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("run") / "small", TEXTS))


def bytes_of(text: str) -> bytes:
    """Return what a text of 85 signs stands for, by arithmetic."""
    words = []
    for at in range(0, len(text), 5):
        value = 0
        for sign in text[at : at + 5]:
            value = value * 85 + SIGNS.index(sign)
        words.append(value.to_bytes(4, "big"))
    return b"".join(words)


def test_five_thousand_tokens_of_32_layers_fit_into_a_megabyte_whatever_the_experts_are() -> None:
    rng = np.random.default_rng(5)
    words = [" " + "".join(rng.choice(list("etaoinshrdlu"), rng.integers(1, 9))) for _ in range(1500)]
    one = document([words[i] for i in rng.integers(0, 1500, 5000)], n_routers=32)
    first = rng.uniform(0.5, 1, (32, 5000)).astype(np.float32)
    bits = rng.uniform(0, 3, (32, 5000)).astype(np.float32)
    one.weights = lambda *, router: np.stack([first[router], 1 - first[router]], axis=1)  # type: ignore[method-assign]
    one.entropy = lambda *, router: bits[router]  # type: ignore[method-assign]
    assert len(standalone(one).encode()) <= MEGABYTE


def test_the_policy_names_the_one_script_and_the_one_style_and_lets_nothing_else_through() -> None:
    page = standalone(document(["a", " b"]))
    (said,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = {
        name: value.split() for name, *value in (rule.split(" ", 1) for rule in said.split("; ")) for value in value
    }
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert rules.pop(rule) == [f"'sha256-{digest}'"]
    assert rules.pop("img-src") == ["data:"]
    assert all(value == ["'none'"] for value in rules.values())
    assert {"default-src", "connect-src", "base-uri", "form-action"} <= set(rules)


def test_neither_its_script_nor_its_style_asks_the_network_or_makes_markup_of_text() -> None:
    page = standalone(document(["a", " b"]))
    for word in (
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "eval(",
        "url(",
    ):
        assert word not in page, word
    assert "document.write" not in page
    assert set(re.findall(r"https?://[^'\"\s<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_a_document_without_tokens_has_a_page_too() -> None:
    assert "<title>made/up.txt</title>" in standalone(document([]))


def test_no_text_can_end_the_element_that_holds_it() -> None:
    hostile = "</script><script>window.hacked = 1</script><!--"
    page = standalone(document([hostile, " b"], name=hostile), title=hostile, lead=hostile, run_name=hostile)
    assert hostile not in page
    assert page.count("<script") == page.count("</script>") == 3
    (settings,) = re.findall(r'id="settings">(.*?)</script>', page, re.DOTALL)
    assert json.loads(settings)["run"] == hostile
    assert "<" not in settings
    (data,) = re.findall(r'id="document">(.*?)</script>', page, re.DOTALL)
    assert "<" not in data


def test_the_text_holds_the_packed_document_compressed() -> None:
    one = document(["a", " b", "c"], bits=np.array([0.5, 1.004, 2.999], np.float32))
    squeezed = squeeze(pack(one))
    head = zlib.decompress(bytes_of(squeezed.text)[: squeezed.size])
    length = int.from_bytes(head[4:8], "little")
    header = json.loads(head[8 : 8 + length])
    assert head[: 8 + length] == pack(one)[: 8 + length]
    at = header["routers"][1]["entropy"]
    planes = np.frombuffer(head, np.uint8, 6, 8 + length + at["offset"]).astype(int)
    assert (planes[:3] + 256 * planes[3:]).tolist() == [50, 100, 300]
    at = header["routers"][1]["experts"]
    slots = np.frombuffer(head, np.uint8, 6, 8 + length + at["offset"])
    assert slots.tolist() == one.experts(router=1).T.ravel().tolist()


def test_weights_that_add_up_to_one_leave_nothing_to_say_of_the_first() -> None:
    one = document(["a", " b", "c"], n_routers=1)
    one.weights = lambda *, router: np.array([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], np.float32)  # type: ignore[method-assign]
    squeezed = squeeze(pack(one))
    assert squeezed.told == [0]
    head = zlib.decompress(bytes_of(squeezed.text)[: squeezed.size])
    length = int.from_bytes(head[4:8], "little")
    at = json.loads(head[8 : 8 + length])["routers"][0]["weights"]
    planes = np.frombuffer(head, np.uint8, 12, 8 + length + at["offset"]).reshape(4, 3)
    assert planes[:2].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert planes[3].tolist() == [0x34, 0x38, 0]


def test_weights_above_two_are_left_as_they_are() -> None:
    one = document(["a"], n_routers=1)
    one.weights = lambda *, router: np.array([[2.5, 0.25]], np.float32)  # type: ignore[method-assign]
    assert squeeze(pack(one)).told == []


def test_the_page_names_the_run_its_model_and_its_shape(run: Run, tmp_path: Path) -> None:
    file = write_text_page(run, "code/area.py", tmp_path / "deep/area.html", layer=2, focus=[1, 5], title="An <area>")
    text = file.read_text()
    assert "<title>An &lt;area&gt;</title>" in text
    assert "<p>small · made-up in 4 bits · 6 routers, 2 of 8 experts</p>" in text
    (settings,) = re.findall(r'id="settings">(.*?)</script>', text, re.DOTALL)
    assert json.loads(settings)["state"] == {"router": 2, "focus": [1, 5]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 6}, "layer 6"),
        ({"focus": [8]}, r"focus \[8\]: the experts are 0 to 7"),
        ({"focus": [-1]}, r"focus \[-1\]"),
        ({"focus": [*range(8), 0]}, "focus: 9 experts; there are colours for 8"),
    ],
)
def test_what_does_not_exist_is_refused_and_nothing_written(
    run: Run, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        write_text_page(run, 0, tmp_path / "page.html", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
