# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Suites of published data sets: how text is prepared, what is recorded, and that a recorded result can be repeated."""

import json
import platform
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from commands import failure
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import ModelCard
from launching import TORCHRUN, succeed
from tiny import random_image_model, random_model

from md4_hf import MD4Trainer, build_byte_tokenizer, build_text8_tokenizer, digits
from md4_hf.cli import main
from md4_hf.evaluation.detokenizers import detokenize
from md4_hf.evaluation.recipes import PREPARATIONS, SUITES, TASKS, make_recipe
from md4_hf.evaluation.tasks import hub_commit, load_rows, make_windows, sliding_windows


ROOT = Path(__file__).parents[2]
LENGTH = 16
PTB = "the company's share is $1 1 1 and doesn't grow / fall ?"
EOS = [build_byte_tokenizer().eos_token_id]
BLANK_LINE = build_byte_tokenizer().encode("\n\n", add_special_tokens=False)
ROWS = ["the first row .\n", "", "a second one , longer than a block of tokens is , to be cut .\n", "end .\n"] * 5


def recipe(preparation="sedd", context=LENGTH, task="wikitext2", data="file.txt", **changes):
    return make_recipe(TASKS[task], preparation, context, data, **changes)


def windows(rows=ROWS, **options):
    return make_windows(Dataset.from_dict({"text": list(rows)}), build_byte_tokenizer(), recipe(**options))


def scored(examples):
    """The ids that are scored, one after the other."""
    pairs = [zip(example["input_ids"], example["labels"], strict=True) for example in examples]
    assert all(label in (-100, token) for pair in pairs for token, label in pair)
    return [label for example in examples for label in example["labels"] if label != -100]


def tokens_of(rows, end=None):
    ids = [build_byte_tokenizer().encode(row, add_special_tokens=False) for row in rows]
    return [token for row in ids for token in [*row, *([] if end is None else end)]]


# Detokenizers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("wikitext", " = = Early life = = \n", " == Early life ==\n"),
        ("wikitext", " He won 1 @,@ 000 @-@ odd games ( in all ) . \n", " He won 1,000-odd games (in all).\n"),
        ("wikitext", ' the boys \' " big game " , 3 @.@ 5 ° N \n', ' the boys\' "big game", 3.5°N\n'),
        ("ptb", "the company 's share is $ N N N and does n't grow \\/ fall <unk>", PTB),
        (
            "lm1b",
            'He said : " it is fine . " ( really ) at http : / / a.b ?',
            'He said: "it is fine." (really) at http://a.b?',
        ),
        ("lambada", "  “ hello ” , he said  ", '\n" hello " , he said'),
        ("none", " = a @-@ b ", " = a @-@ b "),
    ],
)
def test_a_detokenizer_undoes_word_tokenisation(name, text, expected):
    assert detokenize(text, name) == expected


def test_an_unknown_detokenizer_is_an_error():
    for use in (lambda: detokenize("x", "moses"), lambda: recipe(detokenizer="moses")):
        with pytest.raises(ValueError, match="`detokenizer` must be one of .*, got 'moses'"):
            use()


# Windows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
@pytest.mark.parametrize("count", [3, 8, 9, 29])
def test_every_token_is_scored_once_after_as_much_context_as_the_stride_leaves(count, stride):
    ids = np.arange(count)
    pieces = [(part, np.stack([part, 2.0 * part], axis=1)) for part in np.array_split(ids, 4)]
    found = list(sliding_windows(iter(pieces), 8, stride, keeps_last=True))
    assert np.concatenate([part[seen:] for part, _, seen in found]).tolist() == ids.tolist()
    assert all(seen == (8 - stride if number else 0) for number, (_, _, seen) in enumerate(found))
    assert all(len(part) == 8 for part, _, _ in found[:-1])
    assert all((np.stack([part, 2 * part], axis=1) == sizes).all() for part, sizes, _ in found)
    dropped = list(sliding_windows(iter(pieces), 8, stride, keeps_last=False))
    assert all(len(part) == 8 for part, _, _ in dropped) and len(dropped) >= len(found) - 1


