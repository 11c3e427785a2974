"""Prometheus and its promtool: the ones on the PATH, or those of Debian's package `prometheus`.

Owns how the tests come by them. The package is downloaded and unpacked below the environment, once; nothing is
installed on the machine. Another system needs both on the PATH.
"""

import functools
import json
import shutil
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from keepfit.local.servers import answers, free_port
from tests.made_once import made_once
from tests.servers import running

PACKAGE = "prometheus"


@functools.cache
def program(name: str) -> Path:
    """Return the path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found:
        return Path(found)
    assert shutil.which("apt-get"), f"tests of alerts and autoscaling need {name}: install Prometheus"
    return made_once("debian-prometheus", {}, _unpack) / "usr/bin" / name


def _unpack(folder: Path) -> None:
    """Download the package, with lists of its own if those of the machine do not name it, and unpack its programs."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        lists = Path(temporary) / "lists"
        lists.mkdir()
        own = ("-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root")
        if not _download(folder):
            subprocess.run(["apt-get", *own, "-qq", "update"], capture_output=True, check=False)
            assert _download(folder, *own), f"apt-get download {PACKAGE} failed: install Prometheus"
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "all"], check=True)
    (folder / "usr/bin").mkdir(parents=True)
    for name in ("prometheus", "promtool"):
        (folder / "all/usr/bin" / name).rename(folder / "usr/bin" / name)
    shutil.rmtree(folder / "all")
    package.unlink()


def _download(folder: Path, *options: str) -> bool:
    done = subprocess.run(
        ["apt-get", *options, "-qq", "download", PACKAGE], cwd=folder, capture_output=True, check=False
    )
    return done.returncode == 0


def promtool(*words: object) -> str:
    """Run promtool, which must succeed; return what it prints."""
    done = subprocess.run(
        [program("promtool"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query: a list of `metric` and `value`, without those that are stale."""
        with urllib.request.urlopen(f"{self._url}/api/v1/query?query={urllib.parse.quote(expression)}") as answer:
            found = json.load(answer)["data"]
        assert found["resultType"] == "vector"
        return list(found["result"])

    def value(self, expression: str) -> float | None:
        """Return the one value of an instant query, as KEDA reads it; None if there is none yet."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@contextmanager
def scraping(folder: Path, port: int, namespace: str, path: str, key: str) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a gateway twice a second with an API key, and adds the operator's label."""
    folder.mkdir()
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": namespace}}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [
            {
                "job_name": "gateway",
                "metrics_path": path,
                "authorization": {"credentials": key},
                "static_configs": [target],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    own = free_port()
    command = [
        str(program("prometheus")), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{own}"
    with running(command, folder / "prometheus.log", lambda: answers(f"{url}/-/ready")):
        yield Prometheus(url)
