"""The words of the glossary (docs/words.md): one meaning each, and the retired ones stay away."""

import ast
import re
import tokenize
from collections import Counter
from pathlib import Path

import vramtune

PACKAGE = Path(vramtune.__file__).parent
GLOSSARY = Path(__file__).parent.parent / "docs" / "words.md"


def retired() -> set[str]:
    """The left column of the second table."""
    _, rows = GLOSSARY.read_text().split("| retired | say |\n| --- | --- |\n")
    return {row.split("|")[1].strip() for row in rows.strip().splitlines()}


def words_of(name: str) -> set[str]:
    """`is_tired` and `IsTired` are "is" and "tired"."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def test_no_class_name_is_defined_twice() -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    defined = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, times in defined.items() if times > 1] == []


def test_no_retired_word_is_a_name_in_the_code_or_of_a_file() -> None:
    assert {"glue", "victim"} <= retired()
    used = []
    for path in PACKAGE.rglob("*.py"):
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
        used += [(path.name, name) for name in {*names, path.stem} if words_of(name) & retired()]
    assert used == []
