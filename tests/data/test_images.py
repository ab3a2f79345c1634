# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Models of images: their data, the same training however a step is cut up, bits per dimension, the commands."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from commands import failure
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits
from tiny import (
    at_once_and_in_parts,
    logged,
    random_image_model,
    random_model,
    trained,
    training_arguments,
    unbroken_and_resumed,
    weights,
)
from transformers import AutoModel, TrainerCallback
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from md4_hf import (
    PRESETS,
    DataArguments,
    DataCollatorForMaskedDiffusion,
    ImageDataArguments,
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4ImageProcessor,
    MD4Trainer,
    PaddingCollator,
    digits,
    encode_images,
    load_images,
    nelbo_metrics,
)
from md4_hf.cli import main
from md4_hf.data import images
from md4_hf.evaluation.baselines import pixel_histogram_bits


LEVELS, CLASSES = 5, 3


def tiny_model(**kwargs):
    options = {"image_size": 4, "num_classes": CLASSES, "class_dropout": 0.3, "std": 0.1, **kwargs}
    return random_image_model(LEVELS, **options)


def pictures(count=12, seed=0, size=(4, 4)):
    """Grey images, each with a level of its class in its left column and levels at random elsewhere."""
    ids = np.random.default_rng(seed).integers(LEVELS, size=(count, 1, *size))
    ids[:, 0, :, 0] = (np.arange(count) % CLASSES)[:, None]
    return MD4ImageProcessor(size, 1, LEVELS).postprocess(ids)


def table(count=12, seed=0, **kwargs):
    features = Features(image=Image(), label=ClassLabel(num_classes=CLASSES))
    labels = [i % CLASSES for i in range(count)]
    return Dataset.from_dict({"image": pictures(count, seed, **kwargs), "label": labels}, features=features)


def processor(size=4):
    return MD4ImageProcessor(size, 1, LEVELS)


def examples(count=12, seed=0, num_classes=CLASSES):
    return encode_images(table(count, seed), processor(), num_classes=num_classes)


def all_ids(dataset):
    return torch.stack([torch.as_tensor(example["input_ids"]) for example in dataset])


@pytest.fixture
def folder(tmp_path):
    """A folder of images, with a folder for each class."""
    for index, picture in enumerate(pictures()):
        path = tmp_path / "pictures" / f"class{index % CLASSES}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path / "pictures"


def make_trainer(folder, model=None, train=None, evaluation=None, **kwargs):
    options = {"per_device_train_batch_size": 4, "max_steps": 3, "image_samples": 0, **kwargs}
    return MD4Trainer(
        model=model or tiny_model(),
        args=training_arguments(folder, **options),
        train_dataset=examples() if train is None else train,
        eval_dataset=evaluation,
        processing_class=processor(),
    )


def record_inputs(model):
    """The inputs of each call of the model, as they come."""
    calls = []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


# Data -----------------------------------------------------------------------------------------------------------------


def test_the_digits_have_their_own_levels():
    data = load_digits()
    encoded = encode_images(digits(), MD4ImageProcessor(8, 1, 17), num_classes=10)
    assert len(encoded) == 1797
    np.testing.assert_array_equal(all_ids(encoded)[:, 0], data.images)
    assert [example["class_labels"] for example in encoded] == data.target.tolist()


def test_held_out_images_are_drawn_once_and_for_all():
    train, heldout = load_images(DataArguments(data="digits", validation_fraction=0.1))
    assert (len(train), len(heldout)) == (1617, 180)
    assert np.bincount(heldout["label"][:], minlength=10).min() >= 10  # of each class, though the data may be sorted
    again = load_images(DataArguments(data="digits", validation_fraction=0.1))[1]
    assert heldout["label"][:] == again["label"][:]
    pixels = [np.asarray(image).tobytes() for part in (train, heldout) for image in part["image"]]
    assert sorted(pixels) == sorted(np.asarray(image).tobytes() for image in digits()["image"])


