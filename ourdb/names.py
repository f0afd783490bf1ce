"""All names on disk and in the store, built and parsed here and nowhere else (docs/format.md#names)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ourdb.errors import InvalidError
from ourdb.record import SEQ_MAX, TIME_MAX

HEAD_KEY = "head"
SEGMENTS_PREFIX = "segments/"
LISTS_PREFIX = "lists/"
FILE_NR_MAX = 65_535

# Where the fields that a path is planned on begin in a segment's name, which has a fixed width.
LAST_PLACE, FIRST_PLACE, CHAIN_BEFORE_PLACE, CHAIN_AFTER_PLACE = 0, 17, 77, 86

_NONE_16 = "f" * 16
_UNKNOWN_8 = "x" * 8
_DATA_FILE = re.compile(r"(0|[1-9][0-9]{0,4})\.db", re.ASCII)
_GENERATION = re.compile(r"[0-9a-f]{16}", re.ASCII)
_LIST = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.json", re.ASCII)
_PROBE = re.compile(r"probe-[0-9a-f]{16}", re.ASCII)
_CHAIN = r"([0-9a-f]{8}|x{8})"
_SEGMENT = re.compile(
    r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{12})-([0-9a-f]{12})-([0-9a-f]{16})"
    rf"-{_CHAIN}-{_CHAIN}-([0-9a-f]{{16}})-([0-9a-f]{{16}})\.seg",
    re.ASCII,
)


@dataclass(frozen=True, order=True, kw_only=True)
class SegmentName:
    """What a segment's name says: enough to rebuild a lost head. Sorts by last seq, then first seq.

    Range and times are inclusive; horizon 0: no exact run; chain None: not known (parts of a stretch).
    made: revision of the head that the writer had read; random: u64, so that no two names are equal.
    """

    last_seq: int
    first_seq: int
    last_time: int
    first_time: int
    horizon: int
    chain_before: int | None
    chain_after: int | None
    made: int
    random: int

    def format(self) -> str:
        horizon = f"{self.horizon:016x}" if self.horizon else _NONE_16
        return (
            f"{self.last_seq:016x}-{self.first_seq:016x}-{self.last_time:012x}-{self.first_time:012x}-{horizon}"
            f"-{_format_chain(self.chain_before)}-{_format_chain(self.chain_after)}"
            f"-{self.made:016x}-{self.random:016x}.seg"
        )

    @classmethod
    def parse(cls, text: str) -> SegmentName:
        """The name of a segment, or InvalidError: wrong form, an empty range, a horizon outside of it."""
        match = _SEGMENT.fullmatch(text)
        if not match:
            raise InvalidError(f"not the name of a segment: {text!r}")
        last, first, last_time, first_time = (int(part, 16) for part in match.groups()[:4])
        horizon = 0 if match[5] == _NONE_16 else int(match[5], 16)
        if not 1 <= first <= last <= SEQ_MAX or not first_time <= last_time <= TIME_MAX:
            raise InvalidError(f"name of a segment with an empty range: {text!r}")
        if match[5] != _NONE_16 and not first <= horizon <= last:
            raise InvalidError(f"name of a segment whose horizon is outside of its range: {text!r}")
        return cls(
            last_seq=last,
            first_seq=first,
            last_time=last_time,
            first_time=first_time,
            horizon=horizon,
            chain_before=_parse_chain(match[6]),
            chain_after=_parse_chain(match[7]),
            made=int(match[8], 16),
            random=int(match[9], 16),
        )


@dataclass(frozen=True)
class SegmentKey:
    """The key of a segment: generation (16 hex digits) and name."""

    generation: str
    name: SegmentName


@dataclass(frozen=True)
class ListKey:
    """The key of a list of segments: made (revision) and random (u64)."""

    made: int
    random: int


def data_file_name(nr: int) -> str:
    """`{nr}.db`, nr from 0 to 65,535."""
    if not 0 <= nr <= FILE_NR_MAX:
        raise InvalidError(f"number of a data file must be 0 to {FILE_NR_MAX}: {nr}")
    return f"{nr}.db"


def parse_data_file_name(text: str) -> int | None:
    """The number of a data file, or None: not the name of one."""
    match = _DATA_FILE.fullmatch(text)
    return int(match[1]) if match and int(match[1]) <= FILE_NR_MAX else None


def format_generation(number: int) -> str:
    """A generation's id as text: 16 hex digits."""
    if not 0 <= number < 2**64:
        raise InvalidError(f"generation is not a u64: {number}")
    return f"{number:016x}"


def parse_generation(text: str) -> int:
    """A generation's id as number, or InvalidError unless it is 16 lower-case hex digits."""
    if not _GENERATION.fullmatch(text):
        raise InvalidError(f"not a generation (16 hex digits): {text!r}")
    return int(text, 16)


def segment_key(generation: str, name: SegmentName) -> str:
    """The key below the namespace."""
    parse_generation(generation)
    return f"{SEGMENTS_PREFIX}{generation}/{name.format()}"


def list_name(made: int, random: int) -> str:
    return f"{made:016x}-{random:016x}.json"


def list_key(made: int, random: int) -> str:
    """The key below the namespace."""
    return LISTS_PREFIX + list_name(made, random)


def probe_key(random: int) -> str:
    """The key, below the namespace, of an object that a probe of the store makes and deletes."""
    return f"probe-{random:016x}"


def is_ours(key: str) -> bool:
    """Whether it is the key of head, list, segment or probe; any other is foreign."""
    return parse_key(key) is not None or _PROBE.fullmatch(key) is not None


def parse_key(key: str) -> SegmentKey | ListKey | str | None:
    """What a key below the namespace names: a segment, a list, HEAD_KEY; None: anything else."""
    if key == HEAD_KEY:
        return HEAD_KEY
    if key.startswith(LISTS_PREFIX):
        match = _LIST.fullmatch(key.removeprefix(LISTS_PREFIX))
        return ListKey(int(match[1], 16), int(match[2], 16)) if match else None
    generation, _, name = key.removeprefix(SEGMENTS_PREFIX).partition("/")
    if not key.startswith(SEGMENTS_PREFIX) or not _GENERATION.fullmatch(generation):
        return None
    try:
        return SegmentKey(generation, SegmentName.parse(name))
    except InvalidError:
        return None


def _format_chain(chain: int | None) -> str:
    return _UNKNOWN_8 if chain is None else f"{chain:08x}"


def _parse_chain(text: str) -> int | None:
    return None if text == _UNKNOWN_8 else int(text, 16)
