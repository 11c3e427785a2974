"""Redis keys, built in this module only.

Store (``KEEPFIT_STORE_URL``); ``{h}`` is the model's hash in braces, a hash tag of Redis Cluster. In a cluster, keys
without a hash have the tag ``{kf}``, so that they are in one slot: ``kf:jobs`` is ``kf:{kf}:jobs``.

===================  ======  ==========  ======================================  =====================================
key                  type    TTL         written by                              read by
===================  ======  ==========  ======================================  =====================================
kf:{h}:st            hash    none        install, rewind, accept, commit         gateway, workers, snapshotter
kf:{h}:b             string  none        install, rewind, commit (by RENAME)     workers, snapshotter
kf:{h}:in            stream  none        accept, retry (``<sequence>-0``)        claim_inbox, repairs
kf:{h}:lk            string  lease       claim_inbox, renew, unlock,             claim_inbox, restore_idempotency,
                                         restore_idempotency                     install
kf:{h}:stg:<random>  string  60 s        workers, before one of these three      commit, install, rewind
kf:{h}:idem:<key>    string  20 s        accept, retry (calls without a          accept, retry
                                         client's key); a day by release 0.1
kf:{h}:idem:new:<c>  hash    a day       accept, restore_idempotency (<c>: the   accept
                                         name of the caller's API key, or '')
kf:{h}:idem:old:<c>  hash    a day       the same, by RENAME of the newer ones   accept
kf:{h}:answers:new   hash    a day       commit (calls of train_score_predict)   gateway
kf:{h}:answers:old   hash    a day       the same, by RENAME of the newer ones   gateway
kf:{h}:big:<random>  string  none        gateway, before accept (then a TTL)     workers, unstage
kf:{h}:dead          stream  none        commit, retry, discard                  peek, retry, discard, commit
kf:{h}:idle          string  a day       unload                                  restores, install
kf:{h}:rows          hash    none        keep_rows (open rows)                   label_rows, expire_rows
kf:{h}:ends          zset    none        the same (score: end, milliseconds)     label_rows, expire_rows
kf:{h}:closed        zset    none        label_rows, expire_rows (the same)      keep_rows, label_rows
kf:{h}:followed      string  seconds     gateways                                claim_inbox
kf:{h}:loads:<...>   set     an hour     supervisors                             supervisors (see :func:`load_deaths`)
kf:{h}:pull:<job>    hash    30 days     accept (chunks of a pull job)           accept
kf:{h}:events        stream  a day       commit (in a cluster)                   supervisors (they forward them)
kf:{h}:due           zset    none        commit (in a cluster)                   announce_due
kf:{h}:replicated    string  a minute    gateways that wait for replicas (in a   none
                                         cluster)
kf:jobs              zset    none        create_job, gateways                    gateways (score: when it was made, ms)
kf:jobs:open         zset    none        create_job, claim_job, advance_job,     supervisors (score: end of the
                                         cancel_job                              holder's time, ms; 0: not held)
kf:job:<job>         hash    of a        create_job, claim_job, advance_job,     gateways, pull processes
                             setting     cancel_job
kf:changed           zset    none        before commit, rewind; snapshotter      snapshotter (see :func:`change_score`)
kf:open              hash    none        note_rows (open rows of each model)     gateways
kf:unloadable        zset    an hour     supervisors                             workers, gateways (score: end, seconds)
kf:expiring          string  seconds     gateways                                gateways (one expires rows at a time)
kf:events            stream  none        commit, announce_due, gateways,         gateways (the last 10,000 events)
                                         restores, snapshotter, workers
kf:events:due        zset    none        commit; before it, in a cluster (score  announce_due (score: last one told, ms)
                                         as in kf:changed)
kf:events:forwarding string  seconds     supervisors, in a cluster               supervisors (one forwards at a time)
kf:snapshots         hash    none        snapshotter, after a pass               gateways
kf:replicated        string  a minute    gateways that wait for replicas         none
kf:commits           pubsub  none        commit, install, rewind, delete         gateways
kf:scorers           pubsub  none        commit (of models that are followed)    gateways
===================  ======  ==========  ======================================  =====================================

Queue (``KEEPFIT_QUEUE_URL``, or each server of ``KEEPFIT_QUEUE_URLS``), beside RQ's own ``rq:*``:

============================  ======  ========  ================================  ==============================
key                           type    TTL       written by                        read by
============================  ======  ========  ================================  ==============================
kf:room:<queue>:in            list    none      push, claim, abandon              claim (models with work)
kf:room:<queue>:known         set     none      push, claim, abandon              push
kf:room:<queue>:questions     hash    none      push, claim, abandon              claim (predict only)
kf:room:<queue>:since         string  none      push, claim                       push, gateways
kf:room:<queue>:turns         hash    an hour   workers (slow models only)        claim
kf:room:<queue>:leases        zset    none      gateways of 0.1, workers          workers (leases of 0.1 gateways)
kf:room:leases                zset    none      push, claim, release              claim, sweep (score: deadline ms)
kf:room:holders               hash    none      claim, release, abandon           claim, push, release
kf:room:wake                  stream  none      push (the last wake-up)           claim, lingering workers
kf:room:work:<lease>          list    1 h       claim                             abandon
kf:restores                   hash    a day     mark_restores, unmark_restores    claim, mark_restores
kf:room:<queue>:poison        list    none      abandon                           supervisors (they reply)
kf:room:<queue>:dead          list    a day     supervisors                       operators (requests put aside)
kf:big:<random>               string  minutes   gateway (large rows)              workers
kf:file:<random>              string  minutes   gateway (uploaded files)          workers
kf:replies:<gateway>          list    60 s      workers                           one gateway
kf:sweep                      string  seconds   supervisors                       supervisors (one sweeps at a time)
kf:tokens:<name>              string  to full   take_tokens (rates of API keys)   take_tokens
kf:sessions                   string  none      the first gateway                 gateways (the secret of sessions)
kf:gateways                   hash    none      processes of gateways             gateways (records, by name)
kf:traffic:<gateway>:<slot>   hash    seconds   one process of a gateway          gateways (counts, by model)
============================  ======  ========  ================================  ==============================
"""

