"""minio-compose.yml by its structure: what docker-compose 1.29 and the compose plugin both take."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.servers import ROOT

FILE = ROOT / "minio-compose.yml"
DEFAULT_IMAGE = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"
# of the keys that the file uses, all are in version 3 of the format, which 1.29 checks against
SERVICE_KEYS = {
    "image",
    "entrypoint",
    "command",
    "environment",
    "ports",
    "volumes",
    "healthcheck",
    "restart",
}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return parsed


@pytest.fixture(scope="module")
def minio(compose: dict[str, Any]) -> dict[str, Any]:
    service: dict[str, Any] = compose["services"]["minio"]
    return service


def with_defaults(text: str) -> str:
    """As compose fills it in when nothing is set in the environment."""
    return VARIABLE.sub(r"\2", text).replace("$$", "$")


def test_top_level_has_no_version_and_only_what_both_know(compose: dict[str, Any]) -> None:
    assert set(compose) == {"services", "volumes"}
    assert set(compose["services"]) == {"minio"}


def test_service_has_only_keys_that_both_know(minio: dict[str, Any]) -> None:
    assert set(minio) <= SERVICE_KEYS
    assert set(minio["healthcheck"]) <= HEALTH_KEYS


def test_image_comes_from_a_variable_with_the_default(minio: dict[str, Any]) -> None:
    assert minio["image"] == "${MINIO_IMAGE:-" + DEFAULT_IMAGE + "}"


def test_credentials_are_known_and_long_enough(minio: dict[str, Any]) -> None:
    environment = {name: with_defaults(value) for name, value in minio["environment"].items()}
    assert environment["MINIO_ROOT_USER"] == "ourdb"
    assert environment["MINIO_ROOT_PASSWORD"] == "ourdb-secret"  # MinIO wants 3 and 8 characters


def test_health_check_asks_the_server_itself(minio: dict[str, Any]) -> None:
    kind, command = minio["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert "/minio/health/ready" in command
    assert minio["healthcheck"]["retries"] >= 3
    for name in ("interval", "timeout", "start_period"):
        assert re.fullmatch(r"\d+s", minio["healthcheck"][name])


def test_data_is_on_a_named_volume(compose: dict[str, Any], minio: dict[str, Any]) -> None:
    (mount,) = minio["volumes"]
    volume, path = mount.split(":")
    assert path == "/data"
    assert set(compose["volumes"]) == {volume}


def test_bucket_is_made_before_the_server_starts(minio: dict[str, Any]) -> None:
    assert minio["entrypoint"] == ["/bin/sh", "-c"]
    (command,) = minio["command"]  # one word: else the shell takes the rest for its own arguments
    first, second = with_defaults(command).split(" && ")
    assert first == 'mkdir -p "/data/$MINIO_BUCKET"'
    assert second.startswith("exec minio server /data ")
    assert with_defaults(minio["environment"]["MINIO_BUCKET"]) == "ourdb"


def test_ports_are_published_on_this_machine_only(minio: dict[str, Any]) -> None:
    ports = [with_defaults(port) for port in minio["ports"]]
    assert ports == ["127.0.0.1:9000:9000", "127.0.0.1:9001:9001"]


def test_no_dollar_is_left_to_chance() -> None:
    """Compose fills in ${NAME:-default}; a $$ is a dollar; anything else it would replace by nothing."""
    lines = [line.partition(" #")[0] for line in FILE.read_text().splitlines() if not line.startswith("#")]
    assert "$" not in VARIABLE.sub("", "\n".join(lines)).replace("$$", "")


def test_script_without_containers_has_the_same_settings(minio: dict[str, Any]) -> None:
    script = (ROOT / "tools" / "minio.sh").read_text()
    for name, value in minio["environment"].items():
        assert f"{name}:-{with_defaults(value)}}}" in script
    for name, port in (("MINIO_PORT", 9000), ("MINIO_CONSOLE_PORT", 9001)):
        assert f"${{{name}:-{port}}}" in script
