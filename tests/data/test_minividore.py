"""The embedded benchmark is the recorded one, its queries have answers, its tasks load offline."""

import shutil

import numpy as np
import pandas as pd
import pytest

from colq_utils.base.errors import ColqError
from colq_utils.data import minividore, mteb_tasks, overlap
from colq_utils.data import words as lexical

CALIBRATION = minividore.DEFAULT.parent / "calibration" / "corpus.parquet"
RECORDED_SCAN = np.array(  # mean grey of a 4 x 4 grid of blocks of the first scanned page at strength 0.6
    [
        [229.9, 221.5, 220.7, 223.3],
        [229.7, 223.6, 229.0, 229.8],
        [223.0, 220.4, 216.0, 217.6],
        [230.2, 225.8, 220.2, 221.7],
    ]
)
PRINTED = ("Headings", "Phrases", "Science", "ScannedHeadings", "ScannedPhrases", "Reading")


@pytest.fixture(scope="module")
def benchmark():
    return minividore.load()


def test_the_fingerprint_is_the_recorded_one(benchmark):
    fingerprint = minividore.verify()
    assert fingerprint["pages"] == len(benchmark.pages) >= 600
    assert fingerprint["queries"] == len(benchmark.queries) >= 2_000


def test_a_changed_query_is_noticed(tmp_path):
    for name in ("pages.parquet", "fingerprint.json"):
        shutil.copy(minividore.DEFAULT / name, tmp_path)
    queries = pd.read_parquet(minividore.DEFAULT / "queries.parquet")
    queries.loc[0, "text"] += "s"
    queries.to_parquet(tmp_path / "queries.parquet", index=False)
    with pytest.raises(ColqError, match="queries_sha256 differ"):
        minividore.verify(tmp_path)


def test_a_missing_file_says_how_to_restore_it(tmp_path):
    with pytest.raises(ColqError, match="git checkout"):
        minividore.load(tmp_path)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(ColqError, match="MiniVidoreHeadlines"):
        mteb_tasks.tasks(["MiniVidoreHeadlines"])


def test_every_query_is_answered_by_a_page_that_is_searched(benchmark):
    for name, task in minividore.TASKS.items():
        for lang in task.languages:
            searched = set(minividore.corpus_of(benchmark, name, lang).page_id)
            queries = minividore.queries_of(benchmark, name, lang)
            assert len(queries) >= 20, (name, lang)
            for row in queries.itertuples():
                assert len(row.relevant) and set(row.relevant) <= searched, row.query_id


def test_answers_stand_in_print_and_nowhere_else(benchmark):
    words = {row.page_id: lexical.tokens(row.text) for row in benchmark.pages.itertuples()}
    held = {page_id: set(listed) for page_id, listed in words.items()}
    for task in PRINTED:
        name = f"MiniVidore{task}"
        for lang in minividore.TASKS[name].languages:
            searched = minividore.corpus_of(benchmark, name, lang).page_id
            for row in minividore.queries_of(benchmark, name, lang).itertuples():
                asked = lexical.tokens(row.text)
                holders = [page_id for page_id in searched if held[page_id].issuperset(asked)]
                answers = {page_id for page_id in holders if lexical.contains(words[page_id], asked)}
                assert answers == set(row.relevant), row.query_id


def test_keywords_are_on_the_relevant_pages_and_on_no_other(benchmark):
    words = {row.page_id: set(lexical.tokens(row.text)) for row in benchmark.pages.itertuples()}
    queries = benchmark.queries[benchmark.queries.task.isin(["Keywords", "Shuffled"])]
    for row in queries.itertuples():
        asked = set(lexical.tokens(row.text))
        assert {page_id for page_id, held in words.items() if asked <= held} == set(row.relevant), (
            row.query_id
        )


def test_pages_are_regions_of_one_size_in_grey(benchmark):
    for _, row in benchmark.pages.iloc[::60].iterrows():
        picture = np.asarray(minividore.image(row))  # (height, width, 3)
        assert picture.shape == (384, 704, 3)
        assert (picture == picture[:, :, :1]).all() and (picture % 17 == 0).all()
        assert (picture < 128).mean() > 0.001