CHANGED = "kf:changed"
COMMITS = "kf:commits"
# Events of all models and workers, and the models whose last commit is not among them yet. Both are in no slot of a
# model: in a Redis Cluster, commits have keys of their own for it, and one supervisor at a time forwards what is there.
EVENTS = "kf:events"
DUE_EVENTS = "kf:events:due"
FORWARDING = "kf:events:forwarding"
SCORERS = "kf:scorers"
# Numbers of open rows, by model and in all (a hash); the gateway that expires rows at present has the lock.
OPEN_ROWS = "kf:open"
EXPIRING = "kf:expiring"
# Leases with their deadlines (a sorted set); their workers, and the times of their last claims (a hash).
LEASES = "kf:room:leases"
LEASE_HOLDERS = "kf:room:holders"
# The last moment at which work came into a run queue (a stream): blocked reads wake all lingering leases.
WAKE_UPS = "kf:room:wake"
# Models that a worker restores or repairs, with its lease (a hash).
RESTORES = "kf:restores"
SNAPSHOTS = "kf:snapshots"
# Pull jobs by the time at which they were made, and those that have not ended (sorted sets).
JOBS, OPEN_JOBS = "kf:jobs", "kf:jobs:open"
SWEEP = "kf:sweep"
# The secret with which gateways sign the cookies of sessions (a string).
SESSIONS = "kf:sessions"
# Written before a wait for replicas, which covers the last write of its connection.
REPLICATED = "kf:replicated"
# Records of the processes of gateways, by name (a hash).
GATEWAYS = "kf:gateways"
UNLOADABLE = "kf:unloadable"

QUEUE = "keepfit"
RQ_QUEUE = f"rq:queue:{QUEUE}"
RQ_WORKERS = f"rq:workers:{QUEUE}"
# Keys of the records of workers are this and the worker's name.
RQ_WORKER_PREFIX = "rq:worker:"

