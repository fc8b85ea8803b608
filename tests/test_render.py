"""Reports and notebooks as web pages that hold everything and run nothing."""

import re

import nbformat
import pytest

from colq_utils import render

EVIL = '<script>alert("a")</script>'


@pytest.fixture
def written(tmp_path):
    """Two experiments: a report with a script in title and text, a picture, a fold, links; a notebook."""
    (tmp_path / "results/one/reports").mkdir(parents=True)
    (tmp_path / "results/two/notebooks").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.png").write_bytes(b"\x89PNG")
    (tmp_path / "results/one/reports/first.md").write_text(
        f"# A {EVIL} & `more`\n\n{EVIL}\n\nInline {EVIL} text, <img src=x onerror=alert(1)>.\n\n"
        "## What the *seed* moves\n\n"
        "![a figure](../../../figures/a.png) ![gone](../../../figures/b.png)\n\n"
        "<details>\n<summary>More</summary>\n\n| a | b |\n| --- | ---: |\n| x | 1 |\n\n</details>\n\n"
        "<details onclick=alert(1)>\n\n"
        "[second](second.md#what-the-seed-moves) [bad](javascript:alert(1)) [out](https://example.org/)\n"
    )
    (tmp_path / "results/one/reports/second.md").write_text("# Second\n\n## What the seed moves\n")
    output = nbformat.v4.new_output(
        "execute_result", {"text/html": "<table><tr><td>1</td></tr></table>"}, execution_count=1
    )
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 01 · Look"),
            nbformat.v4.new_code_cell("1 + 1", outputs=[output]),
        ]
    )
    nbformat.write(notebook, tmp_path / "results/two/notebooks/01_look.ipynb")
    return tmp_path


def test_index_lists_every_page_and_escapes_html(written):
    pages = render.render(written)
    index = pages[-1].read_text()
    assert pages[-1] == written / "results/html/index.html"
    links = re.findall(r'href="([^"]+)"', index)
    assert links == ["one/first.html", "one/second.html", "two/01_look.html"]
    assert all((pages[-1].parent / link) in pages for link in links)
    assert (
        "<script" not in index
        and "&lt;script&gt;alert(&#34;a&#34;)&lt;/script&gt; &amp; more" in index
        and "01 · Look" in index
    )


def test_pages_hold_everything_and_run_nothing(written):
    for page in render.render(written):
        text = page.read_text()
        assert f'content="{render.POLICY}"' in text and not re.search(
            r"<(script|link|iframe)|<img[^>]+(onerror|src=\"?(?!\"?data:))", text
        ), page


def test_a_report_becomes_a_page(written):
    text = next(page for page in render.render(written) if page.name == "first.html").read_text()
    assert "<details>" in text and "<summary>More</summary>" in text and "&lt;details onclick" in text
    assert '<td style="text-align:right">1</td>' in text and 'id="what-the-seed-moves"' in text
    assert 'src="data:image/png;base64,iVBORw=="' in text
    assert (
        "[gone]" in text
        and 'href="second.html#what-the-seed-moves"' in text
        and 'href="https://example.org/"' in text
        and "javascript:" not in text
    )


def test_rendering_one_leaves_the_others_in_the_index(written):
    assert "two/" not in render.render(written, "one")[-1].read_text()
    index = render.render(written, "two")[-1].read_text()
    assert "one/first.html" in index and "two/01_look.html" in index
