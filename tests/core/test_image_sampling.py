# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Images from the pipeline: exact in distribution, with guidance and without; what is kept in inpainting is kept."""

import numpy as np
import PIL.Image
import pytest
import torch
from clean_environment import link_packages, run_isolated
from commands import failure
from diffusers import DiffusionPipeline
from test_genmd4 import token_probabilities
from test_planned_sampling import CallRecorder
from test_scheduling import LEAST_P, p_value
from tiny import quiet, random_image_model, random_model, row_generators, seeded
from toy import ToyWorld
from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4ForMaskedDiffusion,
    MD4ImageProcessor,
    load_pipeline,
    make_pipeline,
    save_image_grid,
)
from md4_hf.cli import main


DRAWS = 2000
LEVELS, MASK = 5, 5


def image_pipeline(levels=LEVELS, image_size=4, num_channels=1, steps=6, scheduler=None, **kwargs):
    """A tiny real U-Net of two classes and none, and its pipeline."""
    kwargs = {"num_classes": 2, "class_dropout": 0.1, **kwargs}
    model = random_image_model(levels, image_size, num_channels, **kwargs).eval()
    scheduler = MaskedDiffusionScheduler(num_inference_steps=steps, **(scheduler or {}))
    return quiet(make_pipeline(model, scheduler=scheduler))


@pytest.fixture(scope="module")
def pipe():
    return image_pipeline()


@pytest.fixture(scope="module")
def colour():
    return image_pipeline(levels=256, num_channels=3, image_size=[4, 6])


# Exact in distribution ------------------------------------------------------------------------------------------------


def ask(model, states, t, label):
    """The network's logits of enumerated 1 x 2 x 2 images, `(states, 4, vocab)`."""
    labels = None if label is None else torch.full((len(states),), label)
    with torch.no_grad():
        logits = model(states.view(-1, 1, 2, 2), timesteps=t.expand(len(states)), class_labels=labels).logits
    return logits.flatten(1, 3).double()


def enumerated(pipe, label=None, scale=1.0, given=None):
    """The distribution at the end of the enumerated chain, with the formula of guidance written out."""
    world, times = ToyWorld(vocab=3, length=4), pipe.scheduler.timesteps
    r = pipe.scheduler.unmask_probabilities()
    if pipe.model.config.learn_masking_schedule:
        r = token_probabilities(pipe.model.token_schedule, len(times))
    start = None if given is None else (world.states() == given.flatten()).all(-1).double()

    def logits_of(states, step):
        conditional = ask(pipe.model, states, times[step], label)
        if scale == 1.0:
            return conditional
        unconditional = ask(pipe.model, states, times[step], pipe.model.config.null_class)
        return unconditional + scale * (conditional - unconditional)

    return world.exact_chain(logits_of, r, takes_step=True, start=start)


def p_value_of_images(sequences, expected):
    return p_value(ToyWorld(vocab=3, length=4), sequences.flatten(1), expected)


def watch(pipeline, step, t, tensors):
    """A callback: the pipeline goes step by step, and not from opening to opening."""


@pytest.mark.parametrize(("schedule", "grid"), [("linear", "cosine"), ("linear", "uniform"), ("cosine", "uniform")])
def test_images_have_the_distribution_of_the_enumerated_chain(schedule, grid):
    scheduler = {"masking_schedule": schedule, "timestep_grid": grid}
    pipe = image_pipeline(levels=3, image_size=2, num_classes=None, class_dropout=0.0, scheduler=scheduler)
    images = pipe(num_samples=DRAWS, generator=seeded(0), output_type="ids").sequences
    assert p_value_of_images(images, enumerated(pipe)) > LEAST_P


@pytest.mark.parametrize(("scale", "callback"), [(0.0, None), (1.0, watch), (2.5, None), (2.5, watch)])
def test_guided_images_have_the_distribution_of_the_guided_chain(scale, callback):
    pipe = image_pipeline(levels=3, image_size=2)
    arguments = {"class_labels": 1, "guidance_scale": scale, "num_samples": DRAWS, "generator": seeded(0)}
    images = pipe(output_type="ids", callback_on_step_end=callback, **arguments).sequences
    assert p_value_of_images(images, enumerated(pipe, label=1, scale=scale)) > LEAST_P
    if scale == 2.5:  # the test can tell them apart
        assert p_value_of_images(images, enumerated(pipe, label=1)) < LEAST_P