STATE_PATTERN = "kf:{*}:st"
# In a Redis Cluster, the hash tag of keys that belong to no model.
GLOBAL_TAG = "kf"


def rq_worker(name: str) -> str:
    """Return the key of RQ's record of a worker (a hash).

    Its fields `call_s` (seconds of a long call), `models_held` and `rows_per_s` are keepfit's (the heartbeat).
    """
    return f"{RQ_WORKER_PREFIX}{name}"


def rq_executions(name: str) -> str:
    """Return the key of RQ's set of the jobs that a worker executes."""
    return f"{rq_worker(name)}:executions"


def state(model_hash: str) -> str:
    """Return the key of a model's state: counters, recipe, changed parameters, metadata, metrics (a hash)."""
    return f"kf:{{{model_hash}}}:st"


def hash_of_state(key: str) -> str:
    """Return the hash of the model of a :func:`state` key.

    >>> hash_of_state(state("ab12"))
    'ab12'
    """
    return key[len("kf:{") : -len("}:st")]


def change_score(generation: int, version: int) -> int:
    """Return the score of a model in :data:`CHANGED`: generation first, then version (exact in a double, below 2^53).

    >>> change_score(1, 99) < change_score(2, 0) < change_score(2, 1)
    True
    """
    return (generation << 32) + version


def bundle(model_hash: str) -> str:
    """Return the key of a model's live bundle: a signed envelope (a string)."""
    return f"kf:{{{model_hash}}}:b"


def inbox(model_hash: str) -> str:
    """Return the key of a model's inbox: pending and retained requests, rows and parameter changes (a stream)."""
    return f"kf:{{{model_hash}}}:in"


def lock(model_hash: str) -> str:
    """Return the key of a model's lock: the lease that learns it (a string). It saves work and guarantees nothing."""
    return f"kf:{{{model_hash}}}:lk"


def staged_bundle(model_hash: str, token: str) -> str:
    """Return the key of a staged bundle, written before the script that makes it live (a string)."""
    return f"kf:{{{model_hash}}}:stg:{token}"


def idempotency(model_hash: str, key: str) -> str:
    """Return the key of the first answer to a call, by the gateway's key or as release 0.1 stored it (a string)."""
    return f"kf:{{{model_hash}}}:idem:{key}"


def new_answers(model_hash: str, caller: str) -> str:
    """Return the key of the first answers to the newest idempotency keys of a caller (a hash)."""
    return f"kf:{{{model_hash}}}:idem:new:{caller}"


def old_answers(model_hash: str, caller: str) -> str:
    """Return the key of the first answers before those of :func:`new_answers`, which are forgotten first (a hash)."""
    return f"kf:{{{model_hash}}}:idem:old:{caller}"


def chunk_answers(model_hash: str, job: str) -> str:
    """Return the key of the answer to the last chunk of a pull job that was accepted (a hash with one field)."""
    return f"kf:{{{model_hash}}}:pull:{job}"


def job(name: str) -> str:
    """Return the key of the record of a pull job (a hash)."""
    return f"kf:job:{name}"


def new_stored_answers(model_hash: str) -> str:
    """Return the key of the newest answers to calls of train_score_predict (a hash)."""
    return f"kf:{{{model_hash}}}:answers:new"


def old_stored_answers(model_hash: str) -> str:
    """Return the key of the answers before those of :func:`new_stored_answers`, which are dropped first (a hash)."""
    return f"kf:{{{model_hash}}}:answers:old"


def large_rows(model_hash: str, token: str) -> str:
    """Return the key of the rows of one large learning request (a string)."""
    return f"kf:{{{model_hash}}}:big:{token}"


def dead(model_hash: str) -> str:
    """Return the key of a model's dead letters, with their reasons (a stream)."""
    return f"kf:{{{model_hash}}}:dead"


def idle(model_hash: str) -> str:
    """Return the key of the idle record of a model that left Redis because nothing used it (a string)."""
    return f"kf:{{{model_hash}}}:idle"


def open_rows(model_hash: str) -> str:
    """Return the key of a model's open rows, which wait for their labels, by id (a hash)."""
    return f"kf:{{{model_hash}}}:rows"


