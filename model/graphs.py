"""CUDA graphs of a training step: recorded once, then replayed, so that the host launches two graphs, not every kernel.

Where kernels are short, a small model's or a small batch's, a GPU is done with one before Python launches the next.
"""

import functools

import torch

MOST = 32  # graphs


class Graphs:
    """Calls of `run` and their backward passes; where arguments of the same shapes come again, by graphs.

    A graph's activations lie where they lay when it was recorded. So where a pass still waits for its backward pass the
    next one runs as it is: of several micro-batches in a step the first is replayed.

    Args:
        module: its parameters are learnt, and stay where they are.
        run: callable (module, *arguments) -> tensor; arguments are tensors on the GPU, without gradients, or plain
            values. It never waits for the GPU.
    """

    def __init__(self, module, run):
        self.module, self.run = module, run
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.pool = torch.cuda.graph_pool_handle()  # of all: one graph's activations are forgotten when another's begin
        self.stream = torch.cuda.Stream()  # of these alone: with any graph, cuBLAS's workspaces of its stream go
        self.waiting = False
        self._met, self._graphs = set(), {}

    @functools.cached_property
    def largest(self):
        """How many numbers the first argument of a graph may have, decided when the first one is due.

        They have memory of their own, beside that of steps which run as they are: no graph where memory does not
        suffice for what has run so far twice over, none for what is much larger than that.
        """
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        enough = free > 2 * torch.cuda.max_memory_allocated()
        return 1.25 * max(shapes[0].numel() for shapes in self._met) if enough else 0

    @functools.cached_property
    def gradients(self):
        """Where every graph puts those of the parameters."""
        return [torch.empty_like(p) for p in self.parameters.values()]

    def __call__(self, *arguments):
        shapes = tuple(x.shape if isinstance(x, torch.Tensor) else x for x in arguments)
        graph = self._graphs.get(shapes)
        if graph is None and not self.waiting and shapes in self._met and len(self._graphs) < MOST:
            if shapes[0].numel() <= self.largest:
                graph = self._graphs[shapes] = Graph(self, arguments)
        if graph is None or self.waiting:
            output = self.run(self.module, *arguments)
            # after its backward pass: what kernels need once, and a step's peak of memory, is there then
            output.register_hook(lambda gradient: self._met.add(shapes))
            return output
        return Replay.apply(self, graph, arguments, *self.parameters.values())


class Graph:
    """One shape's graphs, and where what goes in and comes out of them lies; arguments as for Graphs' call."""

    def __init__(self, graphs, arguments):
        self.inputs = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # the same memory, but what autograd notes of the parameters belongs to another stream
        leaves = {name: p.detach().requires_grad_() for name, p in graphs.parameters.items()}

        def module(*args, **kwargs):
            return torch.func.functional_call(graphs.module, leaves, args, kwargs)

        # thread_local: what NCCL's thread does meanwhile is not recorded
        how = {"pool": graphs.pool, "stream": graphs.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self.forward, **how):
            output = graphs.run(module, *self.inputs)
        self.output, self.output_gradient = output.detach(), torch.empty_like(output)
        with torch.cuda.graph(self.backward, **how), torch.autocast("cuda", enabled=False):
            found = torch.autograd.grad(output, list(leaves.values()), self.output_gradient, allow_unused=True)
            used = [(ours, its) for ours, its in zip(graphs.gradients, found) if its is not None]
            torch._foreach_copy_(*zip(*used))
        self.gradients = [None if its is None else ours for ours, its in zip(graphs.gradients, found)]


class Replay(torch.autograd.Function):
    """A Graph's result for new inputs."""

    @staticmethod
    def forward(ctx, graphs, graph, arguments, *parameters):
        for ours, its in zip(graph.inputs, arguments):
            if isinstance(its, torch.Tensor):
                ours.copy_(its)
        graph.forward.replay()
        graphs.waiting = True
        ctx.graphs, ctx.graph = graphs, graph
        return graph.output.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        graph = ctx.graph
        graph.output_gradient.copy_(gradient)
        graph.backward.replay()
        ctx.graphs.waiting = False
        return None, None, None, *graph.gradients  # autograd adds them up in tensors of its own, as these are held here
