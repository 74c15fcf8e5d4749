from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import encoded
from pictures import noise as picture
from PIL import Image, ImageEnhance, ImageOps

from recon_ray.data.loading import augmentation as aug
from recon_ray.data.loading.images import (
    ImageTransform,
    decode_image,
    load_images,
    resize_and_crop,
    sample_rng,
)
from recon_ray.errors import DataError

# Mirrored; crop; two operations, each index, magnitude, negative; gray box.
GOLDEN = [
    [0, 8, 16, 227, 233, 13, 4, 1, 9, 4, 1, 193, 90, 209, 106],
    [1, 18, 9, 186, 240, 9, 6, 0, 2, 2, 0, 158, 163, 174, 179],
    [1, 9, 2, 112, 111, 5, 5, 1, 2, 7, 1, 40, 82, 48, 90],
]


def load(rows, ids, epoch=0, seed=0, num_threads=1, **transform):
    transform = ImageTransform(**{"image_size": 16, **transform})
    return load_images(
        rows, ids, epoch=epoch, seed=seed, transform=transform, num_threads=num_threads
    )


@pytest.fixture
def views():
    return [[encoded(picture(3 * row + v)) for v in range(3)] for row in range(6)]


class FixedRng:
    """A generator that hands out given numbers, to pin a random decision."""

    def __init__(self, *, random=(), integers=(), uniform=()):
        self.queues = {"random": list(random), "integers": list(integers), "uniform": list(uniform)}

    def random(self):
        return self.queues["random"].pop(0)

    def integers(self, *args, size=None):
        drawn = [self.queues["integers"].pop(0) for _ in range(size or 1)]
        return np.array(drawn) if size else drawn[0]

    def uniform(self, low, high):
        return self.queues["uniform"].pop(0)


def test_pictures_decode_to_their_rgb_pixels():
    image = picture()
    found = decode_image(encoded(image), 0)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 30, 40)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image))
    flat = Image.new("RGB", (16, 16), (200, 30, 60))
    assert (decode_image(encoded(flat, "JPEG"), 0)[0].float() - 200).abs().max() <= 3  # lossy
    gray = decode_image(encoded(Image.new("L", (8, 8), 9)), 0)
    assert torch.equal(gray, torch.full((3, 8, 8), 9, dtype=torch.uint8))
    clear = decode_image(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 0))), 0)
    assert clear[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(picture())[:60], encoded(picture(), "BMP")]
)
def test_unreadable_views_name_the_sample(data):
    with pytest.raises(DataError, match="Sample 4711"):
        decode_image(data, 4711)
    with pytest.raises(DataError, match="Sample 4711"):
        load([[data]], [4711])


@pytest.mark.parametrize("views", [[], None, np.array([], dtype=object)])
def test_samples_without_views_are_named(views):
    with pytest.raises(DataError, match=r"Sample 5 has no view"):
        load([views], [5])


def test_views_may_come_as_object_arrays(views):
    arrays = [np.array(row, dtype=object) for row in views]
    assert torch.equal(load(arrays, range(6)), load(views, range(6)))


def test_plain_transform_keeps_the_middle_of_the_shorter_side():
    image = Image.new("RGB", (60, 30), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 30))
    found = np.asarray(resize_and_crop(image, 30))
    assert found.shape == (30, 30, 3)
    assert (found[:, 5:25] == 255).all()  # columns 15..45 of the image; white from 20 to 40
    assert (found[:, :5] == 0).all()


def test_an_image_of_the_right_size_is_unchanged_and_bgr_exchanges_red_and_blue(views):
    image = picture(size=(24, 24))
    found = load([[encoded(image)]], [0], epoch=3, seed=1, image_size=24)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    assert torch.equal(found[0], expected)
    rows = [[encoded(picture(size=(24, 24)))]]
    rgb, bgr = (load(rows, [0], image_size=24, bgr=bgr) for bgr in (False, True))
    assert torch.equal(bgr, rgb.flip(1))
    assert not torch.equal(bgr, rgb)


