"""Variants with parts in eight bits beside those of integer weights: shown, and never the recipe."""

import made_results
import pytest

from colq_utils.report import analysis, cards, findings, quantization, results, summary
from colq_utils.report.figures import drawing

EIGHT = {
    "toy-fp8": "FP8",
    "toy-fp8-fp8vision": "FP8, FP8 vision",
    "toy-w4a16-rtn-int8embed-fp8vision": "W4A16 RTN, int8 table, FP8 vision",
}
EXPERIMENT = made_results.EXPERIMENT.replace(
    "benchmark:",
    """  - {scheme: fp8, exports: [compressed_tensors]}
  - {scheme: fp8, vision: fp8, exports: [compressed_tensors]}
  - {scheme: w4a16, method: rtn, embedding: int8, vision: fp8}
benchmark:""",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    exp = made_results.experiment(tmp_path_factory.mktemp("eight"), EXPERIMENT)
    made_results.write(exp, queries=60)
    return analysis.study(results.load(exp))


def test_they_stand_in_the_table_and_are_no_recipe(study):
    frame = findings.variant_frame(study).set_index("variant")
    assert list(frame.index[frame.eight]) == list(EIGHT)
    assert frame.label[list(EIGHT)].to_dict() == EIGHT
    assert frame.verdict["toy-fp8"] == "non-inferior", "better than every integer recipe"
    assert not frame.usable[list(EIGHT)].any() and frame.usable["toy-w4a16-rtn"]
    rule = findings.recommend(study)
    assert not {rule.variant, findings.closest(study), *rule.alike} & set(EIGHT)
    assert findings.four_bits(study) == [n for n in frame.index if "w4" in n and n not in EIGHT]
    assert not set(quantization.use_cases(study)["as_good"]) & set(EIGHT.values())
    for family in quantization.FAMILIES.values():
        pairs = family(study)
        assert not {*pairs["first"], *pairs.second} & set(EIGHT), "pairs differ in one thing of the weights"


def test_what_is_rounded_at_loading_has_the_size_of_its_checkpoint(study):
    sizes = analysis.sizes(study.results).set_index("variant")["bytes"]
    assert sizes["toy-w4a16-rtn-int8embed-fp8vision"] == sizes["toy-w4a16-rtn"] == 20_000_000
    assert sizes["toy-fp8"] == 25_000_000


def test_summary_and_card_name_them(study):
    rows = [line.split(" | ")[0] for line in summary.write(study).splitlines() if line.startswith("| ")]
    assert [f"| {label}" for label in EIGHT.values()] == rows[-3:]
    assert "| W4A16 RTN" in rows and "| W3A16 RTN" not in rows, "the question is about four bits"
    card = cards.card(study, "toy-fp8-fp8vision")
    assert "of its language model and vision tower are stored in FP8 (e4m3)" in card
    assert "- fp8\n- compressed-tensors" in card and "pip install compressed-tensors" in card
    assert "a scale per output channel" in card and "not tried here" in card
    assert "None" not in card and "toy-w4a16-rtn-int8embed" not in cards.render(study)
    report = quantization.write(study)
    assert "| FP8 | to nearest e4m3 | an output channel |" in report and "| W3A16 RTN | " in report
    (line,) = [line for line in report.splitlines() if line.startswith("**What do eight bits cost")]
    assert all(f"{label}: " in line for label in EIGHT.values())


def test_every_set_of_numbers_has_its_own_look(study):
    looks = [tuple(drawing.style(study.experiment, name).values()) for name in study.names]
    assert len(set(looks)) == len(looks)
