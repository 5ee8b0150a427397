"""The keys of a document: which are used, which are known to Compose and not used; and the JSON schema for editors, made of the same."""

from __future__ import annotations

from typing import Any, Final

from atoll.model import DRIVERS, PREDEFINED, PROTOCOLS

_TEXT: Final[dict[str, Any]] = {"type": ["string", "number", "boolean"]}
_BOOLEAN: Final[dict[str, Any]] = {"type": ["boolean", "string"]}
_NUMBER: Final[dict[str, Any]] = {"type": ["integer", "string"]}
_WORDS: Final[dict[str, Any]] = {"type": "array", "items": _TEXT}
_WORD_OR_WORDS: Final[dict[str, Any]] = {"oneOf": [{"type": "string"}, _WORDS]}
_PAIRS: Final[dict[str, Any]] = {
    "oneOf": [_WORDS, {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}]
}
_ANYTHING: Final[dict[str, Any]] = {}
_EXTENSION: Final = {"^x-": _ANYTHING}


def _object(used: dict[str, Any], unused: tuple[str, ...] = (), *, empty: bool = True) -> dict[str, Any]:
    properties = used | {key: {"description": "Known to Compose, not used by Atoll."} for key in unused}
    return {
        "type": ["object", "null"] if empty else "object",
        "properties": properties,
        "patternProperties": _EXTENSION,
        "additionalProperties": False,
    }


