"""When a computation is replayed as a CUDA graph. test_gpu.py has the tests with real graphs."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch

from DRDMLib.runtime import graphs
from DRDMLib.runtime.graphs import Graphs


class OnGpu(torch.Tensor):
    """A tensor that claims to be on a GPU."""

    is_cuda = True


class Recording:
    """Stands for a graph: it repeats what was recorded, with the state of that time."""

    def __init__(self, compute, inputs, pool):
        self.inputs = tuple(x.clone() for x in inputs)
        self.output = compute(*self.inputs)
        self.graph = self
        self.again = compute

    def pool(self):
        return "pool"

    def replay(self):
        self.output.copy_(self.again(*self.inputs))


class Stream:
    def wait_event(self, event): ...


class Event:
    def record(self, stream): ...

    def synchronize(self): ...


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    monkeypatch.setattr(graphs, "_Graph", Recording)
    monkeypatch.setattr(graphs, "ENABLED", True)
    monkeypatch.setattr(graphs, "CALLS", 3)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    with torch.inference_mode():
        yield


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).as_subclass(OnGpu)


def test_a_graph_is_made_after_some_calls_and_has_its_own_results():
    one = Graphs()
    found = [one.run("double", lambda x: x * 2, values(number, 1)) for number in range(6)]
    assert [x[0].item() for x in found] == [0, 2, 4, 6, 8, 10]
    assert len(one) == 1
    one.run("double", lambda x: x * 2, values(1, 2, 3))
    assert len(one) == 1, "another shape is another kind"
    one.clear()
    assert len(one) == 0
    assert one.run("double", lambda x: x * 2, values(3, 1))[0].item() == 6


def test_a_graph_with_other_bits_is_not_used():
    one, calls = Graphs(), []

    def restless(x):
        calls.append(x)
        return x + len(calls)

    for _ in range(8):
        before = len(calls)
        assert one.run("restless", restless, values(1)).item() == 1 + before + 1
    assert len(one) == 0


def test_what_cannot_be_recorded_is_computed(monkeypatch):
    def refused(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_Graph", type("Refused", (), {"__init__": refused}))
    one = Graphs()
    assert [one.run("double", lambda x: x * 2, values(n)).item() for n in range(6)] == [0, 2, 4, 6, 8, 10]
    assert len(one) == 0


def test_only_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(graphs, "_MOST", 4)
    one = Graphs()
    for kind in range(9):
        for _ in range(4):
            assert one.run(kind, lambda x, kind=kind: x + kind, values(1)).item() == 1 + kind
        assert len(one) <= 4


def test_without_a_gpu_or_with_gradients_nothing_is_kept(monkeypatch):
    one = Graphs()
    for _ in range(6):
        one.run("double", lambda x: x * 2, torch.ones(1))
        with torch.inference_mode(False):
            one.run("double", lambda x: x * 2, torch.ones(1).as_subclass(OnGpu))
        with monkeypatch.context() as patched:
            patched.setattr(graphs, "ENABLED", False)
            one.run("double", lambda x: x * 2, values(1))
    assert len(one) == 0 and not one._kinds


def test_copies_of_a_model_start_without_graphs(tiny_model):
    for again in (copy.deepcopy(tiny_model), pickle.loads(pickle.dumps(tiny_model))):
        assert len(again.graphs) == 0 and again.graphs is not tiny_model.graphs
