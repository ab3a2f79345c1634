# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The page of `md4 demo` and the replay of `--html` in a real browser, which ask no other site for anything.

They need the extras `demo` and `browser`, and Chromium or Chrome, such as Debian's package `chromium`.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
from gradio_pages import serving
from tiny import random_image_model, random_model

from md4_hf import build_byte_tokenizer, make_pipeline
from md4_hf.cli import main


playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'md4_hf[browser]'")
ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LENGTH = 256  # a sample of it takes long enough to be watched
SECONDS = 60  # for the model to answer, on a busy machine
OWN = ("http://127.0.0.1:", "file:", "data:", "blob:", "about:")  # addresses that are on no other site
expect = playwright.expect
expect.set_options(timeout=SECONDS * 1000)
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endfor %}"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium or google-chrome"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install 'md4_hf[demo]'"),
]


def text_pipeline():
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return make_pipeline(random_model(len(tokenizer), LENGTH, std=0.2, time_conditioning=False), tokenizer)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model of text and one of images."""
    folder = tmp_path_factory.mktemp("models")
    text_pipeline().save_pretrained(folder / "text")
    make_pipeline(random_image_model(4, 8)).save_pretrained(folder / "images")
    return SimpleNamespace(text=str(folder / "text"), images=str(folder / "images"))


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A function that shows an address in a new window; a request to another site, or an error there, fails."""
    requests, errors, pages = [], [], []

    def note(message):
        if message.type == "error":
            errors.append(message.text)

    def go(address, **options):
        page = chromium.new_page(**{"viewport": {"width": 1200, "height": 680}, **options})
        page.set_default_timeout(SECONDS * 1000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        page.goto(address)
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert requests and [url for url in requests if not url.startswith(OWN)] == []
    assert errors == []


@pytest.fixture(scope="module")
def served():
    """A function that serves the page of a pipeline and returns its address."""
    with serving("tiny") as serve:
        yield serve


@pytest.fixture(scope="module")
def text_page(served):
    return served(text_pipeline())


def open_tab(page, name):
    page.click(f"button[role=tab]:has-text('{name}')")


def start(page, tab, **settings):
    for name, value in settings.items():
        page.locator(f"#{tab}-{name}").locator("input[type=number], textarea, input").first.fill(str(value))
    page.click(f"#{tab}-start")


def finish(page, tab):
    page.wait_for_selector(f"#{tab}-note:has-text('done')")
    return page.locator(f"#{tab}-output").inner_text()


def scrolls_sideways(page):
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def luminance(page, selector, part):
    """Relative luminance in [0, 1], as WCAG defines it, of a colour of each element."""
    colors = page.locator(selector).evaluate_all(
        """(elements, part) => elements.map((element) => {
          const context = document.createElement("canvas").getContext("2d");
          context.fillStyle = getComputedStyle(element)[part];
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data];
        })""",
        part,
    )
    linear = [[(x / 255 / 12.92 if x < 11 else ((x / 255 + 0.055) / 1.055) ** 2.4) for x in row[:3]] for row in colors]
    return [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear]


def least_contrast(page, text, ground):
    """Least contrast of the colours of some texts with the colour behind them; WCAG asks for 4.5."""
    (behind,) = luminance(page, ground, "backgroundColor")
    ratios = [(x + 0.05) / (behind + 0.05) for x in luminance(page, text, "color")]
    return min(max(ratio, 1 / ratio) for ratio in ratios)


# The page of md4 demo -------------------------------------------------------------------------------------------------


def test_gaps_are_made_of_a_selection_and_filled(visit, text_page):
    page = visit(text_page)
    field = page.locator("#infill-text textarea")
    field.fill("the value of the statement is used")
    field.evaluate("field => field.setSelectionRange(17, 26)")
    page.click("#infill-gap")
    page.wait_for_function("document.querySelector('#infill-text textarea').value.includes('<mask:')")
    assert field.input_value() == "the value of the <mask:9> is used"
    start(page, "infill", seed=1)
    text = finish(page, "infill")
    assert text.startswith("the value of the ") and text.endswith(" is used")
    drawn = page.locator("#infill-output .drawn")
    assert drawn.count() == 9 and "probability 0." in drawn.first.get_attribute("title")
    assert "".join(page.locator("#infill-output .given").all_inner_texts()) == "the value of the  is used"


def test_an_error_is_a_message_that_leaves_the_page_as_it_is(visit, text_page):
    page = visit(text_page)
    page.locator("#infill-text textarea").fill("no gap")
    start(page, "infill")
    page.wait_for_selector("text=The text must have a gap such as <mask:12>")
    page.locator("#infill-text textarea").fill("now <mask:4>")
    start(page, "infill", seed="x")
    page.wait_for_selector("text=`seed` must be a whole number")
    start(page, "infill", seed=1)
    assert finish(page, "infill").startswith("now ")


def test_a_sample_is_replayed(visit, text_page):
    page = visit(text_page)
    open_tab(page, "Sample")
    start(page, "sample", num_inference_steps=20, length=16)
    finish(page, "sample")
    page.click("#sample-replay button")
    frame = page.frame_locator("#sample-replay iframe")
    slider = frame.locator("#slider")
    slider.fill(slider.get_attribute("max"))
    assert frame.locator("#text span").count() == 16 and frame.locator("#text .mask").count() == 0


def test_an_answer_joins_the_conversation(visit, text_page):
    page = visit(text_page)
    open_tab(page, "Chat")
    page.fill("#chat-text textarea", "hello")
    page.fill("#chat-max_new_tokens input[type=number]", "8")
    page.click("#chat-start")
    page.wait_for_selector("#chat-note:has-text('done')")
    assert "hello" in page.locator("#chat-talk").inner_text()
    assert page.locator("#chat-talk .message.bot, #chat-talk .bot.message").count() >= 1
    assert page.locator("#chat-text textarea").input_value() == ""


def test_a_second_user_sees_the_queue_and_gets_a_sample_after_the_first(visit, text_page):
    first, second = visit(text_page), visit(text_page)
    for page in (first, second):
        open_tab(page, "Sample")
    start(first, "sample", num_samples=8, num_inference_steps=1024)
    first.wait_for_selector("#sample-note:has-text('unmasking')")
    start(second, "sample", seed=3, length=8, num_inference_steps=8)
    queue = second.wait_for_selector("#sample-note :text('queue')")
    assert queue.is_visible()
    assert len(finish(second, "sample")) > 0
    finish(first, "sample")


def test_stop_ends_a_call_and_frees_the_model(visit, text_page):
    page = visit(text_page)
    open_tab(page, "Sample")
    start(page, "sample", num_samples=8, num_inference_steps=1024)
    page.wait_for_selector("#sample-note:has-text('unmasking')")
    page.click("#sample-stop")
    page.wait_for_selector("#sample-note:has-text('stopped')")
    start(page, "sample", seed=3, num_samples=1, length=8, num_inference_steps=8)
    finish(page, "sample")
    assert page.locator("#sample-note").inner_text().endswith("seed 3")


def test_a_part_of_an_image_is_filled(visit, served):
    page = visit(served(make_pipeline(random_image_model(4, 8))))
    start(page, "sample", num_samples=4)
    page.wait_for_selector("#sample-note:has-text('done')")
    open_tab(page, "Fill a part")
    start(page, "inpaint")
    page.wait_for_selector("text=An image is needed: upload one, or take a sample.")
    page.click("#inpaint-one")
    canvas = page.locator("#inpaint-canvas img")
    canvas.wait_for()
    for share in (0.3, 0.7):
        before, box = canvas.get_attribute("src"), canvas.bounding_box()
        page.mouse.click(box["x"] + share * box["width"], box["y"] + share * box["height"])
        page.wait_for_function("old => document.querySelector('#inpaint-canvas img').src !== old", arg=before)
    page.click("#inpaint-start")
    page.wait_for_selector("#inpaint-note:has-text('done')")
    page.wait_for_function("document.querySelector('#inpaint-output img').naturalWidth > 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colours_of_the_desktop_and_fits_a_phone(visit, text_page, scheme):
    page = visit(text_page, color_scheme=scheme, viewport={"width": 390, "height": 844})
    page.fill("#infill-text textarea", "<mask:60>")
    start(page, "infill", seed=1)
    finish(page, "infill")
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    assert least_contrast(page, "#infill-output .drawn", "#infill-output .md4-text") >= 4.5
    assert not scrolls_sideways(page)


# The page of --html ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replay(models, tmp_path_factory):
    """Address of a replay of 30 tokens between given ones."""
    path = tmp_path_factory.mktemp("replay") / "unmasking.html"
    words = ["the value of <mask:30> is", "--num_inference_steps", "20", "--seed", "1", "--html", str(path)]
    main(["infill", models.text, *words, "--device", "cpu"])
    return path.as_uri()


def test_the_slider_is_dragged_through_the_steps(visit, replay):
    page = visit(replay)
    slider, masks = page.locator("#slider"), page.locator("#text .mask")
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, middle)
    page.mouse.down()
    counts = []
    for share in (0.0, 0.5, 1.0):
        page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), middle, steps=5)
        counts.append(masks.count())
    page.mouse.up()
    assert counts[0] == 30 > counts[1] > counts[2] == 0
    assert page.locator("#position").inner_text() == "step 20 of 20"
    page.keyboard.press("ArrowLeft")
    assert masks.count() > 0


