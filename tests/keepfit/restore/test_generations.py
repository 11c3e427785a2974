"""Allocation of generations for many callers at once: no number twice, none for a deleted model."""

import asyncio

import pytest

from keepfit.errors import UnavailableError
from keepfit.history import Registry
from keepfit.restore.generations import Generations


async def test_no_generation_is_allocated_twice(registry: Registry) -> None:
    """Concurrent callers get different generations, with current or outdated entries, for one model or for many."""
    entries = [(await registry.register(f"{number:064x}", '{"type": "a"}', "{}"))[0] for number in range(5)]
    allocators = [Generations(registry) for _ in range(3)]
    allocated = await asyncio.gather(
        *(allocator.allocate(one) for allocator in allocators for one in entries for _ in range(2))
    )
    pairs = list(zip([one.hash for _ in allocators for one in entries for _ in range(2)], allocated, strict=True))
    assert None not in allocated
    assert len(set(pairs)) == len(pairs) == 30
    for one in entries:
        now = await registry.find(one.hash)
        assert now is not None
        assert now.generation >= max(number or 0 for model_hash, number in pairs if model_hash == one.hash)


async def test_a_deleted_model_gets_none_and_the_others_a_generation(registry: Registry) -> None:
    """A model that was deleted, or deleted and created again, since it was read gets None; the others are served."""
    existing, deleted, recreated = [
        (await registry.register(f"{number:064x}", '{"type": "a"}', "{}"))[0] for number in range(3)
    ]
    await registry.unregister(deleted.hash)
    await registry.unregister(recreated.hash)
    await registry.register(recreated.hash, '{"type": "a"}', "{}")
    generations = Generations(registry)
    allocated = await asyncio.gather(*(generations.allocate(one) for one in (existing, deleted, recreated)))
    assert allocated[1:] == [None, None]
    assert allocated[0] is not None
    assert allocated[0] > existing.generation


async def test_an_unavailable_registry_fails_all_callers(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """All callers of a failed batch get the error, and the next batch succeeds."""
    one, _ = await registry.register("0" * 64, '{"type": "a"}', "{}")
    generations = Generations(registry)

    async def unavailable(*models: object) -> bool:
        raise UnavailableError("MongoDB is unavailable.")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "advance_generations", unavailable)
        errors = await asyncio.gather(*(generations.allocate(one) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [UnavailableError] * 3
    assert await generations.allocate(one) == 2
