"""The organisers' features: pickled T x D arrays, read without running what a pickle may hold."""

import codecs
import pickle

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
    """The organisers' features of one clip: a pickled array (T, D), or (D,) as (1, D), float32.

    A pickle that names anything but NumPy arrays is refused before it can run.
    Raises MediaError for no such file, a damaged pickle, and one of anything but such an array.
    """
    try:
        with open(path, "rb") as file:
            array = _ArrayUnpickler(file).load()
    except Exception as error:  # no such file; and damaged bytes raise almost anything
        raise MediaError(f"{path} is no readable pickle of an array: {error}.") from error
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        got = f"{array.dtype} {array.shape}" if is_array else type(array).__name__
        raise MediaError(f"{path} holds {got}; expected a T x D array of numbers.")
    return np.ascontiguousarray(np.atleast_2d(array), dtype=np.float32)
