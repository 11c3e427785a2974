"""What `keepfit upload` takes: files, folders of MLflow and URLs, as one file that a gateway accepts.

Owns which of them is which, and that a pickle is loaded only with `--trust`. Never loads anything else. Files of skops
and signed pickles are sent as they are; any other file counts as a pickle, which is loaded here, and signed with the
upload key. Invariant: without `--trust` no byte of a source is run.
"""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from keepfit.cli.yaml_values import parse_yaml
from keepfit.errors import InvalidError, NotFoundError, SettingsError
from keepfit.security.envelope import MAGIC

# How a file of skops begins: it is a zip archive.
ZIP_MAGIC = b"PK"
MLFLOW_FILE = "MLmodel"
# Formats of MLflow's sklearn flavour; one without the field is a pickle.
MLFLOW_FORMATS = ("pickle", "cloudpickle", "skops")
NAMES_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True)
class TrainedSource:
    """A file that a gateway accepts, and what its user should know about it."""

    file: BinaryIO
    warnings: list[str] = field(default_factory=list)


def open_source(source: str, *, trust: bool, upload_keys: str) -> TrainedSource:
    """Open the file, the folder of MLflow or the URL `source`; a pickle is loaded and signed, if `trust` permits it.

    Raises
    ------
    NotFoundError, KeepfitError
        If there is nothing, or it cannot be read.
    InvalidError
        If it is a folder of something else, a pickle that is not trusted or cannot be loaded, or holds no estimator.
    SettingsError
        If a pickle cannot be signed, because there is no upload key.
    """
    from keepfit.client.files import estimator_files  # noqa: PLC0415 - other commands must not wait for it

    if source.startswith(("http://", "https://")):
        file: BinaryIO = BytesIO(estimator_files.fetch(source))
    else:
        file = estimator_files.open_file(_path_of(source))
    head = file.read(len(MAGIC))
    file.seek(0)
    if head.startswith(ZIP_MAGIC) or head == MAGIC:
        return TrainedSource(file)
    with file:
        if not trust:
            raise InvalidError(
                f"{source} is neither a file of skops nor a signed pickle. Loading any other pickle runs the code in "
                "it: if you trust its author, repeat the command with --trust, and it is loaded here and signed."
            )
        if not upload_keys:
            raise SettingsError(
                "A pickle is signed before it is sent, and there is no upload key: set KEEPFIT_UPLOAD_KEYS here and "
                "for the workers (`keepfit key upload` prints a key)."
            )
        return _signed(file.read(), source, upload_keys)


def _path_of(source: str) -> str:
    """Return the path of the file that `source` names, which may be a folder of MLflow."""
    path = Path(source)
    return str(mlflow_file(path)) if path.is_dir() else source


def _signed(data: bytes, source: str, upload_keys: str) -> TrainedSource:
    from keepfit import objects  # noqa: PLC0415 - numpy, which other sources do not need
    from keepfit.model import unsigned  # noqa: PLC0415

    learner, warnings = unsigned.load(data, source)
    return TrainedSource(BytesIO(objects.dump_trained(learner, upload_keys)), warnings)


def mlflow_file(folder: Path) -> Path:
    """Return the file with the estimator in a folder that MLflow has written with its sklearn flavour.

    MLflow's model format: https://mlflow.org/docs/latest/ml/model/.

    Raises
    ------
    NotFoundError
        If the folder has no `MLmodel`.
    InvalidError, MalformedError
        If that describes a model of other flavours only, or a format that is not read.
    """
    described = folder / MLFLOW_FILE
    try:
        (document,) = parse_yaml(described.read_text(encoding="utf-8"), str(described))
    except OSError:
        raise NotFoundError(f"{folder} is a folder without a file {MLFLOW_FILE}, so it is none of MLflow.") from None
    except ValueError:
        raise InvalidError(f"{described} does not describe one model.") from None
    flavors = document.get("flavors") if isinstance(document, dict) else None
    flavor = flavors.get("sklearn") if isinstance(flavors, dict) else None
    if not isinstance(flavor, dict):
        names = ", ".join(list(flavors)[:NAMES_SHOWN_MAX]) if isinstance(flavors, dict) and flavors else "none"
        raise InvalidError(f"{described} has no flavor sklearn; its flavors: {names}.")
    return folder / _file_of(flavor, described)


def _file_of(flavor: dict[str, Any], described: Path) -> PurePosixPath:
    format_, name = flavor.get("serialization_format", "pickle"), flavor.get("pickled_model")
    if format_ not in MLFLOW_FORMATS:
        raise InvalidError(
            f"{described}: the serialization_format {format_!r} is not read; {', '.join(MLFLOW_FORMATS)} are."
        )
    path = PurePosixPath(name if isinstance(name, str) else "")
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InvalidError(f"{described}: the pickled_model {name!r} is not a path of a file in this folder.")
    return path
