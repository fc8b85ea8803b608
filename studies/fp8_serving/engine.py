"""Engines that answer pictures: the one in process, and what every engine returns.

An answer that failed is an answer with a reason, never an exception: a picture that does not decode, a text
that is no box, a server that refused. Reasons are counted in the results.
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from studies.fp8_serving import boxes, checkpoint, fp8, generate, pictures

#: Reasons an answer may fail for.
UNDECODABLE, NO_BOX, REFUSED, LATE, UNREACHABLE = (
    "picture does not decode",
    "no box in the answer",
    "refused by the server",
    "no answer in time",
    "server not reachable",
)


@dataclass
class Answer:
    """Text and box of an answer, or why there is none (`detail` says more); seconds it took, in parts."""

    text: str | None = None
    box: list[float] | None = None
    reason: str | None = None
    detail: str | None = None
    latency_s: float | None = None
    prepare_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, text: str, **times) -> "Answer":
        """An answer from its text; a text that is no box is kept and named."""
        box = boxes.parse(text)
        failure = {} if box else {"reason": NO_BOX, "detail": text[:80]}
        return cls(text=text, box=box, **failure, **times)


def reasons(answers: list[Answer]) -> dict[str, int]:
    """How many answers failed, by reason."""
    return dict(Counter(a.reason for a in answers if a.reason))


def prompt_of(folder: Path, tokenizer) -> generate.Prompt:
    """The checkpoint's chat template around a picture and the question."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": boxes.PROMPT}]}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    parts = text.split("<|image_pad|>")
    if len(parts) != 2:
        raise ColqError(
            f"the chat template of {folder.name} puts {len(parts) - 1} pictures into a prompt with one"
        )
    ahead, behind = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    return generate.Prompt(ahead, behind, tokenizer.eos_token_id)


class InProcess:
    """A checkpoint in this process. Pictures of one size are answered together, up to `batch` of them.

    Args:
        folder: a base or FP8 checkpoint.
        model: one that is loaded already, in place of the folder's weights.
        fused: join the projections that share an input (changes `model`).
    """

    name = "transformers"

    def __init__(self, folder: Path, device: str = "cpu", batch: int = 1, model=None, fused: bool = True):
        start = time.perf_counter()
        self.device, self.batch = device, batch
        self.model = model or checkpoint.load(folder, device)
        if fused:
            fp8.fuse(self.model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.prompt = prompt_of(Path(folder), self.tokenizer)
        fields = files.read_json(Path(folder) / "preprocessor_config.json", "help")
        self.mean, self.std = fields["image_mean"], fields["image_std"]
        if fields.get("size"):
            self.limits = fields["size"]["shortest_edge"], fields["size"]["longest_edge"]
        else:  # older checkpoints
            self.limits = fields["min_pixels"], fields["max_pixels"]
        self.generators: dict[tuple, generate.Generator] = {}
        self.load_s = time.perf_counter() - start

    def generator(self, size: tuple[int, int], batch: int) -> generate.Generator:
        """The generator of a picture size and batch; at most four are kept, each with its cache."""
        if (size, batch) not in self.generators:
            if len(self.generators) >= 4:
                self.generators.pop(next(iter(self.generators)))
            self.generators[size, batch] = generate.Generator(self.model, self.prompt, size, batch)
        return self.generators[size, batch]

    def answer(self, encoded: list[bytes]) -> list[Answer]:
        """Answers to encoded pictures, in order."""
        answers: list[Answer | None] = [None] * len(encoded)
        waiting: dict[tuple, list] = {}
        for i, data in enumerate(encoded):
            start = time.perf_counter()
            try:
                image = generate.fitted(pictures.decode(data), *self.limits)
            except ColqError as error:
                answers[i] = Answer(reason=UNDECODABLE, detail=str(error))
                continue
            waiting.setdefault(image.size, []).append((i, image, time.perf_counter() - start))
        for size, items in waiting.items():
            for first in range(0, len(items), self.batch):
                for i, answer in self._together(size, items[first : first + self.batch]):
                    answers[i] = answer
        return answers

    def _together(self, size: tuple[int, int], items: list) -> list[tuple[int, Answer]]:
        start = time.perf_counter()
        given = generate.patches([image for _, image, _ in items], self.mean, self.std, self.device)
        prepared = time.perf_counter() - start + sum(seconds for *_, seconds in items)
        rows, timing = self.generator(size, len(items))(given)
        timing.prepare_s = prepared
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            (i, Answer.of(text, latency_s=timing.total_s, **vars(timing)))
            for (i, *_), text in zip(items, texts)
        ]

    @property
    def cache_bytes(self) -> int:
        """Bytes reserved for keys and values by all generators kept."""
        return sum(generator.cache_bytes for generator in self.generators.values())


def ready(experiment, variant: str) -> Path:
    """The folder of a variant that can run here.

    Raises:
        ColqError: its checkpoint is not there, or the experiment's device is not.
    """
    folder = experiment.folder(variant)
    files.required(folder / "model.safetensors", f"quantize EXPERIMENT={experiment.name}")
    if experiment.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ColqError(
            "the experiment asks for device cuda and no CUDA device is visible; set runtime.device to cpu"
        )
    return folder


def in_process(experiment, variant: str, batch: int = 1) -> InProcess:
    """The in-process engine of a variant, with the experiment's device and threads."""
    if experiment.runtime.threads:
        torch.set_num_threads(experiment.runtime.threads)
    return InProcess(ready(experiment, variant), experiment.runtime.device, batch)


def card_used_bytes() -> int | None:
    """Memory taken on the GPU, by anyone; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free
