"""Run one real server in the foreground, installing its environment if it is missing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from scripts import servers

app = typer.Typer(
    add_completion=False,
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Port = Annotated[int, typer.Option(help="Wanted port; another free one is taken if it is in use.")]
_LabelStudioUrl = Annotated[str, typer.Option(envvar="LABEL_STUDIO_URL", help="Address of Label Studio.")]
_ApiKey = Annotated[str, typer.Option(envvar="LABEL_STUDIO_API_KEY", help="Legacy or personal access token.")]


@app.command()
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
    _install("label-studio")
    server = servers.start_label_studio(
        data_dir.resolve(), username=username, password=password, token=token, port=port, host=host
    )
    print(f"user {username}, password {password}, token {token}")
    _follow(server)


@app.command()
def vllm(
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = servers.ROOT
    / "models"
    / "tiny-qwen3",
    name: Annotated[str, typer.Option(help="Name that requests use.")] = "tiny-qwen3",
    port: _Port = 8000,
    flag: Annotated[
        list[str] | None, typer.Option(help="One more vLLM flag, as --flag=--name=value.")
    ] = None,
    lora_rank: Annotated[
        int,
        typer.Option(help="Take adapters up to this rank while it runs, as scripts/promote wants; 0: none."),
    ] = 16,
) -> None:
    """Run vLLM on the CPU with the flags that were measured to work."""
    _install("vllm")
    _follow(servers.start_vllm(model, served_name=name, port=port, extra=flag or (), lora_rank=lora_rank))


@app.command()
def backend(port: _Port = 9090) -> None:
    """Run the backend; it reads the environment variables that README.md lists."""
    _follow(servers.start_backend(os.environ, port=port))


def _install(name: str) -> None:
    subprocess.run([str(servers.ROOT / "scripts" / "setup"), name], check=True)


def _follow(server: servers.Server) -> NoReturn:
    """Copy the server's log to the terminal until it ends or Ctrl-C comes."""
    print(f"{server.name} answers at {server.url}; its log is {server.log}; Ctrl-C stops it.", flush=True)
    code: int | None = None
    with server, server.log.open(encoding="utf-8", errors="replace") as log:
        while code is None:
            code = server.process.poll()
            print(log.read(), end="", flush=True)
            time.sleep(0.3)
    raise SystemExit(f"{server.name} ended with exit status {code}.")


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app(prog_name="scripts/serve")
    except servers.ServerError as error:
        sys.exit(f"scripts/serve: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # scripts/setup has said why


if __name__ == "__main__":
    main()
