"""What is read beside the weights: the licence that a card states, and an index that is not trusted."""

import pytest

from colq_utils.model import hub


@pytest.mark.parametrize(
    ("readme", "stated"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# card\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: research\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "research", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\nlicense: !!python/object/apply:os.system [exit]\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: unfinished", {"license": "unfinished"}),
        ("# no front matter\n", {}),
        (None, {}),
    ],
)
def test_the_licence_is_what_the_front_matter_states(tmp_path, readme, stated):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert hub.read_licence(str(tmp_path)) == stated
