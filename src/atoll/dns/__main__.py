"""`python -m atoll.dns FD RESOLV_CONF PORT`: the name server, started by `atoll.dns.child`. Ends when the other end of FD is closed."""

from __future__ import annotations

import resource
import signal
import socket
import sys

from atoll.dns.server import Server, close_others

#: Descriptors: a question under way has up to six, and `forward.UNDER_WAY` are.
_DESCRIPTORS = 65536


def main() -> None:
    fd, resolv_conf, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # The terminal's signals are for who uses the terminal.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    close_others(fd)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS), most))
    Server(socket.socket(fileno=fd), resolv_conf, port).serve()


main()
