"""Handlers of pull jobs: make, list, show, cancel.

Owns the translation between HTTP and :mod:`keepfit.store.pull_jobs`, and the check that a job may be made. Never opens
a source: the workers' pull processes do. Invariant: a job is made only for an address that the operator allows, and
shown only to callers that may use its model.
"""

import re

import msgspec
from aiohttp import web

from keepfit.backends import source_urls
from keepfit.errors import MalformedError, NotFoundError
from keepfit.rows.selection import Selection
from keepfit.store.pull_jobs import PullJob, PullRequest
from keepfit_gateway import bound_key
from keepfit_gateway.handlers.inputs import HASH, NUMBER, PAGE_DEFAULT, PAGE_MAX, idempotency_key, read_form
from keepfit_gateway.schemas.jobs import JobAnswer, JobDocument, JobList, JobRows, Pull, SkippedRow
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response

FORM_BYTES_MAX = 1 << 20
JOB = re.compile(r"[0-9a-f]{32}")
AFTER = re.compile(r"[0-9]{15}-[0-9a-f]{32}")
STATES = ("queued", "running", "done", "failed", "cancelled")
PARAMETERS = ("limit", "after", "hash", "state")


async def pull(request: web.Request) -> web.Response:
    """POST …/pull: make a job that learns a source."""
    service, key = request.app[SERVICE], idempotency_key(request)
    model_hash, form = await read_form(request, Pull, FORM_BYTES_MAX)
    fields = {name: getattr(form, name) for name in PullRequest.__struct_fields__}
    wanted = PullRequest(**fields)
    # Not from the cache: the origin of a cached model may be that of an earlier life.
    model = await service.models.describe(model_hash)
    source_urls.check_allowed(wanted.url, service.settings.pull_prefixes)
    found = source_urls.format_of(wanted.url, wanted.format)
    Selection(wanted.columns, wanted.target, wanted.sample_weight).check(model.recipe, by_name=found == "jsonl")
    job = await service.pull_jobs.create(model.hash, model.metadata, model.origin, wanted, key)
    answer = JobAnswer(job=job.id, hash=job.hash, state=job.state)
    return json_response(answer, 202, headers={"Location": f"/v1/jobs/{job.id}"})


async def list_jobs(request: web.Request) -> web.Response:
    """GET /v1/jobs: list jobs, newest first."""
    query = request.query
    if len(query) != len(set(query)) or set(query) - set(PARAMETERS):
        raise MalformedError(f"The only query parameters are {', '.join(PARAMETERS)}, each once.")
    limit, after = query.get("limit", str(PAGE_DEFAULT)), query.get("after", "")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be an integer from 1 to {PAGE_MAX}.")
    if after and not AFTER.fullmatch(after):
        raise MalformedError("after must be the value of next in the previous page.")
    model_hash, state = query.get("hash"), query.get("state")
    if model_hash is not None and not HASH.fullmatch(model_hash):
        raise MalformedError("hash must be the hash of a model: 64 hexadecimal digits in lower case.")
    if state is not None and state not in STATES:
        raise MalformedError(f"state must be one of {', '.join(STATES)}.")

    def accepts(job: PullJob) -> bool:
        return model_hash in (None, job.hash) and state in (None, job.state) and bound_key.may_use(job.metadata)

    jobs, following = await request.app[SERVICE].pull_jobs.page(accepts, int(limit), after)
    return json_response(JobList(jobs=[_described(job) for job in jobs], next=following))


async def get_job(request: web.Request) -> web.Response:
    """GET /v1/jobs/{job}: show a job."""
    return json_response(_described(await _find(request)))


async def cancel_job(request: web.Request) -> web.Response:
    """DELETE /v1/jobs/{job}: cancel a job; what it has learned stays."""
    job = await _find(request)
    return json_response(_described(await request.app[SERVICE].pull_jobs.cancel(job.id)), 202)


async def _find(request: web.Request) -> PullJob:
    """Return the job that the path names; raises NotFoundError also if the caller may not use its model."""
    name = request.match_info["job"]
    if not JOB.fullmatch(name):
        raise MalformedError("The id of a job is 32 hexadecimal digits in lower case.")
    job = await request.app[SERVICE].pull_jobs.get(name)
    if not bound_key.may_use(job.metadata):
        raise NotFoundError(f"There is no job {name}; ended ones are kept for a while only.")
    return job


def _described(job: PullJob) -> JobDocument:
    wanted = job.request
    rows = JobRows(
        done=job.rows_done,
        accepted=job.rows_accepted,
        skipped=job.skipped + job.malformed,
        total=job.rows_total,
    )
    return JobDocument(
        job=job.id,
        hash=job.hash,
        metadata=job.metadata,
        state=job.state,
        rows=rows,
        calls=job.calls,
        sequence=job.sequence or None,
        size_bytes=job.bytes_total,
        skipped=[
            SkippedRow(detail=one.detail, row=msgspec.UNSET if one.row is None else one.row) for one in job.reasons
        ],
        waiting=job.waiting or None,
        error=job.error or None,
        created=job.created,
        started=job.started,
        ended=job.ended,
        **msgspec.structs.asdict(wanted),
    )