#: What a network may say under `x-atoll`.
NETWORK_EXTRAS: Final[dict[str, Any]] = {
    "icc": _BOOLEAN | {"description": "Whether endpoints may talk to each other."},
    "mtu": _NUMBER | {"description": "Bytes."},
    "nat": {"enum": ["masquerade", "routed"], "description": "How packets leave: with the host's address, or with their own."},
    "guard": _BOOLEAN | {"description": "Whether an endpoint may send only from its own addresses."},
    "dns": {
        "oneOf": [_BOOLEAN, _WORDS],
        "description": "Whether the gateway answers for names, or the servers that it asks about the world outside.",
    },
}
IPAM_CONFIG: Final[dict[str, Any]] = {
    "subnet": {"type": "string"},
    "gateway": {"type": "string"},
    "ip_range": {"type": "string"},
    "aux_addresses": {"type": "object", "additionalProperties": {"type": "string"}},
}
IPAM: Final[dict[str, Any]] = {
    "driver": {"enum": ["default"]},
    "config": {"type": "array", "items": _object(IPAM_CONFIG, empty=False)},
}
IPAM_UNUSED: Final = ("options",)
NETWORK: Final[dict[str, Any]] = {
    "name": {"type": "string", "description": "Its name on the host; PROJECT_NAME if none is given."},
    "driver": {"enum": ["default", *(driver for driver in DRIVERS if driver not in PREDEFINED)]},
    "driver_opts": _PAIRS,
    "ipam": _object(IPAM, IPAM_UNUSED),
    "internal": _BOOLEAN,
    "enable_ipv4": _BOOLEAN,
    "enable_ipv6": _BOOLEAN,
    "labels": _PAIRS,
    "external": {"oneOf": [_BOOLEAN, _object({"name": {"type": "string"}}, empty=False)]},
    "attachable": _BOOLEAN,
    "x-atoll": _object(NETWORK_EXTRAS),
}
CONNECTION: Final[dict[str, Any]] = {
    "aliases": _WORDS,
    "ipv4_address": {"type": "string"},
    "ipv6_address": {"type": "string"},
    "mac_address": {"type": "string"},
    "interface_name": {"type": "string"},
    "gw_priority": _NUMBER | {"description": "The network with the highest has the default route."},
    "priority": _NUMBER | {"description": "The network with the highest is connected first."},
}
CONNECTION_UNUSED: Final = ("link_local_ips", "driver_opts")
PORT: Final[dict[str, Any]] = {
    "target": _NUMBER,
    "published": _NUMBER,
    "host_ip": {"type": "string"},
    "protocol": {"enum": list(PROTOCOLS)},
}
PORT_UNUSED: Final = ("mode", "name", "app_protocol")
SERVICE_EXTRAS: Final[dict[str, Any]] = {
    "command": _WORD_OR_WORDS | {"description": "Run this here, although the service has an image."},
}
SERVICE: Final[dict[str, Any]] = {
    "command": _WORD_OR_WORDS,
    "entrypoint": _WORD_OR_WORDS,
    "networks": {"oneOf": [_WORDS, {"type": "object", "additionalProperties": _object(CONNECTION, CONNECTION_UNUSED)}]},
    "ports": {"type": "array", "items": {"oneOf": [_TEXT, _object(PORT, PORT_UNUSED, empty=False)]}},
    "network_mode": {"type": "string", "pattern": "^(none|host|bridge|service:.+)$"},
    "mac_address": {"type": "string"},
    "hostname": {"type": "string"},
    "dns": _WORD_OR_WORDS | {"description": "Name servers to ask about the world outside."},
    "environment": _PAIRS,
    "env_file": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "object"]}}]},
    "working_dir": {"type": "string"},
    "user": _TEXT,
    "labels": _PAIRS,
    "depends_on": {"oneOf": [_WORDS, {"type": "object"}]},
    "scale": _NUMBER,
    "deploy": {"type": "object", "properties": {"replicas": _NUMBER}},
    "expose": _WORDS,
    "container_name": {"type": "string"},
    "profiles": _WORDS,
    "x-atoll": _object(SERVICE_EXTRAS),
}
#: Known to Compose; about images, files, limits, health and the like.
SERVICE_UNUSED: Final = (
    "annotations",
    "attach",
    "blkio_config",
    "build",
    "cap_add",
    "cap_drop",
    "cgroup",
    "cgroup_parent",
    "configs",
    "cpu_count",
    "cpu_percent",
    "cpu_period",
    "cpu_quota",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpu_shares",
    "cpus",
    "cpuset",
    "credential_spec",
    "develop",
    "device_cgroup_rules",
    "devices",
    "dns_opt",
    "dns_search",
    "domainname",
    "external_links",
    "extra_hosts",
    "gpus",
    "group_add",
    "healthcheck",
    "image",
    "init",
    "ipc",
    "isolation",
    "label_file",
    "links",
    "logging",
    "mem_limit",
    "mem_reservation",
    "mem_swappiness",
    "memswap_limit",
    "models",
    "oom_kill_disable",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "post_start",
    "pre_stop",
    "privileged",
    "provider",
    "pull_policy",
    "read_only",
    "restart",
    "runtime",
    "secrets",
    "security_opt",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "storage_opt",
    "sysctls",
    "tmpfs",
    "tty",
    "ulimits",
    "use_api_socket",
    "userns_mode",
    "uts",
    "volume_driver",
    "volumes",
    "volumes_from",
)
DOCUMENT: Final[dict[str, Any]] = {
    "name": {"type": "string", "description": "The project's name; the folder's if none is given."},
    "version": _TEXT | {"description": "Compose's, of old. Not used."},
    "networks": {"type": ["object", "null"], "additionalProperties": _object(NETWORK)},
    "services": {"type": ["object", "null"], "additionalProperties": _object(SERVICE, SERVICE_UNUSED)},
}
DOCUMENT_UNUSED: Final = ("volumes", "configs", "secrets", "models")
#: These would change what a document says, so leaving them out would be a lie.
REFUSED: Final = {
    "include": "write its services and networks here",
    "extends": "use a YAML anchor and <<: for what services share",
}


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Atoll topology",
        "description": "Networks, and services on them: what Compose says of networks, and commands.",
        **_object(DOCUMENT, DOCUMENT_UNUSED, empty=False),
    }
