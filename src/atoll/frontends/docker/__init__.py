"""The front door for Docker: its remote network driver and its IPAM driver, on one socket."""

from atoll.frontends.docker.door import Door
from atoll.frontends.docker.server import application

__all__ = ["Door", "application"]
