"""What is asked of an endpoint's inside beyond what its driver sets: settings of the kernel and flags of the interface, as operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.plan.operations import LinkTune, Operation, SysctlSet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from atoll.model import Endpoint, Tuning


def tuned(operations: Iterable[Operation], endpoint: Endpoint, namespace: str) -> list[Operation]:
    """The operations that make an endpoint's inside, and what was asked beyond them; where both speak of a setting, what was asked."""
    asked = endpoint.tuning.settings
    kept = [part for part in operations if not (isinstance(part, SysctlSet) and part.namespace == namespace and part.setting in asked)]
    return kept + changes(endpoint.tuning, endpoint.interface, namespace)


def changes(tuning: Tuning, interface: str, namespace: str) -> list[Operation]:
    """What makes it so, but for MAC address and MTU, which are the endpoint's own."""
    operations: list[Operation] = [SysctlSet(namespace, setting, value) for setting, value in tuning.settings.items()]
    if (tuning.promisc, tuning.allmulti, tuning.queue) != (None, None, None):
        operations.append(LinkTune(namespace, interface, tuning.promisc, tuning.allmulti, tuning.queue))
    return operations


def put_back(endpoint: Endpoint, namespace: str, others: Collection[Endpoint]) -> list[Operation]:
    """What a namespace's settings were before an endpoint that goes, with its interface; one that another endpoint asks for stays."""
    former = not_asked_by(others, endpoint.untuned.settings)
    return [SysctlSet(namespace, setting, value) for setting, value in former.items() if endpoint.interface not in setting.split("/")]


def not_asked_by(others: Iterable[Endpoint], settings: dict[str, str]) -> dict[str, str]:
    """Those of the settings that no other endpoint of the namespace asks for."""
    lasting = {setting for other in others for setting in other.tuning.settings}
    return {setting: value for setting, value in settings.items() if setting not in lasting}
