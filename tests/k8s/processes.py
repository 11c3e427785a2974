"""Start what a pod starts: command, arguments and environment of a manifest as a process of this machine.

Owns what the kubelet does with a container: its variables from ConfigMap, Secret and limits, its probes, SIGTERM.
Invariant: a value of a manifest is changed only where it names a place that this machine lacks (:class:`Places`):
a Service, a volume, the port that another gateway may have.
"""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keepfit.local.servers import free_port
from keepfit.local.stack import end_with_parent
from tests.k8s.builds import Build, Document, keepfit_containers, one, secret_values
from tests.k8s.image import final_stage
from tests.servers import wait_until

UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30}
END_S_MAX = 60.0
# The setting of each port of a container.
PORTS = {"http": "KEEPFIT_PORT", "metrics": "KEEPFIT_WORKER_METRICS_PORT"}


@dataclass(frozen=True, slots=True)
class Places:
    """Texts of the manifests that name places of the cluster, each with its place on this machine."""

    folder: Path
    texts: Mapping[str, str]

    def of(self, value: str) -> str:
        """Return a value with its places replaced."""
        pattern = "|".join(re.escape(text) for text in self.texts)
        return re.sub(pattern, lambda found: self.texts[found[0]], value)


def environment(build: Build, only: Document, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a container as the kubelet sets them, over those of the image."""
    found = dict(re.findall(r"(\w+)=(\S+)", final_stage()["ENV"]))
    del found["PATH"]
    for source in only["envFrom"]:
        found |= one(build, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in only["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            if reference["key"] in secrets:
                found[variable["name"]] = secrets[reference["key"]]
            else:
                assert reference.get("optional"), reference
        elif "resourceFieldRef" in source:
            limit = only["resources"]["limits"][source["resourceFieldRef"]["resource"].removeprefix("limits.")]
            number, unit = re.fullmatch(r"(\d+)(\D*)", limit).groups()  # type: ignore[union-attr]
            found[variable["name"]] = str(int(number) * UNITS[unit])
        else:
            found[variable["name"]] = variable["value"]
    return found


@dataclass(slots=True)
class Pod:
    """One container of a workload as a process."""

    only: Document
    variables: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    port: int = 0
    arguments: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, build: Build, name: str, places: Places, number: int = 0, **secrets: str) -> "Pod":
        """Return the pod of a workload, not yet started; `secrets` are in its Secret beside those of the build."""
        only = keepfit_containers(build)[name]
        folder = places.folder / f"{name}-{number}"
        folder.mkdir()
        own = Places(folder, {**places.texts, "/tmp/": f"{folder}/"})
        values = environment(build, only, secret_values(build) | secrets)
        port = free_port() if only.get("ports") else 0
        if port:
            setting = PORTS[only["ports"][0]["name"]]
            assert values[setting] == str(only["ports"][0]["containerPort"])
            values[setting] = str(port)
        variables = {key: own.of(value) for key, value in values.items()}
        # What a container of the image has, and a process of this machine.
        variables |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
        return cls(only, variables, folder / "log", None, port)

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it; the process ends with the tests."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.only["command"], *self.only["args"], *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.log.parent,
                env=self.variables,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
            )

    def probe(self, name: str) -> bool:
        """Run one of its probes, as the kubelet does: once, with its time limit."""
        probe = self.only[name]
        if "exec" in probe:
            words = probe["exec"]["command"]
            done = subprocess.run(words, env=self.variables, timeout=60, capture_output=True, check=False)
            return done.returncode == 0
        (port,) = self.only["ports"]
        assert probe["httpGet"]["port"] == port["name"]
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{probe['httpGet']['path']}", timeout=60
            ) as answer:
                return bool(200 <= answer.status < 400)
        except (OSError, urllib.error.HTTPError):
            return False

    def wait_until_started(self) -> None:
        """Wait until its startup probe succeeds."""
        assert self.process is not None
        process = self.process
        wait_until(lambda: process.poll() is not None or self.probe("startupProbe"), f"start (see {self.log})")
        assert process.poll() is None, self.log.read_text()

    def end(self) -> int:
        """End it with SIGTERM; return its exit code."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(END_S_MAX)

    def run(self) -> str:
        """Run it as a job, which must succeed; return its output."""
        self.start()
        assert self.process is not None
        code = self.process.wait(END_S_MAX)
        output = self.log.read_text()
        assert code == 0, output
        return output


@contextmanager
def running(pod: Pod) -> Iterator[Pod]:
    """Run a pod until the block ends."""
    pod.start()
    try:
        pod.wait_until_started()
        yield pod
    finally:
        if pod.process is not None and pod.process.poll() is None:
            os.kill(pod.pid, signal.SIGCONT)
            pod.end()
