"""The front doors: what Docker, Podman and CNI runtimes ask, in Atoll's words. They translate; the engine does the work."""

from __future__ import annotations

from typing import Final

#: The label that says of a network which door it was made for: docker, podman or cni.
DOOR_LABEL: Final = "atoll.door"
