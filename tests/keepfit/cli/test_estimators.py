"""The commands `keepfit upload` and `download` on a running stack."""

import json
import os
import uuid
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import SGDRegressor

from keepfit import identity
from keepfit.client.clients import Client
from keepfit.client.files.estimator_files import download, fetch
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.objects import load_trained
from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack
from tests.keepfit.cli.command import Done, error_line, keepfit
from tests.keepfit.cli.terminal import on_terminal
from tests.keepfit.client.scripted_server import ok, scripted

X = np.random.default_rng(0).normal(size=(50, 3))


def test_an_estimator_goes_in_and_comes_out(stack: Stack, tmp_path: Path) -> None:
    """The model of an uploaded file predicts as the estimator does, and so does what is downloaded."""

    def run(*words: str) -> Done:
        return keepfit(*words, "--data", str(stack.data), cwd=tmp_path)

    trained = SGDRegressor(random_state=0).fit(X, X.sum(axis=1))
    (tmp_path / "trained.skops").write_bytes(skops.io.dumps(trained))
    metadata = {"type": "trained", "session": uuid.uuid4().hex}
    words = ("--metadata", json.dumps(metadata))
    done = run("upload", "trained.skops", *words)
    assert (done.returncode, done.stderr) == (0, "")
    model_hash = done.stdout.strip()
    assert model_hash == identity.hash_of(metadata)
    again = run("upload", "trained.skops", *words)
    assert (again.stdout.strip(), again.stderr) == (model_hash, "The model exists; it has seen 0 rows.\n")
    found = run("download", *words, "--output", "found.skops")
    assert found.stdout.startswith("found.skops: version 1, 0 rows seen, ")
    loaded = skops.io.load(
        tmp_path / "found.skops", trusted=skops.io.get_untrusted_types(file=tmp_path / "found.skops")
    )
    assert loaded.predict(X).tolist() == trained.predict(X).tolist()
    (described,) = map(
        json.loads, run("download", "--hash", model_hash[:12], "--format", "pickle", "--json").stdout.splitlines()
    )
    assert (described["file"], described["version"]) == (f"{model_hash[:12]}-1.pickle", 1)
    data = (tmp_path / described["file"]).read_bytes()
    assert len(data) == described["size_bytes"]
    assert load_trained(data, stack.environment()[UPLOAD_KEYS]).predict(X).tolist() == trained.predict(X).tolist()
    shown = on_terminal("download", *words, "--output", "-", "--data", str(stack.data), cwd=tmp_path, notes=True)
    assert "The file is not text: name one with --output" in shown
    (tmp_path / "wrong.skops").write_bytes(b"wrong")
    for wrong, message in (
        (("upload", "none.skops", *words), "There is no file none.skops."),
        (("upload", str(tmp_path), *words), "is a folder without a file MLmodel"),
        (("upload", "/dev/null", *words), "it is not a regular file"),
        (("upload", "trained.skops"), "metadata must hold a non-empty string 'type'"),
        (("upload", "wrong.skops", "--metadata", "type=wrong"), "keepfit: "),
        (("download", *words, "--output", "none/found.skops"), "cannot be written: No such file or directory."),
        (("download", *words, "--output", "-", "--json"), "--json prints to standard output"),
        (("download", "--metadata", "type=none"), "There is no model with the metadata"),
    ):
        assert message in error_line(run(*wrong))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        described["file"], "found.skops", "trained.skops", "wrong.skops",
    ]  # fmt: skip


def test_a_damaged_download_leaves_the_former_file(tmp_path: Path) -> None:
    """Bytes that do not have the digest of the gateway, or are too few, replace no file."""
    lines = ("Model-Version: 1", "Model-Rows-Seen: 2", "Repr-Digest: sha-256=:AAAA:", "Connection: close")
    whole = ok("bytes", *lines)
    path = tmp_path / "a.skops"
    path.write_text("former")
    with scripted([whole, whole[:-2]]) as server, Client(server.url) as client:
        for message in ("are not those that the gateway sent", "breaks off"):
            with pytest.raises(KeepfitError, match=message):
                download(client, "0" * 64, str(path), "skops", "model", lambda done, size: None)
            assert (path.read_text(), os.listdir(tmp_path)) == ("former", ["a.skops"])


def test_another_file_is_no_download(tmp_path: Path) -> None:
    """The page of a proxy, say, becomes no file."""
    with scripted([ok("<html>", "Content-Type: text/html")]) as server, Client(server.url) as client:
        with pytest.raises(UnavailableError, match="does not answer as a gateway"):
            download(client, "0" * 64, str(tmp_path / "a.skops"), "skops", "model", lambda done, size: None)
        assert os.listdir(tmp_path) == []


def test_a_page_that_breaks_off_is_no_model() -> None:
    """A model of another server is taken whole or not at all."""
    with (
        scripted([ok("pickle", "Connection: close")[:-2]]) as server,
        pytest.raises(UnavailableError, match="breaks off, 2 bytes"),
    ):
        fetch(server.url)
