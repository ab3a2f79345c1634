# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The page in Gradio: its tabs, its events through a real server, turns of several users, and errors as messages."""

import re
import sys
import threading
import time
import urllib.request

import pytest
from commands import failure
from gradio_pages import serving, values
from tiny import random_image_model, random_model, row_generators

from md4_hf import build_byte_tokenizer, make_pipeline
from md4_hf.cli import main


LENGTH = 32
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"


def text_pipeline(template=None):
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    return make_pipeline(random_model(len(tokenizer), LENGTH, std=0.2, time_conditioning=False), tokenizer)


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="needs gradio: pip install 'md4_hf[demo]'")


@pytest.fixture(scope="module")
def served(gradio):
    """A function that serves the page of a pipeline and returns its address."""
    with serving("tiny *model*", ["a<mask:3>"]) as serve:
        yield serve


@pytest.fixture(scope="module")
def client(served):
    from gradio_client import Client

    return Client(served(text_pipeline(TEMPLATE)), verbose=False)


def tabs(page):
    return [block["props"]["label"] for block in page.config["components"] if block["type"] == "tabitem"]


def test_tabs_are_what_the_model_can(gradio):
    from md4_hf.page.blocks import make_page

    assert tabs(make_page(text_pipeline(), "m")) == ["Infill", "Sample"]
    assert tabs(make_page(text_pipeline(TEMPLATE), "m")) == ["Infill", "Sample", "Chat"]
    assert tabs(make_page(make_pipeline(random_model(9, 12, std=0.2)), "m")) == ["Sample"]
    assert tabs(make_page(make_pipeline(random_image_model(4, 8)), "m")) == ["Sample", "Fill a part"]


def test_a_click_gives_the_samples_of_the_pipeline(client):
    how = {"Text with gaps": "ab<mask:6>", "Steps": 5, "Samples": 2, "Seed": "4"}
    shown, note, replay = client.predict(*values(client, "/infill", **how), api_name="/infill")
    expected = text_pipeline()("ab<mask:6>", num_samples=2, num_inference_steps=5, generator=row_generators(4, 2))
    decode = build_byte_tokenizer().decode
    rows = [re.sub(r"<[^>]+>", "", row) for row in re.findall(r'md4-text">(.*?)</div>', shown, re.DOTALL)]
    assert len(rows) == 2 and "seed 4" in note and "srcdoc" in replay
    assert [len(row) > 2 and row[:2] for row in rows] == [decode(ids)[:2] for ids in expected.sequences]


def test_arguments_have_the_names_of_the_pipeline(client):
    how = {"num_inference_steps": 5, "seed": "4"}
    shown, note, _ = client.predict(text="ab<mask:6>", color_by="confidence", **how, api_name="/infill")
    assert "seed 4" in note and "--hue" in shown
    shown, note, _ = client.predict(prompt="ab", length=8, temperature=0.5, **how, api_name="/sample")
    assert "seed 4" in note and shown.count('class="drawn"') == 6


def test_an_error_is_a_message_in_our_words(client):
    with pytest.raises(Exception, match="must have a gap such as &lt;mask:12&gt;"):
        client.predict(*values(client, "/infill", **{"Text with gaps": "none"}), api_name="/infill")


def test_users_take_turns(client):
    """Calls that come together run one after the other, on both tabs: each gets its own seed's sample."""
    how = {"Steps": 16, "Tokens": 16}
    jobs = [client.submit(*values(client, "/sample", Seed=str(seed), **how), api_name="/sample") for seed in (1, 2, 1)]
    texts = [re.sub(r"<[^>]+>", "", job.result(timeout=60)[0]) for job in jobs]
    assert texts[0] == texts[2] != texts[1]


def test_the_page_names_no_other_site(served, client):
    with urllib.request.urlopen(client.src) as answer:
        page = answer.read().decode()
    sites = set(re.findall(r'(?:src|href)="(?:https?:)?//([^/"]+)', page))
    assert {site for site in sites if not site.startswith("127.0.0.1")} <= set()


def test_a_closed_page_ends_its_call(served, gradio):
    from gradio_client import Client

    pipeline = text_pipeline()
    client = Client(served(pipeline), verbose=False)
    how = {"Steps": 1024, "Samples": 8, "Tokens": LENGTH}
    job = client.submit(*values(client, "/sample", **how), api_name="/sample")
    deadline = time.monotonic() + 30
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.cancel()
    while any(thread.name.startswith("md4") for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text_pipeline().save_pretrained(folder)
    return str(folder)


def test_the_command_names_the_extra_that_is_missing(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "md4_hf.page.blocks", raising=False)
    assert "pip install 'md4_hf[demo]'" in failure(capsys, ["demo", model])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--port", "0"], "--port must be in [1, 65535], got 0."),
        (["--examples", "absent.txt"], "--examples"),
        (["--chat_template", "absent.jinja"], "--chat_template"),
    ],
)
def test_options_are_checked_before_the_model_is_opened(gradio, model, words, expected, capsys):
    assert expected in failure(capsys, ["demo", model, *words])


def test_the_command_serves_the_page(gradio, model, monkeypatch, tmp_path):
    from md4_hf.page import blocks

    seen = {}
    examples = tmp_path / "examples.txt"
    examples.write_text("a <mask:2>\n\nb<mask:1>\n", encoding="utf-8")
    monkeypatch.setattr(blocks, "serve", lambda page, **options: seen.update(options, page=page))
    main(["demo", model, "--title", "T", "--examples", str(examples), "--port", "7999", "--device", "cpu"])
    assert (seen["server_name"], seen["server_port"], seen["share"]) == ("127.0.0.1", 7999, False)
    assert seen["page"].title == "T" and "b<mask:1>" in str(seen["page"].config)


def test_a_page_that_cannot_be_shared_says_so_and_is_served_here(gradio, model, monkeypatch, capsys):
    """Gradio's server is not reached through a proxy that is not there."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    served = []

    def look(page):
        with urllib.request.urlopen(page.local_url) as answer:
            served.append(answer.status)
        page.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", look)  # instead of waiting for an interrupt
    main(["demo", model, "--share", "--device", "cpu"])
    printed = capsys.readouterr()
    assert served == [200] and "Traceback" not in printed.out + printed.err
    assert re.search(
        r"^--share: no public address.* The page is at http://127\.0\.0\.1:\d+/ alone\.$", printed.out, re.M
    )
