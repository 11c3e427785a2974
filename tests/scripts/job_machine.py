"""The scripts of the register of pull jobs against a plain model: who holds a job, and what its record says.

Owns the model and the rules. Time does not pass: holds end, and records expire, where a rule says so.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keepfit.backends import redis_keys, redis_scripts
from keepfit.store import pull_jobs
from tests.scripts.bench import Bench

OPEN_MAX, JOBS_MAX, KEPT_S = 2, 3, 3600
names, holders = st.sampled_from(("a", "b", "c", "d")), st.sampled_from(("one 1", "one 2", "two 1"))


@dataclass(slots=True)
class Record:
    """What the record of a job holds; `is_held` while its holder's time lasts."""

    fields: dict[str, str]
    is_open: bool = True
    is_held: bool = False

    @property
    def expires(self) -> bool:
        """Whether the record has a time to live."""
        return not self.is_open


@dataclass(slots=True)
class Register:
    """The intended state: records that exist, and all ids that are listed or open."""

    records: dict[str, Record] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    open: dict[str, bool] = field(default_factory=dict)


class JobMachine(RuleBasedStateMachine):
    """Up to four jobs, and three holders of two processes."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.bench.empty()
        self.plain = Register()

    def _run(self, *commands: Any) -> list[Any]:
        return redis_scripts.run(self.bench.client, *commands)

    @rule(name=names, digest=st.sampled_from(("d1", "d2")), fields=st.sampled_from(({}, {"hash": "h"})))
    def create(self, name: str, digest: str, fields: dict[str, str]) -> None:
        """Make a job, or find it."""
        pairs = [part for pair in fields.items() for part in pair]
        keys = [redis_keys.job(name), redis_keys.JOBS, redis_keys.OPEN_JOBS]
        (answer,) = self._run(redis_scripts.call("create_job", keys, [name, digest, OPEN_MAX, JOBS_MAX, *pairs]))
        plain, found = self.plain, self.plain.records.get(name)
        if found is not None:
            assert answer == [b"exists", found.fields["digest"].encode()]
        elif len(plain.open) >= OPEN_MAX or len(plain.listed) >= JOBS_MAX:
            assert answer == [b"full", len(plain.open)]
        else:
            assert answer == [b"made"]
            made = {"id": name, "digest": digest, "state": "queued", "created": "?", **fields}
            plain.records[name] = Record(made)
            plain.listed.add(name)
            plain.open[name] = False

    @rule(name=names, holder=holders)
    def claim(self, name: str, holder: str) -> None:
        """Claim a job, whether it is free or not."""
        self._claim(name, holder)

    def _claim(self, name: str, holder: str) -> None:
        (answer,) = self._run(pull_jobs.claim(name, holder))
        plain, found = self.plain, self.plain.records.get(name)
        if name not in plain.open or plain.open[name]:
            assert answer == 0
        elif found is None:
            assert answer == 0
            del plain.open[name]
        else:
            assert answer == 1
            plain.open[name] = True
            claims = str(int(found.fields.get("claims", 0)) + 1)
            found.fields |= {"holder": holder, "state": "running", "claims": claims, "started": "?"}

    @rule(name=names, holder=holders, does=st.sampled_from(("go on", "go on", "release", "end")),
          fields=st.sampled_from(({}, {"calls": "7", "waiting": ""})))  # fmt: skip
    def advance(self, name: str, holder: str, does: str, fields: dict[str, str]) -> None:
        """Store how far a job is, as its holder or not; release it, or end it."""
        self._advance(name, holder, does, fields)

    @rule(name=names, holder=holders, does=st.sampled_from(("release", "end")))
    def claim_and_advance(self, name: str, holder: str, does: str) -> None:
        """Claim a job, and release or end it, if it was free."""
        self._claim(name, holder)
        self._advance(name, holder, does, {"calls": "7"})

    def _advance(self, name: str, holder: str, does: str, fields: dict[str, str]) -> None:
        hold_s, kept_s = 0.0 if does == "release" else pull_jobs.HOLD_S, KEPT_S if does == "end" else 0
        (answer,) = self._run(pull_jobs.advance(name, holder, fields, hold_s=hold_s, kept_s=kept_s))
        found = self.plain.records.get(name)
        if found is None or found.fields.get("holder") != holder:
            assert answer == b"lost"
            return
        assert answer == (b"cancel" if "cancel" in found.fields else b"held")
        found.fields |= fields
        self.plain.open[name] = does == "go on"
        if does != "go on":
            del found.fields["holder"]
        if does == "end":
            self._end(name, {"ended": "?"})

    @rule(name=names)
    def cancel(self, name: str) -> None:
        """Cancel a job."""
        self._cancel(name)

    def _cancel(self, name: str) -> None:
        keys = [redis_keys.OPEN_JOBS, redis_keys.job(name)]
        (answer,) = self._run(redis_scripts.call("cancel_job", keys, [name, 1000 * KEPT_S]))
        plain, found = self.plain, self.plain.records.get(name)
        if found is None:
            assert answer == -1
        elif name not in plain.open:
            assert answer == 0
        else:
            assert answer == 1
            if plain.open[name]:
                found.fields["cancel"] = "1"
            else:
                found.fields.pop("holder", None)
                self._end(name, {"state": "cancelled", "ended": "?"})

    def _end(self, name: str, fields: dict[str, str]) -> None:
        found = self.plain.records[name]
        found.fields |= fields
        found.is_open = False
        del self.plain.open[name]

    @rule(name=names, then=st.sampled_from(("", "go on", "cancel")))
    def end_hold(self, name: str, then: str) -> None:
        """The time of a holder ends, who may go on before another process claims the job; a client may cancel it."""
        if name in self.plain.open:
            self.bench.client.zadd(redis_keys.OPEN_JOBS, {name: 1})
            self.plain.open[name] = False
            found = self.plain.records.get(name)
            if then == "go on" and found is not None and "holder" in found.fields:
                self._advance(name, found.fields["holder"], "go on", {})
            elif then == "cancel":
                self._cancel(name)

    @rule(name=names)
    def lose(self, name: str) -> None:
        """Redis evicts the record of a job."""
        self.bench.client.delete(redis_keys.job(name))
        self.plain.records.pop(name, None)

    @rule(name=names)
    def forget(self, name: str) -> None:
        """A gateway removes an ended job from the list."""
        if name not in self.plain.open:
            self._run(("DEL", redis_keys.job(name)), ("ZREM", redis_keys.JOBS, name))
            self.plain.records.pop(name, None)
            self.plain.listed.discard(name)

    @invariant()
    def redis_equals_plain_model(self) -> None:
        """Records, their times to live, the list and the open jobs are as intended."""
        client: Any = self.bench.client
        self.bench.steps += 1
        seconds, _ = client.time()
        assert {name.decode() for name in client.zrange(redis_keys.JOBS, 0, -1)} == self.plain.listed
        for _, made in client.zrange(redis_keys.JOBS, 0, -1, withscores=True):
            assert abs(made / 1000 - seconds) < 3600
        open_jobs = client.zrange(redis_keys.OPEN_JOBS, 0, -1, withscores=True)
        assert {name.decode(): until > 1000 * seconds for name, until in open_jobs} == self.plain.open
        for name, until in open_jobs:
            assert until < 1000 * (seconds + pull_jobs.HOLD_S + 5), name
        for name in ("a", "b", "c", "d"):
            found, ttl = client.hgetall(redis_keys.job(name)), client.ttl(redis_keys.job(name))
            record = self.plain.records.get(name)
            assert bool(found) == (record is not None)
            if record is not None:
                fields = {key.decode(): value.decode() for key, value in found.items()}
                for key in ("created", "started", "ended"):
                    if key in fields:
                        assert abs(float(fields[key]) - seconds) < 3600
                        fields[key] = "?"
                assert fields == record.fields
                assert (0 < ttl <= KEPT_S) if record.expires else ttl == -1
