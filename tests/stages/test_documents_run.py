"""Documents of one's own from files to the summary: with labels, with weak labels, and with none at all."""

import numpy as np
import pytest
from own_documents import VARIANT, evaluated

from colq_utils.report import analysis, build, documents, results
from colq_utils.stages import calibrate


@pytest.fixture(scope="module")
def labelled(random_checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("labelled")
    text = "query,file,page\n" + "".join(f"question {n},my pages.pdf,{n}\n" for n in range(1, 6))
    (output / "q.csv").write_text(text)
    return evaluated(random_checkpoint, output, queries=str(output / "q.csv"), known_items=4)


@pytest.fixture(scope="module")
def unlabelled(random_checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("unlabelled")
    (output / "q.txt").write_text("\n".join(f"question {n}" for n in range(5)))
    return evaluated(random_checkpoint, output, queries=str(output / "q.txt"), known_items=0)


def test_labels_count_and_weak_labels_stand_beside(labelled):
    study = analysis.study(results.load(labelled))
    assert study.entries[study.counted].task.tolist() == ["DocumentsLabelled"]
    text = build.render(study)["summary.md"]
    assert "5 queries with the pages that answer them" in text and "(weak labels)" in text
    assert "`empty.pdf` (empty file)" in text and "16 pages; the first 6 are used" in text
    assert "Change in NDCG@5, your labels" in text and "80 % power" in text


def test_without_labels_the_summary_says_so(unlabelled):
    study = analysis.study(results.load(unlabelled))
    text = build.render(study)["summary.md"]
    assert "queries without labels: only agreement with the base is known" in text
    assert "your labels |" not in text and "80 % power" not in text
    assert "NDCG@5 at four bits is not measured" in text


def test_agreement_by_hand(unlabelled):
    """First page kept, five kept and rank correlation from the kept rankings alone, with scipy and sets."""
    from scipy.stats import kendalltau

    study = analysis.study(results.load(unlabelled))
    frame = documents.agreement(study).set_index("variant").loc[VARIANT]
    wide = study.results.queries.pivot(index="query_id", columns="variant", values="ranking")
    pairs = list(zip(wide["random-bf16"], wide[VARIANT]))
    first = np.mean([a[0] == b[0] for a, b in pairs])
    assert frame["same"].startswith(f"{100 * first:.1f} [")
    five = np.mean([len(set(a[:5]) & set(b[:5])) / 5 for a, b in pairs])
    assert frame.five_share == pytest.approx(five)
    taus = [kendalltau(np.arange(len(a)), [list(b).index(p) for p in a]).statistic for a, b in pairs]
    assert frame.correlation_score == pytest.approx(np.mean(taus))


def test_your_pages_calibrate(labelled):
    (row,) = calibrate.build(labelled).to_dict("records")
    assert (row["kind"], row["blocks"]) == ("documents", 2) and row["tokens"] > 2
