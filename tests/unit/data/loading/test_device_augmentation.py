"""The augmentation in torch, on the CPU, against the same with PIL."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import encoded, noise
from PIL import Image

from recon_ray.data.loading import augmentation as aug
from recon_ray.data.loading.device_augmentation import DeviceAugmentation, bicubic_weights, resample
from recon_ray.data.loading.images import ImageTransform, load_images, load_raw_images, sample_rng

SIZE = 96  # of the result; the square before the crop is 110
SQUARE = (SIZE, SIZE)
STILL = aug.DrawnOperation(aug.IDENTITY, 1, 1.0)
REFERENCE = ImageTransform(kind="reference", image_size=SIZE)
NO_GRAY = (SIZE,) * 4  # beyond the corner


def smooth_picture(seed, size=(80, 80), coarse=7):
    """Smooth colors with a white border, as a rendering has."""
    colors = np.random.default_rng(seed).integers(0, 256, (coarse, coarse, 3), dtype=np.uint8)
    colors[0] = 255
    return Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)


def special_pictures():
    """One level only, two levels, few levels, dark, and much white: tables at their limits."""
    flat = Image.new("RGB", SQUARE, (7, 0, 255))
    two = flat.copy()
    two.paste((8, 255, 250), (0, 0, 1, 1))
    few = noise(5, SQUARE).point(lambda value: value // 64 + 100)
    dark = noise(6, SQUARE).point(lambda value: value // 3)
    white = Image.new("RGB", SQUARE, (255, 255, 255))
    white.paste(noise(7, (20, 30)), (40, 50))
    return [flat, two, few, dark, white, noise(8, SQUARE), smooth_picture(9, SQUARE)]


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def device_augmentation():
    return DeviceAugmentation(SIZE)


@pytest.fixture(scope="module")
def views():
    """Views of several sizes: smaller, of the square's own size, and larger."""
    sizes = [(80, 80), (110, 110), (60, 100), (110, 40), (150, 130), (8, 8)]
    pictures = [smooth_picture(i, sizes[i % len(sizes)], 3 + i % 20) for i in range(48)]
    return [[encoded(one), encoded(one.rotate(90))] for one in pictures]


@pytest.mark.parametrize("index", range(len(aug.OPERATIONS)))
def test_an_operation_is_that_of_pil(device_augmentation, index):
    images = special_pictures()
    choices = [(m, sign) for m in range(1, 10) for sign in (1.0, -1.0)]
    cases = [(image, *choice) for image in images for choice in choices]
    expected = torch.stack([pixels(aug.OPERATIONS[index](*case)) for case in cases])
    found = device_augmentation.operate(
        torch.stack([pixels(image) for image, _, _ in cases]),
        torch.full((len(cases),), index),
        torch.tensor([magnitude for _, magnitude, _ in cases]),
        torch.tensor([int(sign < 0) for _, _, sign in cases]),
    )
    assert found.dtype == torch.uint8
    difference = (found.int() - expected.int()).abs()
    # A product in float32 may be rounded otherwise before it is cut to a level.
    allowed = 1 if index in (aug.AUTO_CONTRAST, aug.COLOR, aug.CONTRAST, aug.SHARPNESS) else 0
    assert difference.max() <= allowed
    assert (difference > 0).float().mean() < 1e-3


def test_operations_are_chosen_picture_by_picture(device_augmentation):
    image, count = smooth_picture(1, SQUARE), len(aug.OPERATIONS)
    found = device_augmentation.operate(
        pixels(image).expand(count, -1, -1, -1),
        torch.arange(count),
        torch.full((count,), 6),
        torch.zeros(count, dtype=torch.int64),
    )
    for index, one in enumerate(found):
        expected = pixels(aug.OPERATIONS[index](image, 6, 1.0)).int()
        assert (one.int() - expected).abs().max() <= 1, index


@pytest.mark.parametrize("length", [40, 95, 96, 97, 200])
def test_weights_are_those_of_pils_bicubic_filter(length):
    image = noise(3, (length, length))
    weights = bicubic_weights(torch.arange(length)[None], torch.tensor([length]), SIZE)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, SIZE))
    still = torch.eye(length)[None]
    for size, across, down in (((SIZE, length), weights, still), ((length, SIZE), still, weights)):
        expected = pixels(image.resize(size, Image.Resampling.BICUBIC)).int()
        difference = (resample(pixels(image)[None], across, down)[0].int() - expected).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 110, 110), (13, 5, 90, 105), (2, 30, 108, 80)])
def test_mirror_and_crop_are_those_of_pil(device_augmentation, mirrored, crop):
    image = smooth_picture(4, (110, 110), 30)
    drawn = aug.DrawnAugmentation(mirrored, crop, (STILL, STILL), NO_GRAY)
    found = device_augmentation(pixels(image)[None], torch.tensor([[110, 110, *drawn.numbers()]]))
    difference = (found[0] * 255 - pixels(aug.augment(image, drawn, SIZE))).abs()
    assert difference.max() <= 2  # rounded twice
    assert difference.mean() < 0.1


