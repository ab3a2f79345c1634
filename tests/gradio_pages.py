# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Calls of the events of a Gradio page."""


def values(client, name, **changed):
    """Defaults of an event's fields, with some changed by their label."""
    fields = client.view_api(return_format="dict")["named_endpoints"][name]["parameters"]
    return [changed.get(field["label"], field["parameter_default"]) for field in fields]
