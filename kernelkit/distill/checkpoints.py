"""Checkpoints of one stage of a run: written whole or not at all, and checked before they are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors

from kernelkit.distill.atomic import rename_folder, replace_text
from kernelkit.distill.parallel import Ranks
from kernelkit.errors import shown

MANIFEST = "kernelkit.json"
FINISHED = "finished.json"
FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used: it is damaged, or it is another run's."""


@dataclass(frozen=True)
class Checkpoint:
    """One that was found whole.

    Attributes:
        path: its folder.
        step: steps of the optimizer that were done.
        position: state of the data loader.
    """

    path: Path
    step: int
    position: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one stage, in ``step-<number>`` below ``folder``.

    Tensors are in the format of ``torch.distributed.checkpoint``, and may be read by another number of ranks. Beside
    them a manifest lists every file with its size and hash. A folder has its final name only once it is complete.

    Args:
        folder: where they are.
        ranks: the processes of the run.
        identity: what a checkpoint must share with the run that reads it, by name; JSON values.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, ranks: Ranks, identity: Mapping[str, Any], keep: int) -> None:
        self.folder, self.ranks, self.identity, self.keep = folder, ranks, dict(identity), keep

    def save(self, tensors: Mapping[str, Any], step: int, position: Mapping[str, Any]) -> Path:
        """Write a checkpoint; it is there whole, even after a loss of power, or not at all."""
        final, draft = self.folder / f"step-{step:08d}", self.folder / f".step-{step:08d}.draft"
        if self.ranks.is_first:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        self.ranks.wait()
        with self._alone():
            write_tensors(dict(tensors), checkpoint_id=draft, no_dist=self.ranks.world_size == 1)
        hashes = self._gathered({path.name: _described(path) for path in self._share(draft, ".distcp")})
        if self.ranks.is_first:
            hashes |= {path.name: _described(path) for path in draft.iterdir() if path.suffix != ".distcp"}
            manifest = {
                "format": FORMAT,
                "step": step,
                "position": position,
                "identity": self.identity,
                "files": hashes,
            }
            replace_text(draft / MANIFEST, json.dumps(manifest, indent=1))
            rename_folder(draft, final)
            for old in self.found()[: -self.keep]:
                shutil.rmtree(old)
        self.ranks.wait()
        return final

    def found(self) -> list[Path]:
        """The folders of complete checkpoints, the oldest first."""
        return sorted(self.folder.glob("step-*"))

    def latest(self, *, last_good: bool = False) -> Checkpoint | None:
        """The newest checkpoint, verified; None where there is none.

        Args:
            last_good: set newer ones aside that are damaged or of another run, as ``unused-step-<number>``.

        Raises:
            CheckpointError: for one that is damaged, and for one of another run.
        """
        faults: list[str] = []
        for path in reversed(self.found()):
            manifest, fault = self._verified(path)
            if fault is None:
                self._set_aside(len(faults))
                return Checkpoint(path, int(manifest["step"]), manifest["position"])
            faults.append(fault)
            if not last_good:
                break
        if not faults:
            return None
        others = len(self.found()) - len(faults)
        hint = f" There are {others} older ones: --resume-last-good takes the newest that is whole." if others else ""
        raise CheckpointError("; ".join(faults) + "." + hint)

    def read_into(self, checkpoint: Checkpoint, tensors: Mapping[str, Any]) -> None:
        """Overwrite ``tensors`` with what was saved.

        Raises:
            CheckpointError: for tensors of other names or shapes.
        """
        try:
            with self._alone():
                read_tensors(dict(tensors), checkpoint_id=checkpoint.path, no_dist=self.ranks.world_size == 1)
        except (CheckpointException, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"{checkpoint.path} does not fit this model: {reason}") from error

    def finish(self) -> None:
        """Note of what run the trained model is, before it is saved."""
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / FINISHED, json.dumps(self.identity, indent=1))

    def check_finished(self) -> None:
        """Make sure that the trained model which is there is of this run.

        Raises:
            CheckpointError: where it is not.
        """
        note = self.folder / FINISHED
        try:
            theirs = dict(json.loads(note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{note} does not tell of what run the finished model is: {error!r}") from error
        if changes := self._changes({name: theirs.get(name) for name in self.identity}):
            raise CheckpointError(f"the finished training that {note} tells of was another: {changes}")

    def _changes(self, theirs: Mapping[str, Any]) -> str:
        """In what another identity differs from this run's."""
        return "; ".join(
            f"{name} was {shown(theirs.get(name))} and is {shown(self.identity.get(name))}"
            for name in dict.fromkeys([*self.identity, *theirs])
            if theirs.get(name) != self.identity.get(name)
        )

    def _set_aside(self, number: int) -> None:
        """Let the newest ``number`` checkpoints count no more, without deleting them."""
        if self.ranks.is_first and number:
            for path in self.found()[-number:]:
                aside = path.with_name(f"unused-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        self.ranks.wait()

    def _verified(self, path: Path) -> tuple[dict[str, Any], str | None]:
        """The manifest, and what is wrong with the checkpoint, the same on every rank."""
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            theirs, files = dict(manifest["identity"]), dict(manifest["files"])
            int(manifest["step"]), manifest["position"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return {}, f"{path} is no checkpoint of kernelkit, or is damaged: {error!r} in {MANIFEST}"
        if manifest.get("format") != FORMAT:
            return {}, f"{path} has format {shown(manifest.get('format'))}, and this kernelkit reads {FORMAT}"
        if changes := self._changes(theirs):
            return {}, f"{path} is of another run: {changes}"
        mine = sorted(files)[self.ranks.rank :: self.ranks.world_size]
        faults = self._gathered({name: fault for name in mine if (fault := _difference(path / name, files[name]))})
        return manifest, f"{path} is damaged: {'; '.join(faults.values())}" if faults else None

    @staticmethod
    @contextlib.contextmanager
    def _alone() -> Iterator[None]:
        """Without the warning that a process without others is one."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield

    def _share(self, folder: Path, suffix: str) -> list[Path]:
        """This rank's files: each hashes its own, which no other need have on its machine's cache."""
        return sorted(folder.glob(f"__{self.ranks.rank}_*{suffix}"))

    def _gathered(self, mine: dict[str, Any]) -> dict[str, Any]:
        if self.ranks.world_size == 1:
            return mine
        parts: list[dict[str, Any]] = [{}] * self.ranks.world_size
        dist.all_gather_object(parts, mine)
        return {name: value for part in parts for name, value in part.items()}


def _described(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]


def _difference(path: Path, wanted: list[Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != wanted[0]:
        return f"{path.name} has {size} bytes of {wanted[0]}"
    return None if _described(path) == wanted else f"{path.name} is not what was written"