def test_a_mirrored_picture_of_the_same_size_is_exact():
    """Side 9 is resized to 8 pixels for a crop of 8 pixels: nothing is interpolated."""
    module, image = DeviceAugmentation(8), noise(2, (9, 9))
    drawn = aug.DrawnAugmentation(True, (0, 0, 8, 8), (STILL, STILL), (8, 8, 8, 8))
    found = module(pixels(image)[None], torch.tensor([[9, 9, *drawn.numbers()]]))
    assert torch.equal((found[0] * 255).round(), pixels(image).flip(2)[:, :8, :8].float())


def test_cut_out_is_exact(device_augmentation):
    image = smooth_picture(4, (110, 110))
    plain = aug.DrawnAugmentation(False, (0, 0, 110, 110), (STILL, STILL), NO_GRAY)
    boxes = [(0, 0, 7, 7), (90, 88, 96, 95), (40, 3, 47, 10)]
    rows = [[110, 110, *replace(plain, gray=box).numbers()] for box in (NO_GRAY, *boxes)]
    before, *after = device_augmentation(pixels(image).expand(4, -1, -1, -1), torch.tensor(rows))
    for (left, top, right, bottom), found in zip(boxes, after, strict=True):
        expected = before.clone()
        expected[:, top : bottom + 1, left : right + 1] = aug.CUTOUT_GRAY / 255
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 5), (3, 0)])
@pytest.mark.parametrize("bgr", [False, True])
def test_a_batch_is_augmented_as_on_the_host(device_augmentation, views, seed, epoch, bgr):
    transform = ImageTransform(kind="reference", image_size=SIZE, bgr=bgr)
    how = {"epoch": epoch, "seed": seed, "transform": transform}
    expected = load_images(views, range(len(views)), **how)
    images, parameters = load_raw_images(views, range(len(views)), **how)
    assert images.dtype == torch.uint8
    assert images.shape == (len(views), 3, 110, 110)
    found = device_augmentation(images, parameters)
    assert found.dtype == torch.float32
    difference = 255 * (found - expected).abs()
    assert difference.mean() < 0.5
    # Of each picture: a level's difference before solarize or equalize may become a large one.
    assert (difference.flatten(1).mean(1) < 1).float().mean() > 0.9


def test_what_is_drawn_is_the_hosts(views):
    _, parameters = load_raw_images(views, range(48), epoch=2, seed=9, transform=REFERENCE)
    for sample_id in (0, 31):
        rng = sample_rng(9, 2, sample_id)
        rng.integers(2)  # the view
        assert parameters[sample_id, 2:].tolist() == aug.draw_augmentation(SIZE, rng).numbers()


def test_a_sample_does_not_depend_on_its_batch_or_on_threads(device_augmentation, views):
    how = {"epoch": 1, "seed": 4, "transform": REFERENCE}
    whole = load_raw_images(views, range(48), **how)
    some = [30, 2, 17]
    part = load_raw_images([views[i] for i in some], some, num_threads=3, **how)
    assert torch.equal(part[0], whole[0][some])
    assert torch.equal(part[1], whole[1][some])
    difference = (device_augmentation(*part) - device_augmentation(*whole)[some]).abs()
    assert (difference * 255).mean() < 0.01  # products of other shapes may be summed otherwise


def test_it_is_one_graph_for_the_compiler(device_augmentation, views):
    images, parameters = load_raw_images(views[:6], range(6), epoch=0, seed=0, transform=REFERENCE)
    compiled = torch.compile(device_augmentation, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(images, parameters)
    torch.testing.assert_close(found, device_augmentation(images, parameters), rtol=0, atol=1e-2)
    assert found.dtype == torch.float32


def test_an_empty_batch_is_empty_and_only_the_reference_augmentation_is_drawn(
    device_augmentation, views
):
    images, parameters = load_raw_images([], [], epoch=0, seed=0, transform=REFERENCE)
    assert device_augmentation(images, parameters).shape == (0, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="'none': only 'reference' is drawn"):
        load_raw_images(views, range(48), epoch=0, seed=0, transform=ImageTransform())


@pytest.mark.parametrize(
    ("shape", "dtype", "numbers", "message"),
    [
        ((2, 3, SIZE, SIZE), torch.uint8, (2, 17), r"augmented from \(B, 3, 110, 110\) uint8"),
        ((2, 3, 110, 110), torch.float32, (2, 17), r"float32.* uint8"),
        ((2, 3, 110, 110), torch.uint8, (1, 17), r"shape \(1, 17\): 2 images take \(2, 17\)"),
    ],
)
def test_other_shapes_are_refused(device_augmentation, shape, dtype, numbers, message):
    with pytest.raises(ValueError, match=message):
        device_augmentation(
            torch.zeros(shape, dtype=dtype), torch.zeros(numbers, dtype=torch.int64)
        )
