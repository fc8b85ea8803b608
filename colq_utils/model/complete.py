"""What a checkpoint folder needs to be opened without ColQ: by transformers, what builds on it, and vLLM.

The weights are left alone. Added are the files of `carried/`, their names in the configurations,
the two names of the architecture (vLLM knows the first, sentence-transformers the second), a configuration of
the video processor that Qwen3-VL's own processor insists on, and a chat template that renders ColQ's prompts.
What a folder carries already is kept: published checkpoints bring modelling files of their own. A second call
changes nothing.
"""

import json
import shutil
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.errors import ColqError
from colq_utils.base.names import BIAS
from colq_utils.model import hub, processing
from colq_utils.model.modeling import DIMENSION_KEYS
from colq_utils.model.packing import UNREAD_BY_VLLM

CARRIED = Path(__file__).with_name("carried")
MODELING, PROCESSING = "modeling_colqwen3", "processing_colqwen3"
MODEL_MAP = {"AutoConfig": f"{MODELING}.ColQwen3Config", "AutoModel": f"{MODELING}.ColQwen3"}
PROCESSOR_MAP = {"AutoProcessor": f"{PROCESSING}.ColQwen3Processor"}
ARCHITECTURES = ["ColQwen3", "ColQwen3ForRetrieval"]
FILES = (f"{MODELING}.py", f"{PROCESSING}.py")
VIDEO, TEMPLATE = "video_preprocessor_config.json", "chat_template.jinja"
#: Keys of the image processor that the one for videos shares.
SHARED = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")


def complete(folder: Path) -> list[str]:
    """Add to a checkpoint folder what it lacks.

    Returns:
        Names of the files that were written; none if the folder was complete.

    Raises:
        ColqError: the weights or a configuration cannot be read.
        OSError: there is no config.json.
    """
    config = files.read_object(folder / "config.json")
    processor = _read(folder / "processor_config.json")
    images = processor.get("image_processor") or _read(folder / "preprocessor_config.json")
    wanted = {VIDEO: {"video_processor_type": "Qwen3VLVideoProcessor"}}
    wanted[VIDEO] |= {key: images[key] for key in SHARED if key in images}
    written = []
    if not _carries_others(folder, config):
        wanted["config.json"] = _config(folder, config, processor)
        wanted["processor_config.json"] = processor | {"auto_map": PROCESSOR_MAP}
        for name in FILES:
            if not (folder / name).exists():
                shutil.copyfile(CARRIED / name, folder / name)
                written.append(name)
    written += [name for name, content in wanted.items() if _write(folder / name, content)]
    if not _has_template(folder):
        files.write_text(folder / TEMPLATE, chat_template(processor))
        written.append(TEMPLATE)
    return written


def _carries_others(folder: Path, config: dict) -> bool:
    """Whether the folder brings modelling files of its own; names without their files do not count."""
    named = config.get("auto_map", {})
    if not isinstance(named, dict):
        raise ColqError(f"{folder / 'config.json'} has an auto_map that names no classes; make it again")
    modules = {str(name).split(".")[0] for name in named.values()}
    ours = config.get("auto_map") == MODEL_MAP
    return bool(modules) and not ours and all((folder / f"{module}.py").exists() for module in modules)


def _read(path: Path) -> dict:
    return files.read_object(path) if path.exists() else {}


def _config(folder: Path, config: dict, processor: dict) -> dict:
    """The configuration as the carried model reads it.

    A stored bias of the projection is declared, and then the width goes by the name that vLLM does not read:
    where it knows the width beforehand it builds the projection without bias and drops the stored one.
    """
    biased = any(tensor.name == BIAS for tensor in hub.read_headers(str(folder)))
    widths = [config[key] for key in DIMENSION_KEYS if key in config]
    if biased and widths:
        config = {key: value for key, value in config.items() if key not in DIMENSION_KEYS}
        config |= {UNREAD_BY_VLLM: widths[0]}
    added = {"architectures": ARCHITECTURES, "auto_map": MODEL_MAP, "projection_bias": biased}
    if processor.get("page_tokens", "all") != "all":
        added["page_tokens"] = processor["page_tokens"]
    return config | added


def _write(path: Path, content: dict) -> bool:
    """Write JSON unless it stands there already; a video processor's file that is there is kept."""
    if path.exists() and (path.name == VIDEO or json.loads(path.read_text()) == content):
        return False
    files.write_json(path, content)
    return True


def _has_template(folder: Path) -> bool:
    stored = any((folder / name).exists() for name in (TEMPLATE, "chat_template.json"))
    return stored or "chat_template" in _read(folder / "tokenizer_config.json")


def chat_template(processor: dict) -> str:
    """Jinja2: a message with a picture becomes the page prompt (its text is dropped), one of text a query."""
    page = processor.get("visual_prompt_prefix", processing.PAGE_PREFIX)
    page += processor.get("visual_prompt_suffix", processing.PAGE_SUFFIX)
    prompts = {"page": page, "query_prefix": "", "query_suffix": processing.QUERY_SUFFIX}
    prompts |= {key: processor[key] for key in ("query_prefix", "query_suffix") if key in processor}
    given = "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in prompts.items())
    return given + (CARRIED / TEMPLATE).read_text()
