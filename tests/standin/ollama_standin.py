"""A stand-in for `ollama`: reads a real store, speaks a script, answers as recorded, and misbehaves when asked to.

    ollama_standin.py serve | list | ps | --version

The environment is that of the real server, and: STANDIN_VERSION (0.13.5; 0.5.11 and 0.33.0-rc2 are known too),
STANDIN_LOAD_S, STANDIN_TOKEN_S, STANDIN_PING_S, STANDIN_GPU (a name: all in video memory), STANDIN_FAULT,
STANDIN_FAULT_FILE, STANDIN_CONTROL=1 (POST /standin/fault). GET /standin/state shows counters.
"""

from __future__ import annotations

import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import standin_client
import standin_show
from standin_engine import slog
from standin_http import Server
from standin_settings import Settings, exit_now
from standin_store import StoreError, go_error

if TYPE_CHECKING:
    from types import FrameType


def write_key(home: str) -> None:
    """The key pair that `serve` makes at its first start; here a text that is no key. Raises StoreError."""
    if not home:
        raise StoreError("$HOME is not defined")
    private = Path(home, ".ollama", "id_ed25519")
    if private.exists():
        return
    sys.stdout.write(f"Couldn't find '{private}'. Generating new private key.\n")
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"could not create directory {go_error('mkdir', error)}") from error
    public = f"ssh-ed25519 standin{secrets.token_urlsafe(32)}\n"
    try:
        private.touch(0o600)
        private.write_text("no key: written by a stand-in\n")
        private.with_suffix(".pub").write_text(public)
    except OSError as error:
        raise StoreError(go_error("open", error)) from error
    sys.stdout.write(f"Your new public key is: \n\n{public}\n")
    sys.stdout.flush()


def stop(number: int, frame: FrameType | None) -> None:
    exit_now(0)


def serve(settings: Settings) -> None:
    """Raises StoreError where the real server would not start."""
    signal.signal(signal.SIGTERM, stop)  # as PID 1 there is no default action
    signal.signal(signal.SIGINT, stop)
    write_key(settings.home)
    try:
        server = Server(settings)
    except OSError as error:
        raise StoreError(f"listen tcp {settings.host}:{settings.port}: {error.strerror}") from error
    standin_show.log_start(settings)
    server.store.prepare(prune=settings.prune, grace=settings.profile.new)
    host, port = ("[::]" if settings.host == "0.0.0.0" else settings.host), server.server_port
    slog("INFO", "routes.go:1607", f"Listening on {host}:{port} (version {settings.profile.version})")
    standin_show.log_devices(settings)
    server.engine.faults.current()
    server.serve_forever()


def main(words: list[str]) -> int:
    try:
        settings = Settings.from_environment(standin_client.environment())
        if words[:1] in (["serve"], ["start"]):
            serve(settings)
        return standin_client.run(words, settings)
    except (StoreError, ValueError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
