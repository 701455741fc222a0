"""Runs made to do harm: every page says what is wrong or shows them as text, and a sound run opens after."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from app_pages import PAGES, written
from hostile_runs import MARKUP, REFUSED, TEXT, make_hostile, make_plain
from streamlit.testing.v1 import AppTest

from moe_probe.errors import RunError
from moe_probe.schema import MANIFEST_FILE
from moe_probe_app import library, soundness
from moe_probe_app.components import comparison
from moe_probe_app.settings import Settings, configure

pytestmark = pytest.mark.prove  # minutes on two cores

PAGE_NAMES = sorted(path.stem for path in PAGES.glob("*.py") if path.stem not in ("main", "__init__"))
NUMBERS = ("-1", "99999999999999999999", "1e9", "٣")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def root(plain: Path, tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "runs"
    shutil.copytree(plain, root / "sound")
    configure(Settings(root))
    yield root
    configure(Settings(Path("runs")))


def guarded_page(path: str) -> None:
    import runpy

    from moe_probe_app.components import refusal

    refusal.show(lambda: runpy.run_path(path))


def open_guarded(name: str, **query: str) -> AppTest:
    """Run a page as the explorer's entry runs it."""
    page = AppTest.from_function(guarded_page, args=(str(PAGES / f"{name}.py"),), default_timeout=60)
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception, page.exception
    return page


def assert_a_sound_run_opens(root: Path) -> None:
    run = library.open_named(root, "sound")
    assert "".join(run.tokens()["text"]) == 2 * TEXT


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_cannot_be_is_refused_by_name(root: Path, plain: Path, name: str) -> None:
    path = make_hostile(root, name, plain)
    assert path.name in library.run_names(root)
    with pytest.raises(RunError, match=REFUSED[name][1]) as refused:
        library.open_named(root, path.name)
    assert path.name in str(refused.value)
    assert len(str(refused.value)) < 600
    assert_a_sound_run_opens(root)


@pytest.mark.parametrize("name", ["deep json", "a label of markup", "half of the routing", "tokens elsewhere"])
def test_a_page_says_why_a_run_is_refused_and_another_one_opens(root: Path, plain: Path, name: str) -> None:
    path = make_hostile(root, name, plain)
    page = open_guarded("text", run=path.name)
    assert "This run cannot be opened" in written(page)
    assert MARKUP not in written(page)
    page.sidebar.selectbox(key="sidebar_run").select_index(library.run_names(root).index("sound")).run()
    assert not page.exception
    assert page.query_params["run"] == "sound"


@pytest.mark.parametrize(
    ("name", "pages"),
    [("markup everywhere", PAGE_NAMES), ("long everywhere", ["text", "syntax"]), ("experts out of range", ["layers"])],
)
def test_pages_live_through_a_run_that_can_be_opened(root: Path, plain: Path, name: str, pages: list[str]) -> None:
    path = make_hostile(root, name, plain)
    for page_name in pages:
        text = written(open_guarded(page_name, run=path.name, layer="1"))
        assert "<script>window" not in text, page_name
        assert "<img" not in text, page_name
        assert ("has expert 250 in expert_0_0" in text) == (name == "experts out of range"), page_name
    assert_a_sound_run_opens(root)


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_an_address_are_never_taken_on_trust(root: Path, number: str) -> None:
    names = ("document", "layer", "router", "focus", "token", "against", "other", "with", "category", "expert")
    page = open_guarded("text", run="sound", **dict.fromkeys(names, number))
    assert page.sidebar.selectbox(key="sidebar_layer").value == 0
    assert page.query_params["document"] == "0"
    assert "cannot show this run" not in written(page)


def test_no_address_opens_a_run_outside_the_root(root: Path, plain: Path) -> None:
    shutil.copytree(plain, root.parent / "outside")
    (root / "link").symlink_to(root.parent / "outside", target_is_directory=True)
    for name in ("../outside", str(root.parent / "outside"), "..", "sound/../../outside", "link", "sound/../link"):
        with pytest.raises((RunError, OSError)):
            library.open_named(root, name)
    for name in ("../outside", "link"):
        assert open_guarded("runs", run=name).query_params["run"] == "sound"


def test_a_name_that_looks_like_a_pattern_is_only_a_name(root: Path, plain: Path) -> None:
    for name in ("[x]*?", "{a,b}", "**"):
        shutil.copytree(plain, root / name)
        assert library.open_named(root, name).n_tokens == library.open_named(root, "sound").n_tokens


def test_a_link_that_stays_inside_is_followed(root: Path) -> None:
    file = root / "sound/documents.parquet"
    file.rename(root / "elsewhere.parquet")
    file.symlink_to(root / "elsewhere.parquet")
    assert_a_sound_run_opens(root)


def test_a_run_that_links_out_is_not_looked_into_for_a_comparison(root: Path, plain: Path) -> None:
    path = make_hostile(root, "documents elsewhere", plain)
    run = library.open_named(root, "sound")
    assert comparison.fitting(root, [path.name, "sound"], run) == ["sound"]


def test_a_manifest_of_a_size_that_no_run_needs_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "MANIFEST_BYTES", (root / "sound" / MANIFEST_FILE).stat().st_size - 1)
    with pytest.raises(RunError, match="bytes, where no run needs"):
        soundness.open_sound(root / "sound")


def test_what_a_page_raises_is_said_as_text() -> None:
    def failing() -> None:
        from moe_probe_app.components import refusal

        def page() -> None:
            raise ValueError("<script>window.hacked=1</script>" + "x" * 10_000)

        refusal.show(page)

    page = AppTest.from_function(failing).run()
    assert not page.exception
    assert "ValueError: &lt;script&gt;" in written(page)
    assert re.search(r"x{300,700} …", written(page))
