"""Worker processes that make examples, and the pool on the accelerator that they keep renewing.

A page takes some 30 ms of one core to make, a training step uses 256 of them: so examples are kept
in a pool in accelerator memory, drawn at random, and replaced in turn while training runs. Workers
write into a block of shared memory of their own and raise a flag; a thread gathers what is ready
and copies it over on a stream of its own. Workers are forked, so create `Workers` before the first
use of CUDA.
"""

import mmap
import multiprocessing
import os
import queue
import threading
import time

import numpy as np
import torch

from studies.embedded.canvases import FIELDS, Maker, Sources

SLOTS = 24  # pairs a worker may have ready


class Workers:
    """Processes that fill shared memory with pairs of canvases."""

    def __init__(self, sources: Sources, count: int, seed: int):
        pairs = count * SLOTS
        self.arrays = {name: _shared((pairs, 2, *shape), dtype) for name, (shape, dtype) in FIELDS.items()}
        self.ready = _shared((pairs,), np.uint8)
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(target=self._work, args=(sources, i, seed * 1000 + i), daemon=True)
            for i in range(count)
        ]
        for process in self.processes:
            process.start()

    def _work(self, sources: Sources, worker: int, seed: int) -> None:
        torch.set_num_threads(1)
        parent = os.getppid()
        maker = Maker(sources, seed)
        while os.getppid() == parent:
            for slot in range(worker * SLOTS, (worker + 1) * SLOTS):
                if not self.ready[slot]:
                    for k, canvas in enumerate(maker.pair()):
                        for name, value in canvas.items():
                            self.arrays[name][slot, k] = value
                    self.ready[slot] = 1
            time.sleep(0.005)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()


def _shared(shape: tuple, dtype) -> np.ndarray:
    """Return an array in memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)


class Pool:
    """Examples on the accelerator, `capacity` pairs, the oldest replaced first."""

    def __init__(self, workers: Workers, capacity: int, device: str, chunk: int = 32):
        self.workers, self.capacity, self.device = workers, capacity, device
        self.chunk = min(chunk, len(workers.ready) // 2)
        self.data = {
            name: torch.zeros((capacity, 2, *shape), dtype=_torch(dtype), device=device)
            for name, (shape, dtype) in FIELDS.items()
        }
        self.n_made, self.arrived = 0, queue.Queue(maxsize=4)
        self.thread = threading.Thread(target=self._gather, daemon=True)
        self.thread.start()

    def _gather(self) -> None:
        cuda = self.device != "cpu"
        stream = torch.cuda.Stream() if cuda else None
        staging = {
            name: torch.zeros((self.chunk, 2, *shape), dtype=_torch(dtype), pin_memory=cuda)
            for name, (shape, dtype) in FIELDS.items()
        }
        while True:
            slots = np.flatnonzero(self.workers.ready.copy())  # workers raise flags meanwhile
            if len(slots) < self.chunk:
                time.sleep(0.005)
                continue
            slots = np.random.permutation(slots)[: self.chunk]
            for name, array in self.workers.arrays.items():
                np.take(array, slots, axis=0, out=staging[name].numpy())
            self.workers.ready[slots] = 0
            if cuda:
                with torch.cuda.stream(stream):
                    batch = {
                        name: value.to(self.device, non_blocking=True) for name, value in staging.items()
                    }
                stream.synchronize()
            else:
                batch = {name: value.clone() for name, value in staging.items()}
            self.arrived.put(batch)

    def renew(self, limit: int = 3) -> None:
        """Take in up to `limit` chunks that have arrived."""
        for _ in range(limit):
            try:
                batch = self.arrived.get_nowait()
            except queue.Empty:
                return
            places = (torch.arange(self.chunk, device=self.device) + self.n_made) % self.capacity
            for name, value in batch.items():
                self.data[name].index_copy_(0, places, value)
                if self.device != "cpu":
                    value.record_stream(torch.cuda.current_stream())
            self.n_made += self.chunk

    def wait(self, pairs: int) -> None:
        """Block until `pairs` have arrived."""
        while self.n_made < pairs:
            if not self.thread.is_alive():
                raise RuntimeError("the thread that gathers examples has died; its error stands above")
            self.renew()
            time.sleep(0.01)

    def draw(self, pairs: int) -> dict[str, torch.Tensor]:
        """Return random examples, both canvases of a pair side by side, each field (2 * pairs, ...)."""
        filled = min(self.n_made, self.capacity)
        places = torch.randint(filled, (pairs,), device=self.device)
        return {name: value[places].flatten(0, 1) for name, value in self.data.items()}


def _torch(dtype) -> torch.dtype:
    return {np.uint8: torch.uint8, np.int16: torch.int16, np.int32: torch.int32}[dtype]
