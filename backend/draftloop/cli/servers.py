"""Start and stop the real servers: Label Studio, vLLM and the backend.

Each runs as a child process in a session of its own, from its own environment (`draftloop setup`), with
its output in a log file. A start returns when the server answers, or raises `ServerError` with the end
of that log. Children see only the variables named here, so a stray setting of the caller changes
nothing. Knows processes and readiness; knows nothing of projects, tasks or models.
"""

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from draftloop.errors import SetupError
from draftloop.support.environments import IN_CHECKOUT, ROOT, find_environment, home, import_path
from draftloop.support.files import creating_folder, replacing_file

PYTHONPATH = f"{ROOT / 'backend'}:{ROOT}"  # in a checkout: the package, then scripts, demo and tests
LOCALHOST = "127.0.0.1"

# What a child keeps of the caller's environment; the rest is set where the child is started.
_INHERITED = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "TMPDIR", "TZ", "USER"),
    *("DRAFTLOOP_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
)

# Label Studio reads LABEL_STUDIO_X before X. Empty, not absent: absent means its maker's Sentry.
LABEL_STUDIO_PRIVATE = {
    "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
    "LABEL_STUDIO_FEATURE_FLAGS_OFFLINE": "true",
    "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
    "LABEL_STUDIO_SENTRY_DSN": "",
}
VLLM_PRIVATE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# Measured: without these two a seeded request whose prefill is chunked kills the CPU engine, guidance
# without disable_any_whitespace writes blanks up to the token limit, and blocks of 128 (the CPU's
# default) make the prefix cache coarse.
VLLM_FLAGS = (
    "--max-num-seqs=64",
    "--block-size=32",
    "--enable-prefix-caching",
    "--enable-prompt-tokens-details",
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens=16384",
    '--structured-outputs-config={"backend":"guidance","disable_any_whitespace":true}',
    "--enforce-eager",
)
VLLM_LORA_FLAGS = ("--max-loras=4", "--max-cpu-loras=16")  # in one batch, and in memory
VLLM_CONTEXT_TOKENS = 2048  # of the demo and the tests; a model made for less gets what it was made for


class ServerError(SetupError):
    """A server did not start; the message names it, the reason and the end of its log."""


