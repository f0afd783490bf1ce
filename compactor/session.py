"""A store as a command sees it that has no directory: connections, the head, what people should know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from compactor.follow import Writer
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.store import Store, StoreOptions, open_store
from compactor.view import View


class Session:
    """One namespace, for one command."""

    def __init__(self, store: Store, meta: MetaIndex) -> None:
        self.store = store
        self._namespace = Namespace(store, meta)

    @property
    def namespace(self) -> Namespace:
        """What commits are made on."""
        return self._namespace

    @property
    def url(self) -> str:
        return self.store.url.display

    @property
    def identity(self) -> str:
        """The same for every spelling of the URL."""
        return self._namespace.identity

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should be told at the end."""
        return tuple(self._namespace.notes)

    def read(self, *, uuid: str | None = None) -> View:
        """The head as it is now: one GET, and one for each list not seen before. uuid: of the database that
        it has to belong to. Raises NotFoundError (`no_namespace`), DamageError, FencedError."""
        view = self._namespace.read(uuid=uuid)
        assert view is not None  # it is required
        return view

    def writer(self, view: View) -> Writer:
        """Who commits on this head and is no backup run: database and configuration are those it names."""
        head, namespace = view.head, self._namespace
        return Writer(
            uuid=head.uuid,
            namespace=head.namespace,
            config=head.config,
            host=namespace.host.id,
            known=namespace.known,
            single_writer=bool(namespace.single_writer),
        )


@contextmanager
def open_session(
    url: str, meta: str | os.PathLike[str] | None, options: StoreOptions | None = None
) -> Iterator[Session]:
    """The namespace of a URL. meta: path of the meta index, None: the user's own. Sends no request yet."""
    with closing(open_store(url, options=options)) as store, MetaIndex.open(meta) as index:
        yield Session(store, index)
