"""When CUDA graphs are recorded and replayed, without a GPU; test_gpu.py has what they compute."""

import contextlib

import pytest
import torch

from model import graphs as graphs_module
from model.graphs import Graphs


class FakeGraph:
    replays = 0

    def replay(self):
        FakeGraph.replays += 1


@pytest.fixture
def calls(monkeypatch):
    """How often the module below was called; what is recorded here is right for inputs that do not change."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **kwargs: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7 * 2**30)
    monkeypatch.setattr("torch.empty_like", torch.ones_like)  # the gradient of a sum
    monkeypatch.setattr(graphs_module, "MOST", 2)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    return []


def make_graphs(calls):
    module = torch.nn.ModuleDict({"used": torch.nn.Linear(3, 2), "unused": torch.nn.Linear(1, 1)})
    module["used"].bias.requires_grad_(False)
    module.forward = lambda x: calls.append(len(x)) or module["used"](x)
    return Graphs(module, lambda module, x, scale: module(x) * scale)


def test_a_shape_that_comes_again_is_recorded_once_and_replayed(calls):
    graphs, x = make_graphs(calls), torch.randn(4, 3)
    used, unused = graphs.module["used"], graphs.module["unused"]
    for replays in (0, 2, 4):
        used.weight.grad = None
        graphs(x, 2.0).sum().backward()
        assert FakeGraph.replays == replays
        torch.testing.assert_close(used.weight.grad, 2 * x.sum(0).expand(2, 3))
        assert used.bias.grad is None and unused.weight.grad is None
    assert calls == [4, 4]  # as it is, and recorded
    graphs(x, 3.0).sum().backward()  # another value is another graph
    graphs(torch.randn(5, 3), 2.0).sum().backward()
    assert FakeGraph.replays == 4 and calls == [4, 4, 4, 5]


def test_a_step_that_calls_several_times_adds_its_gradients_up(calls):
    graphs, x = make_graphs(calls), torch.randn(4, 3)
    weight = graphs.module["used"].weight
    graphs(x, 1.0).sum().backward()
    weight.grad = None
    for _ in range(3):
        graphs(x, 1.0).sum().backward()
    torch.testing.assert_close(weight.grad, 3 * x.sum(0).expand(2, 3))
    assert weight.grad is not graphs.gradients[0]


def test_while_a_backward_pass_is_due_nothing_is_replayed(calls):
    graphs, x = make_graphs(calls), torch.randn(4, 3)
    graphs(x, 1.0).sum().backward()
    graphs.module["used"].weight.grad = None
    (graphs(x, 1.0).sum() + graphs(x, 1.0).sum()).backward()
    assert FakeGraph.replays == 2 and calls == [4, 4, 4]
    torch.testing.assert_close(graphs.module["used"].weight.grad, 2 * x.sum(0).expand(2, 3))
    graphs(x, 1.0).sum().backward()
    assert FakeGraph.replays == 4


def test_a_shape_is_recorded_after_its_backward_pass(calls):
    graphs, x = make_graphs(calls), torch.randn(4, 3)
    (graphs(x, 1.0) + graphs(x, 1.0)).sum().backward()
    assert FakeGraph.replays == 0 and calls == [4, 4]
    graphs(x, 1.0).sum().backward()
    assert FakeGraph.replays == 2


def test_there_are_not_more_graphs_than_memory_allows(calls, monkeypatch):
    def run(sizes):
        graphs = make_graphs(calls)
        calls.clear()
        for n in sizes:
            graphs(torch.randn(n, 3), 1.0).sum().backward()
        return calls

    assert run((4, 5, 6) * 3) == [4, 5, 6, 4, 5, 6, 6]
    assert run((4, 4, 5, 5, 5)) == [4, 4, 5, 5]
    assert run((4, 4, 6, 6, 6)) == [4, 4, 6, 6, 6]  # much larger than what had run when memory was looked at
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 8 * 2**30)
    assert run((4, 4, 4)) == [4, 4, 4]
