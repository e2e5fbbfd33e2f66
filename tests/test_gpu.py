"""What a GPU would run says what the scorer says; everything but CUDA itself runs here on a CPU."""

import copy
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.score_gpu import measure_gpu, told_of
from benchmarks.scored import Scored
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.presets import VARIANTS, nano, variant
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.features.requests import Requests
from rayapp.features.sequence import History
from rayapp.importing.domains import load_domain
from rayapp.model import batched as batched_scorer
from rayapp.model.batched import (
    FEWEST_CANDIDATES,
    LARGEST_BATCH,
    LARGEST_BF16_ERROR,
    MOST_EXAMPLES,
    bucket,
    groups,
)
from rayapp.model.calibration import Calibration
from rayapp.model.packing import ALIGNMENT, BufferLayout, OneCopy
from rayapp.model.ranker import Ranker
from rayapp.model.scorer import Scorer
from rayapp.registry.aliases import promote
from rayapp.registry.models import load_model
from rayapp.serving.fresh_statistics import FreshStatistics, Read
from rayapp.serving.ranking import RankCall, Ranking, rank, rank_many
from rayapp.serving.shelf import ModelShelf
from rayapp.store import Store, UserSequence
from tests.conftest import T0
from tests.scorers import CONFIG, LENGTH, hashes, request, scorer_of, some_request
from tests.tiny_models import publish_models

CPU = torch.device("cpu")
MODELS = sorted(set(VARIANTS) - {"double-length", "no-time-mask", "day-time-mask"})
"""Without those that differ from V1.1 in training alone."""
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: graphs, bf16 and pinned copies"
)


def asked_of(sizes: list[tuple[int, int]]) -> list[Requests]:
    """A request for each (actions, candidates), each of another user at another time."""
    asked = [some_request(real, candidates, seed) for seed, (real, candidates) in enumerate(sizes)]
    return [
        dataclasses.replace(
            one,
            user_hash_R=np.array([hash64(f"x{n % 12}")], np.uint64),
            item_statistic_NK=np.random.default_rng(n).normal(size=one.item_statistic_NK.shape).astype(np.float32),
            user_statistic_RK=np.full_like(one.user_statistic_RK, n / 10),
        )
        for n, one in enumerate(asked)
    ]


SIZES = st.lists(st.tuples(st.integers(0, LENGTH), st.sampled_from([0, 1, 7, 33])), min_size=1, max_size=4)


@settings(deadline=None, max_examples=8)
@given(sizes=SIZES)
def test_a_request_among_others_scores_as_alone(sizes: list[tuple[int, int]]) -> None:
    scorer = scorer_of(CONFIG)
    asked = asked_of(sizes)
    together = scorer.on(CPU).score_many(asked)
    assert len(together) == len(asked)
    for one, scores in zip(asked, together, strict=True):
        alone = scorer.score(one)
        np.testing.assert_allclose(scores.probability_CH, alone.probability_CH, atol=1e-5)
        assert scores.row_C.tolist() == alone.row_C.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_so_does_every_variant(name: str) -> None:
    scorer = scorer_of(variant(nano(), name).model)
    asked = asked_of([(0, 3), (3, 30), (scorer.history_length, 5)])
    if scorer.history_length < LENGTH:  # a request holds no more actions than the model reads
        asked = [dataclasses.replace(one, sequences=one.sequences.of_length(scorer.history_length)) for one in asked]
    for one, (probability_CH, _) in zip(asked, scorer.on(CPU).score_many(asked), strict=True):
        np.testing.assert_allclose(probability_CH, scorer.score(one)[0], atol=1e-5)


@settings(deadline=None, max_examples=4)
@given(mates=SIZES, place=st.integers(0, 4))
def test_batch_mates_never_matter(mates: list[tuple[int, int]], place: int) -> None:
    batched = scorer_of(CONFIG).on(CPU)
    mine, *others = asked_of([(5, 9), *mates])
    (alone_CH, _), place = batched.score_many([mine])[0], min(place, len(others))
    among_CH, _ = batched.score_many([*others[:place], mine, *others[place:]])[place]
    np.testing.assert_allclose(among_CH, alone_CH, atol=2e-6)


