"""A commit of what changes the head alone: computed on the head as it stands, and anew after a lost race."""

from __future__ import annotations

from collections.abc import Callable

from compactor.publish import Change, Patience, follow, publish
from compactor.session import Session
from compactor.view import View


def commit(
    session: Session, view: View, change: Callable[[View], Change | None], patience: Patience | None = None
) -> View:
    """Puts the head that `change` makes of the one that stands, from `view` on; the new view, acknowledged.

    change: is called again on each newer head; None: nothing has to be put, and its view is returned.
    Raises what it raises; TemporaryError when others were first for too long, or the store is away.
    """
    patience = patience or Patience()
    while True:
        wanted = change(view)
        if wanted is None:
            return view
        done = publish(session.namespace, follow(view, session.writer(view), wanted))
        if done is not None:
            return done
        patience.wait()
        view = session.read()
