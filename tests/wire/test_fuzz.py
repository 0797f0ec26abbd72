"""The fuzz targets without a fuzzer: their seeds, and random changes of these."""

import random

import pytest

from fuzz.targets import TARGETS

CHANGES = {"page": 20, "reply": 40, "model_file": 60, "request": 60, "checkpoint": 60}
"""How many changed seeds a target gets here, where one takes long."""


def changed(chance: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed or b"\0")
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.choice((len(data), chance.randrange(len(data) + 1)))])


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted_and_their_changes_harmless(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)

    accepted = [target.run(seed) for seed in target.seeds[:12]]
    found = [
        target.run(changed(chance, chance.choice(target.seeds)))
        for _ in range(CHANGES.get(name, 250))
    ]
    for data in (b"", b"\0", b"\xff" * 64, bytes(64)):
        target.run(data)

    assert any(accepted), "no seed is a whole message: the target reads nothing"
    assert not all(found), "nothing is ever refused: the target checks nothing"
    assert all(len(seed) <= target.longest for seed in target.seeds)