def test_guided_images_of_genmd4_have_the_distribution_of_the_guided_chain():
    """In GenMD4 the probability that a pixel opens depends on its level."""
    options = {"masking_schedule": "poly", "learn_masking_schedule": True, "scheduler": {"timestep_grid": "uniform"}}
    pipe = image_pipeline(levels=3, image_size=2, steps=4, **options)
    torch.nn.init.normal_(pipe.model.token_schedule.free_exponents, std=1.0)
    arguments = {"class_labels": 1, "guidance_scale": 2.0, "num_samples": DRAWS, "generator": seeded(0)}
    images = pipe(output_type="ids", **arguments).sequences
    assert p_value_of_images(images, enumerated(pipe, label=1, scale=2.0)) > LEAST_P


# Classes and guidance -------------------------------------------------------------------------------------------------


def calls_of(pipe, **arguments):
    """The ids of a call, and what the network was asked."""
    recorder = CallRecorder(pipe.model, "class_labels")
    ids = pipe(generator=seeded(1), output_type="ids", **arguments).sequences
    recorder.hook.remove()
    return ids, recorder.calls


def test_at_scale_one_the_network_is_asked_once_and_nothing_changes(pipe):
    plain, plain_calls = calls_of(pipe, class_labels=[0, 1], num_samples=2)
    ids, calls = calls_of(pipe, class_labels=[0, 1], num_samples=2, guidance_scale=1.0)
    assert torch.equal(ids, plain) and len(calls) == len(plain_calls)
    assert max(len(call["input_ids"]) for call in calls) == 4
    assert all((call["class_labels"] < 2).all() for call in calls)


def test_at_scale_zero_the_images_are_the_unconditional_ones(pipe):
    unconditional, plain_calls = calls_of(pipe, num_samples=4)
    ids, calls = calls_of(pipe, class_labels=[0, 1], num_samples=2, guidance_scale=0.0)
    assert torch.equal(ids, unconditional) and len(calls) == len(plain_calls)
    assert all((call["class_labels"] == 2).all() for call in calls)


def test_between_them_one_call_has_each_row_with_and_without_its_class(pipe):
    ids, calls = calls_of(pipe, class_labels=[0, 1], num_samples=2, guidance_scale=3.0)
    assert not torch.equal(ids, calls_of(pipe, class_labels=[0, 1], num_samples=2)[0])
    for call in calls:
        with_class, without = ({name: x.chunk(2)[half] for name, x in call.items()} for half in (0, 1))
        assert (without["class_labels"] == 2).all() and (with_class["class_labels"] < 2).all()
        for name in ("input_ids", "timesteps", "position_mask"):
            assert torch.equal(with_class[name], without[name])


def test_guided_text_padded_and_in_blocks_is_what_the_formula_gives():
    """At temperature 0 and in one step the text is the most probable one of the guided logits."""
    options = {"num_classes": 2, "class_dropout": 0.1, "time_conditioning": False}
    pipe = quiet(make_pipeline(random_model(7, 8, std=0.3, **options).eval()))
    rows, labels = [[1, 6, 2, 6], [6, 6, 3]], torch.tensor([0, 1])
    arguments = {"input_ids": rows, "class_labels": labels, "guidance_scale": 2.0, "output_type": "ids"}
    arguments |= {"num_inference_steps": 1, "temperature": 0.0}
    ids = pipe(**arguments).sequences
    for row, label, filled in zip(rows, labels, ids, strict=True):
        row = torch.tensor([row])
        with torch.no_grad():
            labels = (label[None], torch.tensor([2]))
            conditional, unconditional = (pipe.model(row, class_labels=x).logits for x in labels)
        guided = unconditional + 2.0 * (conditional - unconditional)
        assert torch.equal(filled, torch.where(row == 6, guided.argmax(-1), row)[0])
    blocks = pipe(**{**arguments, "input_ids": [[1, 6, 2, 6]] * 2}, block_length=6).sequences
    assert torch.equal(blocks[0], ids[0]), "all in the first block"
    long = pipe(**arguments, length=14, block_length=3).sequences
    assert long.shape == (2, 14) and (long != 6).all()


