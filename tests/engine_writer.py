"""A process that writes a database and says through its standard output what was acknowledged.

Run as `python engine_writer.py PATH SYNC SEED FIRST`: random sets, deletions, batches and rotations; each
line is the last seq and what was written, as `seq id length` for each record of the batch.
"""

from __future__ import annotations

import random
import sys

import ourdb


def value_of(seq: int, length: int) -> bytes:
    """What the record with this seq holds, so that a reader can tell without being told."""
    return (seq.to_bytes(8, "little") * (length // 8 + 1))[:length]


def write_round(db: ourdb.OurDB, rng: random.Random) -> list[tuple[int, int]]:
    """One write: ids and lengths of its records, length -1 for a deletion."""
    seq = db.last_seq
    kind = rng.random()
    if kind < 0.6:
        id_, length = rng.randrange(300), rng.randrange(400)
        db.set(value_of(seq + 1, length), id_)
        return [(id_, length)]
    if kind < 0.7:
        present = [id_ for id_ in rng.sample(range(300), 20) if id_ in db]
        if not present:
            return []
        db.delete(present[0])
        return [(present[0], -1)]
    if kind < 0.98:
        many = [(rng.randrange(300), rng.randrange(400)) for _ in range(rng.randrange(1, 40))]
        db.set_many([(id_, value_of(seq + at, length)) for at, (id_, length) in enumerate(many, 1)])
        return many
    db.rotate()
    return []


def main(path: str, sync: str, seed: int) -> None:
    rng = random.Random(seed)
    with ourdb.open(path, sync=sync, file_size=64 * 1024, record_nr_max=1000) as db:  # type: ignore[arg-type]
        while True:
            before = db.last_seq
            written = write_round(db, rng)
            line = " ".join(f"{before + at}:{id_}:{length}" for at, (id_, length) in enumerate(written, 1))
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
