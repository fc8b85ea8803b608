"""Greedy answers to pictures of one size and one prompt, with a fixed cache; on CUDA recorded as graphs.

A `Generator` belongs to one picture size and batch. Its two parts, reading the picture and prompt and
writing one token, are the same functions on every device; on CUDA they are replayed as graphs, so that a
time is the work's and not Python's.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from studies.fp8_serving import forward

#: Of the pixels that Qwen2-VL was trained on, by channel.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class Prompt:
    """Token ids around the picture and the id that ends an answer."""

    ahead: list[int]
    behind: list[int]
    stop: int


@dataclass
class Timing:
    """Seconds of a call: picture to patches; vision, prompt, first token; further tokens. Tokens in all."""

    prepare_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: int = 0

    @property
    def total_s(self) -> float:
        return self.prepare_s + self.prefill_s + self.decode_s


class Generator:
    """See the module.

    Args:
        model: a Qwen2-VL of transformers; its projections may be fused (`fp8.fuse`).
        size: width and height of the resized pictures, multiples of 28.
        batch: pictures of one call.
        longest: most tokens of an answer.
        blocks: layer functions, compiled for CUDA.
    """

    def __init__(
        self,
        model,
        prompt: Prompt,
        size: tuple[int, int],
        batch: int = 1,
        longest: int = 32,
        blocks: forward.Blocks | None = None,
    ):
        self.model, self.prompt, self.longest = model, prompt, longest
        self.blocks = blocks or forward.Blocks()
        weight = model.lm_head.weight
        self.device, dtype = weight.device, weight.dtype
        text, self.rows, self.columns = model.config.text_config, size[1] // 28, size[0] // 28
        cells = self.rows * self.columns
        self.length = len(prompt.ahead) + cells + len(prompt.behind)
        capacity = self.length + longest
        head = text.hidden_size // text.num_attention_heads
        cache = (text.num_hidden_layers, batch, text.num_key_value_heads, capacity, head)
        self.keys, self.values = (torch.zeros(cache, dtype=dtype, device=self.device) for _ in range(2))
        after = len(prompt.behind) + longest
        where = forward.text_positions(len(prompt.ahead), self.rows, self.columns, after, self.device)
        self.cos, self.sin = forward.rotation(forward.text_angles(text, where), dtype)
        ids = prompt.ahead + [model.config.image_token_id] * cells + prompt.behind
        self.ids = torch.tensor(ids, device=self.device).expand(batch, -1).contiguous()
        self.slots = torch.arange(capacity, device=self.device)
        self.patches = torch.zeros((batch, 4 * cells, 3 * 2 * 14 * 14), dtype=dtype, device=self.device)
        self.token = torch.zeros((batch, 1), dtype=torch.long, device=self.device)
        self.written = torch.zeros((batch, longest), dtype=torch.long, device=self.device)
        self.place = torch.zeros(1, dtype=torch.long, device=self.device)
        self.graphs = None

    @property
    def cache_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values))

    def _read(self) -> None:
        """Picture and prompt to cache and first token."""
        cells = forward.see(self.model, self.patches, 2 * self.rows, 2 * self.columns, self.blocks)
        x, n = forward.embed(self.model, self.ids, cells, len(self.prompt.ahead)), self.length
        cos, sin, slots = self.cos[:n], self.sin[:n], self.slots[:n]
        for i, layer in enumerate(self.model.model.language_model.layers):
            x = self.blocks.text(layer, x, cos, sin, self.keys[i], self.values[i], slots)
        self.token.copy_(forward.logits(self.model, x[:, -1:]).argmax(-1))
        self.written[:, :1].copy_(self.token)
        self.place.fill_(n)

    def _write(self) -> None:
        """The next token from the last."""
        x = self.model.model.language_model.embed_tokens(self.token)
        cos, sin = self.cos[self.place], self.sin[self.place]
        mask = self.slots <= self.place
        for i, layer in enumerate(self.model.model.language_model.layers):
            x = self.blocks.text(layer, x, cos, sin, self.keys[i], self.values[i], self.place, mask)
        self.token.copy_(forward.logits(self.model, x).argmax(-1))
        self.place.add_(1)
        self.written.index_copy_(1, self.place - self.length, self.token)

    def record(self) -> "Generator":
        """Compile (through the layer functions given) and record both parts as CUDA graphs."""
        side = torch.cuda.Stream()
        self.graphs = []
        with torch.inference_mode():
            for part in (self._read, self._write):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(3):
                        self.place.fill_(self.length)
                        part()
                torch.cuda.current_stream().wait_stream(side)
                self.place.fill_(self.length)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    part()
                self.graphs.append(graph)
        return self

    def _sync(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def __call__(self, patches: Tensor, ignore_stop: bool = False) -> tuple[list[list[int]], Timing]:
        """Answers of a batch.

        Args:
            patches: ``(batch, n_patches, 1176)``, on any device.
            ignore_stop: write `longest` tokens whatever they are, so that every call does the same work.

        Returns:
            Token ids of each answer without the stop token, and the times.
        """
        read, write = [graph.replay for graph in self.graphs] if self.graphs else (self._read, self._write)
        stop, together = self.prompt.stop, 4 if self.graphs else 1  # tokens between two looks: a look waits
        start = self._sync()
        self.patches.copy_(patches)
        read()
        rows, count = self.token.tolist(), 1
        read_at = written_at = time.perf_counter()
        while count < self.longest and (ignore_stop or not all(stop in row for row in rows)):
            for _ in range(min(together, self.longest - count)):
                write()
                count += 1
            rows = self.written[:, :count].tolist()
            written_at = time.perf_counter()
        answers = [row[: row.index(stop)] if stop in row else row for row in rows]
        return answers, Timing(prefill_s=read_at - start, decode_s=written_at - read_at, tokens=count)


def fitted(image: Image.Image, smallest: int, largest: int) -> Image.Image:
    """A picture resized as Qwen2-VL's image processor does: sides multiples of 28, area within two limits."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(image.height, image.width, 28, smallest, largest)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def patches(images: list[Image.Image], mean: list[float], std: list[float], device: str = "cpu") -> Tensor:
    """Pictures of one size, fitted, as normalised patches in merged order, ``(n, n_patches, 1176)``, fp32."""
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).to(device)
    return patched(pixels.permute(0, 3, 1, 2).float() * (1 / 255), mean, std)


def patched(pixels: Tensor, mean: list[float] = MEAN, std: list[float] = STD) -> Tensor:
    """Pictures 0..1 ``(n, 3, height, width)`` as `patches` gives them."""
    n, _, height, width = pixels.shape
    shift, scale = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    x = ((pixels - shift) / scale).reshape(n, 3, height // 28, 2, 14, width // 28, 2, 14)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)
    return x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(n, -1, 3 * 2 * 14 * 14)
