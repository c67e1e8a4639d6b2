"""Start commands of xdoge as children of a process that has imported what they need.

Importing torch and transformers takes seconds, and a fork takes milliseconds. The server only imports and forks. It
starts no Python threads and uses no GPU, so that a child can do everything that a new interpreter can do. CUDA does not
work after a fork. So if an import has initialised CUDA, the child replaces itself by a new interpreter. Requests and
replies are lines of JSON over two pipes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Protocol

from xdoge.errors import XDogeError

MODULES = (
    "transformers.models.llama.modeling_llama",
    "xdoge.cli",
    "xdoge.eval.perplexity",
    "xdoge.fit.trainer",
    "xdoge.train.trainer",
)
"""Modules that the commands of a study import and that take long to import."""


class Command(Protocol):
    """A running command, with the methods of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Return the exit status, negative for the number of a signal; None while the command runs."""

    def wait(self) -> int:
        """Return the exit status once the command has ended."""

    def terminate(self) -> None:
        """Ask the command to stop."""

    def kill(self) -> None:
        """End the command."""


class Launcher:
    """Starts commands, each in a process group of its own.

    Args:
        environment: environment variables of all commands.
        forks: whether to fork commands from a server, which starts with the first command. Otherwise, and if the server
            has ended, each command is a new interpreter.
        modules: modules that the server imports.
    """

    def __init__(self, environment: Mapping[str, str], *, forks: bool, modules: Sequence[str] = MODULES) -> None:
        self._environment, self._modules = environment, modules
        self._forks = forks and sys.platform == "linux"
        self._server: _Server | None = None

    def ready(self) -> bool:
        """Return whether `start` would start a command at once. The first call starts the server."""
        if self._forks:
            self._server = self._server or _Server(self._environment, self._modules)
        return self._server is None or self._server.ready()

    def start(self, arguments: Sequence[str], log: Path) -> Command:
        """Start a command that appends what it prints to a log."""
        if self._server is not None and self._forks:
            try:
                return self._server.start(arguments, log)
            except ServerLostError:
                self._forks = False
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "xdoge", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self._environment,
                process_group=0,
            )

    def close(self) -> None:
        """End the server. Running commands continue."""
        if self._server is not None:
            self._server.close()


class ServerLostError(Exception):
    """The server has ended."""


class _Server:
    """The parent's connection to the server."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        self._is_ready = False

    def ready(self) -> bool:
        """Return whether the server answers at once: it has imported everything, or it has ended."""
        assert self.process.stdout
        if not self._is_ready and select.select([self.process.stdout], [], [], 0)[0]:
            self.process.stdout.readline()
            self._is_ready = True
        return self._is_ready

    def ask(self, **request: Any) -> Any:
        """Send a request and return the reply.

        Raises:
            ServerLostError: the server has ended.
        """
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            while not select.select([self.process.stdout], [], [], 0.1)[0]:
                if self.process.poll() is not None:  # its commands may keep the pipe open
                    raise ServerLostError
            if reply := self.process.stdout.readline():
                return json.loads(reply)
        raise ServerLostError

    def start(self, arguments: Sequence[str], log: Path) -> _Fork:
        return _Fork(self, self.ask(start=list(arguments), log=str(log)))

    def close(self) -> None:
        self.process.kill()  # it may still be importing
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close() if pipe else None
        self.process.wait()  # not for the end of its output, since a command may keep that open


class _Fork(Command):
    """A command that the server forked."""

    def __init__(self, server: _Server, pid: int) -> None:
        self.pid, self._server = pid, server
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            try:
                self._status = self._server.ask(poll=self.pid)
            except ServerLostError:  # the status is lost
                self.kill()
                self._status = -signal.SIGKILL
        return self._status

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.01)
        return status

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def serve() -> None:
    """Import the modules named in the arguments, print an empty line, and serve requests until stdin is closed."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no reply
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a command unblocks them later, so that none is lost before
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError, XDogeError):  # the command that needs it reports the error
            importlib.import_module(name)
    gc.freeze()  # or a garbage collection in a child would copy all of this memory
    print(file=replies, flush=True)
    context = multiprocessing.get_context("fork")
    commands: dict[int | None, ForkProcess] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            reply = commands[request["poll"]].exitcode
        else:
            now = request["start"], request["log"], threading.active_count(), replies.fileno()
            command = context.Process(target=_become, args=now)
            command.start()
            reply = command.pid
            assert reply
            with contextlib.suppress(OSError):  # the command does this too, and it may have ended
                os.setpgid(reply, reply)
            commands[reply] = command
        print(json.dumps(reply), file=replies, flush=True)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _become(arguments: list[str], log: str, threads: int, replies: int) -> None:
    """Run a command in this process, which a server forked.

    Args:
        arguments: of `xdoge`.
        log: path of the file that gets what it prints.
        threads: number of threads of the server.
        replies: the server's file descriptor of that number, which is closed.
    """
    os.close(replies)
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for name, flags, numbers in ((os.devnull, os.O_RDONLY, [0]), (log, os.O_WRONLY | os.O_APPEND, [1, 2])):
        file = os.open(name, flags)
        for number in numbers:
            os.dup2(file, number)
        os.close(file)
    torch = sys.modules.get("torch")
    if threads > 1 or (torch and torch.cuda._is_in_bad_fork()):
        os.execv(sys.executable, [sys.executable, "-m", "xdoge", *arguments])
    module = sys.modules["__main__"] = importlib.import_module("xdoge.__main__")  # its name is shown in help texts
    sys.argv = [str(module.__file__), *arguments]
    try:
        module.main()
    finally:
        atexit._run_exitfuncs()  # a forked process does not run these by itself
