"""A small process that lets go on what its parent has stopped, should the parent die before it does so itself.

Run as a script, so that it starts in milliseconds and imports nothing of the package. It leads a session of its own: no
signal to its parent's group reaches it. The parent writes lines to its standard input: `stopped PID:STARTED …` before
it stops processes, `resumed` when it has let them all go on.
"""

import contextlib
import os
import select
import signal
import sys

PATIENCE_S = 0.2
"""How often it looks whether its parent lives: another process may have inherited the pipe's other end."""


def main() -> None:
    """Reads until the parent has closed the pipe, or is gone; lets go on what is stopped then."""
    parent, name = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:  # noqa: PTH123
        comm.write(name)
    held: set[str] = set()
    buffer = b""
    while True:
        ready = select.select([0], [], [], PATIENCE_S if held else 10 * PATIENCE_S)[0]
        chunk = os.read(0, 1 << 16) if ready else b""
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            kind, *told = line.decode().split()
            held = held | set(told) if kind == "stopped" else set()
        if (ready and not chunk) or (not ready and os.getppid() != parent):
            break
    for one in held:
        resume(*map(int, one.split(":")))


def resume(pid: int, started: int) -> None:
    """Lets `pid` go on if it is still the process that `started` then."""
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
        if int(fields[19]) == started:
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
