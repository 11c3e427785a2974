"""Names of everything in Redis, built here and nowhere else.

Store (``KEEPFIT_STORE_URL``); ``{h}`` is the model's hash in braces, so that its keys share a Cluster slot:

===================  ======  ==========  ====================================  =================================
key                  type    TTL         written by                            read by
===================  ======  ==========  ====================================  =================================
kf:{h}:st            hash    none        install, rewind, accept, commit       gateway, workers, snapshotter
kf:{h}:b             string  none        install, rewind, commit (by RENAME)   workers, snapshotter
kf:{h}:in            stream  none        accept, retry (``<sequence>-0``)      take, repairs (those that are kept)
kf:{h}:lk            string  lease       take, renew, unlock, remember         take, remember, install
kf:{h}:stg:<random>  string  60 s        workers, before one of these three    commit, install, rewind
kf:{h}:idem:<key>    string  a day       accept, retry, remember               accept, retry
kf:{h}:big:<random>  string  none        gateway, before accept (then a TTL)   workers
kf:{h}:dead          stream  none        commit (rows put aside), retry        peek, retry, discard
kf:changed           zset    none        before commit, rewind; snapshotter    snapshotter (score: generation, version)
kf:snapshots         hash    none        snapshotter, after a pass             gateways
kf:commits           pubsub  none        commit, install, rewind, delete       gateways
===================  ======  ==========  ====================================  =================================

Queue (``KEEPFIT_QUEUE_URL``), beside RQ's own ``rq:*``:

===========================  ======  ========  ================================  ==============================
key                          type    TTL       written by                        read by
===========================  ======  ========  ================================  ==============================
kf:room:<room>:in            list    none      push, claim, abandon              claim (models with work)
kf:room:<room>:known         set     none      push, claim, abandon              push
kf:room:<room>:questions     hash    none      push, claim, abandon              claim (predict only)
kf:room:<room>:since         string  none      push, claim                       push
kf:room:<room>:leases        zset    none      push, claim, release              claim, sweep (score: deadline ms)
kf:room:<room>:holders       hash    none      claim, release, abandon           claim
kf:room:<room>:turns         hash    an hour   workers (slow models only)        claim
kf:room:<room>:work:<lease>  list    1 h       claim                             abandon
kf:room:<room>:poison        list    none      abandon                           supervisors, who answer it
kf:room:<room>:dead          list    a day     supervisors                       operators (what was put aside)
kf:big:<random>              string  minutes   gateway (rows of a large one)     workers
kf:replies:<gateway>         list    60 s      workers                           one gateway
kf:sweep                     string  seconds   supervisors                       supervisors (one sweeps at a time)
===========================  ======  ========  ================================  ==============================
"""

CHANGED = "kf:changed"
COMMITS = "kf:commits"
SNAPSHOTS = "kf:snapshots"
SWEEP = "kf:sweep"

QUEUE = "keepfit"
RQ_QUEUE = f"rq:queue:{QUEUE}"
RQ_WORKERS = f"rq:workers:{QUEUE}"

STATE_PATTERN = "kf:{*}:st"


def state(model_hash: str) -> str:
    """State of a model: counters, recipe, what was changed of it, metadata, metrics (a hash)."""
    return f"kf:{{{model_hash}}}:st"


def hash_of_state(key: str) -> str:
    """Hash of the model whose :func:`state` key this is.

    >>> hash_of_state(state("ab12"))
    'ab12'
    """
    return key[len("kf:{") : -len("}:st")]


def change(generation: int, version: int) -> int:
    """Score of a model in :data:`CHANGED`: a later generation outweighs every version (exact in a double, below 2^53).

    >>> change(1, 99) < change(2, 0) < change(2, 1)
    True
    """
    return (generation << 32) + version


def bundle(model_hash: str) -> str:
    """Live bundle of a model: a signed envelope (a string)."""
    return f"kf:{{{model_hash}}}:b"


def inbox(model_hash: str) -> str:
    """Accepted, not yet learned requests of a model, rows and changes of parameters (a stream)."""
    return f"kf:{{{model_hash}}}:in"


def lock(model_hash: str) -> str:
    """Who learns this model just now (a string); saves work, proves nothing."""
    return f"kf:{{{model_hash}}}:lk"


def staged(model_hash: str, token: str) -> str:
    """Bundle written ahead of the script that makes it live (a string)."""
    return f"kf:{{{model_hash}}}:stg:{token}"


def idempotency(model_hash: str, key: str) -> str:
    """First answer to a learning call with this key (a string)."""
    return f"kf:{{{model_hash}}}:idem:{key}"


def big(model_hash: str, token: str) -> str:
    """Rows of one large learning request (a string)."""
    return f"kf:{{{model_hash}}}:big:{token}"


def dead(model_hash: str) -> str:
    """Requests that could not be learned, with the reason (a stream)."""
    return f"kf:{{{model_hash}}}:dead"


def waiting(room: str) -> str:
    """Hashes of models with work in a room (a list)."""
    return f"kf:room:{room}:in"


def known(room: str) -> str:
    """Hashes that stand in :func:`waiting` (a set)."""
    return f"kf:room:{room}:known"


def leases(room: str) -> str:
    """Leases on a room with their deadlines (a sorted set)."""
    return f"kf:room:{room}:leases"


def worker_requests(room: str) -> str:
    """Questions that wait in a room, by model and number (a hash)."""
    return f"kf:room:{room}:questions"


def since(room: str) -> str:
    """When what waits in a room began to wait for the next claim, in milliseconds (a string)."""
    return f"kf:room:{room}:since"


def holders(room: str) -> str:
    """Workers behind the leases on a room, and when each claimed last (a hash)."""
    return f"kf:room:{room}:holders"


def turns(room: str) -> str:
    """Questions that one claim may take of a slow model (a hash)."""
    return f"kf:room:{room}:turns"


def poison(room: str) -> str:
    """Questions that took too many workers along, not answered yet (a list)."""
    return f"kf:room:{room}:poison"


def put_aside(room: str) -> str:
    """Last questions that were put aside (a list)."""
    return f"kf:room:{room}:dead"


def claimed(room: str, lease: str) -> str:
    """Entries that a lease has in hand (a list)."""
    return f"kf:room:{room}:work:{lease}"


def asked_rows(token: str) -> str:
    """Rows of one large question (a string)."""
    return f"kf:big:{token}"


def replies(gateway: str) -> str:
    """Answers on their way to one gateway (a list)."""
    return f"kf:replies:{gateway}"
