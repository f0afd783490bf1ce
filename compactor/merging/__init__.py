"""Merging segments of a store: what lives is told from their indexes, whole blocks are copied as they are,
and what was written is compared with its sources before anybody is told of it."""

from compactor.merging.figures import Figures
from compactor.merging.merge import Merge, Written
from compactor.merging.sources import Merger, Sources

__all__ = ["Figures", "Merge", "Merger", "Sources", "Written"]
