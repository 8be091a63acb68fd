"""Training states: what is in them, and how they lie on disk (whole or not there, verified)."""

import contextlib
import sys

import torch

from data.errors import RunError, UserError
from data.files import read_json, sha256, write_atomically, write_json
from model import distributed


def training_state(step, done, best, progress, model, optimizer, schedule):
    """All that `restore` needs to go on as if nothing had happened."""
    random = {"cpu": torch.get_rng_state()}
    if model["encoder"].device.type != "cpu":
        random["device"] = torch.get_device_module(model["encoder"].device).get_rng_state()
    return {
        "step": step,
        "done": done,
        "best": best,
        "seconds": progress.seconds,
        "examples": progress.examples,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": distributed.everyones(random),  # of every process
    }


def restore(state, model, optimizer, schedule):
    """Undo `training_state`: (first step to do, done, best, seconds and examples so far)."""
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"--resume: --model is not the one this run began with ({reason}); start a new run") from None
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    random = state["random"][distributed.rank()]
    torch.set_rng_state(random["cpu"])
    if "device" in random:
        torch.get_device_module(model["encoder"].device).set_rng_state(random["device"])
    examples = state.get("examples", 0)  # older states have none
    return state["step"] + 1, state["done"], state["best"], state["seconds"], examples


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
                torch.save(state, file)
            write_json(path.with_suffix(".json"), _manifest(path))
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch's writer hides it
            reason = getattr(cause, "strerror", None) or str(error).split("\n")[0]
            raise RunError(f"{path}: the state could not be written ({reason}); {self.last_words()}") from None
        # newer ones, damaged or from before this resumption, are of a future that did not happen
        until_now = [manifest for manifest in self._manifests() if manifest.stem <= path.stem]
        kept = {manifest.stem for manifest in until_now[: self.keep]}
        for file in self.folder.glob("*step-*"):  # among them what a killed process left half-written
            if file.stem not in kept:
                file.unlink(missing_ok=True)

    def newest(self):
        """The step of the newest state whose file is as it was written, or None; says which ones are damaged."""
        for manifest in self._manifests():
            path = manifest.with_suffix(".pt")
            with contextlib.suppress(OSError, UserError):
                if read_json(manifest) == (found := _manifest(path)):
                    return found["step"]
            print(f"{path}: this state is damaged or incomplete; looking for the one before", file=sys.stderr)
        return None

    def load(self, step):
        """The state that `save` was given for `step`, on the CPU."""
        return torch.load(self.folder / f"step-{step:08d}.pt", map_location="cpu", weights_only=True)

    def last_words(self):
        """What is left after a failure, for its message."""
        step = self.newest()
        if step is None:
            return "no state had been saved yet"
        return f"the last good state is that of step {step}, for --resume"

    def _manifests(self):
        """Newest first."""
        return sorted(self.folder.glob("step-*.json"), reverse=True)


def _manifest(path):
    """What a state's manifest says of its file."""
    return {"step": int(path.stem.removeprefix("step-")), "bytes": path.stat().st_size, "sha256": sha256(path)}