def test_sedd_ends_rows_also_empty_ones_and_drops_what_fills_no_block():
    examples = windows(preparation="sedd")
    expected = tokens_of(ROWS, end=EOS)
    kept = len(expected) // LENGTH * LENGTH
    assert scored(examples) == expected[:kept] and {len(e["input_ids"]) for e in examples} == {LENGTH}
    many = windows(["abcde"] * 1001, preparation="sedd")  # 1000 rows are joined at a time
    assert len(scored(many)) == 6 * 1000 // LENGTH * LENGTH


def test_whole_scores_the_last_tokens_too():
    examples = windows(preparation="whole")
    expected = tokens_of(ROWS, end=EOS)
    assert scored(examples) == expected and len(examples[-1]["input_ids"]) == len(expected) % LENGTH


def test_mdlm_frames_blocks_with_scored_end_tokens():
    end, examples = build_byte_tokenizer().eos_token_id, windows(preparation="mdlm")
    inner = [token for example in examples for token in example["input_ids"][1:-1]]
    expected = tokens_of(ROWS, end=[end])
    assert inner == expected[: len(inner)] and len(expected) - len(inner) < LENGTH - 2
    assert all(e["input_ids"][0] == e["input_ids"][-1] == e["labels"][0] == e["labels"][-1] == end for e in examples)


def test_gpt2_slides_its_window():
    examples = windows(preparation="gpt2", stride=4)
    assert scored(examples) == tokens_of(ROWS, end=BLANK_LINE)
    assert all(example["labels"][: LENGTH - 4] == [-100] * (LENGTH - 4) for example in examples.select(range(1, 5)))
    assert recipe(preparation="gpt2", context=1024).stride == 512


@pytest.mark.parametrize("preparation", ["sedd", "whole", "gpt2"])
def test_rows_that_are_not_joined_are_scored_to_their_end_in_every_preparation(preparation):
    examples = windows(preparation=preparation, wrap=False, stride=LENGTH)
    end = EOS if preparation != "gpt2" else BLANK_LINE
    assert scored(examples) == tokens_of(ROWS, end=end)


def test_lines_end_at_line_breaks_alone(tmp_path):
    (tmp_path / "rows.txt").write_text("a\u2028b\x0cc\n\nd", encoding="utf-8")
    recipe = make_recipe(TASKS["lambada"], "rows", 8, str(tmp_path / "rows.txt"), detokenizer="none")
    assert load_rows(recipe)["text"] == ["a\u2028b\x0cc", "", "d"]


def test_rows_by_themselves_are_not_joined():
    examples, end = windows(preparation="rows"), EOS
    assert scored(examples) == tokens_of(ROWS, end=end)
    assert examples[1]["input_ids"] == end, "the empty row"
    joined = windows(preparation="whole", wrap=False)
    assert joined["input_ids"][:] == examples["input_ids"][:]


def test_characters_are_those_of_the_scored_text():
    for preparation in ("whole", "rows"):
        assert sum(windows(preparation=preparation)["num_characters"]) == pytest.approx(sum(map(len, ROWS)))
    slid = windows(preparation="gpt2", stride=4)
    assert sum(slid["num_characters"]) == pytest.approx(sum(map(len, ROWS)) + 2 * len(ROWS))


def test_the_paper_of_a_preparation_decides_the_split():
    splits = {name: make_recipe(TASKS["wikitext2"], name, 1024).split for name in PREPARATIONS}
    assert splits == {"sedd": "train", "mdlm": "validation", "gpt2": "test", "whole": "test", "rows": "test"}
    assert make_recipe(TASKS["text8"], "sedd", 1024).context == 256, "the standard length of text8"
    assert make_recipe(TASKS["text8"], "sedd", 1024).row_end == "nothing"


