"""Which models answer now, as one ingress knows it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from rayapp.registry.aliases import CHAMPION
from rayapp.serving.stages import Stages


@dataclass(slots=True)
class Live:
    """Moved by `follow` once the stages hold what an alias names."""

    version: str
    previous: str
    aliases: Mapping[str, str]
    popular: list[str] = field(default_factory=list)
    """Item ids, the most popular first: what is shown when no candidates come."""

    @staticmethod
    def of(aliases: Mapping[str, str]) -> "Live":
        return Live(aliases[CHAMPION], aliases[CHAMPION], aliases)

    def versions_for(self, alias: str | None) -> list[str]:
        """The alias's model, then the champion and the one before it."""
        first = [self.aliases[alias]] if alias is not None and alias in self.aliases else []
        return [*first, self.version, self.previous]

    async def follow(self, aliases: Mapping[str, str], stages: Stages) -> None:
        """A newly promoted champion answers once the stages hold it."""
        self.aliases = aliases
        wanted = aliases[CHAMPION]
        if wanted != self.version:
            held = await asyncio.gather(stages.ranker.versions(), stages.candidates.versions())
            if all(wanted in versions for versions in held):
                self.previous, self.version = self.version, wanted

    async def fetch_popular(self, stages: Stages, now_ms: int) -> None:
        """Keeps the popular items that are there where the stage has none to tell."""
        self.popular = await stages.candidates.popular(self.version, now_ms) or self.popular
