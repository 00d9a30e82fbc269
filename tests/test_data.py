"""Data sets, splits, and batches that depend on (seed, stream, t) alone."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from darts_bio.data.batches import Augmentation, Batches, Normalization, Split, in_order
from darts_bio.data.datasets import DATASETS, DIGITS, ImageData, halves, load_data
from darts_bio.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def numbered(n: int, side: int = 6, channels: int = 1) -> Split:
    """Images of a single value each, their own number + 1."""
    images = (
        torch.arange(1, n + 1, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, channels, side, side)
    )
    return Split(images.contiguous(), torch.arange(n))


PLAIN = Augmentation()
IDENTITY = Normalization(torch.zeros(1), torch.ones(1))


def batches(split: Split, size: int, augmentation: Augmentation = PLAIN, seed: int = 0) -> Batches:
    return Batches(split, size, IDENTITY, augmentation, seed=seed, name="train", device=CPU)


class TestDigits:
    def test_fixed_stratified_split(self, digits: ImageData) -> None:
        assert len(digits.train) + len(digits.test) == 1797
        assert digits.train.images.dtype == torch.uint8
        assert digits.train.images.shape[1:] == (1, 8, 8)
        everything = torch.cat([digits.train.labels, digits.test.labels]).bincount()
        share = digits.test.labels.bincount() / everything
        assert (share - 0.2).abs().max() < 0.01
        assert torch.equal(load_data("digits", seed=7).test.images, digits.test.images)

    def test_pixels_are_the_sixteen_steps_over_the_whole_range(self, digits: ImageData) -> None:
        values = torch.cat([digits.train.images, digits.test.images]).unique()
        assert values.tolist() == [round(v * 255 / 16) for v in range(17)]

    def test_their_identity_stays(self, digits: ImageData) -> None:
        assert (
            digits.identity()
            == "1438 training + 359 test images of 1x8x8 in 10 classes, digest b58bd50050d414b1"
        )

    def test_they_are_those_of_scikit_learn(self) -> None:
        found = pytest.importorskip("sklearn.datasets").load_digits()
        with np.load(DIGITS, allow_pickle=False) as file:
            assert sorted(file.files) == ["images", "labels"]
            assert np.array_equal(file["images"], found.images)
            assert np.array_equal(file["labels"], found.target)

    def test_halves_are_disjoint_equal_and_seeded(self, digits: ImageData) -> None:
        split = numbered(9)
        one, two = halves(split, seed=0)
        assert len(one) == len(two) == 4
        assert not set(one.labels.tolist()) & set(two.labels.tolist())
        assert not torch.equal(halves(split, seed=1)[0].labels, one.labels)

    def test_a_part_of_the_training_images(self, digits: ImageData) -> None:
        part = load_data("digits", train_images=50, seed=3)
        assert len(part.train) == 50
        assert len(part.test) == len(digits.test)
        assert torch.equal(
            part.train.images, load_data("digits", train_images=50, seed=3).train.images
        )
        with pytest.raises(InputError, match="expected at most 1438, all of digits, found 5000"):
            load_data("digits", train_images=5000)


class TestNormalisation:
    def test_equals_the_definition(self) -> None:
        images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8)
        scaled = images.double() / 255
        normalization = Normalization.of(images)
        torch.testing.assert_close(
            normalization.mean.double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            normalization.std.double(), scaled.std((0, 2, 3), correction=0), rtol=1e-6, atol=0
        )
        expected = (scaled - scaled.mean((0, 2, 3), keepdim=True)) / scaled.std(
            (0, 2, 3), correction=0, keepdim=True
        )
        torch.testing.assert_close(normalization(images).double(), expected, rtol=1e-4, atol=1e-5)

    def test_constant_images_stay_finite(self) -> None:
        images = torch.full((2, 1, 3, 3), 9, dtype=torch.uint8)
        assert Normalization.of(images)(images).isfinite().all()


class TestBatches:
    def test_an_epoch_sees_each_image_once_in_an_order_of_its_own(self) -> None:
        stream = batches(numbered(12), 3)
        epochs = [torch.cat([stream.batch(e * 4 + i)[1] for i in range(4)]) for e in range(3)]
        for order in epochs:
            assert order.sort().values.tolist() == list(range(12))
        assert len({tuple(order.tolist()) for order in epochs}) == 3

    def test_what_does_not_fill_a_batch_is_left_out(self) -> None:
        assert batches(numbered(11), 3).per_epoch == 3

    def test_a_batch_depends_on_seed_name_and_t_alone(self) -> None:
        augmentation = Augmentation(crop_padding=2, flip=True, cutout=3)
        split = Split(torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8), torch.arange(20))
        forward = [batches(split, 4, augmentation).batch(t)[0] for t in range(12)]
        stream = batches(split, 4, augmentation)
        before = torch.get_rng_state()
        for t in reversed(range(12)):
            assert torch.equal(stream.batch(t)[0], forward[t])
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(batches(split, 4, augmentation, seed=1).batch(0)[0], forward[0])

    def test_each_image_is_cropped_and_mirrored_by_itself_as_by_hand(self) -> None:
        split = Split(torch.randint(1, 256, (64, 2, 5, 7), dtype=torch.uint8), torch.arange(64))
        x, labels = batches(split, 64, Augmentation(crop_padding=2, flip=True)).batch(0)
        seen = set()
        for image, label in zip((x * 255).round().to(torch.uint8), labels, strict=True):
            padded = torch.nn.functional.pad(split.images[label], (2, 2, 2, 2))
            crops = {
                (dy, dx, mirrored): (c.flip(-1) if mirrored else c)
                for dy in range(5)
                for dx in range(5)
                for mirrored in (False, True)
                for c in [padded[:, dy : dy + 5, dx : dx + 7]]
            }
            found = [key for key, crop in crops.items() if torch.equal(crop, image)]
            assert len(found) == 1
            seen.add(found[0])
        assert len(seen) > 25
        assert {mirrored for _, _, mirrored in seen} == {False, True}

    def test_cutout_blanks_one_square_to_the_mean(self) -> None:
        split = Split(
            torch.full((200, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(200, dtype=torch.long)
        )
        x, _ = batches(split, 200, Augmentation(cutout=4)).batch(0)
        blank = (x == 0).squeeze(1)
        sizes = blank.sum((1, 2))
        assert sizes.max() == 16
        assert sizes.min() >= 4
        rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
        assert torch.equal(rows * columns, sizes)
        assert blank.any(0).all()

    @pytest.mark.parametrize("side", [1, 2, 4, 5])
    def test_the_square_is_cut_off_where_it_leaves_the_image(self, side: int) -> None:
        """From its center it reaches side // 2 back and the rest on, as that of DARTS does for an
        even side; centers are everywhere alike, on the border as well.
        """
        count, height, width = 6000, 6, 8
        split = Split(
            torch.full((count, 1, height, width), 255, dtype=torch.uint8),
            torch.zeros(count, dtype=torch.long),
        )
        x, _ = batches(split, count, Augmentation(cutout=side)).batch(0)
        blank = (x == 0).squeeze(1).numpy()
        expected = {}
        for center in np.ndindex(height, width):
            square = np.zeros((height, width), dtype=bool)
            for place in np.ndindex(side, side):
                row, column = (c - side // 2 + i for c, i in zip(center, place, strict=True))
                if 0 <= row < height and 0 <= column < width:
                    square[row, column] = True
            expected[center] = square.tobytes()
        times = dict.fromkeys(expected.values(), 0)
        for square in blank:
            times[square.tobytes()] += 1  # KeyError: a square that no center has
        shares = {square: list(expected.values()).count(square) / 48 for square in times}
        # Each is within 5 standard deviations of its binomial law: one seed in 40,000 is not.
        for square, share in shares.items():
            deviation = (count * share * (1 - share)) ** 0.5
            assert abs(times[square] - count * share) < 5 * deviation

    def test_the_square_is_of_what_is_zero_after_normalization(self) -> None:
        """As in the published code of DARTS: the mean of the channel, not black."""
        split = Split(
            torch.full((50, 2, 6, 6), 51, dtype=torch.uint8), torch.zeros(50, dtype=torch.long)
        )
        normalization = Normalization(torch.tensor([0.5, 0.1]), torch.tensor([0.25, 0.5]))
        x, _ = Batches(
            split, 50, normalization, Augmentation(cutout=3), seed=0, name="train", device=CPU
        ).batch(0)
        assert ((x == 0).sum((1, 2, 3)) >= 8).all()
        for channel, value in enumerate([(0.2 - 0.5) / 0.25, (0.2 - 0.1) / 0.5]):
            other = x[:, channel][x[:, channel] != 0]
            assert torch.allclose(other, torch.full_like(other, value), atol=1e-6)
        assert torch.equal(x[:, 0] == 0, x[:, 1] == 0)

    def test_padding_is_black_before_normalization(self) -> None:
        """As torchvision's RandomCrop has it, before ToTensor and Normalize."""
        split = Split(
            torch.full((50, 1, 6, 6), 255, dtype=torch.uint8), torch.zeros(50, dtype=torch.long)
        )
        normalization = Normalization(torch.tensor([0.5]), torch.tensor([0.25]))
        x, _ = Batches(
            split, 50, normalization, Augmentation(crop_padding=3), seed=0, name="train", device=CPU
        ).batch(0)
        assert x.unique().tolist() == pytest.approx([-2.0, 2.0], abs=1e-6)

    def test_a_batch_larger_than_the_split(self) -> None:
        with pytest.raises(
            InputError,
            match="--batch-size: expected at most 5, the images of the train split, found 6",
        ):
            batches(numbered(5), 6)

    @pytest.mark.parametrize("what", ["cutout", "crop_padding"])
    def test_an_augmentation_that_leaves_nothing_of_the_image(self, what: str) -> None:
        option = "--" + what.replace("_", "-")
        with pytest.raises(
            InputError, match=f"{option}: expected less than 6, the side of the images, found 16"
        ):
            batches(numbered(5), 2, Augmentation(**{what: 16}))

    def test_in_order_sees_everything_once(self) -> None:
        parts = [labels for _, labels in in_order(numbered(7), 3, IDENTITY)]
        assert torch.cat(parts).tolist() == list(range(7))


