"""Run one real server in the foreground: the backend where no other is named.

The backend reads the environment variables that docs/reference/settings.md lists. The environments of
Label Studio and of vLLM are installed first where they are missing.

    draftloop serve --port 9090
    draftloop serve vllm --model demo/models/tiny-qwen3
    draftloop serve vllm --check
    draftloop serve label-studio
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from draftloop.cli import servers
from draftloop.cli.commands import Verbs, app
from draftloop.cli.terminal import err, out, plain_errors
from draftloop.support.environments import MODELS, SETUP

cli = app()
_AGAIN = "Run the same command again."

_Port = Annotated[int, typer.Option(help="Wanted port; another free one is taken if it is in use.")]
_BackendPort = Annotated[
    int, typer.Option(envvar="PORT", help="Wanted port; another free one is taken if it is in use.")
]
_Host = Annotated[str, typer.Option(help="Address to listen on; for others than 127.0.0.1 it needs a login.")]
_Workers = Annotated[int, typer.Option(envvar="WORKERS", min=1, help="Processes.")]
_Threads = Annotated[int, typer.Option(envvar="THREADS", min=1, help="Tasks at once in each process.")]


@cli.callback(cls=Verbs, help=__doc__, invoke_without_command=True)
def main(
    context: typer.Context,
    port: _BackendPort = 9090,
    host: _Host = servers.LOCALHOST,
    workers: _Workers = 1,
    threads: _Threads = 64,
) -> None:
    """Run the backend where no other server is named."""
    if context.invoked_subcommand is None:
        backend(port, host, workers, threads)


@cli.command()
def backend(
    port: _BackendPort = 9090,
    host: _Host = servers.LOCALHOST,
    workers: _Workers = 1,
    threads: _Threads = 64,
) -> None:
    """Run the backend; its settings are environment variables: docs/reference/settings.md."""
    with plain_errors(_AGAIN):
        free = servers.free_port(port)
        out.print(f"The backend listens at http://{host}:{free}; Ctrl-C stops it.")
        command = servers.gunicorn(sys.executable, f"{host}:{free}", workers=workers, threads=threads)
        sys.stdout.flush()
        os.execv(command[0], command)


@cli.command()
def label_studio(
    data_dir: Annotated[Path, typer.Option(help="Folder of its database and files.")] = Path(
        "out/label-studio"
    ),
    port: _Port = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = servers.LOCALHOST,
    username: Annotated[str, typer.Option(help="E-mail of the first user.")] = "admin@example.com",
    password: Annotated[str, typer.Option(help="Password of the first user.")] = "draftloop",  # noqa: S107
    token: Annotated[str, typer.Option(help="Legacy API token of the first user.")] = "draftloop-local-token",  # noqa: S107
) -> None:
    """Run Label Studio on SQLite, with everything that phones home switched off."""
    with plain_errors(_AGAIN):
        _install("label-studio")
        server = servers.start_label_studio(
            data_dir.resolve(), username=username, password=password, token=token, port=port, host=host
        )
        out.out(f"user {username}, password {password}, token {token}")
        _follow(server)


@cli.command()
def vllm(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = MODELS / "tiny-qwen3",
    name: Annotated[str, typer.Option(help="Name that requests use.")] = "tiny-qwen3",
    port: _Port = 8000,
    flag: Annotated[
        list[str] | None, typer.Option(help="One more vLLM flag, as --flag=--name=value.")
    ] = None,
    lora_rank: Annotated[
        int,
        typer.Option(
            help="Take adapters up to this rank while it runs, as draftloop promote wants; 0: none."
        ),
    ] = 16,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Start nothing: say what is wrong with the server that runs at MODEL_URL, as MODEL_NAME, "
            "MODEL_API_KEY and the other settings of the backend have it; exit 1 if anything is.",
        ),
    ] = False,
) -> None:
    """Run vLLM on the CPU with the flags that were measured to work, or check any server that runs."""
    with plain_errors(_AGAIN):
        if check:
            _check()
            return
        _install("vllm")
        _follow(servers.start_vllm(model, served_name=name, port=port, extra=flag or (), lora_rank=lora_rank))


def _check() -> None:
    # It brings the parts of the server along, which the other servers need not wait for.
    from draftloop.app import check_model_servers  # noqa: PLC0415
    from draftloop.settings import Settings  # noqa: PLC0415

    settings = Settings()
    warnings = check_model_servers(settings)
    for warning in warnings:
        err.print(f"[red]error:[/red] {escape(warning)}")
    if warnings:
        raise typer.Exit(1)
    out.out(f"{settings.model.url} serves {settings.model.name} as drafts need it.")
    out.out("Next: draftloop serve backend")


def _install(name: str) -> None:
    code = subprocess.run(["bash", str(SETUP), name], check=False).returncode
    if code:
        raise typer.Exit(code)  # the script has said why


def _follow(server: servers.ServerProcess) -> NoReturn:
    """Copy the server's log to the terminal until it ends or Ctrl-C comes."""
    out.out(f"{server.name} answers at {server.url}; its log is {server.log}; Ctrl-C stops it.")
    code: int | None = None
    with server, server.log.open(encoding="utf-8", errors="replace") as log:
        while code is None:
            code = server.process.poll()
            print(log.read(), end="", flush=True)
            time.sleep(0.3)
    raise SystemExit(f"{server.name} ended with exit status {code}.")
