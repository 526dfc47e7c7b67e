"""Work for many samples, spread over processes and machines by Ray Data.

The only file that imports ray, an extra. Knows how pieces of work are handed out and how their results
come back in order. Does not know what the work is: the function, items and results are pickled.

Items go out in windows of blocks: while one window is at work the next is read, and nothing that is held
grows with their number. A block is what takes about a second. A process or a machine that dies costs time
and no result: its blocks are done again by others.
"""

import logging
import os
import pickle
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import draftloop
from draftloop.errors import DraftloopError, ServiceError, SetupError, Unreachable

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # noqa: TID251  # Ray's processes ask for it nowhere else
try:
    import ray
    import ray.data
    import ray.exceptions
except ImportError:
    ray = None

Given = TypeVar("Given")
Made = TypeVar("Made")

_REACH_S = 10
_BLOCK_S = 1.0
_FIRST_ITEMS = 8  # of a block, before it is known how long an item takes
_MOST_ITEMS = 500
_BLOCKS_A_CPU = 8  # of a window: starting one takes about half a second
_RETRIES = 5  # of a block whose process dies; Ray's own limit is none
_WINDOW_BYTES = 32 * 2**20
_STORE_BYTES = 200 * 2**20  # of a Ray of our own: windows and their results


class RayData:
    """Does a piece of work for many items, as `map` does, in the processes of a Ray cluster."""

    def __init__(self, address: str = "", *, cpus: int | None = None) -> None:
        """Start Ray here, or connect to a cluster.

        Args:
            address: Of the cluster, `host:port`; empty starts one of our own that ends with us.
            cpus: How many processes work in our own; all cores by default.
        Raises:
            SetupError: Ray is not installed.
            Unreachable: There is no cluster at the address, or Ray does not start.
        """
        if ray is None:
            raise SetupError(
                "Ray is not installed in this environment.",
                hint="draftloop sync --engine ray runs in its own; elsewhere: pip install 'draftloop[ray]'.",
            )
        self._ends = ExitStack()
        try:
            self._start(address, cpus)
        except BaseException:
            self._ends.close()
            raise

    @property
    def cpus(self) -> int:
        """How many processes work now."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _start(self, address: str, cpus: int | None) -> None:
        on_stop = signal.getsignal(signal.SIGTERM)
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        try:
            if address:
                _check_reachable(address)  # Ray itself waits for minutes
                # Every machine works with this code, whatever it has of its own. As `py_modules` it would
                # come after a folder there that has the path of the one in which we were started.
                folder = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
                ours = Path(draftloop.__file__).parent
                shutil.copytree(ours, Path(folder, ours.name), ignore=shutil.ignore_patterns("__pycache__"))
                ray.init(address=address, runtime_env={"working_dir": folder}, **quiet)
            else:
                # Logs and what does not fit into memory lie here, and go with us.
                folder = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    object_store_memory=_STORE_BYTES,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",  # it listens nowhere else
                    _temp_dir=folder,
                    **quiet,
                )
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            what = f"No Ray cluster answers at {address}" if address else "Ray does not start"
            raise Unreachable(
                f"{what}: {str(error).strip().splitlines()[0][:200]}",
                hint="An address is host:port; Python and Ray have to be of the same version there.",
            ) from error
        self._ends.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, on_stop)  # Ray puts its own there
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs what it raises

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def __call__(self, function: Callable[[Given], Made], items: Iterable[Given], /) -> Iterator[Made]:
        """Give what the function makes of each item, in the order of the items.

        Raises:
            DraftloopError: As the function.
            ServiceError: Ray gave up.
        """
        work, left, pace = ray.put(function), iter(items), _Pace()
        running: Iterator[Made] = iter(())
        while window := self._window(left, pace.block_items):  # read while the one before is at work
            yield from running
            running = self._start_window(work, window, pace)
        yield from running

    def _window(self, left: Iterator[Any], block_items: int) -> list[bytes]:
        most = _BLOCKS_A_CPU * self.cpus
        blocks: list[bytes] = []
        size_bytes = 0
        while len(blocks) < most and size_bytes < _WINDOW_BYTES:
            items = list(islice(left, block_items))
            if not items:
                break
            blocks.append(pickle.dumps(items))
            size_bytes += len(blocks[-1])
        return blocks

    def _start_window(self, work: Any, window: list[bytes], pace: "_Pace") -> Iterator[Any]:
        """Begin with a window; what it gives is there when it is asked for."""
        rows = ray.data.from_items([{"items": block} for block in window], override_num_blocks=len(window))
        with warnings.catch_warnings():
            # Ray has no other way yet to say how often.
            warnings.simplefilter("ignore", DeprecationWarning)
            done = iter(rows.map(_process_block, fn_args=[[work]], max_retries=_RETRIES).iter_rows())
        first = self._next(done)

        def results() -> Iterator[Any]:
            row: Mapping[str, Any] | None = first
            count, took_s = 0, 0.0
            while row is not None:
                made, error = pickle.loads(row["made"])  # noqa: S301  # our own
                count, took_s = count + len(made), took_s + row["s"]
                yield from made
                if error is not None:
                    raise error
                row = self._next(done)
            pace.block_items = max(1, min(_MOST_ITEMS, int(_BLOCK_S * count / max(took_s, 1e-6))))

        return results()

    @staticmethod
    def _next(done: Iterator[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        try:
            return next(done, None)
        except (ray.exceptions.RayTaskError, ray.exceptions.UserCodeException):
            raise  # a mistake of ours
        except ray.exceptions.RayError as error:
            raise ServiceError(
                f"Ray gave up: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
                hint="A process that ends again and again lacks memory, most often.",
            ) from error


@dataclass
class _Pace:
    """How many items make a block, as the last window showed."""

    block_items: int = _FIRST_ITEMS


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_REACH_S).close()


def _process_block(row: Mapping[str, Any], works: list[Any]) -> dict[str, Any]:
    """Do a block, in a process of Ray's."""
    function = _fetch_function(works[0])
    started = time.perf_counter()
    made: list[Any] = []
    failed: DraftloopError | None = None
    try:
        made.extend(map(function, pickle.loads(row["items"])))  # noqa: S301  # our own
    except DraftloopError as error:  # raised, it would come back wrapped
        failed = error
    return {"made": pickle.dumps((made, failed)), "s": time.perf_counter() - started}


@lru_cache(maxsize=1)
def _fetch_function(work: Any) -> Callable[[Any], Any]:
    """Fetch the function once a process: it may hold a tokenizer."""
    found: Callable[[Any], Any] = ray.get(work)
    return found
