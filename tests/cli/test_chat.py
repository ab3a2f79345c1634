# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 chat`, from a pipe and on a pseudo-terminal."""

import io
import signal
import sys

import pytest
import torch
from commands import failure
from terminal import PseudoTerminal, Terminal, wrapped
from tiny import quiet, random_image_model, random_model

from md4_hf import LoraArguments, add_adapter, build_byte_tokenizer, load_pipeline, make_pipeline
from md4_hf.cli import main
from md4_hf.core.chat_messages import encode_prompt
from md4_hf.objective.noise import sample_seed
from md4_hf.utils.text_rows import visible


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + (eos_token if m.role == 'assistant' else '') + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
LENGTH = 96
HOW = {"num_inference_steps": 4, "temperature": 0.5, "max_new_tokens": 12}
ASKED = [word for name, value in HOW.items() for word in (f"--{name}", str(value))]


def save(folder, template=TEMPLATE, **kwargs):
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    model = random_model(258, LENGTH, std=0.3, mask_token_id=257, time_conditioning=False, **kwargs)
    make_pipeline(model, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[None, 8], ids=["bidirectional", "blocks"])
def model(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("chat") / "model", block_size=request.param)


@pytest.fixture(scope="module")
def answered():
    """Answers of a model to messages, each after those before."""
    pipelines = {}

    def answer(folder, *contents, system=None, seed=0, first=0, **how):
        if folder not in pipelines:
            pipelines[folder] = quiet(load_pipeline(str(folder), device="cpu"))
        messages, answers = [] if system is None else [{"role": "system", "content": system}], []
        for number, content in enumerate(contents, start=first):
            messages.append({"role": "user", "content": content})
            generator = torch.Generator().manual_seed(sample_seed(seed, number))
            answers += pipelines[folder](messages=messages, generator=generator, **{**HOW, **how}).texts
            messages.append({"role": "assistant", "content": answers[-1]})
        return answers

    return answer


