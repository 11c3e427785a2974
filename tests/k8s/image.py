"""The instructions of the Dockerfile."""

from tests.k8s.builds import ROOT


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile in order, each with its arguments."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def final_stage() -> dict[str, str]:
    """Return the last instruction of each kind in the last stage of the Dockerfile."""
    stage: dict[str, str] = {}
    for name, value in instructions():
        stage = {name: value} if name == "FROM" else stage | {name: value}
    return stage