def test_images_of_a_class_lie_together_and_do_not_depend_on_the_rows_beside_them(pipe):
    both = pipe(class_labels=[0, 1], num_samples=3, generator=seeded(0), output_type="ids").sequences
    first = pipe(class_labels=torch.tensor([0]), num_samples=3, generator=seeded(0), output_type="ids").sequences
    assert torch.equal(both[:3], first) and len(both) == 6
    seeds = [seeded(seed) for seed in range(3)]
    alone = [pipe(class_labels=0, generator=[seeded(seed)], output_type="ids").sequences[0] for seed in range(3)]
    together = pipe(class_labels=0, num_samples=3, generator=seeds, output_type="ids").sequences
    assert torch.equal(together, torch.stack(alone))


# Images in and out ----------------------------------------------------------------------------------------------------


def test_output_types_are_the_same_images(colour):
    kinds = ("pil", "np", "pt", "ids")
    outputs = {kind: colour(num_samples=2, generator=seeded(0), output_type=kind) for kind in kinds}
    ids = outputs["ids"].sequences
    assert ids.shape == (2, 3, 4, 6) and outputs["ids"].images is None
    assert all(torch.equal(output.sequences, ids) and output.texts is None for output in outputs.values())
    pictures, array, tensor = (outputs[kind].images for kind in ("pil", "np", "pt"))
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (6, 4))] * 2
    assert array.shape == (2, 4, 6, 3) and tensor.shape == (2, 3, 4, 6)
    expected = ids.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), expected)
    np.testing.assert_allclose(array, expected / 255, atol=1e-6)
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)
    sequences, images = colour(return_dict=False)
    assert sequences.shape == (1, 3, 4, 6) and len(images) == 1


def picture(shape=(4, 6, 3), seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))


MASK_ARRAY = np.zeros((4, 6), dtype=bool)
MASK_ARRAY[1:3, 2:5] = True


@pytest.mark.parametrize(
    "mask",
    [
        MASK_ARRAY,
        torch.from_numpy(MASK_ARRAY),
        PIL.Image.fromarray(MASK_ARRAY),
        PIL.Image.fromarray(MASK_ARRAY * np.uint8(255)).convert("RGB"),
        MASK_ARRAY * np.uint8(255),
        torch.from_numpy(MASK_ARRAY).float()[None, None] * 0.6,
        [MASK_ARRAY],
        torch.from_numpy(MASK_ARRAY).expand(1, 3, -1, -1),
    ],
    ids=["numpy", "torch", "1-bit", "RGB", "8-bit", "numbers", "list", "channels"],
)
def test_a_mask_says_what_is_filled_and_all_else_is_kept_to_the_bit(colour, mask):
    given = picture()
    arguments = {"mask_image": mask, "generator": seeded(0)}
    output = colour(image=given, **arguments)
    before, after = np.asarray(given), np.asarray(output.images[0])
    np.testing.assert_array_equal(after[~MASK_ARRAY], before[~MASK_ARRAY])
    assert (after[MASK_ARRAY] != before[MASK_ARRAY]).mean() > 0.9
    ids = torch.from_numpy(before.copy()).permute(2, 0, 1)[None].long()
    again = colour(input_ids=ids, mask_image=mask, generator=seeded(0), output_type="ids").sequences
    assert torch.equal(again, output.sequences)


def test_what_is_one_half_of_a_mask_is_filled(colour):
    ids = torch.randint(256, (1, 3, 4, 6), generator=seeded(3))
    mask = torch.where(torch.from_numpy(MASK_ARRAY), 0.5, 0.5 - 2.0**-24)
    by_half, by_mask = (
        colour(input_ids=ids, mask_image=x, generator=seeded(0), output_type="ids").sequences
        for x in (mask, MASK_ARRAY)
    )
    assert torch.equal(by_half, by_mask) and not torch.equal(by_half, ids)


