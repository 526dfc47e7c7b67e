"""Programs that mean harm, among honest jobs: afterwards everything is as it was.

Each program of `harm.HARM` runs while an honest job runs. Then the same users are left for jobs, and the same
processes, mounts, files, modes, owners, times and memory are there as before.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sandbox.ground import Ground
from tests.sandbox.ground import ground as ground  # noqa: PLC0414  a fixture
from tests.sandbox.harm import HARM

MEMORY_GROWTH_BYTES = 8 << 20


@pytest.mark.parametrize("name", HARM)
def test_harm_among_honest_jobs(ground: Ground, name: str) -> None:
    before = ground.state()
    with ThreadPoolExecutor() as threads:
        beside = threads.submit(ground.run_honest, 0.7)
        ground.attack(name)
        beside.result()
    ground.run_honest()
    assert ground.state() == before


@pytest.mark.timeout(3600)
def test_a_random_sequence_of_harm(ground: Ground, pytestconfig: pytest.Config) -> None:
    count = 2000 if pytestconfig.getoption("scale") else 200
    names = [name for name, harm in HARM.items() if harm.limits.get("wall_s", 0) <= 5]
    users, before, memory_bytes = ground.pool(), ground.state(), ground.resident_bytes()
    drawn = random.Random(ground.place.mode)
    with ThreadPoolExecutor(2) as threads:
        for first in range(0, count, 20):
            running = [
                threads.submit(ground.attack, drawn.choice(names), wall_s=0.5, cpu_s=1)
                for _ in range(min(20, count - first))
            ]
            for one in running:
                one.result()
            ground.run_honest()
    assert ground.state() == before
    assert ground.pool() == users
    assert ground.resident_bytes() < memory_bytes + MEMORY_GROWTH_BYTES
