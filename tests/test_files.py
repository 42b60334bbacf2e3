"""Text, JSON and CSV that the program writes: whole or not at all, and in a form that every reader takes."""

import csv
import json
import math
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdm_cli.errors import OutputError
from sdm_cli.files import json_text, write_csv, write_json, write_text

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TREES = st.recursive(LEAVES, lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts), max_leaves=20)


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def cleaned(tree):
    """The tree with None in the place of what is not finite."""
    if isinstance(tree, dict):
        return {key: cleaned(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [cleaned(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


@given(tree=TREES, indent=st.sampled_from([None, 2]))
@example(tree={"a": [math.nan, 0.5], "b": (-math.inf,)}, indent=2)
def test_any_tree_is_json_in_ascii_and_comes_back_without_what_json_has_no_word_for(tree, indent):
    text = json_text(tree, indent)
    assert json.loads(text, parse_constant=refuse) == cleaned(tree)
    assert text.isascii() and (indent is not None or "\n" not in text)


def test_a_table_has_empty_fields_where_there_is_no_number(tmp_path):
    write_csv(
        tmp_path / "new" / "t.csv", ("case", "x"), [("a,b", 0.5), ("c\n", None), ("d", math.nan), ("e", -math.inf)]
    )
    with (tmp_path / "new" / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["case", "x"], ["a,b", "0.5"], ["c\n", ""], ["d", ""], ["e", ""]]


def test_a_name_that_is_no_unicode_is_written_as_it_is(tmp_path):
    write_csv(tmp_path / "t.csv", ("case",), [(os.fsdecode(b"caf\xe9"),)])
    assert (tmp_path / "t.csv").read_bytes() == b"case\ncaf\xe9\n"
    assert json_text(os.fsdecode(b"caf\xe9")) == '"caf\\udce9"'


class Torn:
    """A row that fails on the way."""

    def __iter__(self):
        yield ("a", 1)
        raise ValueError("torn")


@pytest.mark.parametrize(
    ("write", "content", "error"),
    [
        (write_json, {"a": object()}, TypeError),
        (lambda path, rows: write_csv(path, ("a", "b"), rows), Torn(), ValueError),
    ],
)
def test_what_fails_on_the_way_leaves_the_old_file(tmp_path, write, content, error):
    write_text(tmp_path / "f", "old")
    with pytest.raises(error):
        write(tmp_path / "f", content)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(OutputError, match=r"f/t\.json cannot be written \(.*\): .*choose another output"):
        write_json(tmp_path / "f" / "t.json", {})