def draw(path: Path, value: int, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path)


class TestFolder:
    def test_train_and_val(self, tmp_path: Path) -> None:
        for split, n in (("train", 3), ("val", 2)):
            for label, name in enumerate(("ants", "bees")):
                for i in range(n):
                    draw(
                        tmp_path / split / name / f"{i}.png",
                        100 * label + i,
                        mode="L" if i else "RGB",
                    )
        data = load_data("folder", str(tmp_path), image_size=4)
        assert data.classes == ("ants", "bees")
        assert data.train.images.shape == (6, 3, 4, 4)
        assert data.test.labels.tolist() == [0, 0, 1, 1]
        assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]

    def test_one_folder_is_split_by_class(self, tmp_path: Path) -> None:
        for name, n in (("ants", 10), ("bees", 20)):
            for i in range(n):
                draw(tmp_path / name / f"{i}.jpg", i)
        data = load_data("folder", str(tmp_path))
        assert data.test.labels.bincount().tolist() == [2, 4]
        assert data.train.images.shape == (24, 3, 32, 32)

    def test_the_shorter_side_is_resized_and_the_centre_kept(self, tmp_path: Path) -> None:
        wide = np.zeros((8, 24, 3), np.uint8)
        wide[:, 8:16] = 255
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(5):
                Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
        images = load_data("folder", str(tmp_path), image_size=8).train.images
        assert images.float().mean() > 250

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="needs --data-dir"):
            load_data("folder")
        with pytest.raises(InputError, match="found no folder"):
            load_data("folder", str(tmp_path / "nowhere"))
        with pytest.raises(InputError, match="at least 2, found 0"):
            load_data("folder", str(tmp_path))
        draw(tmp_path / "ants" / "0.png", 1)
        (tmp_path / "bees").mkdir()
        with pytest.raises(InputError, match="bees: expected images"):
            load_data("folder", str(tmp_path))
        (tmp_path / "bees" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        with pytest.raises(InputError, match="bad.png: not a readable image"):
            load_data("folder", str(tmp_path))

    def test_a_class_of_few_images_has_one_to_test_on(self, tmp_path: Path) -> None:
        for name, n in (("ants", 2), ("bees", 5)):
            for i in range(n):
                draw(tmp_path / name / f"{i}.png", i)
        data = load_data("folder", str(tmp_path))
        assert data.test.labels.tolist() == [0, 1]
        assert data.train.labels.bincount().tolist() == [1, 4]
        (tmp_path / "ants" / "1.png").unlink()
        with pytest.raises(
            InputError, match="ants: expected at least 2 images, one of them for testing, found 1"
        ):
            load_data("folder", str(tmp_path))

    @pytest.mark.parametrize("suffix", ["png", "pgm"])
    def test_sixteen_bits_are_scaled(self, tmp_path: Path, suffix: str) -> None:
        for name in ("ants", "bees"):
            (tmp_path / name).mkdir()
            for i, value in enumerate((0, 257 * 100, 65535)):
                path, pixels = tmp_path / name / f"{i}.{suffix}", np.full((8, 8), value, np.uint16)
                if suffix == "pgm":  # older versions of Pillow read it, but do not write it
                    path.write_bytes(b"P5 8 8 65535\n" + pixels.astype(">u2").tobytes())
                else:
                    Image.fromarray(pixels).save(path)
        data = load_data("folder", str(tmp_path), image_size=4)
        values = torch.cat([data.train.images, data.test.images]).unique()
        assert values.tolist() == [0, 100, 255]

    def test_hidden_files_are_passed_over(self, tmp_path: Path) -> None:
        for name in ("ants", "bees"):
            for i in range(2):
                draw(tmp_path / name / f"{i}.png", i)
            (tmp_path / name / "._0.png").write_bytes(b"what a system left behind")
            draw(tmp_path / name / ".thumbnails" / "0.png", 1)
        data = load_data("folder", str(tmp_path))
        assert len(data.train) + len(data.test) == 4

    def test_an_image_of_too_many_pixels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("ants", "bees"):
            for i in range(2):
                draw(tmp_path / name / f"{i}.png", i)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(
            InputError, match=r"0.png: not a readable image \(Image size \(80 pixels\) exceeds"
        ):
            load_data("folder", str(tmp_path))

    def test_a_name_that_is_too_long(self) -> None:
        with pytest.raises(
            InputError, match=r"--data-dir a+: folder cannot be read \(File name too long\)"
        ):
            load_data("folder", "a" * 300)

    def test_truncated_image(self, tmp_path: Path) -> None:
        for name in ("ants", "bees"):
            draw(tmp_path / name / "0.jpg", 9, size=(200, 200))
        path = tmp_path / "bees" / "0.jpg"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(InputError, match="0.jpg: not a readable image"):
            load_data("folder", str(tmp_path))

    def test_train_without_test(self, tmp_path: Path) -> None:
        for name in ("ants", "bees"):
            draw(tmp_path / "train" / name / "0.png", 1)
        with pytest.raises(InputError, match="expected a folder val or test beside it"):
            load_data("folder", str(tmp_path))


class TestCifar:
    def test_without_data_and_network_both_ways_out_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torchvision.datasets import cifar

        def no_network(*args: object, **kwargs: object) -> None:
            raise OSError("Network is unreachable")

        monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
        match = "Network is unreachable.: give --data-dir DIR, where DIR holds cifar-10-batches-py, or run once"
        with pytest.raises(InputError, match=match) as caught:
            load_data("cifar10", str(tmp_path / "new"))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()

    def test_a_torchvision_of_another_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken(ModuleType):
            def __getattr__(self, name: str) -> None:
                raise RuntimeError("operator torchvision::nms does not exist\nmore lines")

        monkeypatch.setitem(sys.modules, "torchvision", Broken("torchvision"))
        with pytest.raises(
            InputError, match=r"nms does not exist.*pip install --force-reinstall torch torchvision"
        ):
            load_data("cifar10")

    @pytest.mark.cifar
    @pytest.mark.skipif(
        "DARTS_BIO_DATA" not in os.environ,
        reason="DARTS_BIO_DATA does not name a folder with CIFAR",
    )
    def test_the_real_ones(self) -> None:
        data = load_data("cifar10", os.environ["DARTS_BIO_DATA"])
        assert (len(data.train), len(data.test), len(data.classes)) == (50000, 10000, 10)
        normalization = Normalization.of(data.train.images)
        published = (
            torch.tensor([0.49139968, 0.48215827, 0.44653124]),
            torch.tensor([0.24703233, 0.24348505, 0.26158768]),
        )
        torch.testing.assert_close(
            (normalization.mean, normalization.std), published, rtol=0, atol=1e-4
        )
        assert len(load_data("cifar100", os.environ["DARTS_BIO_DATA"]).classes) == 100


def test_names_and_options() -> None:
    with pytest.raises(
        InputError, match=r"unknown data set 'cifar': did you mean 'cifar10' or 'cifar100'\?"
    ):
        load_data("cifar")
    for name in ("digits", "cifar10", "cifar100"):
        with pytest.raises(
            InputError, match=f"--image-size: {name} keeps its own size; leave the option out"
        ):
            load_data(name, image_size=16)


def test_the_digits_are_read_from_no_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            InputError, match="--data-dir: digits come with .*; leave the option out"
        ):
            load_data("digits", str(folder))