def test_play_and_pause(visit, replay):
    page = visit(replay)
    slider, play = page.locator("#slider"), page.locator("#play")
    last = slider.get_attribute("max")
    slider.fill("0")
    assert play.text_content() == "Play"
    page.select_option("#speed", "0.25")
    play.click()
    assert play.text_content() == "Pause"
    expect(slider).not_to_have_value("0")
    play.click()
    held = slider.input_value()
    page.wait_for_timeout(2500)  # a step takes 1.6 s at this speed
    assert play.text_content() == "Play" and slider.input_value() == held != last
    page.select_option("#speed", "4")
    page.locator("body").press(" ")
    expect(slider).to_have_value(last)
    expect(play).to_have_text("Play")


def test_a_token_tells_its_step_and_probability_and_what_is_given_is_marked(visit, replay):
    page = visit(replay)
    slider, details = page.locator("#slider"), page.locator("#details")
    slider.fill(slider.get_attribute("max"))
    tokens = page.locator("#text span")
    assert "".join(page.locator("#text .given").all_text_contents()) == "the value of  is"
    line = page.locator("#text .given").first.evaluate("x => getComputedStyle(x).textDecorationLine")
    assert line == "underline" and page.locator("#text .given").count() == len("the value of  is")
    tokens.nth(0).hover()
    assert details.inner_text() == '"t" · given'
    tokens.nth(20).hover()
    expect(details).to_have_text(re.compile(r'^".+" · step \d+ of 20 · probability 0\.\d+$'))
    slider.fill("0")
    tokens.nth(20).hover()
    page.locator(".sample").press("ArrowRight")
    assert details.inner_text() == "masked"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_replay_follows_the_colours_of_the_desktop_until_it_is_told_otherwise(visit, replay, scheme):
    page = visit(replay, color_scheme=scheme, viewport={"width": 390, "height": 700})
    page.locator("#slider").fill(page.locator("#slider").get_attribute("max"))

    def is_dark():
        return luminance(page, "body", "backgroundColor")[0] < 0.1

    assert is_dark() == (scheme == "dark") and not scrolls_sideways(page)
    for _ in range(2):
        for color in ("step", "confidence"):
            page.select_option("#color", color)
            assert least_contrast(page, "#text span", "body") >= 4.5
        before = is_dark()
        page.click("#theme")
        assert is_dark() != before


def test_images_are_replayed(visit, models, tmp_path):
    path = tmp_path / "unmasking.html"
    words = ["--output", str(tmp_path / "samples.png")]
    main(["sample", models.images, *words, "--num_samples", "2", "--html", str(path), "--seed", "1"])
    page = visit(path.as_uri())
    page.locator("#slider").fill(page.locator("#slider").get_attribute("max"))
    assert page.locator("canvas").count() == 2
    page.locator("canvas").first.hover()
    expect(page.locator("#details")).to_have_text(re.compile(r"^pixel \d, \d: \d · step \d+ of \d+ · probability"))


# Pictures of the documentation ----------------------------------------------------------------------------------------


def test_one_command_takes_the_pictures(models, tmp_path):
    command = [sys.executable, "scripts/screenshots.py", models.text, "--images", models.images]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, env=environment, check=True)
    pictures = sorted(tmp_path.iterdir())
    assert [path.name for path in pictures] == ["page-images.png", "page-infill.png", "page-replay.png"]
    for path in pictures:
        assert path.stat().st_size < 150_000
        with PIL.Image.open(path) as picture:
            assert picture.width == 1040 and len(picture.getcolors(2**20)) > 20