@pytest.mark.parametrize("kind", ["none", "reference"])
def test_a_sample_does_not_depend_on_its_batch_order_or_threads(views, kind):
    how = {"epoch": 2, "seed": 9, "kind": kind, "image_size": 32}
    ids = [10, 11, 12, 13, 14, 15]
    whole = load(views, torch.tensor(ids), **how)
    assert whole.shape == (6, 3, 32, 32)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1
    order = [4, 0, 5]
    part = load([views[i] for i in order], [ids[i] for i in order], num_threads=3, **how)
    assert torch.equal(part, whole[order])


@pytest.mark.parametrize(("epoch", "seed"), [(1, 0), (0, 1)])
def test_epochs_and_seeds_differ(views, epoch, seed):
    how = {"kind": "reference", "image_size": 32}
    first = load(views, range(6), **how)
    other = load(views, range(6), epoch=epoch, seed=seed, **how)
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_view_is_chosen_about_equally_often():
    flat = [[encoded(Image.new("RGB", (8, 8), (v, v, v))) for v in range(4)]]
    found = load(flat * 400, range(400), image_size=8)
    counts = torch.bincount((found[:, 0, 0, 0] * 255).round().long(), minlength=4)
    # Binomial(400, 1/4): standard deviation 8.7; six of them.
    assert (counts - 100).abs().max() < 52


def test_an_empty_batch_is_empty_and_ids_and_rows_must_agree(views):
    assert load([], [], image_size=8).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="6 rows of views have 2 sample ids"):
        load(views, [1, 2])


@pytest.mark.parametrize("options", [{"kind": "strong"}, {"image_size": 4}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        ImageTransform(**options)


# ---- the reference's augmentation ----------------------------------------------------------------
def test_what_is_drawn_for_a_sample_never_changes():
    """Recorded from the first version: other numbers are another augmentation of every set."""
    assert aug.draw_augmentation(224, sample_rng(0, 0, 0)).numbers() == GOLDEN[0]
    assert aug.draw_augmentation(224, sample_rng(7, 3, 123456)).numbers() == GOLDEN[1]
    assert aug.draw_augmentation(112, sample_rng(1, 0, 5)).numbers() == GOLDEN[2]


def test_reference_augmentation_without_chance_is_resize_crop_and_cut_out():
    image = picture(size=(300, 200))
    # Not mirrored; two operations, neither applied.
    rng = FixedRng(
        random=[0.7, 0.1, 0.6, 0.1, 0.6],
        uniform=[1.0, 0.0, 100.0, 50.0],
        integers=[0, 0, aug.SOLARIZE, aug.ROTATE, 9, 9],
    )
    found = ImageTransform(kind="reference")(image, rng)
    resized = image.resize((256, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.resize((224, 224), Image.Resampling.BICUBIC)).copy()
    expected[42:59, 92:109] = 127  # corner 100 - 8, 50 - 8; 17 pixels
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_reference_augmentation_flips_with_probability_one_half():
    flips = [aug.draw_augmentation(224, sample_rng(0, 0, i)).mirrored for i in range(400)]
    # Binomial(400, 1/2): standard deviation 10; six of them.
    assert abs(sum(flips) - 200) < 60
    image, still = picture(size=(256, 256)), (aug.DrawnOperation(aug.IDENTITY, 1, 1.0),) * 2
    plain, flipped = (
        aug.augment(
            image, aug.DrawnAugmentation(mirrored, (0, 0, 256, 256), still, (224,) * 4), 224
        )
        for mirrored in (False, True)
    )  # the gray box is outside
    np.testing.assert_array_equal(np.asarray(flipped), np.asarray(plain)[:, ::-1])


@pytest.mark.parametrize(
    ("at", "rows", "columns"),
    [
        ((3.0, 100.0), slice(92, 109), slice(0, 17)),  # clipped at the corner, not in size
        ((223.9, 223.9), slice(215, 224), slice(215, 224)),
        ((100.9, 8.2), slice(0, 17), slice(92, 109)),
    ],
)
def test_cut_out_is_gray_clipped_and_seventeen_pixels(at, rows, columns):
    image = Image.new("RGB", (224, 224))
    found = np.asarray(aug.cut_out(image, aug.draw_gray(224, 16, FixedRng(uniform=at))))
    expected = np.zeros((224, 224, 3), dtype=np.uint8)
    expected[rows, columns] = 127
    np.testing.assert_array_equal(found, expected)
    assert np.asarray(image).max() == 0  # the input is left alone


def test_crops_have_the_stated_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = [aug.draw_crop(256, 256, rng) for _ in range(500)]
    left, top, width, height = np.array(boxes).T
    area, ratio = width * height / 256**2, width / height
    # Sides are rounded to pixels: up to half of one in 205.
    assert area.min() >= 0.63
    assert area.max() <= 1
    # Uniform areas, of which the large ones fit at few ratios only: the integral gives 0.766;
    # the standard error of 500 is 0.004.
    assert abs(area.mean() - 0.766) < 0.02
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert (left + width).max() <= 256
    assert (top + height).max() <= 256


def test_a_crop_that_never_fits_is_the_middle():
    image = Image.new("RGB", (400, 40))
    image.paste((255, 255, 255), (173, 0, 226, 40))  # the middle 53 columns: 40 * 4 / 3
    crop = aug.draw_crop(400, 40, np.random.default_rng(0))
    found = np.asarray(aug.crop_and_resize(image, crop, 32))
    assert found.shape == (32, 32, 3)
    assert (found == 255).all()


def test_operations_follow_the_table():
    image = picture(size=(100, 50))
    bicubic_free = Image.Transform.AFFINE

    def affine(*coefficients):
        return image.transform(image.size, bicubic_free, coefficients)

    v = 7
    expected = [
        ImageOps.autocontrast(image),
        ImageOps.equalize(image),
        image,
        ImageEnhance.Brightness(image).enhance(0.68),
        ImageEnhance.Color(image).enhance(0.68),
        ImageEnhance.Contrast(image).enhance(0.68),
        ImageEnhance.Sharpness(image).enhance(0.68),
        affine(1, -0.21, 0, 0, 1, 0),
        affine(1, 0, 0, -0.21, 1, 0),
        affine(1, 0, -21, 0, 1, 0),
        affine(1, 0, 0, 0, 1, -10),
        ImageOps.posterize(image, 6),
        image.rotate(-21),
        ImageOps.solarize(image, 77),
    ]
    assert len(aug.OPERATIONS) == len(expected) == 14
    for index, (operation, wanted) in enumerate(zip(aug.OPERATIONS, expected, strict=True)):
        found = operation(image, v, -1.0)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted), err_msg=str(index))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("magnitude", range(1, 10))
def test_rotation_is_that_of_pil(magnitude, sign):
    image = picture(size=(61, 40))
    found = aug.OPERATIONS[aug.ROTATE](image, magnitude, sign)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.rotate(sign * 3 * magnitude)))