def test_each_image_has_its_own_mask_and_samples(colour):
    images, masks = [picture(seed=seed) for seed in (1, 2)], np.stack([MASK_ARRAY, ~MASK_ARRAY])
    output = colour(image=images, mask_image=masks, num_samples=2, class_labels=[0, 1], generator=seeded(0))
    assert len(output.images) == 4
    for index, result in enumerate(output.images):
        kept = ~masks[index // 2]
        np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(images[index // 2])[kept])
    assert not np.array_equal(*(np.asarray(result) for result in output.images[:2]))
    one = colour(image=images[0], mask_image=masks, generator=seeded(0))
    assert len(one.images) == 2, "an image with two masks"


def test_single_channels_of_a_pixel_may_be_masked(colour):
    mask = torch.zeros(1, 3, 4, 6, dtype=torch.bool)
    mask[:, 1] = True
    ids = torch.randint(256, (2, 3, 4, 6), generator=seeded(3))
    by_mask = colour(input_ids=ids, mask_image=mask, generator=seeded(0), output_type="ids").sequences
    assert torch.equal(by_mask[:, [0, 2]], ids[:, [0, 2]]) and not torch.equal(by_mask, ids)
    by_ids = colour(input_ids=ids.masked_fill(mask, 256), generator=seeded(0), output_type="ids").sequences
    assert torch.equal(by_ids, by_mask)


def test_nothing_to_fill_gives_the_image_back_without_the_network(colour, monkeypatch):
    monkeypatch.setattr(colour.model, "forward", None)
    output = colour(image=picture(), mask_image=np.zeros((4, 6), dtype=bool))
    np.testing.assert_array_equal(np.asarray(output.images[0]), np.asarray(picture()))


def test_inpainted_images_have_the_distribution_of_the_chain_that_starts_there():
    pipe = image_pipeline(levels=3, image_size=2)
    ids = torch.tensor([[[[2, 3], [0, 3]]]])
    arguments = {"class_labels": 0, "guidance_scale": 1.7, "num_samples": DRAWS, "generator": seeded(0)}
    images = pipe(input_ids=ids, output_type="ids", **arguments).sequences
    assert p_value_of_images(images, enumerated(pipe, label=0, scale=1.7, given=ids)) > LEAST_P


# Previews -------------------------------------------------------------------------------------------------------------


def test_the_callback_shows_the_image_as_it_opens(pipe):
    shown, masks = [], []

    def record_preview(pipeline, step, t, tensors):
        masks.append((tensors["sample"] == MASK).sum().item())
        shown.append(pipeline.preview(tensors["sample"])[0])

    looked_at = pipe(num_samples=2, generator=seeded(0), callback_on_step_end=record_preview)
    assert torch.equal(looked_at.sequences, pipe(num_samples=2, generator=seeded(0)).sequences)
    assert len(shown) == 6 and masks == sorted(masks, reverse=True) and masks[-1] == 0
    assert shown[-1].tobytes() == looked_at.images[0].tobytes()


def test_masks_are_grey_in_a_preview_and_in_an_interrupted_call(pipe):
    ids = torch.tensor([0, 4, MASK, 2]).expand(1, 1, 4, 4)
    np.testing.assert_array_equal(np.asarray(pipe.preview(ids)[0])[0], [0, 255, 128, 128])

    def stop(pipeline, step, t, tensors):
        pipeline._interrupt = True

    output = pipe(generator=seeded(0), callback_on_step_end=stop)
    masked = output.sequences[0, 0] == MASK
    assert masked.any() and (np.asarray(output.images[0])[masked.numpy()] == 128).all()


# Errors ---------------------------------------------------------------------------------------------------------------

GREY = PIL.Image.new("L", (4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a"}, "`prompt` must be None: the model is not one of text"),
        ({"length": 4}, "`length` must be None"),
        ({"block_length": 4}, "`block_length` must be None"),
        ({"output_type": "text"}, r"`output_type` must be one of \('pil', 'np', 'pt', 'ids', 'seq'\), got 'text'"),
        ({"image": GREY}, "`mask_image` must be given with `image`"),
        ({"mask_image": np.ones((4, 4), dtype=bool)}, "`mask_image` needs `image` or `input_ids`"),
        ({"image": GREY, "input_ids": torch.zeros(1, 1, 4, 4).long()}, "Only one of `image` and `input_ids`"),
        ({"image": GREY, "mask_image": np.ones((4, 5), dtype=bool)}, r"`mask_image` must have shape \(4, 4\)"),
        ({"image": GREY, "mask_image": np.ones((3, 2, 4, 4), dtype=bool)}, "`mask_image` must have shape"),
        ({"image": [GREY] * 3, "mask_image": np.ones((2, 4, 4), dtype=bool)}, "`mask_image` must have shape"),
        ({"image": GREY, "mask_image": np.ones(4, dtype=bool)}, "`mask_image` must have 2 to 4 axes, got shape"),
        ({"image": GREY, "mask_image": np.eye(4, dtype=np.uint8)}, "`mask_image` must have 255 for white"),
        ({"image": GREY, "mask_image": np.eye(4) * 2}, r"`mask_image` must be boolean, 8-bit or numbers in \[0, 1\]"),
        ({"image": GREY, "mask_image": np.eye(4, dtype=np.int64)}, r"`mask_image` must be boolean, 8-bit or numbers"),
        ({"image": GREY, "mask_image": "mask.png"}, "`mask_image` must be pictures, arrays or tensors, got str"),
        ({"image": GREY, "mask_image": []}, "`mask_image` must hold masks of one size"),
        ({"input_ids": torch.full((1, 1, 4, 4), 6)}, r"`input_ids` must be in \[0, 6\)"),
        ({"input_ids": torch.zeros(1, 3, 4, 4).long()}, r"`input_ids` must have shape \(batch, 1, height, width\)"),
        ({"input_ids": torch.zeros(4, 4).long()}, r"`input_ids` must have shape \(batch, 1, height, width\)"),
        ({"class_labels": 2}, r"`class_labels` must be in \[0, 2\), got \[2\]"),
        ({"class_labels": [0, 1, 0], "input_ids": torch.full((2, 1, 4, 4), 5)}, "must hold 1 or 2 labels, got 3"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 1 without `class_labels` and without a prompt"),
        ({"class_labels": 0, "guidance_scale": -1.0}, "`guidance_scale` must be finite and >= 0, got -1.0"),
        ({"class_labels": 0, "guidance_scale": float("inf")}, "`guidance_scale` must be finite and >= 0"),
        ({"class_labels": 0, "guidance_scale": "high"}, "`guidance_scale` must be finite and >= 0"),
    ],
)
def test_bad_arguments_are_named_before_any_work(pipe, monkeypatch, arguments, message):
    monkeypatch.setattr(pipe.model, "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_what_a_model_or_pipeline_lacks_is_named(pipe):
    no_null = image_pipeline(class_dropout=0.0)
    with pytest.raises(ValueError, match="must be 1 for `class_labels` of a model without a null class, got 2"):
        no_null(class_labels=0, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`class_labels` must be given: the model has 2 classes"):
        no_null()
    bare = quiet(MaskedDiffusionPipeline(pipe.model, MaskedDiffusionScheduler()))
    with pytest.raises(ValueError, match='`output_type="pil"` needs a pipeline with an image processor; ask for "ids'):
        bare()
    with pytest.raises(ValueError, match="`image` needs a pipeline with an image processor; give `input_ids`"):
        bare(image=GREY, mask_image=GREY, output_type="ids")
    with pytest.raises(ValueError, match="`image_processor` must have as many levels as the model, 5, got 17"):
        processor = MD4ImageProcessor(num_levels=17)
        MaskedDiffusionPipeline(pipe.model, MaskedDiffusionScheduler(), image_processor=processor)
    text = quiet(make_pipeline(random_model(5, 4, std=0.1)))
    with pytest.raises(ValueError, match="`image` must be None: the model is not one of images"):
        text(image=GREY, output_type="ids")


# One flat folder, the command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    """The pipeline of grey 4 x 4 images, saved with its code."""
    path = tmp_path_factory.mktemp("images") / "run"
    pipe.save_pretrained(path, remote_code=True)
    return path


def test_one_flat_folder_serves_every_loader(pipe, folder, tmp_path):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "scheduler_config.json"} <= names
    assert not any(path.is_dir() for path in folder.iterdir())
    pipe.save_pretrained(tmp_path)
    expected = pipe(class_labels=[0, 1], guidance_scale=2.0, generator=seeded(0))
    for loader in (MaskedDiffusionPipeline.from_pretrained, DiffusionPipeline.from_pretrained, load_pipeline):
        opened = loader(str(tmp_path))
        assert isinstance(opened, MaskedDiffusionPipeline) and isinstance(opened.image_processor, MD4ImageProcessor)
        output = quiet(opened.to("cpu"))(class_labels=[0, 1], guidance_scale=2.0, generator=seeded(0))
        assert torch.equal(output.sequences, expected.sequences)
        assert [image.tobytes() for image in output.images] == [image.tobytes() for image in expected.images]
    assert isinstance(AutoModel.from_pretrained(tmp_path), MD4ForMaskedDiffusion)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), MD4ImageProcessor)


def test_a_model_alone_makes_a_pipeline(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    opened = quiet(load_pipeline(str(tmp_path), device="cpu"))
    expected, processor = pipe.image_processor, opened.image_processor
    assert (processor.size, processor.num_channels, processor.num_levels) == (expected.size, 1, LEVELS)
    assert opened(num_inference_steps=2).images[0].size == (4, 4)


def test_without_the_package_diffusers_opens_an_exported_pipeline(pipe, folder, tmp_path):
    expected = pipe(class_labels=[0, 1], guidance_scale=2.0, generator=seeded(0))
    torch.save(expected.sequences, tmp_path / "expected.pt")
    expected.images[1].save(tmp_path / "expected.png")
    code = f"""
import importlib.util, PIL.Image, torch
assert not any(importlib.util.find_spec(name) for name in ("md4_hf", "datasets", "accelerate", "peft"))
from diffusers import DiffusionPipeline
def check(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(class_labels=[0, 1], guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(output.sequences, torch.load({str(tmp_path / "expected.pt")!r}))
    assert output.images[1].tobytes() == PIL.Image.open({str(tmp_path / "expected.png")!r}).tobytes()
    return pipe
check({str(folder)!r}).save_pretrained("again")
check("again")
from transformers.models.auto.image_processing_auto import AutoImageProcessor
assert AutoImageProcessor.from_pretrained("again", trust_remote_code=True).num_levels == {LEVELS}
print("done")
"""
    packages = link_packages(tmp_path / "site", "torch", "transformers", "diffusers")
    assert "done" in run_isolated(packages, code, tmp_path / "home")


def test_the_command_writes_a_row_for_each_class(pipe, folder, tmp_path, capsys):
    output = tmp_path / "grid.png"
    command = ["sample", str(folder), "--class_labels", "0", "1", "--num_samples", "3", "--guidance_scale", "2"]
    main([*command, "--output", str(output), "--seed", "5", "--enlarge", "2", "--device", "cpu"])
    assert f"6 images are in {output}" in capsys.readouterr().out
    images = pipe(class_labels=[0, 1], num_samples=3, guidance_scale=2.0, generator=row_generators(5, 6)).images
    labelled = np.asarray(PIL.Image.open(output))
    grid = labelled[:, -28:]
    assert len(grid) == 18, "grey lines of the width of a pixel between them"
    margin = labelled[:, :-28]
    assert (margin[:8] < 128).any() and (margin[10:] < 128).any(), "the class before its row"
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        part = grid[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8]
        np.testing.assert_array_equal(part[::2, ::2], np.asarray(image))
        np.testing.assert_array_equal(part[1::2, 1::2], np.asarray(image))


def test_the_command_fills_the_white_of_a_mask(pipe, folder, tmp_path):
    given, mask = pipe(generator=seeded(0)).images[0], np.zeros((4, 4), dtype=bool)
    mask[:, 2:] = True
    given.convert("RGB").save(tmp_path / "a.png")
    PIL.Image.fromarray(mask).save(tmp_path / "m.png")
    names = [str(tmp_path / name) for name in ("a.png", "m.png", "b.png")]
    command = ["infill", str(folder), "--image", names[0], "--mask", names[1], "--output", names[2], "--enlarge", "1"]
    main([*command, "--class_labels", "1", "--seed", "0"])
    filled, before = np.asarray(PIL.Image.open(names[2])), np.asarray(given)
    np.testing.assert_array_equal(filled[~mask], before[~mask])
    assert filled.shape == (4, 4) and not np.array_equal(filled, before)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample"], "--output must name a picture, or a .jsonl file, to write for a model of images"),
        (["sample", "--output", "a.txt"], "--output must name a picture, or a .jsonl file"),
        (["sample", "--output", "a.xyz"], "--output must end in .jsonl, .txt or as a picture does, such as .png, got"),
        (["sample", "--output", "no/such/folder/a.png"], "--output must lie in a folder that is there"),
        (["sample", "--output", "a.png", "--enlarge", "0"], "--enlarge must be >= 1, got 0"),
        (["sample", "--output", "a.png", "--prompt", "the "], "--prompt must be None: the model is not one of text"),
        (["sample", "--output", "a.png", "--class_labels", "9"], "--class_labels must be in [0, 2), got [9]"),
        (["infill", "--image", "a.png", "--output", "b.png"], "--mask must be given with --image, got a.png without"),
        (["infill", "--image", "a.png", "--mask", "m.png", "--output", "b.png"], "No such file or directory"),
        (["infill", "a <mask:2>", "--mask", "m.png", "--output", "b.png"], "--mask needs an --image, got m.png"),
        (["infill", "a <mask:2>", "--output", "b.png"], "--image and --mask must be given for a model of images"),
    ],
)
def test_bad_options_are_one_clear_message(folder, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, [argv[0], str(folder), *argv[1:]])
    assert not list(tmp_path.iterdir())


# Pictures of many images ----------------------------------------------------------------------------------------------

GAP_GREY = 192  # neither the black of a picture, nor its white, nor the grey of masks


def test_a_grid_is_filled_row_by_row(tmp_path):
    images = [PIL.Image.new("L", (2, 1), level) for level in (10, 20, 30)]
    save_image_grid(images, tmp_path / "grid.png", columns=2, enlarge=2, gap=1)
    grid = np.asarray(PIL.Image.open(tmp_path / "grid.png"))
    assert grid.shape == (5, 9)
    assert (grid[:2, :4] == 10).all() and (grid[:2, 5:] == 20).all() and (grid[3:, :4] == 30).all()
    assert (grid[2] == GAP_GREY).all() and (grid[3:, 4:] == GAP_GREY).all()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    save_image_grid([picture()], tmp_path / "one.png")
    assert PIL.Image.open(tmp_path / "one.png").tobytes() == picture().tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_labels_stand_outside_the_images_beside_their_rows_and_above_their_columns(tmp_path, mode):
    images = [PIL.Image.new(mode, (20, 30), "white")] * 6
    save_image_grid(images, tmp_path / "plain.png", columns=3, gap=2)
    save_image_grid(
        images, tmp_path / "labelled.png", columns=3, gap=2, row_labels=["zero", ""], column_labels=[7, "", 9]
    )
    plain, labelled = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png")) for name in ("plain", "labelled"))
    top, left = (big - small for big, small in zip(labelled.shape[:2], plain.shape[:2], strict=True))
    assert (labelled[top:, left:] == plain).all()
    is_black = (labelled if mode == "L" else labelled.max(axis=2)) < 64
    words, columns = is_black[top:, :left], is_black[:top, left:]
    assert words[:30].any() and not words[32:].any(), "of the first row, none of the second"
    assert columns[:, :20].any() and not columns[:, 22:42].any() and columns[:, 44:].any()
    assert not is_black[:top, :left].any()


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        ([], {}, "`images` must hold images of one size, got sizes"),
        ([GREY, PIL.Image.new("L", (5, 4))], {}, "`images` must hold images of one size"),
        ([GREY], {"columns": 0}, "`columns` must be an integer >= 1, got 0"),
        ([GREY], {"enlarge": 0}, "`enlarge` must be an integer >= 1, got 0"),
        ([GREY], {"gap": -1}, "`gap` must be an integer >= 0, got -1"),
        ([GREY] * 3, {"columns": 2, "row_labels": [0, 1, 2]}, "`row_labels` must hold 2 labels or none, got 3"),
        ([GREY] * 3, {"columns": 2, "column_labels": [0]}, "`column_labels` must hold 2 labels or none, got 1"),
        ([GREY], {"path": "grid.txt"}, "`path` must have the suffix of a kind of picture, such as .png, got"),
    ],
)
def test_bad_grids_are_named(tmp_path, images, arguments, message):
    path = tmp_path / arguments.pop("path", "grid.png")
    with pytest.raises(ValueError, match=message):
        save_image_grid(images, path, **arguments)
    assert not list(tmp_path.iterdir())
