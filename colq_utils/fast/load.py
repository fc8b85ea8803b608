"""A variant of an experiment as a model on the forward pass that the experiment asks for, plain or fast."""

import time
from dataclasses import replace

from colq_utils.base.config import Experiment
from colq_utils.model import kernels, loading, packing
from colq_utils.model.loading import Loaded


def load(experiment: Experiment, variant: str, export: str | None = None) -> Loaded:
    """Load a variant, or raise.

    Args:
        variant: an id of ``experiment.by_id``.
        export: which packing of a quantized variant; by default, the one that is evaluated.

    Raises:
        ColqError: unknown variant, missing or damaged checkpoint, missing backend, what `open_model` refuses.
    """
    loaded = loading.plain(experiment, variant, export)
    if experiment.encode_path(variant) == "plain":
        return loaded
    return accelerate(loaded, experiment.by_id[variant].backend or experiment.runtime.backend)


def accelerate(loaded: Loaded, backend: str, schedules: dict[str, str] | None = None) -> Loaded:
    """`loaded` on the fast path, its model converted in place; packed layers get `backend`'s kernel.

    Args:
        schedules: tuned ones by ``out x in`` of a layer, for layers on humming; none: humming's own.

    Raises:
        ColqError: the backend is not available, or not every layer runs on it.
    """
    from colq_utils.fast.path import FastColQwen3

    start = time.perf_counter()
    packed = any(isinstance(module, packing.PackedLinear) for module in loaded.model.language_model.modules())
    model = FastColQwen3(loaded.model, backend if packed else None, schedules).eval().requires_grad_(False)
    if packed:
        kernels.check(model, backend, per_block=4)
    load_s = loaded.load_s + time.perf_counter() - start
    return replace(loaded, model=model, census=kernels.census(model), load_s=load_s, encode="fast")
