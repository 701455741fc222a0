"""Effects on disk: sums of changes of surprisal, batch by batch, so that measuring can stop anywhere and go on.

A folder holds `effects.json` (what is measured), `run/` (the traced text) and `parts/`, one file a batch, each written
under another name and renamed. It does not know how a change is measured, nor what the sums say.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_probe.errors import RunError
from moe_probe.store.files import new_file, read_json

MANIFEST = "effects.json"
RUN = "run"
PARTS = "parts"


@dataclass(frozen=True, eq=False)
class Sums:
    """What was measured: `sums` (passes, carriers, clusters, labels) of changes in bits, `counts` without passes."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


class EffectFolder:
    """A folder of effects that is being filled, or read."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = dict(manifest)

    @property
    def done(self) -> list[int]:
        """The batches that are there, in order."""
        return sorted(int(file.stem.removeprefix("part-")) for file in (self.path / PARTS).glob("part-*.npz"))

    @property
    def complete(self) -> bool:
        """Whether every batch is there."""
        return len(self.done) == int(self.manifest["batches"])

    def write(self, batch: int, part: Sums) -> None:
        """Keep one batch; only the clusters that it has tokens in."""
        held = np.flatnonzero(part.counts.any(axis=(0, 2)))
        with new_file(self.path / PARTS / f"part-{batch:06d}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, clusters=held, sums=part.sums[:, :, held], counts=part.counts[:, held])

    def read(self) -> Sums:
        """Return the sums over all batches that are there.

        Raises:
            RunError: if a part is damaged, or none is there.
        """
        shape = tuple(self.manifest["shape"])
        total = Sums(np.zeros(shape), np.zeros(shape[1:], np.int64))
        if not self.done:
            raise RunError(f"{self.path}: nothing is measured yet; go on with it (resume)")
        for batch in self.done:
            file = self.path / PARTS / f"part-{batch:06d}.npz"
            try:
                with np.load(file, allow_pickle=False) as part:
                    total.sums[:, :, part["clusters"]] += part["sums"]
                    total.counts[:, part["clusters"]] += part["counts"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise RunError(
                    f"{file}: damaged ({type(error).__name__}); delete it and measure again with resume"
                ) from error
        return total


def begin_folder(path: Path, manifest: Mapping[str, Any], *, resume: bool) -> EffectFolder:
    """Return the folder to fill: a new one, or with `resume` the one that is there if it measures the same.

    Raises:
        RunError: one is there without `resume`, or measures something else.
    """
    file = path / MANIFEST
    manifest = _plain(manifest)
    if file.exists():
        if not resume:
            raise RunError(f"{path}: effects are there already; go on with them (--resume) or choose another folder")
        there = read_json(file)
        if there != manifest:
            differ = sorted(key for key in {*there, *manifest} if there.get(key) != manifest.get(key))
            raise RunError(
                f"{path}: the effects there were measured otherwise ({', '.join(differ)}); choose another folder"
            )
    (path / PARTS).mkdir(parents=True, exist_ok=True)
    with new_file(file) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))
    return EffectFolder(path, manifest)


def open_effects(path: str | Path) -> EffectFolder:
    """Open a folder of effects.

    Raises:
        RunError: if there is none.
    """
    path = Path(path)
    if not (path / MANIFEST).exists():
        raise RunError(f"{path}: no effects, for it has no {MANIFEST}; give a folder that effect_map wrote")
    return EffectFolder(path, read_json(path / MANIFEST))


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as JSON gives it back."""
    back: dict[str, Any] = json.loads(json.dumps(manifest))
    return back
