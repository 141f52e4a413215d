"""Another Python beside this one, with a socket between them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from ....system.signals import STOP_SIGNALS


def start_python(module: str, connection: socket.socket) -> subprocess.Popen[bytes]:
    """`python -m` with a socket's number as its argument, in an interpreter that imports from where this one does. Here
    the socket is closed.

    Ctrl-C in a terminal, and SIGTERM of systemd, come to both processes: the new one leaves it to this one what to
    do about them. So they are blocked when it starts.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    command = [sys.executable, "-P", "-m", module, str(connection.fileno())]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with connection:
            return subprocess.Popen(
                command,
                pass_fds=[connection.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