def test_text8_is_scored_on_its_last_five_million_characters(tmp_path, monkeypatch):
    monkeypatch.setattr("md4_hf.evaluation.recipes.TEXT8_CHARACTERS", 1000)
    monkeypatch.setattr("md4_hf.evaluation.tasks.TEXT8_TEST_CHARACTERS", 50)
    complete, part = tmp_path / "text8", tmp_path / "part.txt"
    complete.write_text("ab cd" * 200)
    part.write_text("ab cd" * 100)
    (row,) = load_rows(recipe(task="text8", data=str(complete)))
    assert row["text"] == "ab cd" * 10
    (row,) = load_rows(recipe(task="text8", data=str(part)))
    assert len(row["text"]) == 500


def test_lines_of_a_local_file_are_rows(tmp_path):
    file = tmp_path / "wiki.txt"
    file.write_text(" = A = \n\n It is 1 @,@ 5 . \n")
    assert load_rows(recipe(data=str(file)))["text"][:] == [" = A =\n", "\n", " It is 1,5.\n"]
    assert load_rows(recipe(task="ptb", data=str(file)))["text"][:] == ["= A =", "", "It is 1 @,@ 5 ."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preparation": "plaid"}, "`preparation` must be one of .*, got 'plaid'"),
        ({"stride": 17}, r"`stride` must be in \[1, 16\], the tokens of a block, got 17"),
        ({"context": 2, "preparation": "mdlm"}, "`context` must leave room for a token, got 2"),
    ],
)
def test_recipes_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        recipe(**options)


def test_text_that_fills_no_block_is_an_error():
    with pytest.raises(ValueError, match="`data` must fill a block of 16 tokens, got 'file.txt' with too few"):
        windows(["short"])


def test_every_suite_has_its_tasks():
    assert set(SUITES["zero-shot"]) == {"lambada", "wikitext2", "ptb", "wikitext103", "lm1b"}
    assert {task for tasks in SUITES.values() for task in tasks} == set(TASKS)


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "model"
    text8 = build_text8_tokenizer()
    random_model(len(text8), LENGTH, std=0.3, time_conditioning=False).save_pretrained(folder)
    text8.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in SUITES["zero-shot"]:
        (folder / f"{name}.txt").write_text(f"the rows of {name} are few\nand they are short too\n" * 6)
    return [f"{name}={folder / name}.txt" for name in SUITES["zero-shot"]]


def evaluate(model, files, output, *options):
    """The results of a call that has a folder to itself."""
    if "--tasks" in options:
        files = [file for file in files if file.split("=")[0] in options]
    main(["suite", str(model), "zero-shot", "--replace", *files, "--output_dir", str(output), *options])
    return report_in(output)


