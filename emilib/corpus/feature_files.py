"""The organisers' features: pickled T x D arrays, read without running what a pickle may hold."""

import codecs
import pickle
from pathlib import Path

import numpy as np

from emilib.corpus.media import MediaError

# The functions NumPy's own pickles name, taken from NumPy itself: they moved between its modules.
_ALLOWED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.zeros(1).__reduce__()[0],
    "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays are made of, and nothing else."""

    def find_class(self, module, name):
        if module.partition(".")[0] == "numpy" and name in _ALLOWED:
            return _ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):  # protocol 2: the bytes of an array
            return codecs.encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")


def load_features(path):
    """The organisers' features of one clip: a pickled array as (T, D) float32.

    A pickle that names anything but NumPy arrays is refused before it can run. A vector of D
    values is taken as (1, D).
    Raises MediaError for no such file, a damaged pickle, and one of anything but such an array.
    """
    if not Path(path).is_file():
        raise MediaError(f"There is no file {path}; expected a pickled T x D array.")
    try:
        with open(path, "rb") as file:
            array = _ArrayUnpickler(file).load()
    except Exception as error:  # damaged bytes raise almost anything
        raise MediaError(f"{path} is no readable pickle of an array: {error}.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise MediaError(f"{path} holds {kind}; expected a T x D array of numbers.")
    if array.ndim not in (1, 2):
        raise MediaError(f"{path} holds an array of shape {array.shape}; expected T x D.")
    return np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
