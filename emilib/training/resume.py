"""Checkpoints of an unfinished run: written whole, with their digest; used by Stage I and `fit`."""

import hashlib
import io
from pathlib import Path

import torch

from emilib.cache import atomic_write


def save_state(path: Path, identity: str, state: dict) -> None:
    """Write tensors and plain data so that a kill leaves the old file or the new one.

    identity : what `load_state` must agree with
    """
    stream = io.BytesIO()
    torch.save({"identity": identity, "state": state}, stream)
    payload = stream.getvalue()
    # torch.load does not notice a flipped bit, so the file begins with its digest.
    atomic_write(path, hashlib.sha256(payload).digest() + payload)


def load_state(path: Path, identity: str, device="cpu") -> dict | None:
    """What `save_state` wrote; None where there is no file, or a damaged one, which is removed.

    Raises ValueError for the checkpoint of another run.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        path.unlink()
        return None
    saved = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    if saved["identity"] != identity:
        raise ValueError(
            f"{path.parent}: expected a checkpoint of this run, got one of another run (settings, "
            "seed, data or model differ); pass another folder or delete this one"
        )
    return saved["state"]
