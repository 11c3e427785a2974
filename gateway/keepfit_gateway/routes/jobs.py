"""Pull jobs: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import LEARN
from keepfit_gateway.handlers import jobs
from keepfit_gateway.parameters import HASH, JOB, JOBS, KEY
from keepfit_gateway.routes.route import BOUND_FILTERED, PULL_ERRORS, Route
from keepfit_gateway.routes.route import JOBS as JOBS_TAG
from keepfit_gateway.schemas.jobs import JobAnswer, JobDocument, JobList, Pull

PULL_TEXT = (
    "A job that learns the rows of a CSV, Parquet or npy file, or of JSON lines, request by request, in order. "
    "`KEEPFIT_PULL_PREFIXES` says which addresses are allowed. The same `Idempotency-Key` gives the same job."
)
MADE = {202: ("Location",)}

ROUTES = (
    Route(
        "POST", "/v1/models/{hash}/pull", jobs.pull, JOBS_TAG, "Learn a large source", PULL_TEXT,
        {202: JobAnswer}, Pull, PULL_ERRORS, (HASH, KEY), MADE, scope=LEARN,
    ),
    Route(
        "GET", "/v1/jobs", jobs.list_jobs, JOBS_TAG, "List jobs",
        "Newest first; ended ones are kept for a while. Jobs show values of rows: the scope is `learn`.",
        {200: JobList}, errors=(400, 503), own_parameters=JOBS, scope=LEARN, bound_keys=BOUND_FILTERED,
    ),
    Route(
        "GET", "/v1/jobs/{job}", jobs.get_job, JOBS_TAG, "Describe a job",
        "Its state, how far it is, and which rows were left out.",
        {200: JobDocument}, errors=(400, 404, 503), own_parameters=(JOB,), scope=LEARN, bound_keys=BOUND_FILTERED,
    ),
    Route(
        "DELETE", "/v1/jobs/{job}", jobs.cancel_job, JOBS_TAG, "Cancel a job",
        "It ends after the request that it is at; what was accepted is learned. A job that has ended stays as it is.",
        {202: JobDocument}, errors=(400, 404, 503), own_parameters=(JOB,), scope=LEARN, bound_keys=BOUND_FILTERED,
    ),
)  # fmt: skip