def test_a_folder_of_images_with_a_folder_for_each_class(folder):
    train, heldout = load_images(DataArguments(data=str(folder), validation_fraction=0.25))
    assert (len(train), len(heldout)) == (9, 3)
    encoded = encode_images(train, processor(), num_classes=CLASSES)
    for example in encoded:  # the left column has the level of the class
        assert (example["input_ids"][0, :, 0] == example["class_labels"]).all()
    train, heldout = load_images(DataArguments(data=str(folder), validation_data=str(folder)))
    assert len(train) == len(heldout) == 12


def test_images_are_the_same_kept_or_read_when_asked_for_or_streamed(monkeypatch):
    kept = examples()
    monkeypatch.setattr(images, "MAX_BYTES_IN_MEMORY", 0)
    read = examples()
    streamed = [*encode_images(table().to_iterable_dataset(), processor(), num_classes=CLASSES)]
    for data in (read, streamed):
        assert torch.equal(all_ids(data), all_ids(kept))
        assert [x["class_labels"] for x in data] == [x["class_labels"] for x in kept]
    assert "class_labels" not in examples(num_classes=None)[0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "no picture", "decompression bomb"])
def test_a_damaged_picture_is_named(damage, streaming, tmp_path, monkeypatch, capfd):
    path = tmp_path / "b damaged.png"
    for name in ("a.png", path.name):
        PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8, 3)).astype(np.uint8)).save(
            tmp_path / name
        )
    if damage == "decompression bomb":
        PIL.Image.new("RGB", (40, 40)).save(path)
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"no picture")
    loaded = images.load_image_table(str(tmp_path), streaming=streaming)
    with pytest.raises(ValueError, match="`images` must be well-formed pictures, got '.*b damaged.png', which cannot"):
        list(encode_images(loaded, MD4ImageProcessor(8, 3)))
    assert "split" not in capfd.readouterr().err  # no bar of `datasets`


def test_images_of_other_sizes_and_modes_are_fitted_only_if_asked(tmp_path):
    images = Dataset.from_dict({"img": [PIL.Image.new("RGB", (9, 6), "white")]}, features=Features(img=Image()))
    with pytest.raises(ValueError, match=r"mode L \(or set `do_convert`\), got RGB"):
        encode_images(images, processor())
    with pytest.raises(ValueError, match=r"4 x 4 pixels.*got 6 x 9"):
        encode_images(images, processor(), ImageDataArguments(convert=True))
    (example,) = encode_images(images, processor(), ImageDataArguments(convert=True, resize=True))
    assert example["input_ids"].shape == (1, 4, 4) and (example["input_ids"] == LEVELS - 1).all()


def test_what_is_wrong_with_the_columns_is_named():
    with pytest.raises(ValueError, match=r"`image_column` must be one of the columns \['image', 'label'\], got 'pic'"):
        encode_images(table(), processor(), ImageDataArguments(image_column="pic"))
    with pytest.raises(ValueError, match=r"`image_column` must be one of the columns \['label'\], got None"):
        encode_images(table().select_columns("label"), processor())
    with pytest.raises(ValueError, match=r"`label_column` must be one of the columns \['image'\], got None"):
        encode_images(table().select_columns("image"), processor(), num_classes=CLASSES)
    with pytest.raises(ValueError, match="`num_classes` must be at least the 3 of 'label', got 2"):
        encode_images(table(), processor(), num_classes=2)
    numbers = table().cast_column("label", Value("int64"))
    with pytest.raises(ValueError, match=r"must hold the model's classes, 0 to 1, got 'label' with \[0, 1, 2\]"):
        encode_images(numbers, processor(), num_classes=2)
    with pytest.raises(
        ValueError, match="must be \"digits\", a folder of images or a data set on the Hub, got 'pydoc'"
    ):
        load_images(DataArguments())
    with pytest.raises(ValueError, match='must be "train" for "digits", got \'test\''):
        load_images(DataArguments(data="digits", validation_split="test"))
    with pytest.raises(ValueError, match="`validation_fraction` must lie between 0 and 1, got 1.5"):
        load_images(DataArguments(data="digits", validation_fraction=1.5))


