"""The organisers' features: pickled T x D arrays, read without running what a pickle may hold."""

import os
import pickle
from pathlib import Path

import numpy as np

from emilib.corpus.media import MediaError


class NoArrayError(MediaError):
    """A pickle that is whole, but of something else than an array."""


def load_features(path):
    """The organisers' features of one clip: a pickled array as (T, D) float32.

    Only NumPy arrays of numbers come through: a pickle that names anything else is refused
    before it can run. A vector of D values is taken as (1, D).
    Raises MediaError for no such file, no pickle, a damaged one; its subclass NoArrayError for
    anything but an array, and for more than two axes.
    """
    return np.ascontiguousarray(_unpickled(path, lambda file: file), dtype=np.float32)


def feature_shape(path):
    """(T, D) of a pickle that `load_features` would take, without reading its numbers.

    Raises MediaError as `load_features` does, but does not see damage within the numbers.
    """
    try:
        return _unpickled(path, _Skipping).shape
    except NoArrayError:
        raise
    except MediaError:  # old protocols write the numbers as text, which can't be passed over
        return _unpickled(path, lambda file: file).shape


class _Skipping:
    """A file whose long stretches, an array's numbers, are passed over and read as zeros."""

    LONG = 1 << 18  # more than a pickler puts into one frame together with other things

    def __init__(self, file):
        self.file, self.readline = file, file.readline
        self.size = os.fstat(file.fileno()).st_size

    def read(self, count):
        if count < self.LONG:
            return self.file.read(count)
        if self.file.seek(count, os.SEEK_CUR) > self.size:
            raise EOFError("it ends within the array")
        return bytes(count)


def _unpickled(path, view):
    """The array in a pickle, (T, D); `view` is put around the open file."""
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"There is no file {path}; expected a pickled T x D array.")
    try:
        with open(path, "rb") as file:
            # latin1 reads arrays that Python 2 wrote
            array = _ArrayUnpickler(view(file), encoding="latin1").load()
    except NoArrayError as error:
        raise NoArrayError(f"{path} {error}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError) as error:
        raise MediaError(f"{path} is no readable pickle of an array: {error}.") from error
    except (AttributeError, ImportError, MemoryError, OverflowError) as error:
        raise MediaError(f"{path} is a damaged pickle of an array: {error!r}.") from error
    kind = getattr(array, "dtype", None) if isinstance(array, np.ndarray) else type(array).__name__
    if getattr(kind, "kind", "") not in tuple("fiub"):
        raise NoArrayError(f"{path} holds {kind}; expected a T x D array of numbers.")
    if array.ndim not in (1, 2):
        raise NoArrayError(f"{path} holds an array of shape {array.shape}; expected T x D.")
    return np.atleast_2d(array)


def _latin1(text, encoding="latin1"):
    """Stands for `_codecs.encode`, which old protocols use for the bytes of an array."""
    if encoding != "latin1":
        raise NoArrayError(f"holds bytes encoded as {encoding}; expected a T x D array of numbers.")
    return text.encode("latin1")


# The functions NumPy's own pickles name, taken from NumPy itself: they moved between modules.
_ALLOWED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
}
_MODULES = {"numpy"} | {
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays are made of, and nothing else."""

    def find_class(self, module, name):
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise NoArrayError(f"names {module}.{name}; expected a T x D array of numbers, not run.")
