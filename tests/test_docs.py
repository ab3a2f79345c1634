# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Execute the fences of README.md, docs/ and a model card, in order, page by page.

A page runs in a process and a folder of its own, with what the pages take for granted: `runs/tiny` (a model of
`md4 train --preset tiny`, small and hardly trained), the texts `my.txt` and `other.txt`, a random causal model in
`gpt2`, and links to the checkout's `scripts` and `metrics`. The built-in corpora are cut.

Its ```python fences share one namespace, as the cells of a notebook do. Of its ```bash fences, an `md4 ...` line is a
call of `md4_hf.cli.main`, made short by the options of `SHORTER` at its end; any other line goes to bash. Fences in
other languages are there to be read.

For anything else, put comments right before a fence, one a line:

    <!-- test: skip REASON -->            do not run it
    <!-- test: args OPTIONS -->           add options to its `md4` commands, after those of `SHORTER`
    <!-- test: replace OLD => NEW -->     run it with another value
    <!-- test: file NAME -->              save it, in whatever language, under this name

What `NOT_RUN` names is skipped without a comment, for the reason there. A page that shares models needs the option
`hub`, a comment `<!-- test: hub -->` anywhere in it: it runs with the local Hub of `hub_server.py`.
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from hub_server import WRITER_TOKEN
from huggingface_hub import ModelCard

import md4_hf
from md4_hf import PRESETS
from md4_hf.cli import COMMANDS, main
from md4_hf.core import masked_diffusion, opening_orders, remasking, schedules
from md4_hf.objective import noise, order_likelihood


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")), "model_cards/tiny.md"]
FURTHER_PAGES = [  # without commands to run
    *("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "model_cards/README.md", "model_cards/digits.md"),
    *sorted(f"benchmarks/results/{path.name}" for path in ROOT.glob("benchmarks/results/*.md")),
]
LONG_PAGES = ("docs/backbones.md", "docs/blocks.md", "docs/chat.md", "docs/evaluate.md", "docs/images.md")
SECONDS_PER_PAGE = 300
PYDOC_TOPICS = 12

FENCE = re.compile(r"^((?:<!-- test: .+ -->\n)*)```(\w*)\n((?s:.*?))^```$", re.MULTILINE)
DIRECTIVE = re.compile(r"^<!-- test: (skip|args|replace|file) (.+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
RUN = ("bash", "python")
NOT_RUN = {
    "make": "makes an environment of its own; `make demo` and `make test` are run by hand and by CI",
    "pip": "installs packages",
    "accelerate launch": "starts several processes, as tests/training/test_distributed.py does",
    "torchrun": "starts several processes, as tests/training/test_distributed.py does",
    "md4 demo": "serves a page until it is interrupted, as tests/page/test_page_blocks.py does",
    "md4 convert": "needs a published checkpoint; tests/hub/test_convert_md4.py and test_convert_peers.py make some",
}
SMALL = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2"  # of a network that is no backbone
SHORT = "--max_steps 2 --save_steps 1 --eval_strategy no --final_eval_draws 1 --card_samples 0"
SHORTER = {
    "train": f"--bf16 false {SHORT}",
    "finetune": SHORT,
    "evaluate": "--draws 1",
    "suite": "--draws 1",
    "sample": "--num_inference_steps 4",
    "infill": "--num_inference_steps 4",
    "score": "--num_samples 4",
    "frontier": "--num_samples 2 --steps 2 4 --temperatures 1",
}


# Pages and fences -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page: its first line's number, language, text, reason not to be run, options, file name."""

    line: int
    language: str
    text: str
    skip: str | None = None
    args: list[str] = field(default_factory=list)
    file: str | None = None


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page):
    """The fences of a page, in order."""
    content = read(page)
    return [make_fence(match, content.count("\n", 0, match.start(3)) + 1) for match in FENCE.finditer(content)]


def make_fence(match, line):
    comments, language, text = match.groups()
    options = {"args": []}
    for kind, value in DIRECTIVE.findall(comments):
        if kind == "replace":
            old, new = value.split(" => ")
            assert old in text, f"line {line}: nothing to replace: {old}"
            text = text.replace(old, new)
        else:
            options[kind] = shlex.split(value) if kind == "args" else value
    if language == "bash" and "skip" not in options:
        reasons = [NOT_RUN[name] for name in NOT_RUN if any(command.startswith(name) for command in commands(text))]
        options["skip"] = reasons[0] if reasons else None
    return Fence(line, language, text, **options)


def commands(text):
    """The commands of a bash fence, one string each, without blank lines and comments."""
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


# In the process of a page ---------------------------------------------------------------------------------------------


def make_start(folder):
    """Write what every page finds in its folder."""
    from pydoc_data.topics import topics

    from transformers import GPT2Config, GPT2LMHeadModel

    from md4_hf import build_byte_tokenizer

    os.chdir(folder)
    text = "\n".join(topics[name] for name in sorted(topics))
    assert len(text) > 48_000
    Path("my.txt").write_text(text[:40_000], encoding="utf-8")
    Path("other.txt").write_text(text[40_000:48_000], encoding="utf-8")
    tokenizer = build_byte_tokenizer()
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 256, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=256)).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    run_command("md4 train --preset tiny --data my.txt --output_dir runs/tiny", [])


