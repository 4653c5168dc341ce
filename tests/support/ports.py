"""Ports for what cannot listen on port 0 and say which it got."""

import secrets
import socket

# Below those that systems give to connections and to listeners on port 0. One of these would be
# given to somebody else too, in the time until it is used.
_PORTS = range(16384, 32768)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens, and which nobody is given by chance."""
    while True:
        port = secrets.choice(_PORTS)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
