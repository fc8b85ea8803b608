"""Experiment files: what is accepted, and the message for what is not."""

import pytest
import yaml

from colq_utils import __main__ as command
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
    nf4 = config.Variant(scheme="nf4", backend="bitsandbytes", tag="kernel")
    assert (nf4.stored("4b"), nf4.name("4b")) == ("4b-nf4", "4b-nf4-kernel")
    assert (nf4.bits, nf4.group_size, nf4.exports) == (4, 64, ("bitsandbytes",))
    assert config.Variant.model_validate(nf4.model_dump()) == nf4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [{"scheme": "w5a16", "method": "rtn"}]}, "w2a16' (it is 'w5a16')"),
        ({"variants": [{"scheme": "bf16"}, {"scheme": "bf16"}]}, "variant tiny-bf16 is named twice"),
        ({"variants": [{"scheme": "w4a16", "method": "rtn"}]}, "the first of `variants`"),
        ({"variants": [{"scheme": "nf4"}]}, "the first of `variants`"),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "nf4", "method": "rtn"}]},
            "nf4 does not go with method",
        ),
        ({"variants": [{"scheme": "bf16"}, {"scheme": "nf4", "group_size": 128}]}, "nf4 has blocks of 64"),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "nf4", "backend": "ark"}]},
            "nf4 runs on backend unpack",
        ),
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
        ({"name": "other"}, "mine.yaml: leave out `name`; it is the name of the file"),
        ({"output": "/elsewhere"}, "mine.yaml: leave out `output`; the folder is given with --output"),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "pack", "sym": False}]},
            "for `sym: false` .* take method rtn",
        ),
        (
            {
                "variants": [
                    {"scheme": "bf16"},
                    {"scheme": "w4a16", "method": "pack", "exports": ["auto_round", "auto_awq"]},
                ]
            },
            "other `exports` .* take method rtn",
        ),
        (
            {"variants": [{"scheme": "bf16"}, {"scheme": "w4a16", "method": "rtn", "exports": ["auto_awq"]}]},
            "auto_round is the export .* add it to `exports`",
        ),
        (
            {
                "variants": [
                    {"scheme": "bf16"},
                    {"scheme": "w4a16", "method": "rtn", "exports": ["auto_round", "compressed_tensors"]},
                ]
            },
            "compressed_tensors is the export of scheme fp8",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ColqError, match=message.replace("(", r"\(").replace(")", r"\)")):
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


TWICE = "is named twice; each may be named once"


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("seed", -1, "greater than or equal to 0 (it is -1)"),
        ("model.size", "../evil", "should match pattern '^[A-Za-z0-9]"),
        ("model.max_visual_tokens", 0, "greater than 0 (it is 0)"),
        ("runtime.threads", 0, "greater than 0 (it is 0)"),
        ("calibration.sets.0.id", "../../evil", "._-]*$' (it is '../../evil')"),
        ("calibration.sets.0.seqlen", 0, "seqlen of a set of text is greater than 0, not 0"),
        ("calibration.sets.0.blocks", 0, "greater than 0 (it is 0)"),
        ("calibration.sets.0.blocks", -8, "greater than 0 (it is -8)"),
        ("calibration.sets.1.id", "s64", f"calibration set s64 {TWICE}"),
        ("variants", [], "the first of `variants`, 1 or more, is the base"),
        ("variants.1.group_size", 0, "greater than or equal to 32 (it is 0)"),
        ("variants.1.group_size", 7, "a multiple of 32 (it is 7)"),
        ("variants.1.group_size", -1, "a multiple of 32 (it is -1)"),
        ("variants.1.exports", ["auto_round", "auto_round"], f"auto_round {TWICE}"),
        ("benchmark.rounds", 0, "greater than 0 (it is 0)"),
        ("benchmark.variants", ["tiny-bf16", "tiny-bf16"], f"tiny-bf16 {TWICE}"),
        ("benchmark.workloads.0.batch", 0, "greater than 0 (it is 0)"),
        ("benchmark.workloads.0.iterations", 0, "greater than 0 (it is 0)"),
        ("benchmark.workloads.0.items", 0, "greater than 0 (it is 0)"),
        ("evaluation.batch", 0, "greater than 0 (it is 0)"),
    ],
)
def test_a_number_out_of_range_is_one_line_and_2(tmp_path, capsys, place, value, told):
    """Field, value and range, before anything runs."""
    *parents, field = [int(part) if part.isdigit() else part for part in place.split(".")]
    fields = section = yaml.safe_load((config.ROOT / "experiments/smoke.yaml").read_text())
    for parent in parents:
        section = section[parent]
    section[field] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    assert command.main(["run", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: mine.yaml: ") and line.count("\n") == 1 and told in line
    assert field in line or told.endswith(TWICE)
    assert not (tmp_path / "out").exists()