def run_page(page, folder):
    """Run the fences of a page in a folder; the first that fails ends the process."""
    os.chdir(folder)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    shorten_corpora()
    namespace = vars(fresh_main())
    for fence in fences(page):
        print(f"--- {page}:{fence.line}" + (f" skipped: {fence.skip}" if fence.skip else ""), flush=True)
        if fence.file is not None:
            Path(fence.file).parent.mkdir(parents=True, exist_ok=True)
            Path(fence.file).write_text(fence.text, encoding="utf-8")
        elif fence.skip is None and fence.language == "bash":
            for command in commands(fence.text):
                run_command(command, fence.args)
        elif fence.skip is None and fence.language == "python":
            # Blank lines in front, so that a traceback has the line numbers of the page.
            exec(compile("\n" * (fence.line - 1) + fence.text, ROOT / page, "exec"), namespace)


def shorten_corpora():
    """Keep only a few topics of the corpus called pydoc, and a few files of that called docstrings."""
    from pydoc_data import topics

    from md4_hf.data import python_texts

    files = [(name, path) for name, path in python_texts.source_files() if name.startswith("python/asyncio/")]
    python_texts.source_files = lambda: files
    topics.topics = {name: topics.topics[name] for name in sorted(topics.topics)[:PYDOC_TOPICS]}


def fresh_main():
    """A module for the Python of a page: what is defined there is found by its name, as in a script."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    return sys.modules["__main__"]


def run_command(command, args):
    words = shlex.split(command, comments=True)
    if words[0] != "md4":
        subprocess.run(["bash", "-ec", command], check=True)
        return
    if "--help" not in words:
        small = SMALL if words[1] == "train" and "--backbone_name_or_path" not in words else ""
        words += [*shlex.split(f"{small} {SHORTER.get(words[1], '')}"), *args]
    try:
        main(words[1:])
    except SystemExit as stop:
        if stop.code:
            raise


def logged(path, function, *args):
    """Call a function with the output of the process in a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    function(*args)


# The tests ------------------------------------------------------------------------------------------------------------


