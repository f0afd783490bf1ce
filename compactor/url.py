"""Where a namespace is: `file:///path/to/prefix/name`, `s3://bucket/prefix/name?endpoint=..`.

The last part of the path is the namespace. Parts are percent-decoded once (UTF-8) and then encoded
with what every store can keep (docs/format.md#objects); a file prefix is the path itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from ourdb.errors import InvalidError

Scheme = Literal["file", "s3", "memory"]

PART_BYTES_MAX = 255
ROOT_BYTES_MAX = 800  # S3 keys end at 1,024 bytes, and the keys below a namespace need 200
_QUERY = ("endpoint", "region", "path_style")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_")
_UPPER_HEX = frozenset(b"0123456789ABCDEF")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_BOOLEAN = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "write file:///path/to/prefix/name or s3://bucket/prefix/name"


@dataclass(frozen=True)
class StoreUrl:
    """A parsed URL. bucket: of `s3` and `memory`, else empty. prefix: the decoded parts above the
    namespace (of a file URL: of its path). endpoint, region, path_style: as the URL says, else None."""

    scheme: Scheme
    bucket: str
    prefix: tuple[str, ...]
    namespace: str
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None

    @property
    def namespace_key(self) -> str:
        """The namespace as it stands in keys and paths."""
        return encode_part(self.namespace)

    @property
    def root(self) -> str:
        """What every key of the namespace begins with, without the last slash: the key in the bucket,
        or the absolute path of the directory."""
        if self.scheme == "file":
            return "/" + "/".join((*self.prefix, self.namespace_key))
        return "/".join((*map(encode_part, self.prefix), self.namespace_key))

    @property
    def endpoint_url(self) -> str | None:
        """The endpoint that is really used: of the URL, else of boto3's chain; None: Amazon's own."""
        if self.scheme != "s3":
            return None
        return self.endpoint or _endpoint_of_chain()

    @property
    def identity(self) -> str:
        """The same for every spelling of this place: endpoint, bucket and key, or the real path."""
        if self.scheme == "file":
            parent = os.path.realpath("/" + "/".join(self.prefix))
            return f"file:{os.path.join(parent, self.namespace_key)}"
        if self.scheme == "memory":
            return f"memory:{self.bucket}/{self.root}"
        return f"s3:{self.endpoint_url or 'aws'}/{self.bucket}/{self.root}"

    @property
    def display(self) -> str:
        """A URL that leads here. It holds no secrets, because no URL that we take does."""
        path = "/".join(quote(part, safe="") for part in (*self.prefix, self.namespace))
        query = {
            "endpoint": self.endpoint,
            "region": self.region,
            "path_style": None if self.path_style is None else str(self.path_style).lower(),
        }
        given = urlencode({name: value for name, value in query.items() if value is not None}, safe=":/")
        return f"{self.scheme}://{self.bucket}/{path}" + (f"?{given}" if given else "")

    @property
    def lasting(self) -> str:
        """As `display`, with the endpoint that is used now: it leads here from any environment."""
        return replace(self, endpoint=self.endpoint_url).display

    def __str__(self) -> str:
        return self.display


def parse_url(text: str) -> StoreUrl:
    """The place that a URL names. Raises InvalidError, which never repeats a password."""
    if text != text.strip() or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InvalidError(f"a control character, or a space at the end, in the URL: {_safe(text)!r}")
    try:
        split = urlsplit(text)
    except ValueError as error:
        raise InvalidError(f"not a URL ({_EXAMPLE}): {_safe(text)!r}") from error
    if split.scheme not in ("file", "s3", "memory"):
        raise InvalidError(f"unknown kind of store: {_safe(text)!r} ({_EXAMPLE})")
    if "@" in split.netloc:
        raise InvalidError(
            f"a user or password does not belong into a URL: {split.scheme}://.. (see AWS_PROFILE)"
        )
    if split.fragment or text.endswith("#"):
        raise InvalidError(f"a # in the URL (write %23): {_safe(text)!r}")
    prefix, namespace = _parts(split, text)
    if split.scheme == "file":
        return _file_url(split, prefix, namespace, text)
    return _bucket_url(split, prefix, namespace, text)


def encode_part(part: str) -> str:
    """A part of a key with A-Z a-z 0-9 . - _ only: one to one, and the same in every store.

    Every other byte of the UTF-8 becomes `_XX` in upper-case hex, and so do a leading dot and an
    underscore that two upper-case hex digits follow. InvalidError beyond 255 bytes.
    """
    raw = part.encode()
    encoded = bytearray()
    for place, byte in enumerate(raw):
        looks_encoded = (
            byte == ord("_") and len(raw) > place + 2 and set(raw[place + 1 : place + 3]) <= _UPPER_HEX
        )
        if byte not in _PLAIN or looks_encoded or (byte == ord(".") and place == 0):
            encoded += b"_%02X" % byte
        else:
            encoded.append(byte)
    if len(encoded) > PART_BYTES_MAX:
        raise InvalidError(f"longer than {PART_BYTES_MAX} bytes as it is stored ({len(encoded)}): {part!r}")
    return encoded.decode()


def _parts(split: SplitResult, text: str) -> tuple[tuple[str, ...], str]:
    quoted = split.path.split("/")[1:]
    if quoted and not quoted[-1]:
        raise InvalidError(f"no namespace: the URL must end with its name, not with a slash: {_safe(text)!r}")
    if not quoted:
        raise InvalidError(f"no namespace in the URL ({_EXAMPLE}): {_safe(text)!r}")
    *prefix, namespace = (_decoded(part, text) for part in quoted)
    return tuple(prefix), namespace


def _decoded(quoted: str, text: str) -> str:
    try:
        part = unquote_to_bytes(quoted).decode()
    except UnicodeError as error:
        raise InvalidError(f"not UTF-8 when percent-decoded: {quoted!r} in {_safe(text)!r}") from error
    if part in ("", ".", ".."):
        raise InvalidError(f"an empty part, . or .. in the URL: {_safe(text)!r}")
    return part


def _file_url(split: SplitResult, prefix: tuple[str, ...], namespace: str, text: str) -> StoreUrl:
    if split.netloc not in ("", "localhost") or not split.path.startswith("/"):
        raise InvalidError(
            f"a file URL has three slashes and an absolute path: file:///path/name, not {_safe(text)!r}"
        )
    if "?" in text:
        raise InvalidError(f"a file URL takes no parameters (write %3F for a question mark): {_safe(text)!r}")
    for part in prefix:
        if "/" in part or "\0" in part or len(part.encode()) > PART_BYTES_MAX:
            raise InvalidError(f"not the name of a directory: {part!r} in {_safe(text)!r}")
    encode_part(namespace)
    return StoreUrl("file", "", prefix, namespace)


def _bucket_url(split: SplitResult, prefix: tuple[str, ...], namespace: str, text: str) -> StoreUrl:
    if not _BUCKET.fullmatch(split.netloc):
        raise InvalidError(f"not the name of a bucket ({_EXAMPLE}): {_safe(text)!r}")
    scheme: Scheme = "s3" if split.scheme == "s3" else "memory"
    given = _query(split.query) if scheme == "s3" else {}
    url = StoreUrl(
        scheme,
        split.netloc,
        prefix,
        namespace,
        endpoint=_checked_endpoint(given["endpoint"]) if "endpoint" in given else None,
        region=_checked_region(given["region"]) if "region" in given else None,
        path_style=_checked_boolean(given["path_style"]) if "path_style" in given else None,
    )
    if len(url.root) > ROOT_BYTES_MAX:
        raise InvalidError(
            f"prefix and name are longer than {ROOT_BYTES_MAX} bytes as stored: {len(url.root)}"
        )
    return url


def _query(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _QUERY:
            nearest = get_close_matches(name.lower(), _QUERY, n=1, cutoff=0)[0]
            raise InvalidError(f"unknown parameter in the URL: {name!r} (did you mean {nearest}?)")
        if name in found:
            raise InvalidError(f"a parameter is there twice in the URL: {name!r}")
        found[name] = value
    return found


def _checked_endpoint(endpoint: str) -> str:
    """The endpoint in one spelling: host in lower case, no default port, no slash at the end."""
    try:
        split = urlsplit(endpoint)
        port = split.port
    except ValueError as error:
        raise InvalidError(f"not an endpoint (write http://host:port): {_safe(endpoint)!r}") from error
    if "@" in split.netloc:
        raise InvalidError("a user or password does not belong into an endpoint (see AWS_PROFILE)")
    if split.scheme not in _PORTS or not split.hostname or split.query or split.fragment:
        raise InvalidError(f"not an endpoint (write http://host:port or https://host): {_safe(endpoint)!r}")
    host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
    place = host if port in (None, _PORTS[split.scheme]) else f"{host}:{port}"
    return f"{split.scheme}://{place}{split.path.rstrip('/')}"


def _checked_region(region: str) -> str:
    if not _REGION.fullmatch(region):
        raise InvalidError(f"not a region: {region!r}")
    return region


def _checked_boolean(value: str) -> bool:
    if value.lower() not in _BOOLEAN:
        raise InvalidError(f"path_style must be true or false: {value!r}")
    return _BOOLEAN[value.lower()]


def _endpoint_of_chain() -> str | None:
    """The endpoint as boto3 finds it: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's settings."""
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(variable):
            return _checked_endpoint(endpoint)
    settings = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    return _endpoint_of_profile() if settings.exists() else None


def _endpoint_of_profile() -> str | None:
    import botocore.session  # late: it is slow to import, and hardly anybody has such a profile
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import BotoCoreError

    session = botocore.session.get_session()
    try:
        scoped = session.get_scoped_config()
    except BotoCoreError:
        return None  # opening the store says what is wrong with the profile
    endpoint = ConfiguredEndpointProvider(session.full_config, scoped, "s3").provide()
    return _checked_endpoint(endpoint) if endpoint else None


def _safe(text: str) -> str:
    """The text without what may be a user and password."""
    return re.sub(r"//.*@", "//..@", text)
