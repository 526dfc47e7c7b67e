"""What any cache must do: SQLite in every run, a real Redis beside it."""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from draftloop.cli.servers import free_port
from draftloop.drafting.cache import SqliteCache
from draftloop.drafting.draft_cache import Cache
from draftloop.drafting.drafter import Drafter
from draftloop.drafting.redis_cache import RedisCache
from draftloop.drafting.versions import AskOptions
from draftloop.errors import SetupError
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Profile, Refinement, generic_case
from draftloop.support.environments import ROOT
from tests.fake_vllm import fake_vllm

CASES = Cases(ROOT / "label_config")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server:
        url = f"redis://127.0.0.1:{port}/0"
        with redis.Redis.from_url(url) as client:
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield url
        server.terminate()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.integration)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Cache]:
    """Return a function that opens the same cache again, as another worker would."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        return lambda: RedisCache(url)
    return lambda: SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=1000)


def test_what_is_put_is_got_by_every_worker(opened: Callable[[], Cache]) -> None:
    one, two = opened(), opened()
    assert one.get("k") is None
    one.put("k", "北京\x00".encode())
    one.put("k", b"newer")
    assert two.get("k") == b"newer"


def test_many_threads_use_it_at_once(opened: Callable[[], Cache]) -> None:
    cache = opened()

    def both(number: int) -> bool:
        cache.put(f"n{number}", str(number).encode())
        return cache.get(f"n{number}") == str(number).encode()

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(both, range(200)))


@pytest.mark.parametrize("profile", ["compact", "full"])
def test_an_equal_text_with_other_options_is_drafted_by_itself(
    opened: Callable[[], Cache], profile: Profile
) -> None:
    config = """<View><Text name="text" value="$text"/>
    <Choices name="pick" toName="text" value="$options"/></View>"""
    case = generic_case(compile_labelling(config))

    def task(number: int, *options: str) -> Task:
        return Task(
            number, {"text": f"张三住在{fake.url}", "options": [{"value": option} for option in options]}
        )

    with (
        fake_vllm() as fake,
        VllmModel(fake.url, fake.name) as model,
        closing(Drafter(model, AskOptions(profile=profile), cache=opened())) as drafter,
    ):
        drafts = [
            drafter.draft(case, [one])[0]
            for one in (task(1, "red", "blue"), task(2, "green", "grey"), task(3, "red", "blue"))
        ]
    assert [draft.value for draft in drafts] == [{"pick": "red"}, {"pick": "green"}, {"pick": "red"}]
    assert [draft.from_cache for draft in drafts] == [False, False, True]


def test_the_second_equal_task_costs_no_model_call_and_gets_the_same_draft(
    opened: Callable[[], Cache],
) -> None:
    case = CASES.get("sentiment")
    with fake_vllm() as fake, VllmModel(fake.url, fake.name) as model:
        first, second = (
            Drafter(model, AskOptions(profile="compact"), cache=opened()).draft(
                case, [Task(number, {"text": f"好{fake.url}"})]
            )[0]
            for number in (1, 2)
        )
        other = Drafter(model, AskOptions(profile="full"), cache=opened()).draft(
            case, [Task(3, {"text": f"好{fake.url}"})]
        )[0]
    assert len(fake.asked) == 2, "another version asks again"
    assert (first.from_cache, second.from_cache, other.from_cache) == (False, True, False)
    assert (first.value, first.regions, first.score) == (second.value, second.regions, second.score)


def test_a_redraft_is_cached_by_the_words_and_the_value_that_they_are_about(
    opened: Callable[[], Cache],
) -> None:
    case = CASES.get("sentiment")
    asked = [
        None,
        *(Refinement(words, value) for words in "ab" for value in (None, {"sentiment": "neutral"})),
    ]
    with fake_vllm() as fake, VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="compact"), cache=opened())
        task = Task(1, {"text": f"好{fake.url}"})
        for _ in range(2):
            for refinement in asked:
                (future,) = drafter.submit(
                    case, [task], drafter.version(case), limit_s=20, refinement=refinement
                )
                assert future.result().status == "ok"
        drafter.close()
    assert len(fake.asked) == len(asked)


def test_a_failure_is_never_cached(opened: Callable[[], Cache]) -> None:
    case = CASES.get("sentiment")
    with fake_vllm(answer=lambda _: "no json") as fake, VllmModel(fake.url, fake.name) as model:
        drafter = Drafter(model, AskOptions(profile="compact"), cache=opened())
        task = Task(1, {"text": f"坏{fake.url}"})
        assert drafter.draft(case, [task])[0].status == "undecodable"
        fake.answer = None
        assert drafter.draft(case, [task])[0].status == "ok"


def test_the_sqlite_cache_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=100)
    for number in range(600):
        cache.put(f"n{number}", b"x")
    held = [number for number in range(600) if cache.get(f"n{number}")]
    assert 100 <= len(held) <= 100 + 256
    assert held == list(range(600 - len(held), 600))


def test_a_cache_that_is_gone_costs_a_model_call_and_no_draft(tmp_path: Path) -> None:
    sqlite = SqliteCache(f"sqlite:///{tmp_path}/cache.sqlite3", max_rows=100)
    with sqlite3.connect(tmp_path / "cache.sqlite3") as other:
        other.execute("DROP TABLE cache")
    other.close()
    for cache in (sqlite, RedisCache("redis://127.0.0.1:9/0")):
        cache.put("k", b"x")
        assert cache.get("k") is None


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:///", "sqlite:////nowhere/at/all/cache"])
def test_an_address_that_cannot_work_is_refused_at_start(url: str) -> None:
    with pytest.raises(SetupError, match=r"CACHE_URL|cannot be opened"):
        SqliteCache(url, max_rows=1)