@dataclass(frozen=True)
class ServerProcess:
    """A running server; stop it with `stop()` or by leaving its `with` block."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def wait(self, limit_s: float = 300) -> None:
        """Wait until its health check passes; stop it where that takes too long.

        Raises:
            ServerError: It ended, or did not answer within the limit.
        """
        _wait_until_ready(self, lambda: _answers(_get(f"{self.url}/health")), limit_s)

    @property
    def pid(self) -> int:
        """Process id; also the id of the process group."""
        return self.process.pid

    def stop(self, patience_s: float = 15) -> None:
        """End the whole process group: SIGTERM, and SIGKILL after `patience_s`."""
        _signal_group(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        _signal_group(self.pid, signal.SIGKILL)  # also children that outlived it
        self.process.wait()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_label_studio(
    data_dir: Path,
    *,
    token: str,
    password: str,
    username: str = "admin@example.com",
    port: int | None = None,
    host: str = LOCALHOST,
    webhooks: bool = True,
) -> ServerProcess:
    """Start Label Studio on SQLite in `data_dir`; a new folder begins as a copy of a migrated one.

    Args:
        data_dir: Made if missing. User and token are created on its first start and then stay.
        token: Legacy API token of the user, 6 to 40 characters.
        password: Password of the user.
        username: E-mail address of the user.
        port: Wanted port; another free one is taken where it is not free.
        host: Address to listen on.
        webhooks: Let it call webhooks at private addresses, and import tasks from there.
    Raises:
        ServerError: It ended, did not answer in time, or `data_dir` belongs to another token.
    """
    _seed_label_studio(data_dir)
    port = free_port(port)
    url = f"http://{LOCALHOST}:{port}"
    settings = LABEL_STUDIO_PRIVATE | {
        "LABEL_STUDIO_HOST": url,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_USERNAME": username,
        "LABEL_STUDIO_USER_TOKEN": token,
        "ML_BLOCK_LOCAL_IP": "false",  # the backend is on this machine
        # So are its webhooks. Whoever may log in can thereby have Label Studio call what listens here: for
        # trying things; docker-compose.yml does without.
        "SSRF_PROTECTION_ENABLED": str(not webhooks).lower(),
    }
    arguments = ("--internal-host", host, "--port", str(port), "--enable-legacy-api-token", "--no-browser")
    command = (*_label_studio(data_dir, "start"), *arguments)
    server = _start("Label Studio", url, command, settings, log=data_dir / "label-studio.log")
    server.wait(240)
    if _get(f"{url}/api/current-user/whoami", Authorization=f"Token {token}") != 200:
        server.stop()
        raise ServerError(
            f"Label Studio in {data_dir} does not know this token: the folder was made with another one.",
            hint="Use that token, or another folder.",
        )
    return server


def start_vllm(
    model: Path | str,
    *,
    served_name: str,
    port: int | None = None,
    extra: Sequence[str] = (),
    log: Path | None = None,
    lora_rank: int = 0,
    wait: bool = True,
) -> ServerProcess:
    """Start vLLM on the CPU; `url` is its root, the API is below `/v1`.

    Args:
        model: Folder of the model.
        served_name: Name that requests use.
        port: Wanted port; another free one is taken where it is not free.
        extra: More flags; they win over the usual ones.
        log: Where the log goes; a temporary file if not given.
        lora_rank: Have it take LoRA adapters up to this rank while it runs (8, 16, 32, ...); 0 is none.
        wait: Until it answers; else `ServerProcess.wait` does, and other servers can start meanwhile.
    Raises:
        ServerError: There is no such model, it ended, or it did not answer within five minutes.
    """
    if not (Path(model) / "config.json").is_file():
        raise ServerError(f"There is no model in {model}.", hint="It needs a folder with a config.json.")
    port = free_port(port)
    cores = len(os.sched_getaffinity(0))
    settings = VLLM_PRIVATE | {
        # The first request with logprobs compiles a kernel: with no g++ on the machine the engine dies of
        # it, with one the request waits for it. --enforce-eager does not cover this place.
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Measured on 2 cores, 32 at once: 35 requests/s like this, 19 with vLLM's own binding, which stands
        # still while another process has its core, 20 with two threads.
        **(
            {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores - 1))}
            if cores <= 4
            else {}
        ),
        **({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if lora_rank else {}),
    }
    adapters = ("--enable-lora", f"--max-lora-rank={lora_rank}", *VLLM_LORA_FLAGS) if lora_rank else ()
    command = (
        *(str(find_environment("vllm") / "bin" / "vllm"), "serve", str(model)),
        *("--served-model-name", served_name, "--host", LOCALHOST, "--port", str(port)),
        *("--max-model-len", str(_context_tokens(Path(model)))),
        *(f"--dtype={_fast_dtype()}", *VLLM_FLAGS, *adapters, *extra),
    )
    server = _start("vLLM", f"http://{LOCALHOST}:{port}", command, settings, log=log)
    if wait:
        server.wait()
    return server


def start_backend(
    settings: Mapping[str, str],
    *,
    port: int | None = None,
    log: Path | None = None,
    application: str = "draftloop.app:create_app()",
    folder: Path = ROOT,
    installed: str = "backend",
    workers: int = 1,
    options: Sequence[str] = (),
) -> ServerProcess:
    """Start the backend under gunicorn, with our worker class and 64 threads a process.

    Args:
        settings: Environment variables of `draftloop.settings`.
        port: Wanted port; another free one is taken where it is not free.
        log: Where the log goes; a temporary file if not given.
        application: What gunicorn serves, in another form than our own server where that is wanted.
        folder: Current folder of the server; modules in it can be imported.
        installed: The environment that it runs in.
        workers: Processes.
        options: More of gunicorn's, which win over ours.
    Raises:
        ServerError: It ended or did not answer within a minute.
    """
    port = free_port(port)
    python = find_environment(installed) / "bin" / "python"
    command = (
        *gunicorn(python, f"{LOCALHOST}:{port}", application=application, folder=folder, workers=workers),
        *options,
    )
    surroundings = {**settings, "PYTHONPATH": PYTHONPATH if IN_CHECKOUT else str(import_path())}
    server = _start("backend", f"http://{LOCALHOST}:{port}", command, surroundings, log=log)
    server.wait(60)
    return server


def gunicorn(
    python: Path | str,
    address: str,
    *,
    application: str = "draftloop.app:create_app()",
    folder: Path = ROOT,
    workers: int = 1,
    threads: int = 64,
) -> tuple[str, ...]:
    """Return the command line that serves the backend, with our worker class.

    Args:
        python: Python of the environment that it runs in.
        address: Where it listens, `host:port`.
        application: What is served.
        folder: Where it is served from; modules there are imported.
        workers: Processes.
        threads: Threads of each process that draft.
    """
    return (
        *(str(python), "-m", "gunicorn", application, "--workers", str(workers), "--threads", str(threads)),
        *("--worker-class", "draftloop.serving.server.Worker", "--timeout", "120"),
        "--no-control-socket",  # any code of the same user could send it commands
        *("--bind", address, "--chdir", str(folder)),
    )


def _answers(status: int) -> bool:
    return 200 <= status < 300 or status == 401  # up, and behind a login


def free_port(preferred: int | None = None) -> int:
    """Return `preferred` if nothing listens there, else any free port."""
    for port in (preferred or 0, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOCALHOST, port))
            return int(probe.getsockname()[1])
    raise ServerError(f"No free port on {LOCALHOST}.")


def _label_studio(data_dir: Path, verb: str) -> tuple[str, ...]:
    return (str(find_environment("label-studio") / "bin" / "label-studio"), verb, "--data-dir", str(data_dir))


def _seed_label_studio(data_dir: Path) -> None:
    """Copy a migrated database into a new `data_dir`, which takes 1 s; migrating takes 40 to 110 s."""
    database = "label_studio.sqlite3"
    data_dir.mkdir(parents=True, exist_ok=True)
    if (data_dir / database).exists():
        return
    seed = home() / "seed" / find_environment("label-studio").name
    seed.parent.mkdir(parents=True, exist_ok=True)
    with (seed.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not seed.exists():
            with tempfile.TemporaryDirectory(dir=seed.parent) as scratch:
                log = seed.parent / "migrate.log"
                with log.open("wb") as output:
                    code = subprocess.run(
                        _label_studio(Path(scratch), "version"),  # any verb migrates first
                        env=_child_environment(LABEL_STUDIO_PRIVATE),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        check=False,
                    ).returncode
                if code:
                    raise ServerError(f"Label Studio cannot make its database (exit {code}).\n{_tail(log)}")
                # Only the tables: the secret key beside them belongs to each server alone.
                with creating_folder(seed, durable=False) as part:
                    shutil.copyfile(Path(scratch) / database, part / database)
    with replacing_file(data_dir / database, durable=False) as part:
        shutil.copyfile(seed / database, part)


def _fast_dtype() -> str:
    """Return the fast dtype of this processor: without AVX-512, bfloat16 takes 1.5 times as long."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0]
        if "avx512bw" not in flags.split():
            return "float32"
    return "bfloat16"


