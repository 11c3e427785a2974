"""The caches of answers and of scorers: for any order of events they answer with the newest observed version only."""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keepfit_gateway.learning.commit_feed import DELETED
from keepfit_gateway.prediction.cache import ANSWER_OVERHEAD_BYTES, MODEL_OVERHEAD_BYTES, Cache, WatchedModel
from keepfit_gateway.prediction.scorers import HELD_OVERHEAD_BYTES, Scorers
from tests.gateway.prediction.doubles import INVALID, Clock, NamedScorer, decode, encoded, model_of
from tests.gateway.prediction.test_cache import MODEL, OTHER

RECORD_BYTES = HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES
BOUND_S = 2.0
QUESTIONS = st.integers(0, 2)
MODELS = st.sampled_from([MODEL, OTHER])
SCORERS = st.sampled_from(["none", "invalid", "small", "small", "large"])
Version = tuple[int, float]


@dataclass(slots=True, eq=False)
class Pending:
    """A worker request without an answer."""

    model: str
    question: int
    watching: ExitStack
    watched: WatchedModel
    asked: int
    computed: Version | None = None


@dataclass(slots=True)
class Truth:
    """The version of a model in Redis, and when each earlier one was replaced."""

    version: Version = (1, 0)
    replaced_at_s: dict[Version, float] = field(default_factory=dict)


class LateSweeper(Cache):
    """A cache that frees stale answers as late as possible, so that a wrong use of them shows."""

    def _sweep(self, *, needed: bool = False) -> None:
        if self.bytes > self._bytes_max:
            super()._sweep(needed=needed)


