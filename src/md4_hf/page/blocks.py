# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The page itself, in Gradio (`pip install 'md4_hf[demo]'`): fields and buttons around the actions of a model."""

from __future__ import annotations

import functools
import html
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import PIL.Image

from .controls import (
    Choice,
    Control,
    count_control,
    draw_controls,
    length_control,
    sampler_controls,
)
from .pictures import PARTS, ImageActions, box_of
from .text_view import CSS, framed, with_gap
from .texts import EXAMPLES, RUNNING, TextActions


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before its first import
try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs gradio: pip install 'md4_hf[demo]'.") from error


# All users, one after the other.
WAITS_FOR_THE_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
STOPPED = (RUNNING, "stopped")
EXPECTED_ERRORS = (ValueError, OSError, FloatingPointError)
# What is selected when the button is clicked: events of the field come one by one, and would be late.
SELECTION = """(text) => {
  const field = document.querySelector("#infill-text textarea");
  return [text, [field.selectionStart, field.selectionEnd]];
}"""
SYSTEM_FONTS = ("system-ui", "sans-serif")  # nothing is fetched from elsewhere


def make_page(pipeline: Any, title: str, examples: Sequence[str] = EXAMPLES) -> gr.Blocks:
    """Make the page of a pipeline, with a tab for each thing that its model can do.

    Args:
        pipeline: Pipeline of text or images, of any model of this package.
        title: Name of the model.
        examples: Texts with gaps to try, for a model of text.
    """
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {_plain(title)}\nA masked diffusion model: watch how it unmasks, in any order.")
        if pipeline.image_shape is None:
            _text_tabs(TextActions(pipeline, examples))
        else:
            _image_tabs(ImageActions(pipeline))
    return page.queue(default_concurrency_limit=1)


