"""Where a model's files are: the bundled model, a folder, or a repository on the Hugging Face hub, at which commit.

It does not know what is in the files, but for the tokenizer's names and the sample of bytes that tells one model's
files from another's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from moe_probe.errors import BadInputError, MoeProbeError

BUNDLED = "tiny-mixtral"
"""The name of the model that comes with the package."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_SAMPLE_BYTES = 65_536
_TIMEOUT_SECONDS = 10
_MISSING_IS_NONE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
# No connection, no answer in time: the HTTP library's own errors, of whichever one huggingface_hub is built on.
_HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True)
class Source:
    """The files of a model: what `from_pretrained` takes (`arguments`), and the folder that holds config.json.

    `revision` is the commit of a repository on the hub, `local_only` says that the hub could not be asked.
    """

    name: str
    location: str
    revision: str | None
    folder: Path
    local_only: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments that pin every file to the same commit and ask no unreachable hub again."""
        return {"revision": self.revision, "local_files_only": self.local_only}


def find_source(model: str | Path, revision: str | None = None) -> Source:
    """Find a model's files; of a hub's repository fetch the configuration alone.

    Args:
        model: "tiny-mixtral", a folder, or a hub id such as "org/name". A folder that is there goes before a hub id.
        revision: branch, tag or commit of a hub's repository.

    Raises:
        BadInputError: if there is no such folder, repository or revision, or no model in it.
        MoeProbeError: if the hub cannot be reached and has not been asked before.
    """
    name = str(model)
    if name == BUNDLED:
        from moe_probe_data import MODEL

        return _folder(name, MODEL, revision)
    path = Path(os.path.expanduser(model))  # unlike Path.expanduser, leaves ~nobody as it is
    if path.exists():
        return _folder(name, path, revision)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise BadInputError(f"{name}: no such folder; give a folder with a model, a hub id or {BUNDLED!r}")
    return _repository(name, revision)


def _folder(name: str, folder: Path, revision: str | None) -> Source:
    if revision is not None:
        raise BadInputError(f"revision={revision!r}: {name} is a folder; only a model on the hub has revisions")
    if not folder.is_dir():
        raise BadInputError(f"{name} is a file; give the folder that holds it, config.json and the tokenizer")
    if not (folder / "config.json").is_file():
        raise BadInputError(f"{name}: no config.json in this folder; is it the folder of a model?")
    if not any(path.suffix in _WEIGHT_SUFFIXES for path in folder.iterdir()):
        raise BadInputError(f"{name}: config.json but no weights (*.safetensors) in this folder; was it fetched whole?")
    return Source(name, str(folder), None, folder)


def _repository(name: str, revision: str | None) -> Source:
    obstacle = ""
    try:
        # Asked once: every later request would try six times over half a minute if there is no connection.
        HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    except HFValidationError as error:
        raise BadInputError(f"{name}: neither a folder nor a hub id such as 'org/name'") from error
    except RevisionNotFoundError as error:
        raise BadInputError(f"{name}: no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise BadInputError(
            f"{name}: no such folder, and no such model on the hub (for a private one: hf auth login)"
        ) from error
    except OfflineModeIsEnabled:
        obstacle = "HF_HUB_OFFLINE is set"
    except _HTTPError as error:
        obstacle = f"the hub cannot be reached: {first_line(error)}"
    try:
        # By the revision's own name, which the cache then knows when there is no connection.
        config = Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=bool(obstacle)))
    except GatedRepoError as error:
        raise BadInputError(f"{name} is gated: ask for access on its hub page and log in (hf auth login)") from error
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError as well, so it goes first
        at = "" if revision is None else f" at revision {revision!r}"
        raise MoeProbeError(
            f"{name}: no such folder, and not in the hub's local cache{at} ({obstacle}); "
            "check the name and the connection, or give a folder"
        ) from error
    except EntryNotFoundError as error:
        raise BadInputError(f"{name}: no config.json in this repository; is it a model for transformers?") from error
    except _HTTPError as error:
        raise MoeProbeError(f"{name}: its config.json could not be fetched: {first_line(error)}") from error
    # .../snapshots/<commit>/config.json
    return Source(name, name, config.parent.name, config.parent, local_only=bool(obstacle))


def load_tokenizer(source: Source, *, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that comes with a model, or None if none does.

    Raises:
        BadInputError: if there is one that cannot be read.
    """
    files = (cached_file(source.location, name, **source.arguments, **_MISSING_IS_NONE) for name in _TOKENIZER_FILES)
    if all(file is None for file in files):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.location, trust_remote_code=trust_remote_code, **source.arguments
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{source.name}: its tokenizer cannot be read: {first_line(error)}") from error
    return tokenizer


def checkpoint_bytes(source: Source) -> int:
    """Return the size of a checkpoint's weights, 0 if it can be known only by fetching them."""
    index = cached_file(source.location, "model.safetensors.index.json", **source.arguments, **_MISSING_IS_NONE)
    if index is not None:
        size: int = json.loads(Path(index).read_text())["metadata"]["total_size"]
        return size
    return sum(path.stat().st_size for path in source.folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)


def first_line(error: BaseException) -> str:
    """Return what an error says first, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def digest_source(source: Source) -> str:
    """Return a digest, in hexadecimal, that another model's files would not have.

    On the hub a commit says it all. Of a folder: config.json whole; name, size and three samples of every file of
    weights or tokenizer.
    """
    digest = hashlib.sha256()
    if source.revision is not None:
        digest.update(f"{source.location}@{source.revision}".encode())
        return digest.hexdigest()
    digest.update((source.folder / "config.json").read_bytes())
    for path in sorted(source.folder.iterdir()):
        if path.suffix in _WEIGHT_SUFFIXES or path.name in _TOKENIZER_FILES:
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            digest.update(_sample(path))
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    """Return the start, the middle and the end of a file."""
    size = path.stat().st_size
    samples = []
    with path.open("rb") as file:
        for offset in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
            file.seek(offset)
            samples.append(file.read(_SAMPLE_BYTES))
    return b"".join(samples)