def test_a_pixel_histogram_counts_the_levels_of_each_place():
    train = np.array([[[[0, 1]]], [[[0, 2]]]])  # two images of 1 x 2 pixels
    heldout = np.array([[[[0, 0]]]])
    # Counts 3, 1, 1 at the first place and 1, 2, 2 at the second.
    assert pixel_histogram_bits(train, heldout, 3) == pytest.approx((-math.log2(3 / 5) - math.log2(1 / 5)) / 2)


def test_collators_stack_images():
    batch = PaddingCollator()([*examples(4)])
    assert batch["input_ids"].shape == (4, 1, 4, 4) and batch["input_ids"].dtype == torch.int64
    with pytest.raises(ValueError, match="`input_ids` of images must be .*, all of one shape"):
        PaddingCollator()([{"input_ids": np.zeros((1, 2, 2), int)}, {"input_ids": np.zeros((1, 2, 3), int)}])
    model = tiny_model(class_dropout=0.5)
    collator = DataCollatorForMaskedDiffusion(model.config, generator=torch.Generator().manual_seed(0))
    batch = collator([*examples(12)])
    assert model(**batch).loss.isfinite()
    masked = batch["input_ids"] == LEVELS
    assert torch.equal(batch["input_ids"][~masked], batch["labels"][~masked]) and masked.any()
    lost = batch["class_labels"] == CLASSES
    assert lost.any() and not lost.all()


# Training -------------------------------------------------------------------------------------------------------------


def test_accumulation_changes_neither_losses_nor_weights(tmp_path):
    """In float64: AdamW divides small gradients by their size, and with them their rounding."""

    def make(folder, **options):
        return make_trainer(folder, tiny_model().double(), random_flip=True, max_steps=2, **options)

    at_once, in_parts = at_once_and_in_parts(make, tmp_path, 1, 4)
    assert logged(in_parts, "loss") == pytest.approx(logged(at_once, "loss"), abs=1e-5)
    torch.testing.assert_close(weights(in_parts.model), weights(at_once.model), atol=1e-9, rtol=0)


def test_resuming_gives_the_unbroken_runs_weights(tmp_path):
    options = {"random_flip": True, "max_steps": 4, "ema_decay": 0.9}
    unbroken, resumed = unbroken_and_resumed(make_trainer, tmp_path, 2, {"model": tiny_model(seed=9)}, **options)
    assert (tmp_path / "run" / "checkpoint-2" / "preprocessor_config.json").is_file()
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


def test_images_are_mirrored_and_classes_lost_at_random(tmp_path):
    trainer = make_trainer(tmp_path, random_flip=True, max_steps=30)
    calls = record_inputs(trainer.model)
    trainer.train()
    originals = {x["input_ids"].tobytes(): x["class_labels"] for x in trainer.train_dataset}
    mirrored = {x["input_ids"][..., ::-1].tobytes(): x["class_labels"] for x in trainer.train_dataset}
    num_mirrored, lost = 0, []
    for call in calls:
        for ids, labels, label in zip(call["input_ids"], call["labels"], call["class_labels"], strict=True):
            key, is_masked = labels.numpy().astype(np.uint8).tobytes(), ids == LEVELS
            assert torch.equal(ids[~is_masked], labels[~is_masked])
            num_mirrored += key not in originals
            lost.append(int(label) == CLASSES)
            assert lost[-1] or label == {**mirrored, **originals}[key]
    # Of 120 examples one half and 0.3; four standard errors.
    assert abs(num_mirrored / 120 - 0.5) < 4 * math.sqrt(0.25 / 120)
    assert abs(np.mean(lost) - 0.3) < 4 * math.sqrt(0.21 / 120)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match="The image processor must make the model's"):
        make_trainer(tmp_path, model=tiny_model(image_size=8))
    args, other = training_arguments(tmp_path), MD4ImageProcessor(4, 1, LEVELS + 1)
    with pytest.raises(ValueError, match="The image processor must have a level for each id below the mask"):
        MD4Trainer(model=tiny_model(), args=args, processing_class=other)
    with pytest.raises(ValueError, match="`random_flip` must be False for a model of text, got True"):
        MD4Trainer(model=random_model(6, 8, std=0.1), args=training_arguments(tmp_path, random_flip=True))
    with pytest.raises(ValueError, match="`image_samples` must be >= 0, got -1"):
        training_arguments(tmp_path, image_samples=-1)


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_a_fresh_model_has_the_uniform_models_bits_per_dimension(tmp_path):
    config = tiny_model().config  # a new network gives logits of zero
    trainer = make_trainer(tmp_path, model=MD4ForMaskedDiffusion(config), evaluation=examples(12), eval_draws=64)
    metrics = trainer.evaluate()
    error = metrics["eval_bits_per_dimension_stderr"]
    assert abs(metrics["eval_bits_per_dimension"] - math.log2(LEVELS)) < 4 * error < 0.2
    assert metrics["eval_bits_per_dimension"] == pytest.approx(metrics["eval_loss"] / math.log(2))
    assert metrics["eval_num_tokens"] == 12 * 16


