"""Which form of an ETag a store wants in a condition: some want it without its quotes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from compactor.store.base import Etag, PreconditionFailed, checked_etag

Result = TypeVar("Result")


class EtagForms:
    """Learns the form from the first condition that holds. For several threads."""

    def __init__(self) -> None:
        self._bare: bool | None = None  # None: not known yet

    def call(self, etag: Etag, action: Callable[[str], Result]) -> Result:
        """What the action returns for the ETag in the first form that is not refused with 412."""
        bare = checked_etag(etag).strip('"')
        forms = {None: (etag, bare), True: (bare,), False: (etag,)}[self._bare]
        for form in dict.fromkeys(forms):
            try:
                result = action(form)
            except PreconditionFailed as error:
                refused = error
                if error.status != 412:
                    break
            else:
                self._bare = form == bare if len(forms) > 1 else self._bare
                return result
        raise refused