def test_joined_requests_are_the_same_and_then_padding() -> None:
    asked = asked_of([(3, 4), (0, 6)])
    wide = request(np.array([FIRST_ACTION_ID, PAD, PAD], np.uint8), hashes("i1", "i2", "i3"), hashes("i4"))
    joined = Requests.concatenate([*asked, wide, wide])
    assert len(joined) == joined.context.num_rows == 4
    assert joined.valid(8).shape == (4, 8)
    assert joined.sequences.action_RL.shape == (4, LENGTH)
    for b, one in enumerate([*asked, wide, wide]):
        count, length = len(one.candidate_hash_N), min(one.sequences.action_RL.shape[1], LENGTH)
        assert joined.context.slice(b, 1).equals(one.context)
        assert joined.user_hash_R[b] == one.user_hash_R[0]
        assert joined.sequences.hash_of(b) == one.sequences.hash_of(0)
        assert (joined.sequences.action_RL[b, length:] == PAD).all()
        assert joined.valid(8)[b].tolist() == [True] * count + [False] * (8 - count)
        for name in ("candidate_hash_N", "item_statistic_NK"):
            ours, theirs = joined.pad(getattr(joined, name), 8), getattr(one, name)
            assert (ours[b, :count] == theirs).all()
            assert not ours[b, count:].any()


def test_a_longer_history_is_cut_to_its_newest_actions() -> None:
    action = np.full(LENGTH + 3, FIRST_ACTION_ID, np.uint8)
    longer = request(action, hashes(*(f"i{n}" for n in range(LENGTH + 3))), hashes("i1")).sequences
    cut = longer.of_length(LENGTH)
    assert cut.length_R.tolist() == [LENGTH]
    assert cut.item_hash_RL[0].tolist() == hashes(*(f"i{n}" for n in range(LENGTH))).tolist()


DTYPES = [torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool, torch.bfloat16, torch.float64]