def test_evaluation_neither_mirrors_nor_loses_classes_and_keeps_its_figures(tmp_path):
    heldout = examples(7, seed=1)
    figures = []
    for batch_size in (7, 2):
        options = {"random_flip": True, "eval_draws": 2, "per_device_eval_batch_size": batch_size}
        trainer = make_trainer(tmp_path, evaluation=heldout, **options)
        calls = record_inputs(trainer.model)
        figures.append(trainer.evaluate()["eval_bits_per_dimension"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-5)
    assert torch.equal(torch.cat([call["labels"] for call in calls[::2]]), all_ids(heldout).long())
    labels = [int(label) for call in calls[::2] for label in call["class_labels"]]
    assert labels == [x["class_labels"] for x in heldout]


def test_bits_per_dimension_only_of_images():
    nelbo, tokens = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    assert "bits_per_dimension" not in nelbo_metrics(nelbo, tokens)
    metrics = nelbo_metrics(nelbo, tokens, are_dimensions=True)
    assert metrics["bits_per_dimension"] == pytest.approx(1 / math.log(2))
    assert metrics["bits_per_dimension_stderr"] == pytest.approx(metrics["loss_stderr"] / math.log(2))


def test_samples_are_drawn_while_training_and_change_nothing(tmp_path):
    options = {"evaluation": examples(4, seed=1), "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    options |= {"ema_decay": 0.5}
    plain = trained(make_trainer(tmp_path / "plain", **options))
    drawing = make_trainer(tmp_path / "drawing", image_samples=5, image_sample_steps=2, **options)
    seen = []
    drawing.add_callback(SamplesSeen(tmp_path / "drawing" / "samples.png", seen))
    drawing.train()
    assert torch.equal(weights(drawing.model), weights(plain.model))
    assert not (tmp_path / "plain" / "samples.png").exists()
    # Three columns, one for each class, and two rows; between them gaps of two pixels, above them the classes.
    enlarge = 512 // 12
    assert {width for width, _ in seen} == {3 * 4 * enlarge + 4} and len(seen) == 2
    assert all(2 * 4 * enlarge + 2 < height < 2 * 4 * enlarge + 30 for _, height in seen)
    assert not [*(tmp_path / "drawing").glob(".*png")]
    (tmp_path / "drawing" / "samples.png").unlink()
    drawing.evaluate()
    assert not (tmp_path / "drawing" / "samples.png").exists()  # only while training


def test_samples_are_of_the_averaged_weights(tmp_path):
    trainer = trained(make_trainer(tmp_path / "run", image_samples=3, image_sample_steps=2, ema_decay=0.999))
    with torch.no_grad():  # far from the average
        trainer.model.lm_head.bias.copy_(10.0 * torch.eye(LEVELS + 1)[0])
    trainer.save_repository(tmp_path / "share")
    shared = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "share")
    plain = make_trainer(tmp_path / "plain", model=shared, image_samples=3, image_sample_steps=2)
    plain.save_repository(tmp_path / "again")
    drawn, expected = (np.asarray(PIL.Image.open(tmp_path / name / "samples.png")) for name in ("share", "again"))
    assert (drawn == expected).all() and len(np.unique(drawn)) > 2


class SamplesSeen(TrainerCallback):
    """Notes the size of samples.png after each evaluation of a training."""

    def __init__(self, path, seen):
        self.path, self.seen = path, seen

    def on_evaluate(self, args, state, control, **kwargs):
        if self.path.exists():
            self.seen.append(PIL.Image.open(self.path).size)


# Sharing, the commands ------------------------------------------------------------------------------------------------


def test_the_repository_has_the_processor_and_a_card_of_images(tmp_path):
    options = {"image_samples": 4, "image_sample_steps": 2, "eval_draws": 2}
    trainer = trained(make_trainer(tmp_path / "run", evaluation=examples(4), **options))
    trainer.evaluate()
    trainer.card_facts.baselines = {"pixel histogram": 2.5}
    trainer.save_repository(tmp_path / "share")
    names = {path.name for path in (tmp_path / "share").iterdir()}
    assert {"config.json", "preprocessor_config.json", "model_index.json", "samples.png", "loss.png"} <= names
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path / "share"), MD4ImageProcessor)
    model = AutoModel.from_pretrained(tmp_path / "share")
    assert torch.equal(weights(model), weights(trainer.model))
    card = (tmp_path / "share" / "README.md").read_text()
    for text in (
        "pipeline_tag: unconditional-image-generation",
        "| Images | 4 × 4 × 1, 5 levels |",
        "| Classes | 3, left out of 30% of the examples |",
        "| bits per dimension of the pixel histogram model | 2.5000 |",
        "![Samples of the model](samples.png)",
        'pipe(class_labels=0, num_samples=1).images[0].save("sample.png")',
    ):
        assert text in card
    assert "perplexity" not in card and "language" not in card