def run_in_process(log, function, *args, seconds=SECONDS_PER_PAGE):
    """Run a function in a new process, forked from one that has imported the libraries and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    modules = ("training.trainer", "core.pipeline_masked_diffusion", "data.documents")
    context.set_forkserver_preload([*(f"md4_hf.{module}" for module in modules), "peft"])
    process = context.Process(target=logged, args=(str(log), function, *args))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A folder with what every page finds in its own."""
    folder = tmp_path_factory.mktemp("docs") / "start"
    folder.mkdir()
    run_in_process(folder.with_suffix(".log"), make_start, str(folder))
    for name in ("scripts", "metrics"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def folder(start, tmp_path):
    shutil.copytree(start, tmp_path / "page", symlinks=True)
    return tmp_path / "page"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in LONG_PAGES else [])
        for page in PAGES
        if "<!-- test: hub -->" not in read(page)
    ],
)
def test_the_fences_of_a_page_run(page, folder, tmp_path):
    run_in_process(tmp_path / "log", run_page, page, str(folder))


def bash_of(page):
    """The commands of a page."""
    return [command for fence in fences(page) if fence.language == "bash" for command in commands(fence.text)]


def train_as_documented(page, file):
    """Train the base and the adapter of a page on its file, as they stand but for the steps of the base; the rows."""
    train = next(command for command in bash_of(page) if command.startswith("md4 train"))
    tune = next(command for command in bash_of(page) if f"finetune runs/base --data {file}" in command)
    text = next(fence for fence in fences(page) if fence.file == file).text
    Path(file).write_text(text, encoding="utf-8")
    quick = "--eval_strategy no --final_eval_draws 1 --card_samples 0".split()
    main([*shlex.split(train)[1:], "--max_steps", "200", *quick])
    main([*shlex.split(tune)[1:], *quick])
    return [json.loads(line) for line in text.splitlines()]