def test_a_loader_of_a_users_own_may_resize_and_is_checked() -> None:
    good = Split(torch.zeros(4, 1, 5, 5, dtype=torch.uint8), torch.arange(4) % 2)
    made: dict[str, ImageData] = {}
    DATASETS.register("mine")(lambda data_dir, image_size: made[str(image_size)])
    bad = {
        "1": replace(good, images=good.images.float()),
        "2": replace(good, images=good.images[0]),
        "3": replace(good, labels=good.labels.int()),
        "4": replace(good, labels=good.labels + 1),
        "5": replace(good, labels=good.labels[:2]),
        "6": good[slice(0, 0)],
        "7": replace(good, images=good.images[..., :3]),
    }
    try:
        made["8"] = ImageData(good, good, ("a", "b"))
        assert load_data("mine", image_size=8) is made["8"]
        for key, split in bad.items():
            made[key] = ImageData(good, split, ("a", "b"))
            with pytest.raises(
                InputError, match="data set mine, test images: expected uint8 .*mend the function"
            ):
                load_data("mine", image_size=int(key))
    finally:
        DATASETS.unregister("mine")


def test_a_data_set_is_recognized_by_its_images_labels_and_classes() -> None:
    digits = load_data("digits")
    assert digits.identity() == load_data("digits").identity()
    assert digits.identity().startswith(
        "1438 training + 359 test images of 1x8x8 in 10 classes, digest "
    )
    images = digits.test.images.clone()
    images[-1, 0, 0, 0] += 1
    others = [
        replace(digits, classes=(*digits.classes[:-1], "x")),
        replace(digits, test=replace(digits.test, images=images)),
        replace(digits, train=digits.train[slice(0, 1437)]),
        replace(digits, train=digits.test, test=digits.train),
    ]
    assert len({digits.identity(), *(other.identity() for other in others)}) == 5


def test_torchvisions_own_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of torchvision's layout with 2 + 1 images, its check sums bent to it."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    for name, rows in (("data_batch_1", pixels), ("test_batch", pixels[:1])):
        (base / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(len(rows)))}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None}
    )
    data = load_data("cifar10", str(tmp_path))
    assert data.classes == ("a", "b")
    assert torch.equal(data.train.images, torch.from_numpy(pixels.reshape(2, 3, 32, 32)))
    assert data.test.labels.tolist() == [0]
