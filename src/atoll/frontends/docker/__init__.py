"""The front door for Docker: its remote network driver and its IPAM driver, on one socket, and what follows Docker's events."""

from atoll.frontends.docker.door import Door
from atoll.frontends.docker.server import application
from atoll.frontends.docker.watch import Watch

__all__ = ["Door", "Watch", "application"]
