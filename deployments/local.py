"""A stage inside the process that asks it, called as a deployment's handle is: no hop, no copy, no scaling of its own.

The class is the same one that runs as a deployment; `AppArgs.inline` chooses.
"""

import asyncio
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ray.serve import Application, Deployment

Stage = Literal["sequences", "candidates"]


class Local:
    """Stands where a `DeploymentHandle` stands: `await stage.lookup.remote(user_id)`.

    It is made in one process (where the graph is built) and used in another: the stage itself is made there, with the
    first call. Handles and other `Local`s among the arguments are passed on as they are.
    """

    def __init__(self, stage: Deployment, *arguments: Any) -> None:
        self._name, self._arguments = (stage.func_or_class.__module__, stage.func_or_class.__name__), arguments
        self._making: asyncio.Task[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_making": None}  # Ray pickles a replica's arguments again once it runs

    def __getattr__(self, method: str) -> "_Method":
        if method.startswith("_"):  # pickle asks for such names; no stage answers them
            raise AttributeError(method)
        return _Method(self, method)

    async def _stage(self) -> Any:
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.ensure_future(self._make())
        return await asyncio.shield(self._making)  # a caller that goes away must not undo it for the others

    async def _make(self) -> Any:
        module, name = self._name
        kind = getattr(importlib.import_module(module), name).func_or_class
        stage = kind.__new__(kind)
        made = stage.__init__(*self._arguments)
        if inspect.isawaitable(made):
            await made
        return stage


class _Method:
    def __init__(self, local: Local, name: str) -> None:
        self._local, self._name = local, name

    def remote(self, *arguments: Any, **named: Any) -> "asyncio.Task[Any]":
        """Starts the call and returns what is awaited for its answer, as a handle does."""
        return asyncio.ensure_future(self._call(arguments, named))

    async def _call(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        answer = getattr(await self._local._stage(), self._name)(*arguments, **named)
        return await answer if inspect.isawaitable(answer) else answer


def bound(
    name: Stage, deployment: Deployment, inline: Sequence[Stage], apart: Mapping[Stage, dict[str, Any]], *arguments: Any
) -> Application | Local:
    """The stage as the ingress gets it: inside its process, or as a deployment with its options."""
    if name in inline:
        return Local(deployment, *arguments)
    return deployment.options(**apart.get(name, {})).bind(*arguments)
