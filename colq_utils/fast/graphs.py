"""CUDA graphs: work on fixed buffers, recorded once, which the GPU then runs in one go."""

from collections.abc import Callable
from contextlib import contextmanager

import torch

#: Batches of up to this many tokens are recorded; larger ones keep the GPU busy without.
GRAPH_TOKENS = 8192
#: Graphs and patch grids that are kept at a time: page sizes are many, and each graph holds its buffers.
KEPT = 32


def capture(work: Callable, *buffers: torch.Tensor, stream=None, pool=None) -> tuple:
    """``work(*buffers)`` as a `CUDAGraph`, and its outputs; two calls first compile and choose kernels."""
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work(*buffers)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        outputs = work(*buffers)
    return graph, outputs


class Graphs:
    """Recorded work by a key that stands for the work and its shapes; on a CPU nothing is recorded.

    One stream serves all graphs: each would get a workspace of its own.
    """

    def __init__(self, on_gpu: bool):
        self.recording = on_gpu
        self._recorded: dict[tuple, tuple] = {}
        self._met: set[tuple] = set()
        self._stream = torch.cuda.Stream() if on_gpu else None
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None

    @contextmanager
    def paused(self):
        """Run everything without graphs for a while."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def recorded(self, key: tuple, work: Callable, buffers: Callable[[], list]) -> tuple:
        """The graph of `key`, its input buffers and its outputs; recorded now if it is not there."""
        if key not in self._recorded:
            inputs = buffers()
            graph, outputs = capture(work, *inputs, stream=self._stream, pool=self._pool)
            self._recorded[key] = graph, inputs, outputs
        return latest(self._recorded, key)

    def replayed(self, key: tuple, n_tokens: int, work: Callable, *inputs: torch.Tensor) -> list:
        """``work(*inputs)``, by a graph from the second time that `key` comes: many sizes come only once."""
        if n_tokens > GRAPH_TOKENS:
            return work(*inputs)
        if key not in self._met or not self.recording:
            self._met.add(key)
            return work(*inputs)
        graph, buffers, outputs = self.recorded(key, work, lambda: [value.clone() for value in inputs])
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        graph.replay()
        return [output.clone() for output in outputs]


def latest(kept: dict, key):
    """An entry of `kept`, which becomes the youngest; the oldest beyond `KEPT` are let go."""
    kept[key] = kept.pop(key)
    while len(kept) > KEPT:
        del kept[next(iter(kept))]
    return kept[key]
