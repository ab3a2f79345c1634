# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Images to ids and back: exact for every number of levels, and clear about what it does not take."""

import numpy as np
import PIL.Image
import pytest
import torch
from clean_environment import link_packages, run_isolated
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # where 5.17 asks for no torchvision

from md4_hf import MD4Config, MD4ImageProcessor


def all_levels(num_levels, num_channels):
    """Two images, of 12 x 24 pixels, that hold each level."""
    ids = torch.arange(2 * num_channels * 12 * 24) % num_levels
    return ids.view(2, num_channels, 12, 24)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_every_number_of_levels_comes_back_to_the_bit(num_channels):
    for num_levels in range(2, 257):
        processor = MD4ImageProcessor((12, 24), num_channels, num_levels)
        ids = all_levels(num_levels, num_channels)
        for output_type in ("pil", "np", "pt"):
            images = processor.postprocess(ids, output_type)
            assert torch.equal(processor(images)["input_ids"], ids), (num_levels, output_type)


def test_bytes_are_their_own_ids():
    image = np.arange(12 * 24 * 3, dtype=np.uint8).reshape(12, 24, 3)
    processor = MD4ImageProcessor((12, 24))
    ids = processor(PIL.Image.fromarray(image))["input_ids"]
    assert ids.dtype == torch.int64
    np.testing.assert_array_equal(ids[0].permute(1, 2, 0), image)
    (picture,) = processor.postprocess(ids)
    np.testing.assert_array_equal(np.asarray(picture), image)


def test_fewer_levels_take_the_nearest():
    values = np.arange(256, dtype=np.uint8)[None]
    for num_levels in (2, 3, 17, 100, 255):
        ids = MD4ImageProcessor((1, 256), 1, num_levels)(values)["input_ids"].flatten()
        level_values = 255 * np.arange(num_levels) / (num_levels - 1)
        np.testing.assert_array_equal(ids, np.abs(values[0, :, None] - level_values).argmin(axis=1))


def test_levels_of_the_outputs():
    processor = MD4ImageProcessor(2, 1, 17)
    ids = torch.tensor([0, 4, 8, 16]).view(1, 1, 2, 2)
    np.testing.assert_array_equal(processor.postprocess(ids, "np"), [[[[0], [0.25]], [[0.5], [1]]]])
    assert torch.equal(processor.postprocess(ids, "pt"), ids / 16)
    (picture,) = processor.postprocess(ids)
    assert picture.mode == "L" and [*np.asarray(picture).flatten()] == [0, 64, 128, 255]


def test_one_image_a_batch_or_a_list_give_the_same():
    processor = MD4ImageProcessor((12, 24))
    ids = all_levels(256, 3)
    pictures, arrays, tensors = (processor.postprocess(ids, kind) for kind in ("pil", "np", "pt"))
    for images in (pictures, arrays, [*arrays], tuple(tensors), (arrays * 255).round().astype(np.uint8)):
        assert torch.equal(processor(images)["input_ids"], ids)
    for image in (pictures[1], arrays[1], tensors[1]):
        assert torch.equal(processor(image)["input_ids"], ids[1:])
    grey = MD4ImageProcessor((12, 24), 1)
    plane = np.asarray(pictures[0])[..., 0]
    for image in (plane, plane[..., None], torch.from_numpy(plane.copy()), torch.from_numpy(plane.copy())[None]):
        np.testing.assert_array_equal(grey(image, return_tensors="np")["input_ids"], plane[None, None])


def test_resizing_crops_the_middle_and_scales_only_if_asked():
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 200  # the middle square
    with pytest.raises(ValueError, match=r"`images` must be 4 x 4 pixels.*`do_resize`\), got 8 x 24"):
        MD4ImageProcessor(4)(image)
    resizer = MD4ImageProcessor(4, do_resize=True, resample=PIL.Image.Resampling.BOX)
    for given in (image, PIL.Image.fromarray(image), torch.from_numpy(image).permute(2, 0, 1)):
        assert (resizer(given)["input_ids"] == 200).all()
    assert (resizer(image[:4, 8:12])["input_ids"] == 200).all()  # of its size: as it is


