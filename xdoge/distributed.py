"""The processes of one distributed job: rank, world size, device, collectives, and signals."""

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
"""Seconds. A process that received a signal waits this long for others that do not answer, then exits.

torchrun kills after 30 seconds.
"""

ROLL_CALL = 5.0
"""Seconds. After a lost connection, a process waits this long for the others to report that they are alive."""


@dataclass(frozen=True)
class Processes:
    """The processes of a job, as one of them sees them.

    torchrun or `accelerate launch` starts several processes. Without them there is one.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        device: torch device of this process, such as "cpu" or "cuda:0".
    """

    rank: int
    world_size: int
    device: str

    @classmethod
    def join(cls, *, cpu: bool, timeout: float | None = None) -> Self:
        """Join the processes of the job that the environment variables describe.

        accelerate is imported only if there are several processes.

        Args:
            cpu: use the CPU even if there is a GPU.
            timeout: seconds after which a process that does not answer counts as lost. None is torch's default.

        Raises:
            LostProcessError: the processes did not connect.
        """
        with importing("proxy"):
            import torch
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, "cuda" if torch.cuda.is_available() and not cpu else "cpu")
        from accelerate import PartialState  # type: ignore[import-untyped]

        _watch_signals()  # before connecting, since another process may never connect
        options = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
        try:
            state = PartialState(cpu=cpu or not torch.cuda.is_available(), **options)
        except torch.distributed.DistError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise LostProcessError(f"the processes did not meet at {where}: {str(error).splitlines()[0]}") from error
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def is_first(self) -> bool:
        """Whether this process, rank 0, is the one that writes files and reports."""
        return self.rank == 0

    def end_group_at_exit(self) -> None:
        """Destroy torch's process group when Python exits. Otherwise some processes abort at exit.

        The group is kept until then, because a launcher's processes cannot create it a second time for their next job.
        """
        if self.world_size > 1:
            atexit.unregister(_end_group)
            atexit.register(_end_group)

    @contextlib.contextmanager
    def closing_group(self) -> Iterator[None]:
        """Destroy the process group at exit if the block succeeds or is interrupted.

        After any other error it is not destroyed, because other processes may be in the middle of a collective.
        """
        try:
            yield
        except Interrupted:
            self.end_group_at_exit()
            raise
        self.end_group_at_exit()

    def precision(self) -> str:
        """Return "bfloat16" if the device is a GPU that supports it, else "float32"."""
        import torch

        return "bfloat16" if self.device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"

    def all_reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of `values` over all processes, on each process."""
        if self.world_size == 1:
            return values
        import torch

        summed = torch.from_numpy(values).to(self.device)
        self.wait(self.all_reduce_async(summed))
        return np.asarray(summed.cpu().numpy())

    def all_reduce_async(self, tensor: torch.Tensor, *, largest: bool = False) -> Any:
        """Start to replace `tensor` by its sum over all processes, and return a handle for `wait`.

        Every process must start the same reductions in the same order.

        Args:
            tensor: summed in place.
            largest: take the maximum instead of the sum.
        """
        import torch

        op = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        with self._answering():
            return torch.distributed.all_reduce(tensor, op=op, async_op=True)

    def send_async(self, tensor: torch.Tensor, to: int, number: int) -> Any:
        """Start to send `tensor` to rank `to` with tag `number`, and return a handle for `wait`."""
        import torch

        with self._answering():
            return torch.distributed.isend(tensor, to, tag=number)

    def receive_async(self, tensor: torch.Tensor, of: int, number: int) -> Any:
        """Start to receive into `tensor` what rank `of` sends with tag `number`, and return a handle for `wait`."""
        import torch

        with self._answering():
            return torch.distributed.irecv(tensor, of, tag=number)

    def wait(self, work: Any) -> None:
        """Wait for an asynchronous operation to finish.

        Args:
            work: handle that an `_async` method returned.

        Raises:
            LostProcessError: a process died or did not answer in time.
        """
        with self._answering():
            work.wait()

    def all_reduce_max(self, value: int) -> int:
        """Return the largest `value` of all processes, on each process."""
        if self.world_size == 1:
            return value
        import torch

        tensor = torch.tensor([value], device=self.device)
        self.wait(self.all_reduce_async(tensor, largest=True))
        return int(tensor.item())

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors of all processes, concatenated along dimension 0 in the order of ranks.

        The tensors must have the same shape.
        """
        if self.world_size == 1:
            return tensor
        import torch

        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with self._answering():
            torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast(self, value: Any) -> Any:
        """Return the `value` of process 0, on each process."""
        if self.world_size == 1:
            return value
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

        with self._answering():
            return broadcast_object_list([value])[0]

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on process 0, and return its result or raise its XDogeError on every process.

        If only one process raised an error, the others would wait for it.
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
        """Hold `context` on process 0. If entering it raises an XDogeError, every process raises that error."""
        with contextlib.ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(context))
            yield

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all processes in the order of ranks, on each process."""
        if self.world_size == 1:
            return [value]
        import torch

        values = [None] * self.world_size
        with self._answering():
            torch.distributed.all_gather_object(values, value)
        return values

    def refuse_differences(self, facts: Mapping[str, Any]) -> None:
        """Raise an error if the processes have different data, settings or versions of xdoge.

        Args:
            facts: everything that the results depend on, as nested mappings. Every process passes its own.

        Raises:
            XDogeError: a process differs from process 0. Every process raises the same message.
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
        """Turn torch's errors about closed connections and timeouts into a LostProcessError that names the process."""
        try:
            yield
        except RuntimeError as error:
            lost = self._missing()
            if not lost:  # every process is alive, so the error has another cause
                raise
            named = ", ".join(map(str, lost))
            raise LostProcessError(
                f"process {named} of {self.world_size} (numbered from 0) died or no longer answers, so process "
                f"{self.rank} stops. Its own messages say why. What was saved is kept, so the run can be resumed."
            ) from error

    def _missing(self) -> list[int]:
        """Return the ranks that are lost.

        Every process that loses a connection reports in torch's shared store. Those that do not report are lost.
        """
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
            return [0]  # process 0 or its launcher hosts the store, and has ended
        return missing


ALONE = Processes(rank=0, world_size=1, device="cpu")
"""The only process of a job, on the CPU."""


def _watch_signals() -> None:
    """Let a signal end this process even while it waits for another process inside torch.

    Python runs its signal handlers only between bytecodes, so not while torch waits. The C-level handler, however, also
    writes the number of the signal to a socket. A thread of ours reads it there.
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
    """Wait for a signal, then exit once this process has neither computed nor written for `PATIENCE` seconds."""
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
    """Yield a list to which SIGINT and SIGTERM are appended, so that the caller can finish its step.

    A second Ctrl-C interrupts at once. A second SIGTERM is only appended, because under torchrun every process gets one
    from the scheduler and one from torchrun.
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
        if handler is not signal.SIG_IGN:  # a shell makes background jobs ignore SIGINT; leave that
            signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
