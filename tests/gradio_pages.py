# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pages of Gradio that are served, and calls of their events."""

import contextlib


def values(client, name, **changed):
    """Defaults of an event's fields, with some changed by their label."""
    fields = client.view_api(return_format="dict")["named_endpoints"][name]["parameters"]
    return [changed.get(field["label"], field["parameter_default"]) for field in fields]


@contextlib.contextmanager
def serving(*arguments):
    """A function that serves the page of a pipeline, made with these arguments, and returns its address."""
    from md4_hf.page.blocks import launch, make_page

    pages = []

    def serve(pipeline):
        page = make_page(pipeline, *arguments)
        pages.append(page)
        return launch(page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)[1]

    yield serve
    for page in pages:
        page.close(verbose=False)
