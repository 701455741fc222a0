"""The texts that the bundled model is trained and measured on: read from installed packages, or generated.

Nothing here is committed or downloaded: novels from Debian's `r-cran-janeaustenr` (public-domain text), technical
English, French and German from Debian's `debian-handbook` (GPL-2+ or CC BY-SA 3.0), Python from the standard library
of the interpreter that runs this (PSF licence), mathematics from mathematics.py. Knows nothing of tokenizers or models.
"""

import hashlib
import re
import subprocess
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_probe_data.mathematics import mathematics_document

HANDBOOK = Path("/usr/share/doc/debian-handbook/html")
HELD_OUT_PERCENT = 8
MATHEMATICS_DOCUMENTS = 2500
NOT_CODE = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "turtledemo", "__pycache__"}
ENGLISH_WORDS = frozenset(
    re.findall(r"\w+", "the of and to is that for it with this be are you which from can will has by as")
)
OTHER_WORDS = frozenset(
    re.findall(
        r"\w+",
        "le la les de des du et est que pour une un en dans qui par sur "
        "der die das und zu ist den von mit eine ein für im auf nicht sich",
    )
)
XHTML = "{http://www.w3.org/1999/xhtml}"


@dataclass(frozen=True)
class Text:
    """One document. `group` decides whether it is held out, so that translations of one page stay together."""

    domain: str
    name: str
    group: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the document is kept from training."""
        return int(hashlib.sha256(self.group.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


class CorpusMissingError(RuntimeError):
    """A package that the training text is read from is not installed."""


def read_corpora() -> dict[str, list[Text]]:
    """Every domain's documents, held-out ones included, in a fixed order."""
    return {
        "english": list(read_novels()),
        "technical": list(read_handbook("en-US", "technical")),
        "french": list(read_handbook("fr-FR", "french")),
        "german": list(read_handbook("de-DE", "german")),
        "python": list(read_standard_library()),
        "mathematics": [
            Text("mathematics", f"mathematics/{i:05d}", f"mathematics/{i:05d}", mathematics_document(i))
            for i in range(MATHEMATICS_DOCUMENTS)
        ],
    }


def read_novels() -> Iterator[Text]:
    """Jane Austen's six novels, a document a chapter, line breaks inside paragraphs removed."""
    script = "b <- janeaustenr::austen_books(); cat(paste(b$book, b$text, sep='\\t'), sep='\\n')"
    try:
        done = subprocess.run(["Rscript", "-e", script], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise CorpusMissingError("janeaustenr cannot be read; apt-get install r-cran-janeaustenr") from error
    chapters: dict[str, list[str]] = {}
    chapter = 0
    for line in done.stdout.decode("utf-8").splitlines():
        book, _, text = line.partition("\t")
        if re.fullmatch(r"\s*(chapter|volume)\s+[ivxlc\d]+\s*", text, re.IGNORECASE):
            chapter += 1
            continue
        chapters.setdefault(f"{book}/{chapter:03d}", []).append(text)
    for name, lines in chapters.items():
        paragraphs = re.split(r"\n\s*\n", "\n".join(lines).replace("_", ""))
        text = "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())
        if len(text) > 1000:  # leaves out title pages
            yield Text("english", f"austen/{name}", f"austen/{name}", text)


def read_handbook(language: str, domain: str) -> Iterator[Text]:
    """The Debian Administrator's Handbook, a document a page. Passages left in English by translators are dropped."""
    pages = sorted((HANDBOOK / language).glob("*.html"))
    if not pages:
        raise CorpusMissingError(f"{HANDBOOK / language} has no pages; apt-get install debian-handbook")
    for page in pages:
        passages = list(_passages(page))
        original = HANDBOOK / "en-US" / page.name
        if language != "en-US":
            english = set(_passages(original)) if original.exists() else set()
            passages = [p for p in passages if p not in english and not _is_english(p)]
        text = "\n\n".join(passages)
        if len(text) > 400:
            yield Text(domain, f"handbook/{language}/{page.stem}", f"handbook/{page.stem}", text)


def _is_english(passage: str) -> bool:
    """Whether common English words outnumber the common French and German ones."""
    words = passage.lower().split()
    return sum(w in ENGLISH_WORDS for w in words) > sum(w in OTHER_WORDS for w in words)


def _passages(page: Path) -> Iterator[str]:
    """The paragraphs, titles and screens of one page, in order."""
    body = ElementTree.parse(page).getroot().find(f"{XHTML}body")
    return _blocks(body) if body is not None else iter(())


def _blocks(element: ElementTree.Element) -> Iterator[str]:
    for child in element:
        kind = (child.tag.removeprefix(XHTML), child.get("class", ""))
        if kind[1].startswith("docnav") or child.get("id") in ("banner", "title"):
            continue
        if kind[0] == "pre":
            yield "".join(child.itertext()).strip("\n")
        elif (kind[1] in ("para", "title", "term") or kind[0] in ("p", "dt")) and not any(
            inner.get("class") in ("para", "screen") for inner in child.iter() if inner is not child
        ):
            if text := " ".join("".join(child.itertext()).split()):
                yield text
        else:
            yield from _blocks(child)


def read_standard_library() -> Iterator[Text]:
    """Python's standard library, a document a module, without tests and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if NOT_CODE.isdisjoint(name.parts) and "test" not in path.stem:
            text = path.read_bytes().decode("utf-8", errors="ignore")
            if len(text) > 400:
                yield Text("python", f"python/{name.as_posix()}", f"python/{name.as_posix()}", text)