@settings(deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=6, max_size=6),
)
def test_packed_tensors_arrive_as_they_were(shapes: list[list[int]], dtypes: list[torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(0)
    bring, whole = OneCopy(CPU), []
    for _ in range(2):  # the second time into buffers that hold something
        tensors = [
            torch.randint(0, 2**7, shape, generator=generator).to(dtype)
            for shape, dtype in zip(shapes, dtypes, strict=False)
        ]
        arrived = bring(tensors)
        assert all(a.dtype == t.dtype and torch.equal(a, t) for a, t in zip(arrived, tensors, strict=True))
        whole.append([a.data_ptr() for a in arrived if a.numel()])
    assert whole[0] == whole[1]
    layout = BufferLayout.of(tensors)
    assert all(at % ALIGNMENT == 0 for at, *_ in layout.parts)
    ends = [at + size for at, size, *_ in layout.parts]
    assert all(end <= start for end, (start, *_) in zip(ends, layout.parts[1:], strict=False))


def test_few_shapes_hold_every_request() -> None:
    buckets = {bucket(size, FEWEST_CANDIDATES) for size in range(1_001)}
    assert buckets == {32, 64, 128, 256, 512, 1_024}
    assert [bucket(size) for size in (1, 2, 3, 16)] == [1, 2, 4, 16]
    assert all(bucket(size) >= size for size in range(3_000))


@given(counts=st.lists(st.integers(0, 3_000), max_size=60))
def test_groups_hold_each_request_once_and_are_small_enough(counts: list[int]) -> None:
    found = list(groups(counts))
    assert sorted(n for group in found for n in group) == list(range(len(counts)))
    for group in found:
        examples = bucket(len(group)) * bucket(max(counts[n] for n in group), FEWEST_CANDIDATES)
        assert len(group) <= LARGEST_BATCH
        assert len(group) == 1 or examples <= MOST_EXAMPLES


def test_an_item_put_a_second_ago_is_known_with_the_same_graphs() -> None:
    scorer = scorer_of(CONFIG).on(CPU)
    item = {"item_id": "i44", "created_at_ms": 5, "title": "film new", "genres": ["g1"]}
    extended = scorer.with_table(scorer.inputs.table.with_items([item]))
    assert scorer.batched is not None
    assert extended.batched is not None
    assert extended.batched.graphs is scorer.batched.graphs
    asked = request(np.full(3, FIRST_ACTION_ID, np.uint8), hashes("i1", "i44", "i2"), hashes("i44", "i3"))
    [before], [after] = scorer.score_many([asked]), extended.score_many([asked])
    assert (before.known.tolist(), after.known.tolist()) == ([False, True], [True, True])
    np.testing.assert_allclose(after.probability_CH, extended.score(asked)[0], atol=1e-5)
    assert np.abs(after.probability_CH - before.probability_CH)[0].max() > 1e-6


def test_bf16_is_judged_by_the_probabilities_it_moves() -> None:
    """The check itself, with a CPU's bf16. Weights with large logits lose too much."""
    errors = {}
    for scale in (1.0, 30.0):
        batched = scorer_of(CONFIG, scale).on(CPU).batched
        assert batched is not None
        assert not batched.probabilities.bf16
        errors[scale] = batched.error_of_bf16()
        assert not batched.probabilities.bf16
    assert 0 < errors[1.0] < errors[30.0]
    assert errors[30.0] > LARGEST_BF16_ERROR


def test_calls_are_ranked_together_as_alone(root: Path, domain: Domain, store: Store) -> None:
    """By a shelf whose "GPU" is the CPU: two versions, a version that is not held, and a call that can't be read."""
    publish_models(root, domain)
    promote(root, "challenger", "b")
    with mock.patch.object(batched_scorer, "LARGEST_BATCH", 4):
        shelf = ModelShelf(root, domain, store, CPU)
    one, two = np.array([T0]), np.array([hash64("i2")], np.uint64)
    acted = UserSequence(History(one, one, one, two, two, np.array([3], np.uint8)), ("i2",), T0)
    calls = [
        ("a", RankCall.of("u1", acted, T0 + 1, ["i1", "i5", "nowhere"], {})),
        ("b", RankCall.of("u1", acted, T0 + 1, ["i1", "i5"], {})),
        ("gone", RankCall.of("u2", UserSequence.unknown(), T0 + 1, ["i1"], {})),
        ("a", RankCall.of("u2", UserSequence.unknown(), T0 + 1, [f"i{n}" for n in range(30)], {})),
        ("a", RankCall("u3", UserSequence.unknown(), T0 + 1, None, {})),  # type: ignore[arg-type]
    ]
    statistics = FreshStatistics(root, domain, store)
    answers = rank_many(shelf.get, lambda _: statistics, domain, calls)
    assert answers[2] is None
    assert isinstance(answers[4], Exception)
    for (version, call), answer in zip(calls, answers, strict=True):
        model = shelf.get(version)
        if isinstance(answer, Ranking):
            assert model is not None
            alone = rank(model, statistics, domain, call)
            np.testing.assert_allclose(answer.probability_CH, alone.probability_CH, atol=1e-5)
            for field in dataclasses.fields(Ranking)[2:-1]:
                np.testing.assert_array_equal(getattr(answer, field.name), getattr(alone, field.name))
            for field in dataclasses.fields(Read):
                mine, its = (getattr(ranking.statistics, field.name) for ranking in (answer, alone))
                np.testing.assert_array_equal(mine, its)
    assert [isinstance(answer, Ranking) for answer in answers] == [True, True, False, True, False]


def test_a_forward_that_fails_fails_its_own_calls_alone(root: Path, domain: Domain, store: Store) -> None:
    publish_models(root, domain)
    good = load_model(root, "a", domain)
    bad = dataclasses.replace(good, scorer=good.scorer.on(CPU))
    assert bad.scorer.batched is not None
    bad.scorer.batched.probabilities._scale_H = torch.ones(7)  # as many as no model has heads
    call = RankCall.of("u1", UserSequence.unknown(), T0, ["i1"], {})
    held, statistics = {"bad": bad, "a": good}, FreshStatistics(root, domain, store)
    answers = rank_many(held.get, lambda _: statistics, domain, [("bad", call), ("a", call), ("bad", call)])
    assert [type(answer) for answer in answers] == [RuntimeError, Ranking, RuntimeError]


@pytest.mark.slow
def test_the_benchmark_measures_what_it_is_given() -> None:
    domain = load_domain("synthetic").domain
    scored = Scored.make(domain, CONFIG.item_dim)
    ranker = Ranker(CONFIG, scored.inputs.encoders, domain)
    scorer = Scorer(ranker, scored.inputs, Calibration.none(len(domain.heads)))
    result = measure_gpu(scorer, scored, {5: 2}, 1, CPU)
    assert result["speedup_gpu_graph_least"] <= result["speedup_gpu_graph"] <= result["speedup_gpu_graph_most"]
    assert 0 < result["p50_c5_ms"] <= result["p99_c5_ms"]
    assert "times as fast" in told_of(result, {5: 2})
    assert "not measured" in told_of(None, {5: 2})


class NothingFromTheHost(TorchDispatchMode):
    """Fails at what a CUDA graph can't hold: a tensor of the host, one made from Python numbers, a number read back.

    It does not see a list of indexes, `x[[0, 2]]`, become a tensor; only a capture on a GPU does.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is not torch.ops.aten.detach_.default, "a tensor made from Python numbers"
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta", func
        return result


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_stays_on_its_device(name: str) -> None:
    """On PyTorch's device without memory, since a graph can only be captured with a GPU."""
    scorer, meta = scorer_of(variant(nano(), name).model), torch.device("meta")
    ranker = copy.deepcopy(scorer.ranker).to(meta)
    two = Requests.concatenate([some_request(3, 5)] * 2)
    batch = scorer.inputs.gather(scorer.inputs.look_up(two, scorer.history_length, 8))
    batch = dataclasses.replace(batch, **{part: getattr(batch, part).to(meta) for part in batch.__slots__})
    with torch.inference_mode(), NothingFromTheHost():
        assert ranker(batch).shape == (2, 8, 2)


def test_which_calibration_from_python_numbers_would_not() -> None:
    """Why the batched scorer keeps the calibration as tensors."""
    with torch.inference_mode(), NothingFromTheHost(), pytest.raises(AssertionError, match="Python numbers"):
        Calibration.none(2).apply(torch.zeros(3, 2, device="meta"))


@needs_cuda
def test_a_replayed_graph_says_what_the_module_says() -> None:
    scorer, device = scorer_of(CONFIG), torch.device("cuda")
    batched = scorer.on(device).batched
    assert batched is not None
    batched.probabilities.bf16 = False
    with torch.inference_mode():
        for _ in range(2):  # captured, then replayed with other numbers
            for sizes in ([(3, 5)], [(0, 40), (5, 3), (LENGTH, 33)]):
                asked = asked_of(sizes)
                for one, (probability_CH, _) in zip(asked, batched.score_many(asked), strict=True):
                    np.testing.assert_allclose(probability_CH, scorer.score(one)[0], atol=1e-5)
    assert None not in batched.graphs._captured.values()
    assert len(batched.graphs._captured) == 2


@needs_cuda
@pytest.mark.parametrize("name", MODELS)
def test_every_variant_can_be_captured(name: str) -> None:
    scorer = scorer_of(variant(nano(), name).model)
    batched = scorer.on(torch.device("cuda")).batched
    assert batched is not None
    one = some_request(3, 5)
    asked = [dataclasses.replace(one, sequences=one.sequences.of_length(scorer.history_length))]
    [(probability_CH, _)] = batched.score_many(asked)
    bound = LARGEST_BF16_ERROR if batched.probabilities.bf16 else 1e-5
    np.testing.assert_allclose(probability_CH, scorer.score(asked[0])[0], atol=2 * bound)
    assert None not in batched.graphs._captured.values()


@needs_cuda
def test_bf16_is_used_where_it_moves_no_probability_far() -> None:
    for scale in (1.0, 30.0):
        batched = scorer_of(CONFIG, scale).on(torch.device("cuda")).batched
        assert batched is not None
        assert batched.probabilities.bf16 == (batched.error_of_bf16() <= LARGEST_BF16_ERROR)
