"""Which connections network policies let through, for the fields that infra/kuberay uses."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A pod by its labels and its namespace, or an address outside."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "scalablevit"
    address: str = ""


def connects(policies: list[dict[str, Any]], source: Peer, target: Peer, port: int) -> bool:
    """Return whether the policies of the namespace `scalablevit` let a connection through at both ends."""
    return _lets_through(policies, "Egress", source, target, port) and _lets_through(
        policies, "Ingress", target, source, port
    )


def _lets_through(policies: list[dict[str, Any]], direction: str, pod: Peer, other: Peer, port: int) -> bool:
    applying = [
        each["spec"]
        for each in policies
        if direction in each["spec"]["policyTypes"]
        and not pod.address
        and pod.namespace == "scalablevit"
        and _selects(each["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in applying for rule in spec.get(direction.lower(), [])]
    peers = "to" if direction == "Egress" else "from"
    return not applying or any(
        any(_matches(peer, other) for peer in rule[peers])
        and ("ports" not in rule or any(each["port"] == port for each in rule["ports"]))
        for rule in rules
    )


def _matches(peer: dict[str, Any], other: Peer) -> bool:
    assert peer.keys() <= {"ipBlock", "podSelector", "namespaceSelector"}
    if "ipBlock" in peer:
        block = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return bool(other.address) and ipaddress.ip_address(other.address) in block
    if other.address:
        return False
    if not _selects(peer.get("podSelector", {}), other.labels):
        return False
    if "namespaceSelector" not in peer:
        return other.namespace == "scalablevit"
    return _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted, exist = selector.get("matchLabels", {}), selector.get("matchExpressions", [])
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    assert all(each["operator"] == "Exists" for each in exist)
    return wanted.items() <= labels.items() and all(each["key"] in labels for each in exist)
