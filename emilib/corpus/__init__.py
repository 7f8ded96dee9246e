"""A corpus folder as a table of clips, its media, and what is broken in it. Needs no torch."""

from emilib import EMOTIONS
from emilib.corpus.defects import audit
from emilib.corpus.layout import CorpusError
from emilib.corpus.user_dataset import read

__all__ = ["EMOTIONS", "CorpusError", "audit", "read"]