def test_other_modes_are_converted_only_if_asked():
    picture = PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 128))
    with pytest.raises(ValueError, match=r"`images` must have the mode RGB \(or set `do_convert`\), got RGBA"):
        MD4ImageProcessor(4)(picture)
    ids = MD4ImageProcessor(4, do_convert=True)(picture)["input_ids"]
    assert ids[0, :, 0, 0].tolist() == [10, 20, 30]
    assert MD4ImageProcessor(4, 1, do_convert=True)(picture)["input_ids"].shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_levels": 1}, r"`num_levels` must be an integer in \[2, 256\], got 1"),
        ({"num_levels": 257}, r"`num_levels` must be .*, got 257"),
        ({"num_levels": "17"}, "`num_levels` must be .*, got '17'"),
        ({"num_channels": 4}, r"`num_channels` must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"size": 0}, "`size` must be .*, got 0"),
        ({"size": (3, 4, 5)}, r"`size` must be .*, got \(3, 4, 5\)"),
        ({"size": {"height": 3}}, "`size` must be"),
        ({"size": {"height": 3, "width": 2.5}}, "`size` must be"),
        ({"do_resize": "yes"}, "`do_resize` must be True or False, got 'yes'"),
        ({"resample": 77}, "`resample` must be a number of PIL.Image.Resampling, got 77"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MD4ImageProcessor(**arguments)


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "`images` must hold at least one image, got none"),
        (None, "`images` must be PIL images, arrays or tensors, got NoneType"),
        (["cat.png"], "`images` must be PIL images, arrays or tensors, got str"),
        (np.zeros((4, 4)), r"`images` must have 3 channels, got an image of shape \(4, 4\)"),
        (np.zeros((3, 4, 4)), r"`images` must have 3 channels, got an image of shape \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3), "`images` must have 3 channels, got an image of shape"),
        (np.zeros((0, 4, 4, 3)), "`images` must have 3 channels"),
        (np.zeros((4, 5, 3)), "`images` must be 4 x 4 pixels, height by width .*, got 4 x 5"),
        (np.zeros((4, 4, 3), int), r"`images` must be uint8 in \[0, 255\] or floats in \[0, 1\], got int64"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "`images` must be uint8 .*, got bool"),
        (np.full((4, 4, 3), 1.1), r"`images` of floats must be in \[0, 1\], got values from 1.1 to 1.1"),
        (np.full((4, 4, 3), -0.1), r"`images` of floats must be in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"`images` of floats must be in \[0, 1\], got values from nan"),
        (PIL.Image.new("L", (4, 4)), "`images` must have the mode RGB"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        MD4ImageProcessor(4)(images)


def test_bad_ids_are_named():
    processor = MD4ImageProcessor(4, 1, 17)
    with pytest.raises(ValueError, match=r"`ids` must be in \[0, 17\), got values from 17 to 17"):
        processor.postprocess(torch.full((1, 1, 4, 4), 17))  # the mask
    with pytest.raises(ValueError, match=r"`ids` must have shape \(batch, 1, height, width\), got \(1, 3, 4, 4\)"):
        processor.postprocess(torch.zeros(1, 3, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="`ids` must be integers, got torch.float32"):
        processor.postprocess(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="`output_type` must be one of"):
        processor.postprocess(torch.zeros(1, 1, 4, 4, dtype=torch.long), "jpg")
    with pytest.raises(ValueError, match='`return_tensors` must be "pt" or "np", got \'tf\''):
        processor(np.zeros((4, 4)), return_tensors="tf")


def test_saved_and_opened_again(tmp_path):
    processor = MD4ImageProcessor((4, 6), 1, 17, do_resize=True, do_convert=True, resample=4)
    processor.save_pretrained(tmp_path)
    for opened in (MD4ImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert isinstance(opened, MD4ImageProcessor)
        expected = {"size": {"height": 4, "width": 6}, "num_channels": 1, "num_levels": 17, "resample": 4}
        assert expected.items() <= opened.to_dict().items() and opened.do_resize and opened.do_convert
    assert MD4ImageProcessor.from_pretrained(tmp_path, num_levels=9).num_levels == 9


def test_without_the_package_transformers_opens_it(tmp_path):
    MD4ImageProcessor(4, 1, 17).save_pretrained(tmp_path / "saved")
    code = f"""
import importlib.util
assert importlib.util.find_spec("md4_hf") is None
import numpy as np
from transformers.models.auto.image_processing_auto import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
assert processor(np.ones((4, 4)))["input_ids"].unique().tolist() == [16]
print("done")
"""
    packages = link_packages(tmp_path / "site", "torch", "transformers", "pillow")
    assert "done" in run_isolated(packages, code, tmp_path / "home")


def test_the_processor_for_a_model_has_its_size_channels_and_levels():
    config = MD4Config(backbone="unet", vocab_size=18, hidden_size=32, image_size=[4, 6], num_channels=1)
    processor = MD4ImageProcessor.for_config(config, do_resize=True)
    assert processor.size == {"height": 4, "width": 6} and processor.do_resize
    assert (processor.num_channels, processor.num_levels) == (1, 17)
