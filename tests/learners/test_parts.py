"""An update shared out among threads equals that of one thread, and is the same every time."""

import pytest
import torch
from learner_fixtures import make_args, make_batch, make_learner

from learners import parts
from learners.parts import _even, in_parts

LENGTHS = (4, 7, 2, 5, 4, 6, 3)
TERMINATED = (True, False, False, True, False, True, False)
PER_WEIGHT = torch.tensor([0.3, 1.0, 2.0, 0.1, 0.7, 0.5, 1.3])


@pytest.fixture(autouse=True)
def every_thread_is_worth_it(monkeypatch):
    monkeypatch.setattr(parts, "LEAST_PER_THREAD", 1)


def update(algorithm, threads, **settings):
    """Gradients, errors of the episodes and figures of one update."""
    args = make_args(algorithm, grad_norm_clip=1e9, learner_threads=threads, **settings)
    learner, log = make_learner(args)
    assert learner.threads == threads
    errors = learner.train(make_batch(args, LENGTHS, TERMINATED), 0, 0, PER_WEIGHT)
    figures = {key: values[0][0] for key, values in log.stats.items()}
    return [param.grad.clone() for param in learner.params], errors["td_errors_abs"], figures


@pytest.mark.parametrize("threads", [2, 3, 20])
@pytest.mark.parametrize("algorithm", ["qmix", "qplex", "ow_qmix", "s2q", "s2q_vdn", "iql_ns"])
def test_equals_one_thread(algorithm, threads):
    grads, errors, figures = update(algorithm, 1)
    theirs = update(algorithm, threads)
    for mine, other in zip(grads, theirs[0], strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6 * max(1.0, float(mine.abs().max())))
    assert torch.allclose(errors, theirs[1], atol=1e-6)
    assert theirs[2] == pytest.approx(figures, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["qmix", "s2q"])
def test_the_same_every_time(algorithm):
    first, second = (update(algorithm, 3)[0] for _ in range(2))
    assert all(torch.equal(mine, other) for mine, other in zip(first, second, strict=True))


def test_chunks_and_threads_together():
    whole, _, figures = update("s2q", 1)
    shared, _, theirs = update("s2q", 2, s2q_chunk_steps=4)
    for mine, other in zip(whole, shared, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6 * max(1.0, float(mine.abs().max())))
    assert theirs == pytest.approx(figures, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7])
def test_parts_are_consecutive_not_empty_and_about_even(n_parts):
    transitions = torch.tensor([30, 1, 1, 1, 1, 1, 30])
    found = _even(transitions, n_parts)
    assert [i for part in found for i in range(len(transitions))[part]] == list(range(7))
    assert all(part.stop > part.start for part in found)
    if n_parts == 2:
        assert sorted(int(transitions[part].sum()) for part in found) == [32, 33]


def test_small_updates_are_not_shared_out(monkeypatch):
    monkeypatch.setattr(parts, "LEAST_PER_THREAD", 1000)
    monkeypatch.setattr(parts, "_Parts", None)
    args = make_args("qmix")
    learner, _ = make_learner(args)
    in_parts(learner.losses_of, make_batch(args), None, learner.params, threads=4)


def test_an_error_in_a_thread_is_the_updates_error():
    args = make_args("qmix")
    learner, _ = make_learner(args)
    batch = make_batch(args, LENGTHS, TERMINATED)

    def fails(part, per_weight):
        if not torch.equal(part["obs"][0, 0], batch["obs"][0, 0]):
            raise ValueError("the second part")
        return learner.losses_of(part, per_weight)

    with pytest.raises(ValueError, match="the second part"):
        in_parts(fails, batch, None, learner.params, threads=2)
    assert learner.train(batch, 0, 0) == {}  # the pool goes on
