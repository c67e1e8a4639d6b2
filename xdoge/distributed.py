"""The processes that share one job: how many they are, which of them this is, and how their numbers come together."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from xdoge._version import __version__
from xdoge.errors import Interrupted, LostProcessError, XDogeError, importing
from xdoge.io import flatten, writing
from xdoge.names import shown

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that a process which was told to stop waits for another that does not answer; torchrun kills after 30."""

ROLL_CALL = 5.0
"""Seconds that a process which lost another waits for the rest to say that they are there."""


@dataclass(frozen=True)
class Processes:
    """The processes that torchrun or `accelerate launch` started, or the only one, and the device of this one."""

    rank: int
    world_size: int
    device: str

    @classmethod
    def join(cls, *, cpu: bool, timeout: float | None = None) -> Self:
        """Return where this process stands among them; accelerate is asked only if there are others.

        Args:
            cpu: use the CPU where there is a GPU.
            timeout: seconds after which a process that does not answer is lost; None leaves it to torch.
        """
        with importing("proxy"):
            import torch
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, "cuda" if torch.cuda.is_available() and not cpu else "cpu")
        from accelerate import PartialState  # type: ignore[import-untyped]

        _watch_signals()  # before the processes meet: one of them may never come
        options = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
        try:
            state = PartialState(cpu=cpu or not torch.cuda.is_available(), **options)
        except torch.distributed.DistError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise LostProcessError(f"the processes did not meet at {where}: {str(error).splitlines()[0]}") from error
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def end_group_at_exit(self) -> None:
        """Have the group of processes ended at exit; without that some of them abort there.

        Until then it stays, for the next job of these processes: a group of the same launcher cannot be made twice.
        """
        if self.world_size > 1:
            atexit.unregister(_end_group)
            atexit.register(_end_group)

    @contextlib.contextmanager
    def closing_group(self) -> Iterator[None]:
        """Leave at the end, but not after an error: the others may be waiting in the middle of something."""
        try:
            yield
        except Interrupted:
            self.end_group_at_exit()
            raise
        self.end_group_at_exit()

    def precision(self) -> str:
        """Return bfloat16 where the GPU has it."""
        import torch

        return "bfloat16" if self.device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"

    def all_reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over processes, in each of them."""
        if self.world_size == 1:
            return values
        import torch

        summed = torch.from_numpy(values).to(self.device)
        self.wait(self.all_reduce_async(summed))
        return np.asarray(summed.cpu().numpy())

    def all_reduce_async(self, tensor: torch.Tensor, *, largest: bool = False) -> Any:
        """Begin to put the sum over processes (or the largest of theirs) in the tensor's place; see `wait`.

        Every process begins the same sums in the same order.
        """
        import torch

        op = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        with self._answering():
            return torch.distributed.all_reduce(tensor, op=op, async_op=True)

    def send_async(self, tensor: torch.Tensor, to: int, number: int) -> Any:
        """Begin to send a tensor, the `number`-th of this pair of processes; see `wait`."""
        import torch

        with self._answering():
            return torch.distributed.isend(tensor, to, tag=number)

    def receive_async(self, tensor: torch.Tensor, of: int, number: int) -> Any:
        """Begin to receive what another process sends under that number into the tensor's place; see `wait`."""
        import torch

        with self._answering():
            return torch.distributed.irecv(tensor, of, tag=number)

    def wait(self, work: Any) -> None:
        """Wait until what was begun is there.

        Raises:
            LostProcessError: a process died or does not answer in time.
        """
        with self._answering():
            work.wait()

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the processes' values, in each of them."""
        if self.world_size == 1:
            return value
        import torch

        tensor = torch.tensor([value], device=self.device)
        self.wait(self.all_reduce_async(tensor, largest=True))
        return int(tensor.item())

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the processes' tensors of one shape behind each other, in the order of their ranks."""
        if self.world_size == 1:
            return tensor
        import torch

        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._answering():
            torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value, in each of them."""
        if self.world_size == 1:
            return value
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

        with self._answering():
            return broadcast_object_list([value])[0]

    def on_first(self, action: Callable[[], T]) -> T:
        """Run an action on the first process; return its result, or raise its error, in each of them.

        A process that refused alone would leave the others waiting for it.
        """
        result, error = None, None
        if self.is_first:
            try:
                result = action()
            except XDogeError as caught:
                error = caught
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        value: T = result
        return value

    @contextlib.contextmanager
    def within_on_first(self, context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        """Hold a context on the first process; where it cannot be entered, each of them raises its error."""
        with contextlib.ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(context))
            yield

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of their ranks, in each of them."""
        if self.world_size == 1:
            return [value]
        import torch

        values = [None] * self.world_size
        with self._answering():
            torch.distributed.all_gather_object(values, value)
        return values

    def refuse_differences(self, facts: Mapping[str, Any]) -> None:
        """Refuse to work on other data, settings or versions than the other processes.

        Args:
            facts: what decides the numbers, each leaf by its own key; every process calls this with its own.

        Raises:
            XDogeError: names the process and what differs; every process raises the same.
        """
        if self.world_size == 1:
            return
        mine = dict(flatten({"xdoge": __version__, **facts}))
        first, *others = self.all_gather_objects(mine)
        for rank, theirs in enumerate(others, start=1):
            if different := [key for key in first | theirs if first.get(key) != theirs.get(key)]:
                parts = (f"{key} is {shown(theirs.get(key))}, not {shown(first.get(key))}" for key in different[:3])
                more = f" ({len(different) - 3} more)" if len(different) > 3 else ""
                raise XDogeError(
                    f"process {rank} of {self.world_size} (numbered from 0) differs from process 0: {'; '.join(parts)}"
                    f"{more}. Give all processes the same store, settings and version of xdoge."
                )

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Say which process is gone, where torch says that a connection is closed or that time is out."""
        try:
            yield
        except RuntimeError as error:
            lost = self._missing()
            if not lost:  # all are there, so it is something else
                raise
            named = ", ".join(map(str, lost))
            raise LostProcessError(
                f"process {named} of {self.world_size} (numbered from 0) died or no longer answers, so process "
                f"{self.rank} stops. Its own messages say why. What was saved is kept, so the run can be resumed."
            ) from error

    def _missing(self) -> list[int]:
        """Return who does not say, through the store that all connected to, that it lost somebody as well."""
        import torch

        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            store.set(f"xdoge/{self.rank}", "here")
            until = time.monotonic() + ROLL_CALL
            missing = [rank for rank in range(self.world_size) if rank != self.rank]
            while missing and time.monotonic() < until:
                missing = [rank for rank in missing if not store.check([f"xdoge/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:
            return [0]  # the store lived in the first process, or in the launcher that ended with it
        return missing


ALONE = Processes(rank=0, world_size=1, device="cpu")
"""A process that works by itself."""


def _watch_signals() -> None:
    """Let SIGTERM end this process although it waits for another, in code of torch that no Python handler interrupts.

    The operating system's handler also writes the signal's number to a socket, which a thread of our own reads.
    """
    if threading.current_thread() is threading.main_thread() and not _watched:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: _watched and signal.set_wakeup_fd(-1))
        _watched.extend((reader, writer))
        threading.Thread(target=_leave_if_stuck, args=(reader,), daemon=True).start()


_watched: list[socket.socket] = []


def _leave_if_stuck(reader: socket.socket) -> None:
    """Exit after a signal if this process has neither computed nor written for `PATIENCE` seconds."""
    while (number := reader.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    since, used = time.monotonic(), time.process_time()
    while time.monotonic() < since + PATIENCE:
        time.sleep(0.5)
        now = time.process_time()
        if writing() or now - used > 0.1 * PATIENCE:
            since, used = time.monotonic(), now
    rank, seconds = os.environ.get("RANK"), f"{PATIENCE:.0f} seconds"
    line = f"process {rank} stopped after it had waited {seconds} for the others. What was saved is kept.\n"
    os.write(2, line.encode())
    os._exit(128 + number)


def _end_group() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives SIGINT or SIGTERM, so that the running step can end; a second Ctrl-C ends at once.

    A second SIGTERM does nothing: under torchrun the scheduler's comes to every process, and torchrun's after it.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as of a job that a shell put in the background
            signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
