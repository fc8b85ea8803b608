"""Experiment files: what is accepted, and the message for what is not."""

import pytest
import yaml

from colq_utils.base import config
from colq_utils.base.errors import ColqError


def changed(tmp_path, **changes):
    """The default experiment with some fields replaced, as a file."""
    fields = yaml.safe_load((config.ROOT / "experiments" / "tiny.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


@pytest.mark.parametrize("name", config.available())
def test_every_experiment_is_valid(name):
    experiment = config.load(name)
    assert experiment.base == next(iter(experiment.by_id))


def test_variant_ids():
    ids = list(config.load("tiny").by_id)
    assert "tiny-bf16" in ids and "tiny-w4a16-autoround-s1024" in ids
    variant = config.Variant(scheme="w4a16", method="rtn", group_size=32, sym=False)
    assert variant.name("4b") == "4b-w4a16-rtn-g32-asym"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [{"scheme": "w5a16", "method": "rtn"}]}, "unknown scheme 'w5a16'"),
        ({"variants": [{"scheme": "bf16"}, {"scheme": "bf16"}]}, "two variants have one id"),
        ({"variants": [{"scheme": "w4a16", "method": "rtn"}]}, "first variant is the base"),
        (
            {
                "variants": [
                    {"scheme": "bf16"},
                    {"scheme": "w4a16", "method": "autoround", "calibration": "s9", "iters": 1},
                ]
            },
            "no calibration set 's9'",
        ),
        ({"variants": [{"scheme": "w4a16", "method": "autoround"}]}, "takes `calibration` and `iters`"),
        ({"benchmark": {"variants": ["tiny-w9"], "workloads": []}}, "benchmark names the variant 'tiny-w9'"),
        ({"model": {"path": "TomoroAI/tomoro-colqwen3-embed-4b", "size": "4b"}}, "full 40-digit commit hash"),
        ({"colour": "blue"}, "colour"),
        ({"runtime": {"device": "cpu", "dtype": "bfloat16"}}, "on a CPU everything is computed in float32"),
        ({"runtime": {"device": "gpu"}}, "'cpu' or 'cuda'"),
        ({"runtime": {"device": ["cpu"]}}, "'cpu' or 'cuda'"),
        ({"runtime": "cpu"}, "runtime"),
        ({"runtime": None}, "runtime"),
        ({"name": "other"}, "mine.yaml: leave out `name`; an experiment has the name of its file"),
        ({"output": "/elsewhere"}, "mine.yaml: leave out `output`; the folder is given with --output"),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "pack", "sym": False}]},
            "take method rtn for `sym: false`",
        ),
        (
            {
                "variants": [
                    {"scheme": "bf16"},
                    {"scheme": "w4a16", "method": "pack", "exports": ["auto_round", "auto_awq"]},
                ]
            },
            "take method rtn for other `exports`",
        ),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "rtn", "exports": ["auto_awq"]}]},
            "auto_round is the export .* add it to `exports`",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ColqError, match=message.replace("(", r"\(")):
        config.load(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- scheme: bf16\n", "mine.yaml holds a list: write it as `key: value` lines"),
        ("tiny\n", "mine.yaml holds a str: write it as"),
        ("3: blue\n", "3: Keys should be strings"),
    ],
)
def test_a_file_that_is_no_mapping_of_names_is_named(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ColqError, match=message):
        config.load(str(tmp_path / "mine.yaml"))


def test_unknown_experiment_lists_those_there_are():
    with pytest.raises(ColqError, match="tiny"):
        config.load("nonesuch")


def test_calibration_blocks_fill_whole_batches():
    with pytest.raises(ValueError, match="no multiple of batch_rows"):
        config.CalibrationSet(id="x", seqlen=8, blocks=10, batch_rows=4)
