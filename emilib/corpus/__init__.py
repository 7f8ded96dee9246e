"""A corpus folder as a table of clips, its media, and what is broken in it. Needs no torch."""

from .audit import audit
from .layout import EMOTIONS, CorpusError, read

__all__ = ["EMOTIONS", "CorpusError", "audit", "read"]
