"""A server that answers as a test tells it to: for what real stores do only now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """drop: the connection is closed in place of an answer. missing_bytes: how many of the body's bytes
    are announced but never sent. date: whether there is a Date."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop: bool = False
    missing_bytes: int = 0
    date: bool = True


DROP = Answer(drop=True)


def refusal(status: int, code: str, message: str = "as the test says") -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def xml(name: str, inside: str) -> Answer:
    body = f'<?xml version="1.0"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{name}>'
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


class StubS3:
    """Answers the requests in turn from `answers`, or each by `answers` itself if that is a function.
    A context manager; `requests` are those that came. One too many gets a 500 with the code Unexpected."""

    def __init__(self, answers: Iterable[Answer] | Callable[[Request], Answer]) -> None:
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._decide = answers if callable(answers) else _in_turn(answers)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StubS3:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            return self._decide(request)


def _in_turn(answers: Iterable[Answer]) -> Callable[[Request], Answer]:
    left = iter(answers)
    return lambda request: next(left, refusal(500, "Unexpected"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, stub: StubS3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stub = stub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        split = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(split.query, keep_blank_values=True)
        answer = self.server.stub.answer(Request(self.command, split.path, query, headers, body))
        if answer.drop:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        if answer.date:
            self.send_header("Date", formatdate(usegmt=True))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body) + answer.missing_bytes))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.close_connection = self.close_connection or answer.missing_bytes > 0

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Nothing: a test that fails shows the requests."""
