"""Late labels through kills: each is learned once, and scored with the prediction that was served."""

from pathlib import Path

from tests.recovery import late_labels

ROWS, KILLS = 300, 4


async def test_labels_are_learned_once_through_kills(tmp_path: Path) -> None:
    """Each kind of process is killed once; the full size is run by hand: `python -m tests.recovery.late_labels`."""
    proof = await late_labels.prove(tmp_path, ROWS, KILLS)
    assert proof.differences == []
    assert len(proof.served) == len(proof.sequences) == ROWS
    assert dict(proof.kills) == {"gateway": 1, "workers": 1, "store": 1, "queue": 1}
    assert proof.versions > 1