def report_in(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def values(report):
    return {result["task"]: result["value"] for result in report["results"]}


def test_a_suite_prints_a_table_and_writes_what_is_needed_to_repeat_it(model, files, tmp_path, capsys):
    report = evaluate(model, files, tmp_path, "--draws", "2", "--rounds", "2")
    printed, bars = capsys.readouterr()
    assert "Generating" not in bars and "Map:" not in bars, "labels of `datasets`, which say nothing here"
    for name, value in values(report).items():
        assert f"{name} " in printed and f"≤ {value:.3f}" in printed
    assert report["model"]["weights"] and report["model"]["schedule_eps"] == 1e-4
    assert report["estimate"] | {"draws": 2, "seed": 0, "estimator": "time"} == report["estimate"]
    assert set(report["environment"]["versions"]) >= {"md4_hf", "torch", "transformers", "datasets"}
    for result in report["results"]:
        assert len(result["data_sha256"]) == 64 and result["metrics"]["num_rounds"] == 2
        assert result["recipe"]["preparation"] == "sedd" and result["recipe"]["context"] == LENGTH
    assert report["estimate"] | {"rounds": 2, "target_stderr": None} == report["estimate"]
    assert report["environment"] | {"device": f"cpu {platform.machine()}", "num_processes": 1} == report["environment"]
    card = ModelCard.load(tmp_path / "zero-shot-draws-2.md")
    assert {x.dataset_name.split()[0] for x in card.data.eval_results} == set(SUITES["zero-shot"])
    assert str(tmp_path) not in card.data.to_yaml(), "the folders of this machine are nobody's business"
    (command,) = {result["command"] for result in report["results"]}
    assert card.content.count(command) == 1
    repeated = tmp_path / "again"
    main([*command.split()[1:], "--output_dir", str(repeated)])
    assert values(report_in(repeated)) == values(report)


def test_neither_the_batch_size_nor_an_interruption_changes_a_result(model, files, tmp_path, monkeypatch):
    expected = evaluate(model, files, tmp_path / "whole", "--draws", "2", "--batch_size", "64")
    small = evaluate(model, files, tmp_path / "small", "--draws", "2", "--batch_size", "3")
    assert values(small) == pytest.approx(values(expected), rel=1e-5)
    for path in sorted((tmp_path / "whole" / "rounds").rglob("round-0.safetensors"))[:2]:
        path.unlink()
    calls, predict = [], MD4Trainer.predict
    monkeypatch.setattr(MD4Trainer, "predict", lambda *args, **kwargs: calls.append(1) or predict(*args, **kwargs))
    again = evaluate(model, files, tmp_path / "whole", "--draws", "2", "--batch_size", "64")
    assert values(again) == values(expected) and len(calls) == 2, "only what is missing is evaluated"


def test_results_of_other_settings_and_tasks_are_kept(model, files, tmp_path):
    folder = tmp_path / "results"
    one = evaluate(model, files, folder, "--draws", "1", "--tasks", "ptb", "--stride", "4")
    two = evaluate(model, files, folder, "--draws", "1", "--tasks", "lm1b", "--stride", "4")
    assert values(two) == {**values(one), "lm1b": values(two)["lm1b"]}
    assert len({result["command"] for result in two["results"]}) == 2
    ptb = next(file for file in files if file.startswith("ptb="))
    settings = (["--seed", "1"], ["--wrap", "false"], ["--detokenizer", "none"], ["--estimator", "any_order"])
    for option in (*settings, ["--num_timesteps", "4"], ["--preparation", "mdlm"], ["--bf16"]):
        common = ["zero-shot", "--tasks", "ptb", "--replace", ptb, "--output_dir", str(folder)]
        main(["suite", str(model), *common, "--draws", "1", *option])
    names = "bf16 detokenizer-none mdlm rows-alone seed-1 stride-4 any_order timesteps-4"
    kinds = {path.stem.removeprefix("zero-shot-").replace("draws-1", "").strip("-") for path in folder.glob("*.json")}
    assert {kind.replace("--", "-") for kind in kinds} == set(names.split())


def test_the_commit_of_a_hub_data_set_is_known_by_its_folder_in_the_cache(tmp_path):
    """`datasets` keeps what it has prepared under data set, configuration, version and commit."""
    commit = "b08601e04326c79dfdd32d625aee71d232d685c3"
    folder = tmp_path / "Salesforce___wikitext" / "wikitext-2-raw-v1" / "0.0.0" / commit
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / "wikitext-test.arrow")) as writer:
        writer.write({"text": "a row"})
        writer.finalize()
    rows = Dataset.from_file(str(folder / "wikitext-test.arrow"))
    assert hub_commit(rows) == commit
    assert hub_commit(rows.map(lambda row: {"text": row["text"] + "!"})) == commit
    assert hub_commit(Dataset.from_dict({"text": ["a row"]})) is None


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(model, files, tmp_path):
    options = ["--draws", "2", "--tasks", "ptb", "wikitext2", "--estimator", "any_order"]
    one = evaluate(model, files, tmp_path / "one", *options)
    replace = [file for file in files if file.split("=")[0] in options]
    command = [*TORCHRUN, "-m", "md4_hf", "suite", model, "zero-shot", "--replace", *replace, *options, "--use_cpu"]
    succeed([*command, "--output_dir", tmp_path / "two"])
    two = report_in(tmp_path / "two")
    assert values(two) == pytest.approx(values(one), rel=1e-5)
    assert two["environment"]["num_processes"] == 2


