"""An ordered map over many items in the processes of a Ray cluster, by Ray Data.

The only module that imports ray, an optional dependency. Knows how items are sent out and how results come
back in order. Does not know what the function does: function, items and results are pickled.

Items are sent in windows of blocks. While one window is processed the next is read, so memory does not grow
with the number of items. A block takes about a second. Where a process or a machine dies, others process its
blocks again, and no result is lost.
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

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # noqa: TID251  # Ray reads it only from there
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
_FIRST_ITEMS = 8  # of a block, until the time of an item is known
_MOST_ITEMS = 500
_BLOCKS_A_CPU = 8  # of a window; starting a window takes about half a second
_RETRIES = 5  # of a block whose process dies; Ray has no limit by default
_WINDOW_BYTES = 32 * 2**20
_STORE_BYTES = 200 * 2**20  # for windows and their results, in a local Ray


class RayData:
    """Maps a function over items, as `map` does, in the processes of a Ray cluster."""

    def __init__(self, address: str = "", *, cpus: int | None = None) -> None:
        """Start Ray here, or connect to a cluster.

        Args:
            address: The cluster's `host:port`; empty starts a local one that ends with this process.
            cpus: Number of processes of a local Ray; all cores by default.
        Raises:
            SetupError: Ray is not installed.
            Unreachable: No cluster answers at the address, or Ray does not start.
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
        """Number of processes of the cluster."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _start(self, address: str, cpus: int | None) -> None:
        on_stop = signal.getsignal(signal.SIGTERM)
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        try:
            if address:
                _check_reachable(address)  # Ray itself waits for minutes
                # Every machine uses this code, whatever version it has installed. `py_modules` would come
                # after a folder on that machine that has the path of our working folder.
                folder = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
                ours = Path(draftloop.__file__).parent
                shutil.copytree(ours, Path(folder, ours.name), ignore=shutil.ignore_patterns("__pycache__"))
                ray.init(address=address, runtime_env={"working_dir": folder}, **quiet)
            else:
                # For logs and objects that do not fit into memory; removed at the end.
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
        signal.signal(signal.SIGTERM, on_stop)  # Ray installs its own handler
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it also logs the errors that it raises

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def __call__(self, function: Callable[[Given], Made], items: Iterable[Given], /) -> Iterator[Made]:
        """Yield the function's result for each item, in the order of the items.

        Raises:
            DraftloopError: The function raised it.
            ServiceError: Ray gave up.
        """
        work, left, pace = ray.put(function), iter(items), _Pace()
        running: Iterator[Made] = iter(())
        while window := self._window(left, pace.block_items):  # read while the previous one is processed
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
        """Start processing a window; return an iterator over its results."""
        rows = ray.data.from_items([{"items": block} for block in window], override_num_blocks=len(window))
        with warnings.catch_warnings():
            # Ray has no other option yet for the number of retries.
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
            raise  # an internal error
        except ray.exceptions.RayError as error:
            raise ServiceError(
                f"Ray gave up: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
                hint="A process that ends again and again lacks memory, most often.",
            ) from error


@dataclass
class _Pace:
    """Number of items in a block, from the time that the last window took."""

    block_items: int = _FIRST_ITEMS


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=_REACH_S).close()


def _process_block(row: Mapping[str, Any], works: list[Any]) -> dict[str, Any]:
    """Process a block, in a process of Ray's."""
    function = _fetch_function(works[0])
    started = time.perf_counter()
    made: list[Any] = []
    failed: DraftloopError | None = None
    try:
        made.extend(map(function, pickle.loads(row["items"])))  # noqa: S301  # our own
    except DraftloopError as error:  # Ray would wrap a raised one
        failed = error
    return {"made": pickle.dumps((made, failed)), "s": time.perf_counter() - started}


@lru_cache(maxsize=1)
def _fetch_function(work: Any) -> Callable[[Any], Any]:
    """Fetch the function once for each process: it may contain a tokenizer."""
    function: Callable[[Any], Any] = ray.get(work)
    return function