def open_row_ends(model_hash: str) -> str:
    """Return the key of the ids of a model's open rows by the time at which they expire (a sorted set)."""
    return f"kf:{{{model_hash}}}:ends"


def closed_rows(model_hash: str) -> str:
    """Return the key of the ids of a model's rows that were labelled or have expired (a sorted set)."""
    return f"kf:{{{model_hash}}}:closed"


def in_cluster(key: str | bytes) -> str | bytes:
    """Return the name that a key of the store has in a Redis Cluster: with a tag if it has none.

    >>> in_cluster("kf:jobs"), in_cluster("kf:{ab12}:st")
    ('kf:{kf}:jobs', 'kf:{ab12}:st')
    """
    return f"kf:{{{GLOBAL_TAG}}}:{key[3:]}" if isinstance(key, str) and "{" not in key else key


def model_events(model_hash: str) -> str:
    """Return the key of a model's events that are not forwarded yet, in a cluster (a stream)."""
    return f"kf:{{{model_hash}}}:events"


def model_due(model_hash: str) -> str:
    """Return the key that has a model while its last commit is not announced, in a cluster (a sorted set)."""
    return f"kf:{{{model_hash}}}:due"


def replicated(key: str) -> str:
    """Return the key that is written before a wait for replicas, in the slot of another key (a string).

    >>> replicated(state("ab12"))
    'kf:{ab12}:replicated'
    """
    return f"kf:{key[key.index('{') : key.index('}') + 1]}:replicated"


def followed(model_hash: str) -> str:
    """Return the key that exists while gateways want the scorer of each new version of a model (a string)."""
    return f"kf:{{{model_hash}}}:followed"


def load_deaths(model_hash: str, generation: int, digest: str) -> str:
    """Return the key of the names of workers that died while they loaded a bundle of a model (a set)."""
    return f"kf:{{{model_hash}}}:loads:{generation}:{digest}"


def queued_models(queue: str) -> str:
    """Return the key of the hashes of models with work in a run queue (a list)."""
    return f"kf:room:{queue}:in"


def queued_models_set(queue: str) -> str:
    """Return the key of the set of the hashes in :func:`queued_models`."""
    return f"kf:room:{queue}:known"


def former_leases(queue: str) -> str:
    """Return the key of the leases that gateways of 0.1 register, with their deadlines (a sorted set)."""
    return f"kf:room:{queue}:leases"


def worker_requests(queue: str) -> str:
    """Return the key of the worker requests in a run queue, by model and number (a hash)."""
    return f"kf:room:{queue}:questions"


def waiting_since(queue: str) -> str:
    """Return the key of the time since which entries wait for the next claim, in milliseconds (a string)."""
    return f"kf:room:{queue}:since"


def request_limits(queue: str) -> str:
    """Return the key of the number of requests that one claim may take of each slow model (a hash)."""
    return f"kf:room:{queue}:turns"


def poison_requests(queue: str) -> str:
    """Return the key of the poison requests that are not answered yet (a list)."""
    return f"kf:room:{queue}:poison"


def put_aside_requests(queue: str) -> str:
    """Return the key of the last worker requests that were put aside (a list)."""
    return f"kf:room:{queue}:dead"


def claimed(lease: str) -> str:
    """Return the key of the entries that a lease has claimed, of one run queue (a list)."""
    return f"kf:room:work:{lease}"


def request_rows(token: str) -> str:
    """Return the key of the rows of one large worker request (a string)."""
    return f"kf:big:{token}"


def staged_file(token: str) -> str:
    """Return the key of a file that a client uploads (a string)."""
    return f"kf:file:{token}"


def tokens(name: str) -> str:
    """Return the key of the tokens in the bucket of the API keys with this name (a string)."""
    return f"kf:tokens:{name}"


def replies(gateway: str) -> str:
    """Return the key of the replies to one gateway (a list)."""
    return f"kf:replies:{gateway}"


def traffic(gateway: str, slot: int) -> str:
    """Return the key of what a process of a gateway has counted of each model in a period (a hash)."""
    return f"kf:traffic:{gateway}:{slot}"