def fine_tune_as_documented(folder):
    """Run the first commands of the page, up to the answer to a prompt."""
    os.chdir(folder)
    pairs = train_as_documented("docs/finetune.md", "pairs.jsonl")
    sample = next(command for command in bash_of("docs/finetune.md") if command.startswith("md4 sample runs/answers"))
    shown = shlex.split(sample)
    for row in pairs:
        shown[shown.index("--prompt") + 1] = row["prompt"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(shown[1:])
        text = printed.getvalue().splitlines()[-1]
        assert text == row["prompt"] + row["response"], text


def chat_as_documented(folder):
    """Run the first commands of the page, and have all its conversations from a pipe."""
    os.chdir(folder)
    conversations = train_as_documented("docs/chat.md", "chat.jsonl")
    chat = next(command for command in bash_of("docs/chat.md") if "| python -m md4_hf chat" in command)
    for messages in (row["messages"] for row in conversations):
        said, answers = ([x["content"] for x in messages if x["role"] == role] for role in ("user", "assistant"))
        Path("said.txt").write_text("\n".join(said), encoding="utf-8")
        own = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        answered = subprocess.run(["bash", "-ec", chat], check=True, capture_output=True, text=True, env=own)
        assert answered.stdout.splitlines() == answers, answered.stdout


@pytest.mark.slow
def test_the_chat_example_knows_by_heart_what_it_was_shown(folder, tmp_path):
    run_in_process(tmp_path / "log", chat_as_documented, str(folder), seconds=1800)


@pytest.mark.slow
def test_the_fine_tuning_example_knows_by_heart_what_it_was_shown(folder, tmp_path):
    run_in_process(tmp_path / "log", fine_tune_as_documented, str(folder))


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- test: hub -->" in read(page)])
def test_the_fences_of_a_page_that_shares_run_with_a_hub(page, folder, tmp_path, hub):
    code = f"import test_docs\ntest_docs.run_page({page!r}, {str(folder)!r})"
    hub.run_python(code, home=tmp_path / "home", token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")


@pytest.mark.parametrize("page", PAGES)
def test_every_fence_of_a_page_is_found(page):
    marks = [line for line in read(page).splitlines() if line.startswith("```")]
    assert len(marks) == 2 * len(fences(page))
    assert len(DIRECTIVE.findall(read(page))) == len(re.findall("<!-- test: (?!hub -->)", read(page)))


def test_most_fences_run_and_the_others_have_a_reason():
    runnable = {page: [fence for fence in fences(page) if fence.language in RUN] for page in PAGES}
    skipped = {page: [fence for fence in found if fence.skip is not None] for page, found in runnable.items()}
    assert all(len(fence.skip.split()) >= 2 for found in skipped.values() for fence in found)
    assert sum(map(len, skipped.values())) < 0.25 * sum(map(len, runnable.values()))
    # These have nothing but launches, and checkpoints on the Hub.
    for page in set(runnable) - {"docs/launch.md", "docs/checkpoints.md"}:
        assert len(skipped[page]) <= 0.5 * len(runnable[page]), page


@pytest.mark.parametrize("page", [*PAGES, *FURTHER_PAGES])
def test_relative_links_lead_to_files_and_headings(page):
    text = FENCE.sub("", read(page))
    for target, heading in LINK.findall(text):
        if ":" in target:  # another site
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {anchor(text) for text in headings}, f"{target}#{heading}"


def anchor(heading):
    """Anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_name_of_the_mathematics_is_in_the_code():
    rows = re.findall(r"^\| .+ \| (`.+) \| .+ \|$", read("docs/mathematics.md"), re.MULTILINE)
    names = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)} - {"num_timesteps"}
    modules = [masked_diffusion, opening_orders, order_likelihood, remasking, noise, schedules, md4_hf]
    assert len(names) > 30
    assert all(any(hasattr(module, name) for module in modules) for name in names), names


def test_every_sampler_has_a_row():
    rows = re.findall(r'^\| `(\w+)="(\w+)"`', read("docs/samplers.md"), re.MULTILINE)
    orders, others = {opening_orders.RANDOM, *opening_orders.ORDERS}, remasking.REMASKINGS
    named = {"order": orders, "remasking": others, "corrector": remasking.CORRECTORS}
    assert sorted(rows) == sorted((kind, name) for kind, names in named.items() for name in names)


def test_every_public_name_has_a_line():
    names = re.findall(r"^\| `(\w+)` \| .+ \|$", read("docs/api.md"), re.MULTILINE)
    assert sorted(names) == sorted(md4_hf.__all__) and len(names) <= 75


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_options_that_a_page_names_exist(page, capsys):
    known = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help_all" if COMMANDS[command].options else "--help"])
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    # Of torchrun, sbatch, hf, lm_eval and accelerate; and what tells the rest.
    other_commands = {"--nproc", "--max", "--nodes", "--repo", "--help_all", "--help"}
    other_commands |= {"--model", "--model_args", "--tasks", "--include_path", "--apply_chat_template"}
    other_commands |= {option for action in launch_command_parser()._actions for option in action.option_strings}
    # Without the files that have options of their own.
    text = re.sub(r"^python (benchmarks|scripts)/.*$", "", read(page), flags=re.MULTILINE)
    assert set(re.findall(r"--[a-z]\w+", text)) <= known | other_commands


@pytest.mark.parametrize(
    "text, reason",
    [
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", 'page.md", line 6'),
        ("```bash\nmd4 sample no/such/folder\n```\n", "md4 sample: "),
        ("```bash\nls no-such-file\n```\n", "non-zero exit status"),
    ],
    ids=["python", "md4", "bash"],
)
def test_a_page_that_does_not_run_is_an_error_that_says_where(text, reason, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=re.escape(reason)):
        run_in_process(tmp_path / "log", run_page, str(page), str(tmp_path))


def test_comments_change_how_a_fence_is_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- test: replace 1000 => 2 -->\n<!-- test: args --top_p 0.5 -->\n```bash\nmd4 sample x --length 1000\n```\n"
        "<!-- test: file a.yaml -->\n```yaml\na: 1\n```\n<!-- test: skip needs a GPU -->\n```python\n1 / 0\n```\n"
        "```bash\n# a comment\npip install \\\n  x\n```\n",
        encoding="utf-8",
    )
    command, file, skipped, pip = fences(str(page))
    assert (command.text, command.args, command.skip) == ("md4 sample x --length 2\n", ["--top_p", "0.5"], None)
    assert (file.file, file.text, file.line) == ("a.yaml", "a: 1\n", 8)
    assert (skipped.skip, pip.skip) == ("needs a GPU", NOT_RUN["pip"])


# The presets and their cards ------------------------------------------------------------------------------------------

CARDS = sorted(json.loads(read("model_cards/results.json")))


@pytest.fixture(scope="module")
def pages():
    return runpy.run_path(str(ROOT / "scripts" / "write_model_cards.py"))["make_pages"]()


def test_the_pages_are_what_the_script_writes(pages):
    assert {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("model_cards/*.md")} == pages


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_what_the_hub_reads_and_a_reader_needs(pages, name):
    card = ModelCard(pages[name])
    assert card.data.library_name == "transformers" and {"md4", "masked-diffusion"} <= set(card.data.tags)
    assert (card.data.pipeline_tag == "unconditional-image-generation") == PRESETS[name].is_image
    assert PRESETS[name].is_image or card.data.pipeline_tag in ("fill-mask", "text-generation")
    assert card.data.license is None, "there are no weights to license"
    for value in (*PRESETS[name].model.values(), *PRESETS[name].training.values()):
        assert str(value) in card.text
    for section in ("Recipe", "Result", "Train", "Load", "Limits"):
        assert f"## {section}" in card.text


def test_each_preset_has_a_row_with_its_recipe_and_the_published_result(pages):
    rows = {re.search(r"`(.+?)`", line).group(1): line for line in pages["README"].splitlines() if "| 0.0" in line}
    published = json.loads(read("scripts/published_results.json")).values()
    papers = [paper for table in published for paper in table["papers"] if paper["source"].startswith("MD4")]
    figures = {figure for paper in papers for row in paper["rows"] if "MD4" in row[1] for figure in row[2:]}
    assert list(rows) == list(PRESETS)
    for name, preset in PRESETS.items():
        assert f"| {preset.batch_size} × " in rows[name] and f"| {preset.training['max_steps']:,} |" in rows[name]
        assert f"| {preset.training['learning_rate']:g} |" in rows[name]
        assert preset.data["data"] in rows[name] and (preset.paper or "| – |") in rows[name]
        assert set(re.findall(r"\d+\.\d+", preset.paper or "")) <= figures


def test_the_page_of_the_presets_has_each_with_its_figures():
    page = read("docs/pretrain.md")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page.split("\n## Presets")[1], re.MULTILINE))
    assert all(f"`{name}`" in page for name in PRESETS)
    assert {name for name, preset in PRESETS.items() if preset.paper} | {*CARDS} == {*rows} & {*PRESETS}
    for name in {*rows} & {*PRESETS}:
        _, _, batch, steps, paper, _ = (cell.strip() for cell in f"{rows[name]} ".split("|"))
        number = PRESETS[name].training["max_steps"]
        assert steps in (f"{number:,}", f"{number / 1e6:g}M") and batch.startswith(f"{PRESETS[name].batch_size} × ")
        assert set(re.findall(r"\d+\.\d+", paper)) <= set(re.findall(r"\d+\.\d+", PRESETS[name].paper or ""))


def test_a_result_is_told_with_its_command_and_the_page_of_the_presets_agrees(pages):
    results = json.loads(read("model_cards/results.json"))
    assert pages["README"].count("not trained here") == len(PRESETS) - len(results) + 1, "once in the text"
    for name, result in results.items():
        for page in (pages[name], pages["README"]):
            assert result["result"] in page and result["command"] in page and result["date"] in page
        number = re.match(r"[\d.]+ ± [\d.]+ \w+ per \w+", result["result"]).group()
        assert number in read("docs/pretrain.md")
