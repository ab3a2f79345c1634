"""The corpus of prose that an installation carries: what is prose, no copies, the same in every process."""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from md4_hf.data import python_texts
from md4_hf.data.arguments import DataArguments
from md4_hf.data.documents import hold_out, load_documents, load_train_validation
from md4_hf.data.python_texts import LIBRARIES, is_prose, paragraphs_of, prose_of_file, source_files, without_copies


SOURCE = '''"""A module that says what it does in a whole sentence, and then in another.

Short one.

Parameters
----------
size : int, optional
    The number of elements that the returned array has along its first axis.
other (`str`): Text that begins with a name is a list, not a sentence of prose.

    >>> code_is_not_prose(1, 2, 3) + some_other_thing(4, 5, 6)

The second ``paragraph`` of prose is *wrapped* over
two lines, and its markup is taken away from it.
"""
import nothing_that_exists  # would raise, if it were imported
TEXT = """This is a string like any other, and not the documentation of anything."""
if True:
    class Thing:
        r"""A class in a branch has a docstring that is read as well \\d as others."""
        async def method(self):
            """The method of a class is documented too, and what is within is not lost."""
            def inner():
                """An inner function comes last, as the order is that of the source file."""
'''


@pytest.fixture
def few_files(monkeypatch, tmp_path):
    """Two dozen files of the standard library in place of all, and a cache of their own."""
    files = [(name, path) for name, path in source_files() if name.startswith("python/em") or "concurrent" in name]
    monkeypatch.setattr(python_texts, "source_files", lambda: files[:24])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    python_texts._docstring_documents.cache_clear()
    yield
    python_texts._docstring_documents.cache_clear()


def test_prose_of_a_source_file_is_its_docstrings_without_code_lists_and_headings(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    assert [*prose_of_file(tmp_path / "a.py")] == [
        "A module that says what it does in a whole sentence, and then in another.",
        "The number of elements that the returned array has along its first axis.",
        "The second paragraph of prose is wrapped over two lines, and its markup is taken away from it.",
        "A class in a branch has a docstring that is read as well \\d as others.",
        "The method of a class is documented too, and what is within is not lost.",
        "An inner function comes last, as the order is that of the source file.",
    ]


@pytest.mark.parametrize("content", [b"def broken(:", b"\xff\xfe", b"x = '\0'", b""])
def test_files_that_cannot_be_parsed_have_no_prose(content, tmp_path):
    (tmp_path / "a.py").write_bytes(content)
    assert [*prose_of_file(tmp_path / "a.py")] == [*prose_of_file(tmp_path / "missing.py")] == []


@pytest.mark.parametrize(
    "text",
    [
        "Too short to be a paragraph.",
        "No full stop is at the end of this line of words, which makes it a heading or a fragment",
        "starts with a small letter and therefore is the rest of something that was cut in two.",
        "Calls self.method_name(x_1, y_2) and obj.attr_name[0] -> int, so most of it is code_like.",
        "Diese Zeile enthält Wörter mit Zeichen, die nicht zum englischen Alphabet gehören, leider.",
    ],
)
def test_lines_that_are_not_prose(text):
    assert not is_prose(text)
    assert is_prose("A sentence of English with enough words, such as this one (in brackets), is prose.")
    assert [*paragraphs_of(text)] == []


def test_a_paragraph_is_read_once_even_if_some_words_differ():
    first = "Returns the number of elements along the given axis of the array, or all of them if there is none."
    nearly = first.replace("array", "tensor")
    other = "Raises an error if the given axis is out of range for the array, unless it is empty or missing."
    assert [*without_copies([[first, other], [nearly], [first.upper(), other + " Always."], []])] == [
        f"{first}\n{other}"
    ]


def test_nothing_that_is_held_out_was_seen_before(few_files):
    train, heldout = hold_out(load_documents("docstrings"), 0.1)
    words = {
        text: [tuple(line.lower().split()) for line in "\n".join(part["text"]).splitlines()]
        for text, part in (("train", train), ("heldout", heldout))
    }
    seen = {line[start : start + 8] for line in words["train"] for start in range(len(line) - 7)}
    runs = [[line[start : start + 8] for start in range(len(line) - 7)] for line in words["heldout"]]
    assert sum(map(len, words["heldout"])) > 500
    assert all(sum(run in seen for run in line) <= 0.25 * len(line) for line in runs)


def test_the_corpus_is_the_same_in_every_process(few_files):
    documents = load_documents("docstrings")["text"][:]
    assert len(documents) > 20 and all(map(is_prose, "\n".join(documents).splitlines()))
    program = (
        "from md4_hf.data import python_texts as p; f = [x for x in p.source_files() if x[0].startswith('python/em') or"
        " 'concurrent' in x[0]][:24]; p.source_files = lambda: f; import hashlib;"
        "print(hashlib.sha256(repr(p.docstring_documents()).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert run.stdout == hashlib.sha256(repr(documents).encode()).hexdigest() + "\n"


def test_slices_and_errors_are_those_of_the_other_corpus(few_files):
    every = load_documents("docstrings")["text"][:]
    assert load_documents("docstrings", split="train[:3]")["text"][:] == every[:3]
    train, heldout = load_train_validation(DataArguments(data="docstrings", validation_fraction=0.2))
    assert train["text"][:] + heldout["text"][:] == every
    with pytest.raises(ValueError, match="`data_config` must be left out for \"docstrings\", got 'en'"):
        load_documents("docstrings", config="en")
    with pytest.raises(ValueError, match="`text_column` must be left out"):
        load_documents("docstrings", text_column="body")


def test_files_are_those_of_the_standard_library_and_of_libraries_at_hand(monkeypatch):
    monkeypatch.setattr(python_texts, "LIBRARIES", {"numpy": "BSD-3-Clause", "not_installed_here": "MIT"})
    files = source_files()
    assert files == sorted(files) and all(Path(path).is_file() for _, path in files[::50])
    libraries = {name.split("/")[0] for name, _ in files}
    assert libraries == {"python", "numpy"} and "python/email/message.py" in dict(files)
    assert not any("/tests/" in name or "/test/" in name or "site-packages" in name for name, _ in files)


@pytest.mark.parametrize("library", LIBRARIES)
def test_licences_are_those_that_the_libraries_state(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    metadata = importlib.metadata.metadata(library)
    stated = " ".join(
        [metadata.get("License-Expression", ""), metadata.get("License", ""), *metadata.get_all("Classifier", [])]
    )
    names = {"Apache-2.0": "Apache", "BSD-3-Clause": "BSD", "PSF-2.0": "Python Software Foundation"}
    assert names[LIBRARIES[library]] in stated
