"""What PodSecurity's level `restricted` refuses of a pod, and what is our own rule besides."""

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SECCOMP = ("RuntimeDefault", "Localhost")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def containers_of(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        yield from pod.get(kind, [])


def violations(pod: dict[str, Any]) -> set[str]:
    """Return the rules that a pod's spec breaks.

    Args:
        pod: `spec` of a pod template.
    """
    found = {name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)}
    security = pod.get("securityContext", {})
    if security.get("sysctls"):
        found.add("sysctls")
    for volume in pod.get("volumes", []):
        if not volume.keys() - {"name"} <= VOLUMES:
            found.add("volumes")
    if pod.get("automountServiceAccountToken") is not False:
        found.add("ours: a token for the API server")
    for container in containers_of(pod):
        found |= _of_container(container, security)
    return found


def _of_container(container: dict[str, Any], of_pod: dict[str, Any]) -> set[str]:
    own = container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    added = set(capabilities.get("add", ()))
    user = own.get("runAsUser", of_pod.get("runAsUser"))
    seccomp = own.get("seccompProfile", of_pod.get("seccompProfile", {})).get("type")
    options = own.get("seLinuxOptions", of_pod.get("seLinuxOptions", {}))
    armor = own.get("appArmorProfile", of_pod.get("appArmorProfile", {})).get("type", "RuntimeDefault")
    actions = [
        action
        for hook in (*(container.get(name, {}) for name in PROBES), *container.get("lifecycle", {}).values())
        for action in hook.values()
        if isinstance(action, dict)
    ]
    broken = {
        "privileged": own.get("privileged", False),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
        "capabilities": "ALL" not in capabilities.get("drop", ()) or added - {"NET_BIND_SERVICE"},
        "runAsNonRoot": own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True,
        "runAsUser": user == 0,
        "seccompProfile": seccomp not in SECCOMP,
        "procMount": own.get("procMount", "Default") != "Default",
        "seLinuxOptions": options.get("user") or options.get("role"),
        "appArmorProfile": armor not in SECCOMP,
        "hostPorts": any(port.get("hostPort") for port in container.get("ports", [])),
        "hosts of probes": any(action.get("host") for action in actions),
        "ours: the user has no number": not isinstance(user, int),
        "ours: the root file system can be written": own.get("readOnlyRootFilesystem") is not True,
    }
    return {rule for rule, is_broken in broken.items() if is_broken}