def test_a_scan_is_the_same_every_time_and_another_for_another_page(benchmark):
    row = benchmark.pages[benchmark.pages.scanned].iloc[0]
    page = minividore.image(row)
    first, again = (np.asarray(minividore.scan(page, row.page_id, 0.6)) for _ in range(2))
    other = np.asarray(minividore.scan(page, "another", 0.6))
    assert first.shape == (384, 704, 3) and (first == again).all() and (first != other).any()
    assert (np.asarray(minividore.scan(page, row.page_id, 0.0)) == np.asarray(page)).all()
    with pytest.raises(ValueError, match="strength"):
        minividore.scan(page, row.page_id, 1.5)


def test_a_scan_looks_as_recorded(benchmark):
    row = benchmark.pages[benchmark.pages.scanned].iloc[0]
    pixels = np.asarray(minividore.scan(minividore.image(row), row.page_id, 0.6).convert("L"), float)
    blocks = pixels.reshape(4, 96, 4, 176).mean(axis=(1, 3))
    assert np.abs(blocks - RECORDED_SCAN).max() < 1.0


def test_a_title_and_its_translations_are_one_source(benchmark):
    source = minividore.sources(benchmark)
    assert set(source) == set(benchmark.queries.query_id)
    asked = benchmark.queries[
        benchmark.queries.text.isin(["Einen Kernel installieren", "Install a Kernel", "Installer un noyau"])
    ]
    assert set(asked.lang) == {"de", "en", "fr"} and {"Headings", "ScannedHeadings", "Crosslingual"} <= set(
        asked.task
    )
    assert asked.query_id.map(source).nunique() == 1
    for task in (
        "Phrases",
        "Keywords",
        "Misspelt",
        "Shuffled",
        "Science",
    ):  # words of single pages, drawn for each language alone
        asked = benchmark.queries[benchmark.queries.task == task].query_id
        assert asked.map(source).nunique() == len(asked)


def test_tasks_load_in_mteb_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = [name for name, task in minividore.TASKS.items() if task.pages != "scanned"]
    for task in mteb_tasks.tasks(names):
        task.load_data()
        expected = minividore.TASKS[task.metadata.name].languages
        assert tuple(task.dataset) == expected and task.metadata.main_score == "ndcg_at_5"
        for split in (task.dataset[lang]["test"] for lang in expected):
            ids = set(split["corpus"]["id"])
            assert set(split["queries"]["id"]) == set(split["relevant_docs"])
            assert all(set(relevant) <= ids for relevant in split["relevant_docs"].values())
    assert split["corpus"][0]["image"].size == (704, 384)


def test_bm25_ranks_a_rare_shared_word_first():
    scores = lexical.bm25({"a": "the cat sat", "b": "the dog sat", "c": "the the the"}, {"q": "the cat"})["q"]
    assert max(scores, key=scores.get) == "a" and set(scores) == {"a", "b", "c"}
    # idf of a word in 1 of 3 pages is log(1 + 2.5 / 1.5); page length is the mean, so tf = 1
    assert lexical.bm25({"a": "x y", "b": "y z", "c": "y w"}, {"q": "x"})["q"]["a"] == pytest.approx(
        np.log(1 + 2.5 / 1.5)
    )


def test_the_calibration_corpus_shares_no_eight_words_with_the_benchmark(benchmark):
    corpus = pd.read_parquet(CALIBRATION)
    assert set(corpus.lang) == set(minividore.LANGUAGES)
    assert not set(corpus.document) & set(benchmark.pages.document)
    seen = [*benchmark.pages.text, *benchmark.queries.text]
    assert overlap.eight_gram_overlap(corpus.text, seen).sum() == 0


def test_overlap_counts_shared_sequences():
    text = "one two three four five six seven eight nine"
    assert overlap.eight_gram_overlap([text, text.replace("five", "5")], [text.upper()]).tolist() == [2, 0]


def test_reserved_documents_are_in_neither(benchmark):
    names = [
        *benchmark.pages.document.unique(),
        *pd.read_parquet(CALIBRATION, columns=["document"]).document.unique(),
    ]
    assert not [name for name in names if "debian-history" in name or "eyesj" in name]