class CachesAgainstTruth(RuleBasedStateMachine):
    """Commits, answers, interruptions and pings in any order, against a model of Redis: two dictionaries and a pipe.

    The caches under test are that of answers and that of scorers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = LateSweeper(MODEL_OVERHEAD_BYTES * 2 + 4 * (ANSWER_OVERHEAD_BYTES + 500), self.clock)
        self.scorers = Scorers(self.cache, decode, 2 * RECORD_BYTES + 300, 1000, self.clock)
        self.truth = {MODEL: Truth(), OTHER: Truth()}
        self.observed: dict[str, Version] = {}
        # Unread messages of the subscription: commits with their scorers, and the times of pings.
        self.pipe: list[tuple[str, Version, bytes] | float] | None = None
        self.valid_until_s = -math.inf
        self.pending: list[Pending] = []
        self.live()

    def publish(self, model: str, version: Version, scorer: bytes = b"") -> None:
        """Change the version of a model and publish it."""
        truth = self.truth[model]
        truth.replaced_at_s[truth.version] = self.clock.now_s
        truth.version = version
        if self.pipe is not None:
            self.pipe.append((model, version, scorer))

    @invariant()
    def answers_are_valid(self) -> None:
        """A lookup finds a valid answer or nothing."""
        for question in range(3):
            for raw in (True, False):
                self.check(MODEL, question, raw)
                self.check(OTHER, question + 10, raw)

    def check(self, model: str, question: int, raw: bool) -> None:
        """Look up a key; a found answer must be valid."""
        key = question.to_bytes(32, "big")
        answer = self.cache.find_raw((model, key)) if raw else self.cache.find(key, self.truth[model].version[0])
        if answer is None:
            return
        name, named, generation, version = answer.body.decode().split()
        assert (name, named) == (model, str(question))
        self.check_version(model, (int(generation), int(version)))

    def check_version(self, model: str, found: Version) -> None:
        """Check that a version may be used for an answer now."""
        assert self.pipe is not None
        assert self.clock.now_s < self.valid_until_s
        assert found == self.observed[model]
        assert self.clock.now_s < self.truth[model].replaced_at_s.get(found, math.inf) + BOUND_S

    @invariant()
    def scorers_are_valid(self) -> None:
        """A lookup finds the scorer of the newest version or nothing; a stale one is found with the time of that."""
        for name, truth in self.truth.items():
            model = model_of(name, truth.version[0])
            found, last = self.scorers.find(model), self.scorers.find_stale(model)
            if found is not None:
                self.check_version(name, (found[0].generation, found[0].version))
                assert last is not None
                assert (last[0] is found[0], last[1]) == (True, self.valid_until_s)
            if last is not None:
                scorer, stale_since_s = last
                assert isinstance(scorer, NamedScorer)
                assert scorer.model == name
                assert found is not None or stale_since_s <= self.clock.now_s
                replaced_at_s = truth.replaced_at_s.get((scorer.generation, scorer.version), math.inf)
                assert stale_since_s <= replaced_at_s + BOUND_S

    @rule(model=MODELS, question=QUESTIONS)
    def ask(self, model: str, question: int) -> None:
        """Begin a worker request."""
        self.begin(model, question)

    def begin(self, model: str, question: int) -> Pending:
        """Begin a worker request."""
        watching = ExitStack()
        watched = watching.enter_context(self.cache.watch(model))
        asked = self.scorers.begin_question(watched)
        self.pending.append(Pending(model, question + 10 * (model == OTHER), watching, watched, asked))
        return self.pending[-1]

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """Compute an answer with the live version."""
        request = data.draw(st.sampled_from(self.pending))
        request.computed = self.truth[request.model].version

    @precondition(lambda self: any(request.computed for request in self.pending))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Receive an answer, which may be late."""
        request = data.draw(st.sampled_from([request for request in self.pending if request.computed]))
        self.receive(request, data.draw(SCORERS))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """Receive an error."""
        request = data.draw(st.sampled_from(self.pending))
        request.computed = None
        self.receive(request, "none")

    @rule(model=MODELS, question=QUESTIONS, scorer=SCORERS)
    def ask_and_answer(self, model: str, question: int, scorer: str) -> None:
        """Send a worker request and receive its answer at once."""
        request = self.begin(model, question)
        request.computed = self.truth[model].version
        self.receive(request, scorer)

    @rule(model=MODELS)
    def ask_for_a_scorer(self, model: str) -> None:
        """Send worker requests until the scorer should be here."""
        for question in range(2):
            self.ask_and_answer(model, question, "small")

    @rule(model=MODELS)
    def read_elsewhere(self, model: str) -> None:
        """Read the version of a model in another way than by a worker request about rows."""
        version = self.truth[model].version
        self.cache.observe_version(model, *version)
        self.observed[model] = max(self.observed.get(model, (0, 0)), version)

    def receive(self, request: Pending, scorer: str) -> None:
        """Receive an answer or an error."""
        self.pending.remove(request)
        generation, version = request.computed or (0, DELETED)
        with request.watching:
            if version == DELETED:
                self.scorers.end_question(request.watched, request.asked)
            else:
                sent = self.encoded(request.model, (generation, int(version)), scorer) if request.asked else b""
                self.scorers.end_question(request.watched, request.asked, (generation, int(version)), sent)
                if request.watched.subscription.live:
                    self.observed[request.model] = max(self.observed.get(request.model, (0, 0)), (generation, version))
                body = f"{request.model} {request.question} {generation} {version}".encode()
                key = request.question.to_bytes(32, "big")
                answer = self.cache.store(request.watched, (generation, int(version)), key, body, "etag")
                if answer is not None:
                    self.cache.alias(answer, (request.model, key))

    @staticmethod
    def encoded(model: str, version: tuple[int, int], scorer: str) -> bytes:
        """Return an encoded scorer: none, an invalid one, a small one or one that takes all the memory."""
        if scorer == "none":
            return b""
        return INVALID if scorer == "invalid" else encoded(model, version, 50 if scorer == "small" else 300)

    @rule(model=MODELS, scorer=SCORERS)
    def commit(self, model: str, scorer: str) -> None:
        """Commit a version, and publish its scorer or none."""
        generation, version = self.truth[model].version
        generation, version = (generation + 1, 0) if version == DELETED else (generation, int(version) + 1)
        self.publish(model, (generation, version), self.encoded(model, (generation, version), scorer))

    @rule(model=MODELS)
    def delete(self, model: str) -> None:
        """Delete a model."""
        generation, _ = self.truth[model].version
        self.publish(model, (generation, DELETED))

    @rule()
    def live(self) -> None:
        """Subscribe, and read the subscription to its end."""
        self.connect()
        self.ping()
        while self.pipe:
            self.read()

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def ping(self) -> None:
        """Send a ping."""
        assert self.pipe is not None
        self.pipe.append(self.clock.now_s)

    @precondition(lambda self: self.pipe)
    @rule()
    def read(self) -> None:
        """Read the next message of the subscription."""
        assert self.pipe is not None
        message = self.pipe.pop(0)
        if isinstance(message, float):
            self.valid_until_s = message + BOUND_S
            self.cache.valid_until(self.valid_until_s)
        else:
            model, version, scorer = message
            self.observed[model] = max(self.observed.get(model, (0, 0)), version)
            if scorer:
                self.scorers.publish(model, (version[0], int(version[1])), scorer)
            self.cache.observe_version(model, *version)

    @rule()
    def disconnect(self) -> None:
        """Interrupt the subscription and lose its unread messages."""
        self.pipe, self.valid_until_s = None, -math.inf
        self.observed.clear()
        self.cache.invalidate_all()

    @rule()
    def connect(self) -> None:
        """Subscribe, if there is no subscription."""
        if self.pipe is None:
            self.pipe = [self.clock.now_s]

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.9]))
    def wait(self, seconds: float) -> None:
        """Advance the clock."""
        self.clock.now_s += seconds

    @invariant()
    def bytes_are_counted_and_bounded(self) -> None:
        """The count of bytes is exact, and within the bound except for models without an answer."""
        cache = self.cache
        watched = [*cache._models.values(), *(model for models in cache._orphaned for model in models.values())]
        counted = sum(model.counted for model in watched)
        assert cache.bytes == sum(answer.size for answer in cache._answers.values()) + counted * MODEL_OVERHEAD_BYTES
        without_answer = sum(model.counted and not model.current.keys for model in cache._models.values())
        without_answer += sum(model.counted for models in cache._orphaned for model in models.values())
        assert cache.bytes - without_answer * MODEL_OVERHEAD_BYTES <= cache._bytes_max
        assert {raw for answer in cache._answers.values() for raw in answer.aliases} == cache._by_alias.keys()
        assert all(model.requests or model.current.keys or model.holder for model in cache._models.values())
        assert all(model.counted is (model.holder is None) for model in cache._models.values())

    @invariant()
    def bytes_of_scorers_are_counted_and_bounded(self) -> None:
        """The count of the bytes of scorers is exact and within the bound, and each keeps its model watched."""
        held = self.scorers._held.values()
        assert self.scorers.bytes == sum(each.size for each in held) <= self.scorers._bytes_max
        assert self.scorers.count == sum(each.source is not None for each in held)
        holders = {model.holder for model in self.cache._models.values()} - {None}
        assert holders <= set(held)
        for each in held:
            assert each.watched.holder is each
            if each.watched.subscription.live:
                assert self.cache.watched(each.model_hash) is each.watched

    def teardown(self) -> None:
        """Check that nothing is left after an interruption and a complete sweep."""
        for request in self.pending:
            request.watching.close()
        self.cache.invalidate_all()
        self.cache.valid_until(math.inf)
        while self.cache._stale or self.cache._orphaned:
            Cache._sweep(self.cache)
        assert (self.cache.bytes, len(self.cache), self.cache._by_alias) == (0, 0, {})


TestCachesAgainstTruth = CachesAgainstTruth.TestCase
TestCachesAgainstTruth.__doc__ = "A found answer or scorer is of the newest observed version, for any order of events."
TestCachesAgainstTruth.settings = hypothesis_settings(max_examples=60, stateful_step_count=50, deadline=None)
