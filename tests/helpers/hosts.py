"""Simulate two hosts on one machine: two network namespaces that are connected by virtual network devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A network namespace with a loopback and one virtual network device."""

    name: str
    device: str
    address: str

    def run(self, arguments: list[str]) -> list[str]:
        """The command line that starts a command on this host."""
        return ["ip", "netns", "exec", self.name, *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that name gloo's network device, since the machine's name does not resolve to this host."""
        return {"GLOO_SOCKET_IFNAME": self.device}


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is not installed (package iproute2)"
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        return "network namespaces are not allowed here"
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Context with two hosts. At the end both are removed; processes that still run there lose their network."""
    number = os.getpid() % 250
    hosts = [
        Host(f"tri{os.getpid()}{end}", f"tri{os.getpid() % 10**6}{end}", f"10.{number}.7.{1 + i}")
        for i, end in enumerate("ab")
    ]
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", first.device, "netns", first.name, "type", "veth",
            "peer", "name", second.device, "netns", second.name)  # fmt: skip
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.device)
            for device in (host.device, "lo"):
                _ip("-n", host.name, "link", "set", device, "up")
        yield first, second
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