def test_a_likelihood_of_an_order_is_no_bound_and_has_a_file_of_its_own(model, files, tmp_path):
    options = ["--tasks", "ptb", "--estimator", "policy", "--order", "sequential", "--num_inference_steps", "4"]
    report = evaluate(model, files, tmp_path / "a", *options)
    (path,) = (tmp_path / "a").glob("*.json")
    assert path.stem.endswith("-policy-order-sequential-num-inference-steps-4")
    assert not report["results"][0]["is_bound"] and "draws" not in report["estimate"]
    assert report["estimate"]["order"] == "sequential"


def test_a_target_is_reached_and_discrete_time_is_another_bound(model, files, tmp_path):
    options = ["--draws", "4", "--tasks", "ptb"]
    report = evaluate(model, files, tmp_path / "a", *options, "--target_stderr", "0.1")
    (result,) = report["results"]
    assert result["metrics"]["num_rounds"] >= 2 and result["metrics"]["monte_carlo_stderr"] <= 0.1
    discrete = evaluate(model, files, tmp_path / "b", *options, "--num_timesteps", "2")
    assert discrete["estimate"]["timesteps"] == 2
    assert values(discrete)["ptb"] != values(report)["ptb"]


def test_images_are_evaluated_in_bits_per_dimension(tmp_path, capsys):
    pytest.importorskip("sklearn")
    model = tmp_path / "model"
    random_image_model(17, 8, std=0.05).save_pretrained(model)
    main(["suite", str(model), "digits", "--draws", "1"])
    (result,) = report_in(model / "evaluation")["results"]
    assert result["metric"] == "bits_per_dimension" and result["metrics"]["num_tokens"] == 180 * 64
    assert 3.5 < result["value"] < 6.0 and "bits per dimension" in capsys.readouterr().out
    text = {"block_size": "7", "text_column": "zzz", "document_mask": "true"}
    for name, value in text.items():
        message = failure(capsys, ["evaluate", str(model), "--data", "digits", f"--{name}", value])
        assert f"--{name} must be left out for a model of images" in message
    pairs = ["--prompt_column", "a", "--response_column", "b"]
    message = failure(capsys, ["evaluate", str(model), "--data", "digits", *pairs])
    assert "--prompt_column must be left out for a model of images, got 'a'" in message
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, example in enumerate(digits().select(range(6))):
        example["image"].resize((32, 32)).convert("RGB").save(folder / f"{number}.png")
    rgb = tmp_path / "rgb"
    random_image_model(256, 32, num_channels=3, std=0.02).save_pretrained(rgb)
    main(["suite", str(rgb), "cifar10", "--draws", "1", "--replace", f"cifar10={folder}"])
    (result,) = report_in(rgb / "evaluation")["results"]
    assert result["metrics"]["num_tokens"] == 6 * 3072
    message = failure(capsys, ["suite", str(rgb), "cifar10", "--stride", "4", "--preparation", "mdlm"])
    assert "The options of preparing text must be left out for images, got ['mdlm', 'stride-4']" in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["suite", "MODEL", "zero-shot", "--tasks", "enwik8"], "--tasks must be among"),
        (["suite", "MODEL", "text8", "--replace", "ptb=x.txt"], "--replace must be TASK=FILE, of a task in ['text8']"),
        (
            ["suite", "MODEL", "text8", "--replace", "text8=x.txt"],
            "--replace must name a file or folder that is there",
        ),
        (["suite", "MODEL", "cifar10"], "--tasks must be of text for a model of text, got 'cifar10'"),
        (["suite", "MODEL", "text8", "--data", "other.txt"], "unknown options: --data other.txt"),
        (["suite", "MODEL", "text8", "--output_file", "figures.json"], "unknown options: --output_file figures.json"),
        (["suite", "MODEL", "text9"], "NAME must be one of ['zero-shot', 'openwebtext', "),
        (["suite", "MODEL", "text8", "--block_size", "99"], "--block_size must be at most the model's 16"),
        (["suite", "MODEL", "text8", "--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["suite", "MODEL", "text8", "--stride", "99"], "--stride must be in [1, 16]"),
        (["suite", "MODEL", "text8", "--output_dir", "FILE"], "--output_dir must be a folder that can be written"),
        (["evaluate", "MODEL", "--data", "x.txt", "--output_file", "FILE/x.json"], "--output_file must lie in"),
        (
            ["suite", "MODEL", "zero-shot", "--tasks", "lm1b", "--replace", "ptb=FILE"],
            "--replace must be of tasks that are evaluated, ['lm1b'], got 'ptb'",
        ),
        (["evaluate", "MODEL", "--data", "other.txt", "--stride", "4"], "unknown options: --stride 4"),
        (["evaluate", "MODEL", "--max_rounds", "4"], "--max_rounds must be left out without --target_stderr, got 4"),
        (["evaluate", "MODEL", "--num_timesteps", "-1"], "--num_timesteps must be >= 0, got -1"),
        (["evaluate", "MODEL", "--rounds", "0"], "--rounds must be >= 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_any_work(model, argv, message, capsys, tmp_path):
    (tmp_path / "file").write_text("a file, and no folder")
    words = [word.replace("FILE", str(tmp_path / "file")).replace("MODEL", str(model)) for word in argv]
    assert message in failure(capsys, words)
    assert not (model / "evaluation").exists()


# The tables of the papers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(ROOT / "scripts" / "reproduce_tables.py"))


def rows_of_model(tables, capsys, model, folder, *names, tokens="gpt2"):
    """The rows of the model in the tables of these names, as if it had these tokens, and all that is printed."""
    for path in folder.glob("*.json"):
        report = json.loads(path.read_text())
        if isinstance(report, dict):
            path.write_text(json.dumps({**report, "model": {**report["model"], "tokens": tokens}}))
    capsys.readouterr()
    tables["main"]([str(folder), "--tables", *names])
    printed = capsys.readouterr()
    return [line for line in printed.out.splitlines() if f"**{model}**" in line], printed


def test_published_rows_have_a_figure_for_each_column(tables):
    published = tables["published_tables"]()
    assert {table.name for table in published} == {*SUITES, "zero-shot-mdlm"} - {"digits"}
    for table in published:
        assert set(table.columns) <= set(TASKS) and table.suite in SUITES
        assert table.preparation is None or table.preparation in PREPARATIONS
        for paper in table.papers:
            assert re.search(r"arXiv:\d{4}\.\d{5}", paper.source)
            for size, method, *figures in paper.rows:
                assert method and size in ("", "small", "medium") and len(figures) == len(table.columns)
                assert all(float(figure.removeprefix("= ")) > 0 for figure in figures)


def test_each_printed_row_of_a_paper_is_marked_with_its_source(tables, capsys):
    tables["main"]([])
    printed = capsys.readouterr().out
    assert {line.removeprefix("## ") for line in printed.splitlines() if line.startswith("## ")} == {
        table.title for table in tables["published_tables"]()
    }
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    rows = [row for row in lines if not row.startswith(("| size", "| ---"))]
    assert all(re.search(r"\| published: [^|]*arXiv:\d{4}\.\d{5}[^|]* \|$", row) for row in rows)
    for row, paper in {
        "| small | BD3-LM, blocks of 4 | ≤ 20.73 |": "2503.09573, Table 4; as MDLM; 524 B tokens of training |",
        "| small | Duo | ≤ 25.2 |": "2506.10892, Table 1; as MDLM |",
        "| small | MDM-Prime, 6 sub-tokens | ≤ 15.36 |": "a token is masked in parts",
        "| small | BD3-LM, blocks of 16, from the left | 21.46 |": "2603.01367",
    }.items():
        (found,) = [line for line in rows if line.startswith(row)]
        assert paper in found


def test_a_model_that_was_measured_gets_a_row_in_the_papers_table(tables, model, files, tmp_path, capsys):
    report = evaluate(model, files, tmp_path, "--draws", "2", "--tasks", "ptb", "lm1b")
    (row,), printed = rows_of_model(tables, capsys, model, tmp_path, "zero-shot", "zero-shot-mdlm", "text8")
    assert [cell[:2] for cell in row.strip("| ").split(" | ")[2:]] == ["– "[:1], "– "[:1], "≤ ", "– "[:1], "≤ ", "se"]
    assert f"≤ {values(report)['ptb']:.2f} ± " in row and "blocks of 16" in row
    assert "| small | MD4 | ≤ 48.43 | ≤ 34.94 | ≤ 102.26 | ≤ 35.90 | ≤ 68.10 | published: MD4" in printed.out
    assert "| small | GPT-2 | 45.04 |" in printed.out
    assert printed.err.count("no results") == 2 and "--preparation mdlm" in printed.err


def test_a_perplexity_of_other_tokens_is_not_put_beside_the_papers(tables, model, files, tmp_path, capsys):
    report = evaluate(model, files, tmp_path, "--draws", "2", "--tasks", "ptb")
    assert report["model"]["tokens"] is None
    (row,), _ = rows_of_model(tables, capsys, model, tmp_path, "zero-shot", tokens=None)
    (result,) = report["results"]
    assert f"| (≤ {result['metrics']['bits_per_byte']:.3f} bits per byte) |" in row
    assert "not comparable: its tokens are not GPT-2's" in row and f"{result['value']:.2f}" not in row


def test_every_way_in_which_a_suite_was_measured_has_a_row(tables, model, files, tmp_path, capsys):
    replace = [file for file in files if file.startswith(("ptb", "lm1b"))]
    options = ["--draws", "2", "--tasks", "ptb", "lm1b", "--replace", *replace, "--output_dir", str(tmp_path)]
    ways = ["--preparation mdlm", "--preparation gpt2 --stride 4", "--detokenizer none --wrap false"]
    for way in ways:
        main(["suite", str(model), "zero-shot", *way.split(), *options])
    (tmp_path / "zero-shot-notes.json").write_text("[]")
    rows, printed = rows_of_model(tables, capsys, model, tmp_path, "zero-shot")
    described = sorted(row.strip("| ").split(" | ")[-1] for row in rows)
    assert described == [
        "gpt2; file; blocks of 16; stride 4; 2 draws (time)",
        "mdlm; file; blocks of 16; 2 draws (time)",
        "sedd; file; blocks of 16; rows by themselves; detokenizer none; 2 draws (time)",
    ]
    assert "no results" not in printed.err
    (row,), _ = rows_of_model(tables, capsys, model, tmp_path, "zero-shot-mdlm")
    assert "mdlm; file" in row


def test_one_report_with_several_recipes_has_a_row_for_each(tables, model, files, tmp_path, capsys):
    report = evaluate(model, files, tmp_path, "--draws", "2", "--tasks", "ptb", "lm1b")
    results = report["results"]
    unlike_results = [{**result, "recipe": {**result["recipe"], "preparation": "gpt2"}} for result in results]
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**report, "results": [*results, *unlike_results]}))
    rows, _ = rows_of_model(tables, capsys, model, tmp_path, "zero-shot")
    assert ["sedd; file" in row for row in rows] == [True, False]
    assert all(row.count("≤ ") == 2 for row in rows)


def test_a_single_example_has_a_figure_without_an_error(tables, model, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("a b c d e f g")
    options = ["--tasks", "ptb", "--preparation", "whole", "--draws", "2", "--output_dir", str(tmp_path / "one")]
    main(["suite", str(model), "zero-shot", "--replace", f"ptb={tmp_path / 'one.txt'}", *options])
    (result,) = report_in(tmp_path / "one")["results"]
    assert result["stderr"] is None
    (row,), _ = rows_of_model(tables, capsys, model, tmp_path / "one", "zero-shot")
    assert f"| ≤ {result['value']:.2f} |" in row and "±" not in row
    assert tables["figure"]({**result, "value": None}) == "not finite"