def _context_tokens(model: Path) -> int:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    made_for = config.get("max_position_embeddings")
    return min(VLLM_CONTEXT_TOKENS, int(made_for or VLLM_CONTEXT_TOKENS))


def _child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1", **kept, **settings}


def _start(
    name: str, url: str, command: Sequence[str], settings: Mapping[str, str], log: Path | None
) -> ServerProcess:
    if log is None:
        log = Path(tempfile.mkdtemp(prefix="draftloop-")) / f"{name.lower().replace(' ', '-')}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_child_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = ServerProcess(name, url, log, process)
    atexit.register(server.stop)
    return server


def _wait_until_ready(server: ServerProcess, ready: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    try:
        while not ready():
            code = server.process.poll()
            if code is not None:
                raise ServerError(f"{server.name} ended with exit status {code}.\n{_tail(server.log)}")
            if time.monotonic() > end:
                raise ServerError(
                    f"{server.name} did not answer within {limit_s:.0f} s.\n{_tail(server.log)}"
                )
            time.sleep(0.25)
    except BaseException:
        server.stop()
        raise


def _get(url: str, **headers: str) -> int:
    try:
        return httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code
    except httpx.HTTPError:
        return 0


def _tail(log: Path, lines: int = 30) -> str:
    end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join([f"The end of {log}:", *(f"    {line}" for line in end)])


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