TINY = "--backbone unet --image_size 4 --num_channels 1 --num_levels 5 --hidden_size 32 --num_hidden_layers 1".split()
SHORT = "--max_steps 2 --final_eval_draws 1 --image_sample_steps 2 --use_cpu --report_to none".split()


def test_the_commands_train_go_on_and_evaluate(folder, tmp_path, capsys):
    run = tmp_path / "run"
    data = ["--data", str(folder), "--validation_fraction", "0.25"]
    classes = ["--num_classes", "3", "--class_dropout", "0.2"]
    main(["train", *TINY, *classes, *data, *SHORT, "--output_dir", str(run), "--random_flip"])
    out = capsys.readouterr().out
    assert "training data: 9 images of 4 × 4 × 1" in out
    assert "held-out bits per dimension of the uniform model: 2.322" in out
    assert "bits per dimension " in out and "perplexity" not in out
    assert (run / "samples.png").is_file() and (run / "preprocessor_config.json").is_file()

    main(["evaluate", str(run), *data, "--draws", "2", "--use_cpu", "--output_file", str(tmp_path / "scores.json")])
    assert "48 tokens of images, one for each channel of each pixel, 2 draws per image" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert 1.0 < scores["eval_bits_per_dimension"] < 4.0 and scores["eval_bits_per_dimension_stderr"] > 0.0

    main(["train", "--model_name_or_path", str(run), *data, *SHORT, "--output_dir", str(tmp_path / "more")])
    config = MD4Config.from_pretrained(tmp_path / "more")
    assert config.is_image and config.num_classes == 3 and config.class_dropout == 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        ([*TINY, "--data", "pydoc"], "--data must be"),
        (
            [*TINY, "--data", "digits", "--tokenizer", "bytes"],
            "--tokenizer must be left out for a model of images, got 'bytes'",
        ),
        (
            [*TINY, "--data", "digits", "--text_samples", "3"],
            "--text_samples must be left out for a model of images, got 3",
        ),
        ([*TINY, "--data", "digits"], "`images` must be 4 x 4 pixels"),
        (["--data", "pydoc", "--resize"], "The options of images must be left out for a model of text"),
    ],
)
def test_the_command_names_what_does_not_fit(options, message, tmp_path, capsys):
    assert message in failure(capsys, ["train", *options, *SHORT, "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize("name, millions", [("cifar10", 28.4), ("imagenet64-samples", 204.6)])
def test_the_papers_networks_have_about_the_papers_sizes(name, millions):
    """28 million parameters, and 198 million, in the paper's tables."""
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(MD4Config(vocab_size=257, **PRESETS[name].model))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
