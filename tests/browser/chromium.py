"""The browser of the tests: which one, how it is installed, and how it runs.

On x86-64 it is the headless Chromium of an npm package, pinned in this folder, which needs nothing of the machine but
the C library: the package has the other libraries and a font. The package has none for other processors; there it is
Debian's (`apt-get install chromium`). It needs no root, no screen, and no address other than loopback.
"""

import platform
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.node import NODE, PINS, installed, run
from tests.servers import running

HERE = Path(__file__).parent
AXE = "axe.min.js"
DEBIAN = Path("/usr/bin/chromium")
FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""
FLAGS = (
    "--headless",
    # The sandbox needs a user other than root, and namespaces that a container may lack. Only own pages are loaded.
    "--no-sandbox",
    "--no-zygote",
    # A container may have 64 MB there.
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    # No name is looked up: a page that names another host fails, whatever network the machine has.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
LISTENING = re.compile(r"^DevTools listening on (ws://\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Chromium:
    """An installed browser, with its folders of libraries and fonts; None: those of the machine."""

    executable: Path
    libraries: Path | None = None
    fonts: Path | None = None


def install() -> Chromium:
    """Install the browser, unless an earlier run has."""
    if platform.machine() == "x86_64":
        folder = _installed()
        return Chromium(folder / "chromium", folder / "lib", folder / "fonts")
    assert DEBIAN.exists(), f"tests of pages need {DEBIAN} on this processor: apt-get install chromium"
    return Chromium(DEBIAN)


def axe() -> str:
    """Return the program that finds what a page lacks for users of screen readers and keyboards (axe-core)."""
    return (_installed() / AXE).read_text()


def _installed() -> Path:
    return installed(HERE, "browser", (*PINS, "unpack.js"), _unpack)


def _unpack(folder: Path) -> None:
    """Unpack the browser into a folder with the npm packages, and remove what is not needed then."""
    run(NODE, "unpack.js", "node_modules/@sparticuz/chromium", cwd=folder)
    (folder / "chromium").chmod(0o755)
    for name in ("al2023.tar", "fonts.tar"):
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder, filter="data")
        (folder / name).unlink()
    shutil.copy(folder / "node_modules/axe-core" / AXE, folder)
    shutil.rmtree(folder / "node_modules")


@contextmanager
def browser(folder: Path) -> Iterator[str]:
    """Run a browser whose data and log are in a folder, until the block ends; yield its DevTools address."""
    chromium = install()
    profile, log = folder / "profile", folder / "chromium.log"
    profile.mkdir(parents=True)
    environment = {"HOME": str(folder)}
    if chromium.libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(chromium.libraries)
    if chromium.fonts is not None:
        configuration = folder / "fonts.conf"
        configuration.write_text(FONTS.format(fonts=chromium.fonts, cache=folder / "fonts"))
        environment["FONTCONFIG_FILE"] = str(configuration)

    def address() -> re.Match[str] | None:
        return LISTENING.search(log.read_text(errors="replace"))

    command = [str(chromium.executable), *FLAGS, f"--user-data-dir={profile}"]
    with running(command, log, ready=lambda: address() is not None, environment=environment):
        found = address()
        assert found is not None
        yield found[1]
