"""A stage inside the ingress's process: called as a handle is, made once, made again after a failure."""

import asyncio
import pickle
from pathlib import Path

import pytest
from ray import cloudpickle

from deployments.placement import Inline, placed
from deployments.sequences import SequencesDeployment
from rayapp.contracts.schema import Event
from rayapp.root.facts import make_root
from rayapp.root.publish import PublishError
from tests.conftest import Domain, make_event


def test_it_answers_as_the_deployment_would(root: Path) -> None:
    async def session() -> None:
        local = Inline(SequencesDeployment, str(root), None)
        event: Event = make_event(1)
        outcomes = await local.append([event])
        assert pickle.loads(pickle.dumps(local))._arguments == (str(root), None), "also while it is in use"
        found, again = await asyncio.gather(local.lookup("u1"), local.lookup("u1"))
        assert [o.value for o in outcomes] == ["accepted"]
        assert found.item_ids == again.item_ids == ("i1",)

    asyncio.run(session())


def test_a_call_runs_whether_or_not_anyone_waits_and_ends_with_its_caller(root: Path) -> None:
    async def session() -> None:
        local = Inline(SequencesDeployment, str(root), None)
        sent = asyncio.create_task(local.append([make_event(1)]))  # nobody waits
        gone = asyncio.create_task(local.lookup("u1"))
        await asyncio.sleep(0)
        gone.cancel()  # a client that went away, while the stage is being made
        with pytest.raises(asyncio.CancelledError):
            await gone
        while not len((await local.lookup("u1")).history):
            pass  # each look-up lets the append go on
        assert (await sent)[0].value == "accepted"

    asyncio.run(session())


def test_it_is_made_where_it_is_used(root: Path) -> None:
    here = Inline(SequencesDeployment, str(root), None)
    there = cloudpickle.loads(cloudpickle.dumps(here))
    assert there._arguments == (str(root), None)
    assert pickle.loads(pickle.dumps(there))._name == ("deployments.sequences", "SequencesDeployment")


def test_a_stage_that_could_not_be_made_is_tried_again(tmp_path: Path, domain: Domain) -> None:
    async def session() -> None:
        local = Inline(SequencesDeployment, str(tmp_path / "later"), None)
        with pytest.raises(PublishError):
            await local.lookup("u1")
        make_root(tmp_path / "later", domain, num_buckets=4)
        assert not len((await local.lookup("u1")).history)

    asyncio.run(session())


def test_inline_or_apart_is_one_word() -> None:
    assert isinstance(placed("sequences", SequencesDeployment, ["sequences"], {}, "root", None), Inline)
    apart = placed("sequences", SequencesDeployment, [], {"sequences": {"max_ongoing_requests": 7}}, "root", None)
    assert not isinstance(apart, Inline)
    assert apart._bound_deployment.max_ongoing_requests == 7
