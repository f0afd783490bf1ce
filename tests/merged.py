"""Worlds that were merged, for Hypothesis: any history, several generations, any segments over them."""

from __future__ import annotations

from hypothesis import strategies as st

from compactor.lineage import ancestry
from compactor.path import route
from ourdb.config import Config
from ourdb.segment.summary import Stretch
from tests.worlds import DAY_0, HOUR, Log, World, memory_world

G1, G2 = "1" * 16, "2" * 16
IDS = 5


@st.composite
def merged_worlds(draw: st.DrawFn, merged: bool = True) -> World:
    """Published. One generation or two, the second a copy that took over or a fork; if `merged` with segments
    that are exact in runs and single points, and parts of stretches, in place of their sources or beside."""
    world = memory_world()
    world.config = Config(file_size=8 << 10, record_size_max=2 << 10)
    merges_max = 2 if merged else 0
    log = draw(_histories(DAY_0, Log()))
    _add_line(draw, world, G1, log, merges_max)
    left = [seq for seq in log.ends() if _offers(world, G1, seq)]
    if left and draw(st.booleans(), label="a copy goes on"):
        branch = draw(st.sampled_from(left), label="branch")
        second = draw(_histories(DAY_0 + HOUR, log.copy(branch)))
        takes_over = G1 if draw(st.booleans(), label="takes over") else None
        _add_line(draw, world, G2, second, merges_max, parent=(G1, branch), takes_over=takes_over)
    world.publish()
    return world


def offered(world: World) -> list[tuple[str, int]]:
    """Every point that can be restored: the line's generation, and the seq."""
    return [
        (line, seq)
        for line, log in world.logs.items()
        for seq in log.ends()
        if next(ancestry(world.view.head, line), None) and route(world.view, line, seq)
    ]


@st.composite
def _histories(draw: st.DrawFn, time: int, log: Log) -> Log:
    for _ in range(draw(st.integers(1, 12))):
        time += draw(st.sampled_from([0, 1, 1000]))
        ids = draw(st.lists(st.integers(0, IDS - 1), min_size=1, max_size=4))
        log.batch([(n, draw(st.sampled_from([None, b"", b"v" * 50, b"w" * 1500]))) for n in ids], time)
    return log


def _add_line(
    draw: st.DrawFn,
    world: World,
    name: str,
    log: Log,
    merges_max: int,
    *,
    parent: tuple[str, int] | None = None,
    takes_over: str | None = None,
) -> None:
    start = parent[1] if parent else 0
    ends = [end for end in log.ends() if end > start]
    cuts = sorted(draw(st.sets(st.sampled_from(ends)), label="cuts") - {len(log)})
    sources = len(world.segments)
    world.line(name, log, cuts, parent=parent, takes_over=takes_over)
    made = len(world.segments)
    for _ in range(draw(st.integers(0, merges_max), label="merged")):
        first = draw(st.sampled_from([start, *cuts]), label="after") + 1
        last = draw(st.sampled_from([end for end in [*cuts, len(log)] if end >= first]), label="upto")
        _merge(draw, world, name, first, last, [end for end in ends if first <= end <= last])
    if len(world.segments) > made and draw(st.booleans(), label="sources are gone"):
        del world.segments[sources:made]


def _merge(draw: st.DrawFn, world: World, name: str, first: int, last: int, inside: list[int]) -> None:
    part_ends = [end for end in inside if end < last - 1]  # the next one does not begin with what is exact
    if part_ends and draw(st.booleans(), label="in parts"):
        cut = draw(st.sampled_from(part_ends), label="part ends")
        number = len(world.segments)
        world.segment(name, first, cut, [], stretch=Stretch(number, 1, 2), level=1)
        world.segment(name, cut + 1, last, [(last, last)], stretch=Stretch(number, 2, 2), level=1)
        return
    runs = [(draw(st.sampled_from(inside), label="horizon"), last)]
    for pin in sorted(draw(st.sets(st.sampled_from(inside)), label="pins"), reverse=True):
        if pin < runs[0][0] - 1:
            runs.insert(0, (pin, pin))
    world.segment(name, first, last, runs, level=1)


def _offers(world: World, line: str, seq: int) -> bool:
    world.publish()
    return route(world.view, line, seq) is not None
