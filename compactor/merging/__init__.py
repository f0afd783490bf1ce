"""Merging segments of a store: what lives is told from their indexes, whole blocks are copied as they are,
and what was written is compared with its sources before anybody is told of it."""

from compactor.merging.figures import Figures
from compactor.merging.merge import Merge, Written
from compactor.merging.sources import STRETCH_RAW_MAX, Merger, Sources

__all__ = ["STRETCH_RAW_MAX", "Figures", "Merge", "Merger", "Sources", "Written"]
