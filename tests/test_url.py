"""URLs of stores: what they name, what is refused, and that every spelling has one identity."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.url import encode_part, parse_url
from ourdb.errors import InvalidError

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


def decode_part(encoded: str) -> bytes:
    """What encode_part says in reverse, from the words of the format alone."""
    raw, place = bytearray(), 0
    while place < len(encoded):
        digits = encoded[place + 1 : place + 3]
        if encoded[place] == "_" and len(digits) == 2 and set(digits) <= set("0123456789ABCDEF"):
            raw.append(int(digits, 16))
            place += 3
        else:
            raw += encoded[place].encode()
            place += 1
    return bytes(raw)


@pytest.mark.parametrize(
    ("part", "encoded"),
    [
        ("plain-Name_1.0", "plain-Name_1.0"),
        ("two words", "two_20words"),
        ("naïve", "na_C3_AFve"),
        ("a/b", "a_2Fb"),
        (".hidden", "_2Ehidden"),
        ("a.hidden", "a.hidden"),
        ("_", "_"),
        ("a_b", "a_b"),
        ("a_4", "a_4"),
        ("a_41", "a_5F41"),
        ("a_4a", "a_4a"),
        ("__41", "__5F41"),
        ("_ ", "__20"),
        ("\0", "_00"),
    ],
)
def test_part_is_encoded_as_the_format_says(part: str, encoded: str) -> None:
    assert encode_part(part) == encoded


@given(NAMES)
def test_encoded_part_is_plain_and_decodes_to_the_same(name: str) -> None:
    try:
        encoded = encode_part(name)
    except InvalidError:
        assert len(name.encode()) * 3 > 255
        return
    assert decode_part(encoded) == name.encode()
    assert not encoded.startswith(".")
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_")


def test_part_of_more_than_255_bytes_is_refused() -> None:
    assert encode_part("a" * 255) == "a" * 255
    with pytest.raises(InvalidError, match="255"):
        encode_part("a" * 256)
    with pytest.raises(InvalidError, match="255"):
        encode_part("ä" * 43)


@given(st.sampled_from(["s3", "file"]), st.lists(NAMES, max_size=2), NAMES)
@settings(max_examples=50)
def test_displayed_url_leads_to_the_same_place(scheme: str, prefix: list[str], name: str) -> None:
    from urllib.parse import quote

    path = "/".join(quote(part, safe="") for part in (*prefix, name))
    try:
        url = parse_url(f"{scheme}://{'bucket' if scheme == 's3' else ''}/{path}")
    except InvalidError:
        return
    assert (url.prefix, url.namespace) == (tuple(prefix), name)
    assert parse_url(url.display) == url


def test_s3_url_has_bucket_prefix_name_and_parameters() -> None:
    url = parse_url("s3://bucket/my%20prefix/x/db?endpoint=HTTP://Host:80/&region=eu-1&path_style=false")
    assert (url.scheme, url.bucket, url.prefix, url.namespace) == ("s3", "bucket", ("my prefix", "x"), "db")
    assert (url.endpoint, url.region, url.path_style) == ("http://host", "eu-1", False)
    assert url.root == "my_20prefix/x/db"


def test_file_prefix_is_the_path_itself_and_the_name_is_encoded() -> None:
    url = parse_url("file:///srv/my%20backups/naïve db")
    assert url.root == "/srv/my backups/na_C3_AFve_20db"
    assert parse_url("file://localhost/srv/db").root == parse_url("file:///srv/db").root == "/srv/db"


def test_percent_is_decoded_once() -> None:
    assert parse_url("s3://bucket/a%2541").namespace == "a%41"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s3://bucket", "no namespace"),
        ("s3://bucket/", "no namespace"),
        ("s3://bucket/prefix/", "slash"),
        ("s3://bucket//db", "empty part"),
        ("s3://bucket/./db", "empty part"),
        ("s3://bucket/x/..", "empty part"),
        ("s3://bucket/%2E%2E/db", "empty part"),
        ("s3:///db", "bucket"),
        ("s3://b!/db", "bucket"),
        ("file://srv/db", "three slashes"),
        ("file:srv/db", "three slashes"),
        ("file:///srv/a%2Fb/db", "not the name of a directory"),
        ("file:///srv/db?endpoint=x", "no parameters"),
        ("/srv/db", "unknown kind"),
        ("http://host/db", "unknown kind"),
        ("s3://bucket/db#1", "%23"),
        ("s3://bucket/db#", "%23"),
        ("s3://bucket/%FF", "UTF-8"),
        ("s3://bucket/a\nb", "control"),
        ("s3://bucket/db ", "space at the end"),
        ("s3://[bucket/db", "not a URL"),
        ("s3://bucket/" + "x" * 256, "255"),
        ("s3://bucket/" + "/".join(["x" * 200] * 5), "800"),
        ("s3://bucket/db?endpoint=localhost:9000", "http://"),
        ("s3://bucket/db?endpoint=http://h:99999", "not an endpoint"),
        ("s3://bucket/db?region=a/b", "region"),
        ("s3://bucket/db?path_style=maybe", "true or false"),
        ("s3://bucket/db?region=a&region=b", "twice"),
    ],
)
def test_url_that_names_no_place_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        parse_url(text)


@pytest.mark.parametrize(
    ("given_name", "nearest"), [("endpiont", "endpoint"), ("Region", "region"), ("pathstyle", "path_style")]
)
def test_unknown_parameter_names_the_nearest_known_one(given_name: str, nearest: str) -> None:
    with pytest.raises(InvalidError, match=f"did you mean {nearest}"):
        parse_url(f"s3://bucket/db?{given_name}=x")


@pytest.mark.parametrize(
    "text",
    [
        "s3://me:hunter2@bucket/db",
        "s3://me:hunter2/x@bucket/db",
        "s3://me:hunter2#x@bucket/db",
        "ftp://me:hunter2@host/db",
        "s3://bucket/db?endpoint=http://me:hunter2@host",
        "file://me:hunter2@host/db",
    ],
)
def test_password_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_url(text)
    assert "hunter2" not in str(caught.value)


def test_identity_is_one_for_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = {
        parse_url("s3://bucket/a%62/db?endpoint=http://Host:9000").identity,
        parse_url("s3://bucket/ab/%64b?endpoint=http://host:9000/&path_style=true").identity,
        parse_url("s3://bucket/ab/db?region=eu-1&endpoint=http://host:9000").identity,
    }
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(variable, "http://host:9000/")
        spelled.add(parse_url("s3://bucket/ab/db").identity)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other")  # the one for S3 goes before it
    assert spelled == {"s3:http://host:9000/bucket/ab/db"}


def test_identity_differs_between_endpoints() -> None:
    plain = parse_url("s3://bucket/db").identity
    assert plain == "s3:aws/bucket/db"
    assert plain != parse_url("s3://bucket/db?endpoint=http://host").identity


def test_identity_knows_the_endpoint_of_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile lab]\nendpoint_url = http://lab:9000\nregion = x\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert parse_url("s3://bucket/db").identity == "s3:http://lab:9000/bucket/db"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert parse_url("s3://bucket/db").identity == "s3:aws/bucket/db"


def test_identity_of_files_is_the_real_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    through_link = parse_url(f"file://{tmp_path}/link/my%20db")
    assert through_link.identity == parse_url(f"file://{tmp_path}/real/my db").identity
    assert through_link.identity == f"file:{os.path.realpath(tmp_path)}/real/my_20db"
