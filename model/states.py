"""Training states on disk: whole or not there, verified, the newest good one found again."""

import hashlib
import json
import sys

import torch

from data.errors import RunError, UserError
from data.files import read_json, write_atomically


class States:
    """The folder `state/` of a run: step-00000250.pt and, once that is complete, step-00000250.json with size and hash.

    Args:
        folder: where; created by the first `save`.
        keep: how many of the newest states stay.
    """

    def __init__(self, folder, keep=2):
        self.folder = folder
        self.keep = keep

    def save(self, step, state):
        """Write the state after `step` (tensors and plain values), then remove those that are too many.

        Raises:
            RunError: it could not be written; those before it are intact.
        """
        path = self.folder / f"step-{step:08d}.pt"
        try:
            self.folder.mkdir(exist_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)  # a damaged state of this step that is written anew
            with write_atomically(path) as file:
                hashing = _HashingFile(file)
                torch.save(state, hashing)
            manifest = {"step": step, "bytes": hashing.size, "sha256": hashing.hash.hexdigest()}
            with write_atomically(path.with_suffix(".json")) as file:
                file.write(json.dumps(manifest).encode())
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch's writer hides it
            reason = getattr(cause, "strerror", None) or str(error).split("\n")[0]
            raise RunError(f"{path}: the state could not be written ({reason}); {self.last_words()}") from None
        kept = {manifest.stem for manifest in self._manifests()[: self.keep]}
        for file in self.folder.glob("*step-*"):  # among them what a killed process left half-written
            if file.stem not in kept:
                file.unlink(missing_ok=True)

    def newest(self):
        """The step of the newest state whose file is as it was written, or None; says which ones are damaged."""
        for manifest in self._manifests():
            path = manifest.with_suffix(".pt")
            try:
                expected = read_json(manifest)
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if (path.stat().st_size, found) == (expected["bytes"], expected["sha256"]):
                    return expected["step"]
            except (OSError, UserError, KeyError, TypeError):
                pass
            print(f"{path}: this state is damaged or incomplete; looking for the one before", file=sys.stderr)
        return None

    def load(self, step):
        """The state that `save` was given for `step`, on the CPU."""
        return torch.load(self.folder / f"step-{step:08d}.pt", map_location="cpu", weights_only=True)

    def last_words(self):
        """What is left after a failure, for its message."""
        manifests = self._manifests()
        if not manifests:
            return "no state had been saved yet"
        return f"the last good state is that of step {int(manifests[0].stem.removeprefix('step-'))}, for --resume"

    def _manifests(self):
        """Newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)


class _HashingFile:
    """What torch.save writes into: the hash is of the bytes that were meant, not of those that a disk gives back."""

    def __init__(self, file):
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, content):
        self.hash.update(content)
        self.size += memoryview(content).nbytes
        return self.file.write(content)

    def flush(self):
        self.file.flush()
