"""What a reader gets: the path, the sizes that are known, and where to say what it finds.

It does not know formats.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from moe_probe.errors import BadInputError
from moe_probe.importers.findings import Findings
from moe_probe.importers.lines import JsonLines
from moe_probe.importers.trace import Sizes

_BLOCK_BYTES = 1 << 20


@dataclass
class Source:
    """One trace to be read. `digests` are those of the files that were read, in the order of reading."""

    path: Path
    sizes: Sizes
    findings: Findings
    _digests: list[hashlib._Hash] = field(default_factory=list)

    def lines(self) -> JsonLines:
        """Return the file as lines of JSON.

        Raises:
            BadInputError: if it is a folder.
        """
        if self.path.is_dir():
            raise BadInputError(f"{self.path}: is a folder; give one file")
        found = JsonLines(self.path)
        self._digests.append(found.digest)
        return found

    def hash_file(self, path: Path) -> None:
        """Add a file that is read otherwise to what the run is made from."""
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
        self._digests.append(digest)

    def digest(self) -> str:
        """Return one hash of all files that were read."""
        return hashlib.sha256("".join(each.hexdigest() for each in self._digests).encode()).hexdigest()

    def name(self, number: int) -> str:
        """Return what to call a document that the file gives no name."""
        return f"{self.path.name.split('.')[0]}:{number}"
