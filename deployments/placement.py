"""Where a stage lives: inside the process that asks it, or as a deployment. Whoever asks sees the plain object."""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from ray.serve import Application, Deployment

StageName = Literal["sequences", "candidates"]


class Remote:
    """A deployment's handle, called as the stage itself is: `await stage.lookup(user_id)`. Raises what awaiting the
    handle's answer raises."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        remote: Callable[..., Awaitable[Any]] = getattr(self._handle, method).remote
        return remote


class Inline:
    """A stage inside the process that asks it: no hop, no copy, no scaling of its own.

    It is made in one process (where the graph is built) and used in another: the stage itself is made there, with the
    first call. Handles among the arguments are passed on as they are.
    """

    def __init__(self, stage: Deployment, *arguments: Any) -> None:
        self._name, self._arguments = (stage.func_or_class.__module__, stage.func_or_class.__name__), arguments
        self._making: asyncio.Task[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_making": None}  # Ray pickles a replica's arguments again once it runs

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):  # pickle asks for such names; no stage answers them
            raise AttributeError(method)

        async def call(*arguments: Any, **named: Any) -> Any:
            return await getattr(await self._stage(), method)(*arguments, **named)

        return call

    async def _stage(self) -> Any:
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.ensure_future(self._make())
        return await asyncio.shield(self._making)  # a caller that goes away must not undo it for the others

    async def _make(self) -> Any:
        module, name = self._name
        kind = getattr(importlib.import_module(module), name).func_or_class
        stage = kind.__new__(kind)
        made = stage.__init__(*self._arguments)
        if inspect.isawaitable(made):  # as Serve itself allows
            await made
        return stage


def placed(
    name: StageName,
    deployment: Deployment,
    inline: Sequence[StageName],
    apart: Mapping[StageName, dict[str, Any]],
    *arguments: Any,
) -> Application | Inline:
    """The stage as an argument of whoever asks it: inside that process, or as a deployment with its options."""
    if name in inline:
        return Inline(deployment, *arguments)
    return deployment.options(**apart.get(name, {})).bind(*arguments)


def plain(argument: Any) -> Any:
    """What `placed` became in the process that asks, as the stage."""
    return argument if isinstance(argument, Inline) else Remote(argument)
