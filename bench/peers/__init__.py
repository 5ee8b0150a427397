"""What Atoll is compared with: each module drives the real program and gives variants of the rows in which it has a place."""

from __future__ import annotations