def launch(page: gr.Blocks, **options: Any):
    """Serve a page, with its style and without anything from other sites; options are those of Gradio's `launch`."""
    theme = gr.themes.Default(primary_hue="indigo", font=list(SYSTEM_FONTS), font_mono=["ui-monospace", "monospace"])
    theme.set(block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400")
    style = {"theme": theme, "css": CSS, "ssr_mode": False, "footer_links": ["api", "settings"]}
    return page.launch(**{**style, "show_error": True, **options})


def serve(page: gr.Blocks, **options: Any):
    """Serve a page until the process is interrupted, and say so if it was to be shared and has no public address."""
    _, address, shared = launch(page, prevent_thread_lock=True, **options)
    if options.get("share") and shared is None:
        print(f"--share: no public address, because Gradio's server was not reached. The page is at {address} alone.")
    page.block_thread()


# Text -----------------------------------------------------------------------------------------------------------------


def _text_tabs(actions: TextActions):
    with gr.Tabs():
        if actions.can_infill:
            with gr.Tab("Infill", id="infill"):
                _infill_tab(actions)
        with gr.Tab("Sample", id="sample"):
            _sample_tab(actions)
        if actions.can_chat:
            with gr.Tab("Chat", id="chat"):
                _chat_tab(actions)


def _infill_tab(actions: TextActions):
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(
                label="Text with gaps",
                info="<mask:12> is a gap of 12 tokens. Or select words and make a gap of them.",
                value=actions.examples[0] if actions.examples else "<mask:32>",
                lines=3,
                elem_id="infill-text",
            )
            with gr.Row():
                start, stop = _buttons("infill", "Fill")
                gap = gr.Button("Selection → gap", min_width=120, elem_id="infill-gap")
            outputs = _text_output("infill")
            if actions.examples:
                gr.Examples([[example] for example in actions.examples], [text], label="Examples")
        fields = _settings([count_control(actions.pipeline), *sampler_controls(actions.pipeline)], "infill", True)
    place = gr.JSON(visible=False)
    tokenizer = actions.pipeline.tokenizer

    def make_gap(text: str, place: list[int]) -> str:
        start, end = place
        return with_gap(text, start, end, tokenizer)

    gap.click(_with_messages(make_gap), [text, place], text, js=SELECTION, show_progress="hidden")
    _run(start, stop, actions.infill, [text], fields, outputs)


def _sample_tab(actions: TextActions):
    with gr.Row():
        with gr.Column(scale=3):
            prompts = []
            if actions.pipeline.tokenizer is not None:
                prompts.append(gr.Textbox("", label="Beginning", info="May be empty.", lines=1, elem_id="sample-text"))
            with gr.Row():
                start, stop = _buttons("sample", "Sample")
            outputs = _text_output("sample")
        length = length_control(actions.pipeline)
        fields = _settings([count_control(actions.pipeline), length, *draw_controls(actions.pipeline)], "sample", True)
    _run(start, stop, actions.sample, prompts, fields, outputs)


def _chat_tab(actions: TextActions):
    with gr.Row():
        with gr.Column(scale=3):
            talk = gr.Chatbot(
                label="Conversation", render_markdown=False, height=420, elem_id="chat-talk", feedback_options=None
            )
            message = gr.Textbox(label="Message", lines=1, elem_id="chat-text", submit_btn=False)
            with gr.Row():
                start, stop = _buttons("chat", "Send")
                clear = gr.Button("New conversation")
            note = gr.Markdown("", elem_classes=["md4-note"], elem_id="chat-note")
        control = length_control(actions.pipeline, "max_new_tokens", "Tokens of an answer")
        fields = _settings([control, *sampler_controls(actions.pipeline)], "chat", False)

    @_with_messages
    def answer(message: str, talk: list[dict[str, Any]], *values: Any) -> Iterator[tuple[Any, ...]]:
        if not message.strip():
            raise ValueError("The message is empty.")
        messages = [*map(_as_message, talk or []), {"role": "user", "content": message}]
        for conversation, words in actions.answer(messages, **fields.named(values)):
            yield conversation, "", words

    how: dict[str, Any] = {
        "inputs": [message, talk, *fields.components],
        "outputs": [talk, message, note],
        "show_progress": "minimal",
        "show_progress_on": note,
    }
    events: list[Any] = [on(answer, **how, **WAITS_FOR_THE_MODEL) for on in (start.click, message.submit)]
    _end(stop, note, events)
    clear.click(lambda: ([], ""), None, [talk, note], cancels=events, show_progress="hidden")


def _as_message(message: dict[str, Any]) -> dict[str, str]:
    """Role and text of a message as the browser gives it, whose content may be a list of parts."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    return {"role": message["role"], "content": content}


def _text_output(name: str) -> list[Any]:
    view = gr.HTML('<div class="md4-text"></div>', elem_id=f"{name}-output", elem_classes=["md4-output"])
    return [view, *_note_and_replay(name)]


# Images ---------------------------------------------------------------------------------------------------------------


def _image_tabs(actions: ImageActions):
    with gr.Tabs():
        with gr.Tab("Sample", id="sample"):
            _image_sample_tab(actions)
        with gr.Tab("Fill a part", id="inpaint"):
            _inpaint_tab(actions)


def _image_sample_tab(actions: ImageActions):
    with gr.Row():
        with gr.Column(scale=3):
            with gr.Row():
                start, stop = _buttons("sample", "Sample")
            outputs = _image_output("sample")
        fields = _settings([count_control(actions.pipeline), *draw_controls(actions.pipeline)], "sample", False)
    _run(start, stop, actions.sample, [], fields, outputs)


def _inpaint_tab(actions: ImageActions):
    with gr.Row():
        with gr.Column(scale=3), gr.Row():
            with gr.Column():
                with gr.Row():
                    one = gr.Button("Sample", min_width=100, elem_id="inpaint-one")
                    upload = gr.UploadButton("Upload", min_width=100, file_types=["image"], type="filepath")
                gr.Markdown("Click two corners of the part to fill, or choose it:", elem_classes=["md4-note"])
                canvas = _picture("Image", "inpaint-canvas")
                with gr.Row():
                    parts = [gr.Button(name, size="sm", min_width=90) for name in PARTS]
            with gr.Column():
                with gr.Row():
                    start, stop = _buttons("inpaint", "Fill")
                outputs = _image_output("inpaint")
        control = count_control(actions.pipeline)
        fields = _settings([control, *draw_controls(actions.pipeline)], "inpaint", False)
    picture, box, corner = gr.State(None), gr.State(None), gr.State(None)
    shown = [picture, box, corner, canvas]

    def take(image: Any) -> tuple[Any, ...]:
        fitted = actions.fitted(image)
        return fitted, None, None, actions.shown(fitted)

    def draw_one(*values: Any) -> tuple[Any, ...]:
        return take(actions.one(**fields.named(values)))

    def open_file(path: str) -> tuple[Any, ...]:
        return take(PIL.Image.open(path))

    def point(image: Any, first: tuple[int, int] | None, event: gr.SelectData) -> tuple[Any, ...]:
        pixel = actions.pixel(event.index)
        new = None if first is None else box_of([first, pixel])
        return image, new, pixel if first is None else None, actions.shown(image, new, pixel)

    def choose(image: Any, name: str) -> tuple[Any, ...]:
        if image is None:
            raise ValueError("An image is needed first: upload one, or take a sample.")
        new = actions.part(name)
        return image, new, None, actions.shown(image, new)

    one.click(_with_messages(draw_one), fields.components, shown, **WAITS_FOR_THE_MODEL)
    upload.upload(_with_messages(open_file), upload, shown)
    canvas.select(point, [picture, corner], shown, show_progress="hidden")
    for button in parts:
        button.click(_with_messages(choose), [picture, button], shown, show_progress="hidden")
    _run(start, stop, actions.inpaint, [picture, box], fields, outputs)


def _image_output(name: str) -> list[Any]:
    view = _picture("Output", f"{name}-output", buttons=["download"])
    return [view, *_note_and_replay(name)]


def _picture(label: str, name: str, buttons: Sequence[str] = ()) -> gr.Image:
    """An image, whose label does not cover it."""
    kind: dict[str, Any] = {"type": "pil", "format": "png", "interactive": False, "buttons": list(buttons)}
    return gr.Image(label=label, show_label=False, elem_id=name, **kind)


# Shared by all tabs ---------------------------------------------------------------------------------------------------


class Fields:
    """Components of settings, in order, with the argument that each sets."""

    def __init__(self, named: dict[str, Any]):
        self.names, self.components = list(named), list(named.values())

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Values by the name of their argument."""
        return dict(zip(self.names, values, strict=True))


def _settings(controls: Sequence[Control], tab: str, has_colors: bool) -> Fields:
    """A column of settings."""
    with gr.Column(scale=1, min_width=260):
        named = {control.name: _component(control, tab) for control in controls}
        named["seed"] = gr.Textbox("", label="Seed", placeholder="a new one", max_lines=1, elem_id=f"{tab}-seed")
        if has_colors:
            choices = [("by step", "step"), ("by confidence", "confidence")]
            named["color_by"] = gr.Radio(choices, value="step", label="Colours")
    return Fields(named)


def _component(control: Control, tab: str) -> Any:
    shared: dict[str, Any] = {"label": control.label, "info": control.info or None, "elem_id": f"{tab}-{control.name}"}
    if isinstance(control, Choice):
        return gr.Dropdown(list(control.choices), value=control.value, **shared)
    return gr.Slider(control.least, control.most, value=control.value, step=control.step, **shared)


def _note_and_replay(name: str) -> list[Any]:
    note = gr.Markdown("", elem_classes=["md4-note"], elem_id=f"{name}-note")
    with gr.Accordion("Replay", open=False, elem_id=f"{name}-replay"):
        return [note, gr.HTML("", elem_classes=["md4-output"])]


def _buttons(name: str, words: str) -> tuple[gr.Button, gr.Button]:
    start = gr.Button(words, variant="primary", min_width=120, elem_id=f"{name}-start")
    return start, gr.Button("Stop", min_width=120, elem_id=f"{name}-stop")


def _run(
    start: gr.Button,
    stop: gr.Button,
    action: Callable[..., Iterator[tuple[Any, ...]]],
    inputs: list[Any],
    fields: Fields,
    outputs: list[Any],
):
    """Let a button start an action that gives pictures, and another one end it."""

    @_with_messages
    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        count = len(inputs)
        for view, note, replay in action(*values[:count], **fields.named(values[count:])):
            yield view, note, framed(replay)

    names = [*itertools.islice(inspect.signature(action).parameters, len(inputs)), *fields.names]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # names in Gradio's API
    _, note, _ = outputs  # which shows the place of a user who waits
    how: dict[str, Any] = {"show_progress": "minimal", "show_progress_on": note, **WAITS_FOR_THE_MODEL}
    event = start.click(run, [*inputs, *fields.components], outputs, api_name=action.__name__, **how)
    _end(stop, note, [event])


def _end(stop: gr.Button, note: gr.Markdown, events: list[Any]):
    """Let a button end events, and the note say so."""
    words: dict[str, Any] = {"fn": lambda words: words.replace(*STOPPED), "inputs": note, "outputs": note}
    stop.click(**words, cancels=events, show_progress="hidden", queue=False, api_visibility="private")


def _with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, or a generator, whose expected errors are shown on the page as they are worded."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any) -> Iterator[Any]:
            try:
                yield from function(*args)
            except EXPECTED_ERRORS as error:
                raise _message(error) from error

        return generate

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except EXPECTED_ERRORS as error:
            raise _message(error) from error

    return call


def _message(error: BaseException) -> gr.Error:
    """An error as a message of the page, which takes HTML."""
    return gr.Error(html.escape(str(error)), duration=10, print_exception=False)


def _plain(text: str) -> str:
    """Text in which Markdown has no effect."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>#&" else character for character in text)
