"""Methods that the blocking and the asyncio client share: written once, as flows of steps.

Owns :class:`call`, which makes a method of a flow. Invariant: a method has the same parameters and the same result in
both clients; the asyncio client's is awaited.
"""

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from keepfit.client.transport.exchange import Flow

if TYPE_CHECKING:
    from keepfit.client.calling.async_performer import AsyncPerformer
    from keepfit.client.calling.sync_performer import SyncPerformer

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """What performs its flows at once: the results of its methods are those of their flows."""

    _performer: "SyncPerformer"


class Awaiting:
    """What performs its flows on the event loop: its methods are awaited."""

    _performer: "AsyncPerformer"


if TYPE_CHECKING:

    class call(Generic[P, T]):  # noqa: N801 - a decorator
        """What type checkers see of :func:`call`."""

        flow: Callable[..., Flow[T]]

        def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]]) -> None: ...

        @overload
        def __get__(self, instance: None, owner: type) -> Self: ...

        @overload
        def __get__(self, instance: Blocking, owner: type) -> Callable[P, T]: ...

        @overload
        def __get__(self, instance: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

        def __get__(self, instance: Blocking | Awaiting | None, owner: type) -> Any: ...

else:

    def call(flow):
        """Make a method of a flow: blocking in a :class:`Blocking`, awaited in an :class:`Awaiting`."""

        @functools.wraps(flow)
        def method(self, *args, **kwargs):
            return self._performer.run(flow(self, *args, **kwargs))

        # The steps of the method, for other flows.
        method.flow = flow
        return method