def test_two_operations_are_drawn_with_one_half_each():
    image = picture()
    # Magnitudes 9 and 4; signs + and -; the first applied, the second not.
    rng = FixedRng(integers=[aug.SOLARIZE, aug.ROTATE, 9, 4], random=[0.1, 0.4, 0.9, 0.6])
    drawn = aug.draw_operations(rng)
    assert drawn == (
        aug.DrawnOperation(aug.SOLARIZE, 9, 1.0),
        aug.DrawnOperation(aug.IDENTITY, 4, -1.0),
    )
    found = aug.operate(image, drawn)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(ImageOps.solarize(image, 26)))


def test_operations_magnitudes_and_signs_are_drawn_alike():
    rng = sample_rng(0, 0, 0)
    drawn = [one for _ in range(1400) for one in aug.draw_operations(rng)]
    applied = [one.index for one in drawn if one.index != aug.IDENTITY]
    # Binomial(2800, 13/28): standard deviation 26; six of them. Then 100 +- 10 of each operation.
    assert abs(len(applied) - 1300) < 158
    counts = np.bincount(applied, minlength=len(aug.OPERATIONS))
    assert np.abs(np.delete(counts, aug.IDENTITY) - 100).max() < 60
    assert {one.magnitude for one in drawn} == set(range(1, 10))
    assert abs(sum(one.sign for one in drawn)) < 318


def test_cut_out_scales_with_the_image():
    transform = ImageTransform(kind="reference", image_size=112)
    white = Image.new("RGB", (112, 112), (127, 127, 127))
    assert transform(white, sample_rng(0, 0, 0)).size == (112, 112)
    box = aug.draw_gray(112, 8, FixedRng(uniform=[50, 50]))
    found = np.asarray(aug.cut_out(Image.new("RGB", (112, 112)), box))
    assert (found == 127).all(axis=2).sum() == 81