def chat(monkeypatch, capsys, folder, lines, *options):
    """What a chat prints for lines of a pipe, on either stream."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    main(["chat", str(folder), "--seed", "0", "--device", "cpu", *ASKED, *options])
    return capsys.readouterr()


def test_lines_of_a_pipe_are_answered_with_all_that_was_said_before(model, answered, monkeypatch, capsys):
    said = ["hi", "", "why?", "/reset", "again"]
    expected = [*answered(model, "hi", "why?"), *answered(model, "again", first=2)]
    assert len(set(expected)) == 3
    assert chat(monkeypatch, capsys, model, said).out == "".join(f"{answer}\n" for answer in expected)


def test_the_system_steps_and_temperature_are_those_that_are_set(model, answered, monkeypatch, capsys):
    said = ["/steps 2", "/temperature 0", "hi", "/steps 0", "/temperature hot", "/sleep", "/exit", "not read"]
    printed = chat(monkeypatch, capsys, model, said, "--system", "be brief")
    (expected,) = answered(model, "hi", system="be brief", num_inference_steps=2, temperature=0.0)
    assert printed.out == f"{expected}\n"
    for note in (
        "(2 steps.)",
        "(Temperature 0.)",
        "/steps must have a number >= 1, got '0'",
        "number >= 0, got 'hot'",
    ):
        assert note in printed.err
    assert "(/sleep is no command.)" in printed.err and "/temperature X" in printed.err


def test_the_oldest_turns_are_left_out_of_a_long_conversation(model, answered, monkeypatch, capsys):
    said = ["one " * 8, "two " * 8, "three " * 8]
    printed = chat(monkeypatch, capsys, model, said)
    lines = printed.err.count("the oldest 1 turn left out") + 2 * printed.err.count("the oldest 2 turns left out")
    assert lines == 2
    last = quiet(load_pipeline(str(model), device="cpu"))
    messages = [{"role": "user", "content": said[-1]}]
    generator = torch.Generator().manual_seed(sample_seed(0, 2))
    assert printed.out.endswith(last(messages=messages, generator=generator, **HOW).texts[0] + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 200))
    message = failure(capsys, ["chat", str(model), *ASKED])
    longest = LENGTH - HOW["max_new_tokens"]
    count = len(encode_prompt(last.tokenizer, [{"role": "user", "content": "x" * 200}]))
    assert f"A message must have at most {longest} tokens with what the chat template adds, got {count}" in message


def test_an_adapter_answers_with_the_template_that_is_saved_with_it(model, answered, monkeypatch, capsys, tmp_path):
    from md4_hf import load_model, load_tokenizer

    adapted = add_adapter(load_model(str(model)), LoraArguments(lora_r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    load_tokenizer(str(model)).save_pretrained(tmp_path / "adapter")
    expected = answered(tmp_path / "adapter", "hi")
    assert expected != answered(model, "hi")
    assert chat(monkeypatch, capsys, tmp_path / "adapter", ["hi"]).out == f"{expected[0]}\n"


def test_models_that_cannot_chat_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    bare = save(tmp_path / "bare", template=None)
    assert "`tokenizer` must have a chat template to read messages" in failure(capsys, ["chat", str(bare)])
    images = tmp_path / "images"
    make_pipeline(random_image_model(4, 4)).save_pretrained(images)
    assert "MODEL must be a model of text, got the model of images" in failure(capsys, ["chat", str(images)])
    ids = tmp_path / "ids"
    make_pipeline(random_model(28, 16, std=0.1)).save_pretrained(ids)
    assert "MODEL must have a tokenizer to chat" in failure(capsys, ["chat", str(ids)])
    message = failure(capsys, ["chat", str(bare), "--chat_template", "chatml", "--quota", "floor"])
    assert "--quota must be left out where it has no effect" in message
    assert "--max_new_tokens must be >= 1, got 0" in failure(capsys, ["chat", str(bare), "--max_new_tokens", "0"])


# On a terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_on_a_terminal_an_answer_is_seen_while_it_is_unmasked_and_ctrl_c_ends_it(answered, tmp_path):
    model = save(tmp_path / "model", block_size=8)
    options = ("--seed", "0", "--num_inference_steps", "4", "--temperature", "0.5")
    terminal = PseudoTerminal("chat", str(model), "--device", "cpu", *options)
    try:
        terminal.read_until("> ")
        terminal.type("hi\n")
        shown = terminal.read_until("\r\n> ")
        assert "░" in shown and "\x1b[" in shown
        (expected,) = answered(model, "hi", max_new_tokens=None)
        screen = Terminal(80)
        screen.write(shown)
        assert screen.rows == ["hi", *wrapped(visible(expected), 80), "> "]
        terminal.type("/steps 100000\n")
        terminal.read_until("(100,000 steps.)")
        terminal.type("why?\n")
        terminal.read_until("░")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("(The answer is ended; it and the message are left out of the conversation.)")
        terminal.read_until("> ")
        terminal.press("\x03", lambda: "(/exit or Ctrl-D ends.)" not in terminal.shown)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
    finally:
        terminal.process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_answers_are_coloured_with_watch_and_are_kept_in_a_page(answered, tmp_path):
    model, page = save(tmp_path / "model"), tmp_path / "page.html"
    options = ("--device", "cpu", *ASKED, "--seed", "0", "--watch", "--html", str(page))
    terminal = PseudoTerminal("chat", str(model), *options)
    try:
        terminal.read_until("> ")
        expected = answered(model, "hi", "why?")
        for number, said in enumerate(("hi", "why?")):
            terminal.type(f"{said}\n")
            shown = terminal.read_until("\r\n> ")
            assert "\x1b[38;5;" in shown
            screen = Terminal(80)
            screen.write(shown)
            assert screen.rows == [said, *wrapped(visible(expected[number]), 80), "> "]
        assert terminal.end() == 0
        assert page.read_text(encoding="utf-8").count('"start":') == 2
    finally:
        terminal.process.kill()


def test_answers_to_a_pipe_can_be_kept_in_a_page_too(model, answered, monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.html"
    printed = chat(monkeypatch, capsys, model, ["hi"], "--watch", "--html", str(page))
    assert printed.out == f"{answered(model, 'hi')[0]}\n"
    assert page.read_text(encoding="utf-8").count('"start":') == 1
