"""Images read from disk by worker processes: order and augmentation by seed, what is damaged, what
is no data set.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from darts_bio.config import ImageNetConfig
from darts_bio.data.batches import Augmentation, Batches, Normalization, Split
from darts_bio.data.files import ImageFiles
from darts_bio.data.loader import Damaged, OrderedLoader, SeededLoader, _start_worker
from darts_bio.data.sources import open_source
from darts_bio.data.streams import ImageStream
from darts_bio.errors import InputError
from darts_bio.runtime import derive_seed

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:This DataLoader will create:UserWarning"
    ),  # on a machine of one core
    pytest.mark.filterwarnings(
        "ignore:.*use of fork:DeprecationWarning"
    ),  # of Python 3.12, about pytest's own threads
]

CPU = torch.device("cpu")


class Numbers:
    """Images of four values: their index, and a draw from each of the three default generators."""

    def __init__(self, n: int, damaged: tuple[int, ...] = ()) -> None:
        self.n, self.damaged = n, damaged

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index in self.damaged:
            raise Damaged(f"{index}.png", "torn")
        draws = [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]
        return np.array([index, *draws], dtype=np.uint8).reshape(1, 2, 2), index


class Failing(Numbers):
    """The worker that reads the last image raises an error, or is killed."""

    def __init__(self, n: int, error: Exception | None) -> None:
        super().__init__(n)
        self.error = error

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index == self.n - 1:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def loader(
    items: Numbers, size: int = 4, workers: int = 0, share: tuple[int, int] = (0, 1), seed: int = 0
) -> SeededLoader:
    return SeededLoader(
        items=items,
        batch_size=size,
        seed=seed,
        name="train",
        workers=workers,
        device=CPU,
        share=share,
    )


def ordered(
    items: Numbers, size: int = 4, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> OrderedLoader:
    return OrderedLoader(items=items, batch_size=size, workers=workers, device=CPU, share=share)


def images(stream: SeededLoader, times: range) -> list[Tensor]:
    with contextlib.closing(stream):
        return [stream.batch(t)[0] for t in times]


def no_children() -> bool:
    return not multiprocessing.active_children()


class TestSeededLoader:
    def test_the_order_is_that_of_images_in_memory(self) -> None:
        split = Split(torch.zeros(11, 1, 2, 2, dtype=torch.uint8), torch.arange(11))
        identity = Normalization(torch.zeros(1), torch.ones(1))
        known = Batches(split, 4, identity, Augmentation(), seed=3, name="train", device=CPU)
        stream = loader(Numbers(11), seed=3)
        assert stream.per_epoch == known.per_epoch == 2
        for t in range(6):
            x, labels = stream.batch(t)
            assert torch.equal(labels, known.batch(t)[1])
            assert torch.equal(x[:, 0, 0, 0].long(), labels)

    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_a_batch_depends_on_seed_and_t_alone(self, workers: int) -> None:
        forward = images(loader(Numbers(11)), range(6))
        with contextlib.closing(loader(Numbers(11), workers=workers)) as stream:
            for t in (3, 4, 5, 1, 2, 5, 0):  # a run that is resumed, and any other order
                assert torch.equal(stream.batch(t)[0], forward[t])
        assert not torch.equal(images(loader(Numbers(11), seed=1), range(1))[0], forward[0])
        draws = torch.cat(forward).flatten(1)[:, 1:]
        assert len(draws.unique(dim=0)) == len(draws)
        assert no_children()

    def test_each_sample_starts_all_generators_from_a_seed_of_its_own(self) -> None:
        for t, x in enumerate(images(loader(Numbers(11)), range(3))):
            for i, (index, *draws) in enumerate(x.flatten(1).tolist()):
                seed = derive_seed("augment", 0, "train", 4 * t + i)
                expected = (
                    random.Random(seed),
                    np.random.RandomState(seed % 2**32),
                    torch.Generator(),
                )
                expected[2].manual_seed(seed)
                assert 0 <= index < 11
                assert draws == [
                    expected[0].randrange(256),
                    expected[1].randint(256),
                    int(torch.randint(256, (), generator=expected[2])),
                ]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_two_processes_read_the_halves_of_what_one_would(self, workers: int) -> None:
        whole = images(loader(Numbers(13)), range(5))
        halves = [
            images(loader(Numbers(13), workers=workers, share=(rank, 2)), range(5))
            for rank in range(2)
        ]
        for one, *parts in zip(whole, *halves, strict=True):
            assert torch.equal(torch.cat(parts), one)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_generators_and_handlers_of_the_main_process_stay_as_they_are(
        self, workers: int
    ) -> None:
        def state() -> bytes:
            handlers = [
                signal.getsignal(s) for s in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
            ]
            return repr(
                (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist(), handlers)
            ).encode()

        before = state()
        images(loader(Numbers(11), workers=workers), range(3))
        with contextlib.closing(ordered(Numbers(11), workers=workers)) as stream:
            assert len(list(stream)) == 3
        assert state() == before

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_image_is_replaced_by_the_next(self, workers: int) -> None:
        stream, whole = loader(Numbers(9, damaged=(2, 3, 8)), 3, workers), loader(Numbers(9), 3)
        with contextlib.closing(stream):
            for t in range(6):
                expected = [{2: 4, 3: 4, 8: 0}.get(i, i) for i in whole.batch(t)[1].tolist()]
                x, labels = stream.batch(t)
                assert labels.tolist() == expected == x[:, 0, 0, 0].tolist()
                assert torch.equal(x.flatten(1)[:, 1:], whole.batch(t)[0].flatten(1)[:, 1:])
        assert dict(sorted(stream.damaged.items())) == {
            "2.png": "torn",
            "3.png": "torn",
            "8.png": "torn",
        }

    @pytest.mark.parametrize("workers", [0, 1])
    def test_nothing_but_damaged_images(self, workers: int) -> None:
        stream = loader(Numbers(150, damaged=tuple(range(150))), workers=workers)
        with (
            contextlib.closing(stream),
            pytest.raises(
                InputError, match=r"100 images in a row cannot be read, among them \d+.png \(torn\)"
            ),
        ):
            stream.batch(0)

    def test_a_batch_larger_than_the_split(self) -> None:
        with pytest.raises(
            InputError,
            match="--batch-size: expected at most 3, the images of the train split, found 4",
        ):
            loader(Numbers(3))


class TestOrderedLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_three_processes_see_each_image_once(self, workers: int) -> None:
        seen: list[int] = []
        for rank in range(3):
            with contextlib.closing(
                ordered(Numbers(25, damaged=(7, 24)), 4, workers, (rank, 3))
            ) as stream:
                own = [labels for _, labels in stream]
                assert all(len(labels) <= 4 for labels in own)
                assert torch.cat(own).tolist() == [
                    i for i in range(rank, 25, 3) if i not in (7, 24)
                ]
                seen += torch.cat(own).tolist()
                assert set(stream.damaged) == {f"{i}.png" for i in (7, 24) if i % 3 == rank}
        assert sorted(seen) == [i for i in range(25) if i not in (7, 24)]

    def test_the_same_workers_go_through_it_again(self) -> None:
        with contextlib.closing(ordered(Numbers(10), workers=2)) as stream:
            first = [x for x, _ in stream]
            workers = {child.pid for child in multiprocessing.active_children()}
            next(iter(stream))  # one that is broken off
            assert all(torch.equal(one, two) for one, (two, _) in zip(first, stream, strict=True))
            assert len(workers) == 2
            assert {child.pid for child in multiprocessing.active_children()} == workers
        assert no_children()

    def test_a_batch_of_damaged_images_alone_is_left_out(self) -> None:
        assert [labels.tolist() for _, labels in ordered(Numbers(6, damaged=(2, 3)), 2)] == [
            [0, 1],
            [4, 5],
        ]


class TestWorkers:
    def test_one_that_is_killed(self) -> None:
        """As the system does where memory is short."""
        with contextlib.closing(ordered(Failing(8, None), workers=1)) as stream:
            with pytest.raises(
                InputError,
                match="worker process that reads images failed.*exited unexpectedly.*--workers",
            ):
                list(stream)
            assert no_children()

    @pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "reset by peer")])
    def test_one_whose_pipe_closes_before_its_death_is_signaled(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with contextlib.closing(ordered(Numbers(64), workers=2)) as stream:
            batches = iter(stream)
            next(batches)

            def dies(iterator: object) -> None:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
                raise error

            monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__next__", dies)
            with pytest.raises(InputError, match=r"failed \(.*exited unexpectedly.*--workers"):
                next(batches)
            assert no_children()

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (MemoryError(), r"failed \(MemoryError"),
            (KeyError("x"), r"failed \(KeyError: 'x'"),
            (InputError("--x: expected y"), "^--x: expected y$"),
        ],
    )
    def test_one_that_raises(self, error: Exception, expected: str) -> None:
        stream = ordered(Failing(8, error), workers=1)
        with pytest.raises(InputError, match=expected):
            list(stream)
        assert no_children()
        with pytest.raises(type(error)):  # in this process it is seen as it is
            list(ordered(Failing(8, error)))

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere SIGTERM ends a worker")
    def test_signals_for_the_whole_job_leave_them_alive(self) -> None:
        with contextlib.closing(loader(Numbers(64), workers=2)) as stream:
            stream.batch(0)
            for name in ("INT", "TERM"):
                pids = [str(child.pid) for child in multiprocessing.active_children()]
                subprocess.run(["sh", "-c", f"kill -{name} {' '.join(pids)}"], check=True)
            assert all(
                torch.equal(stream.batch(t)[1], loader(Numbers(64)).batch(t)[1])
                for t in range(1, 20)
            )
            child = multiprocessing.active_children()[0]
            child.terminate()  # which is how Python ends one
            child.join(timeout=10)
            assert not child.is_alive()

    def test_a_process_that_closes_nothing_ends(self) -> None:
        code = (
            "import sys; sys.path[:0] = ['tests']\n"
            "from test_files import Numbers, loader, ordered\n"
            "one, two = loader(Numbers(64), workers=2), ordered(Numbers(64), workers=1)\n"
            "print(len(one.batch(0)[1]), len(next(iter(two))[1]))\n"
        )
        root = Path(__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            cwd=root,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "4 4\n", "")


def picture(seed: int, side: int = 24, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def fill(
    root: Path, part: str = "train", classes: tuple[str, ...] = ("cat", "dog"), each: int = 6
) -> None:
    for label, name in enumerate(classes):
        (root / part / name).mkdir(parents=True)
        for i in range(each):
            picture(100 * label + i).save(root / part / name / f"{name}{i}.jpg", quality=95)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path)
    fill(tmp_path, "val", each=4)
    return tmp_path


OPTIONS: dict[str, Any] = {
    "image_size": 16,
    "color_jitter": 0.4,
    "flip": True,
    "auto_augment": "",
    "batch_size": 4,
    "seed": 0,
    "workers": 0,
    "genotype": "x",
}


def config(root: Path | None, **options: Any) -> ImageNetConfig:
    return ImageNetConfig(data_dir=None if root is None else str(root), **{**OPTIONS, **options})


def files(root: Path | None, share: tuple[int, int] = (0, 1), **options: Any) -> ImageFiles:
    return ImageFiles(config(root, **options), CPU, share)


def labels_of(batches: Iterator[tuple[Tensor, Tensor]]) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


class TestFolders:
    def test_what_is_said_of_them(self, root: Path) -> None:
        data = files(root)
        assert (data.classes, data.in_channels, data.image_size, data.per_epoch) == (
            ("cat", "dog"),
            3,
            (16, 16),
            3,
        )
        assert data.identity().startswith("12 training + 8 test image files in 2 classes, digest ")
        x, labels = data.batch(0)
        assert (x.dtype, x.shape, labels.dtype, labels.shape) == (
            torch.float32,
            (4, 3, 16, 16),
            torch.int64,
            (4,),
        )
        assert labels_of(data.measured("test")) == [0] * 4 + [1] * 4
        assert list(data.measured("valid")) == []
        assert data.damaged == {}

    def test_batches_by_workers_and_two_processes(self, root: Path) -> None:
        whole = files(root, auto_augment="rand-m9-mstd0.5")
        parts = [
            files(root, auto_augment="rand-m9-mstd0.5", workers=1, share=(rank, 2))
            for rank in range(2)
        ]
        for t in (2, 3, 4):
            (left, left_labels), (right, right_labels) = (part.batch(t) for part in parts)
            x, labels = whole.batch(t)
            assert torch.equal(torch.cat([left, right]), x)
            assert torch.equal(torch.cat([left_labels, right_labels]), labels)
        seen = [label for part in parts for label in labels_of(part.measured("test"))]
        assert sorted(seen) == [0] * 4 + [1] * 4
        for part in parts:
            part.close()
        assert no_children()

    def test_what_is_measured_is_the_centre(self, root: Path) -> None:
        x, _ = next(files(root, image_size=12, crop_share=0.75).measured("test"))
        with Image.open(root / "val" / "cat" / "cat0.jpg") as image:
            resized = image.resize((20, 16), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized.crop((4, 2, 16, 14)), dtype=np.float32) / 255
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        np.testing.assert_allclose(
            x[0].permute(1, 2, 0).numpy(), (pixels - mean) / std, rtol=1e-4, atol=1e-4
        )

    def test_augmentation_is_what_the_options_say(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            for name, value in (("a", 90), ("b", 91)):
                (tmp_path / part / name).mkdir(parents=True)
                for i in range(8):
                    pixels = np.full((20, 20, 3), (value, 120, 160), dtype=np.uint8)
                    pixels[:, :2] = 200  # what shows a mirror image
                    Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")

        def bytes_of(**options: Any) -> Tensor:
            data = files(tmp_path, batch_size=16, image_size=20, **options)
            scale = (255 * data.normalization.std).view(3, 1, 1)
            return (data.batch(0)[0] * scale + 255 * data.normalization.mean.view(3, 1, 1)).round()

        plain = bytes_of(color_jitter=0.0, flip=False)
        assert set(plain[:, 1, :, -1].unique().tolist()) == {120.0}
        mirrored = bytes_of(color_jitter=0.0, flip=True)
        assert 200.0 in mirrored[:, 1, :, -1]
        colored = bytes_of(color_jitter=0.4, flip=False)[:, :, :, -1]
        assert len(colored[:, 1].unique()) > 8
        hue = colored.argmax(1).unique()
        assert (
            len(hue) > 1
        )  # blue is no longer the strongest everywhere, as it were without a change of hue

    def test_classes_are_numbered_as_timm_does(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            fill(tmp_path, part, classes=("10", "2", "1"), each=2)
        assert files(tmp_path).classes == ("1", "2", "10")

    def test_other_names_of_parts(self, root: Path) -> None:
        (root / "val").rename(root / "test")
        assert labels_of(files(root, test_split="test").measured("test")) == [0] * 4 + [1] * 4
        (root / "train").rename(root / "training")
        assert files(root, test_split="test").per_epoch == 3

    def test_what_systems_leave_behind_is_no_image(self, root: Path) -> None:
        clean = files(root).identity()
        (root / "train" / "cat" / "._cat0.jpg").write_bytes(b"\0")
        (root / "train" / ".thumbs").mkdir()
        picture(1).save(root / "train" / ".thumbs" / "x.jpg")
        picture(1).save(root / "train" / "stray.jpg")
        assert files(root).identity() == clean

    def test_identity_is_of_names_and_not_of_the_place(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = files(root).identity()
        monkeypatch.chdir(root)
        assert files(Path(".")).identity() == here
        (root / "val" / "cat" / "cat0.jpg").rename(root / "val" / "cat" / "other.jpg")
        assert files(root).identity() != here

    def test_more_classes_than_folders(self, root: Path) -> None:
        assert files(root, num_classes=4).classes == ("cat", "dog", "2", "3")

    def test_what_is_held_out_is_never_trained_on(self, root: Path) -> None:
        for i, path in enumerate(sorted((root / "train").rglob("*.jpg"))):
            path.unlink()
            Image.new("RGB", (20, 20), (20 * i, 20 * i, 20 * i)).save(path.with_suffix(".png"))

        def greys(x: Tensor) -> set[int]:
            return {round(v) for v in ((x[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255 / 20).tolist()}

        data = files(root, color_jitter=0.0, holdout=5, batch_size=7, workers=1)
        trained, held_out = (
            greys(data.batch(0)[0]) | greys(data.batch(1)[0]),
            greys(next(data.measured("valid"))[0]),
        )
        assert (len(trained), len(held_out), trained | held_out) == (7, 5, set(range(12)))
        assert greys(next(files(root, holdout=5, seed=1).measured("valid"))[0]) != held_out
        shared = files(root, holdout=5, seed=1, data_seed=0)
        assert greys(next(shared.measured("valid"))[0]) == held_out
        data.close()
        few = files(root, color_jitter=0.0, train_images=6, holdout=2, batch_size=4)
        assert few.per_epoch == 1
        assert not greys(few.batch(0)[0]) & greys(next(few.measured("valid"))[0])


class TestDamagedFiles:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_they_are_passed_over_and_named(self, root: Path, workers: int) -> None:
        for part, name in (("train", "cat2"), ("val", "cat1")):
            path = root / part / "cat" / f"{name}.jpg"
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        (root / "train" / "dog" / "text.jpg").write_text("no image")
        data, others = files(root, batch_size=13, workers=workers), files(root, batch_size=13)
        x, labels = data.batch(0)
        assert len(x) == 13
        assert labels.sum() in (6, 7)  # the last dog's place may be taken by the first cat
        data.batch(1)
        assert set(data.damaged) == {"cat/cat2.jpg", "dog/text.jpg"}
        assert "truncated" in data.damaged["cat/cat2.jpg"]
        assert "cannot identify image file" in data.damaged["dog/text.jpg"]
        assert torch.equal(others.batch(0)[0], x)
        assert labels_of(data.measured("test")) == [0] * 3 + [1] * 4
        assert set(data.damaged) == {"cat/cat2.jpg", "dog/text.jpg", "cat/cat1.jpg"}
        data.close()

    def test_a_file_that_has_gone(self, root: Path) -> None:
        data = files(root)
        (root / "val" / "dog" / "dog3.jpg").unlink()
        assert len(labels_of(data.measured("test"))) == 7
        assert data.damaged == {"dog/dog3.jpg": "No such file or directory"}

    @pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
    def test_other_kinds_of_pixels_become_colors(self, root: Path, mode: str) -> None:
        value = 255 if mode == "1" else 200
        image = Image.new("RGB", (20, 20), (value, value, value))
        if mode == "I;16":
            image = Image.fromarray(np.full((20, 20), 257 * value, dtype=np.uint16))
        else:
            image = image.quantize() if mode == "P" else image.convert(mode)
        (root / "val" / "cat" / "cat0.jpg").unlink()
        image.save(root / "val" / "cat" / f"cat0.{'jpg' if mode == 'CMYK' else 'png'}")
        data = files(root)
        x, _ = next(data.measured("test"))
        pixels = (
            x[0] * data.normalization.std.view(3, 1, 1) + data.normalization.mean.view(3, 1, 1)
        ) * 255
        assert (pixels - value).abs().max() < 2
        assert data.damaged == {}

    def test_items_can_be_sent_to_a_process_that_is_no_fork(self, root: Path) -> None:
        data = files(root)
        for items in (data._train, data._measured["test"]):
            again = pickle.loads(pickle.dumps(items._workers._loader.dataset))
            x, labels, damaged = again[[(0, 0), (1, 1)]]
            assert (x.shape, len(labels), damaged) == ((2, 3, 16, 16), 2, {})


def packed(path: Path, folder: Path, inside: str) -> None:
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.jpg")):
            tar.add(file, arcname=f"{inside}{file.relative_to(folder).as_posix()}")


class TestTarFiles:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_folder_of_them_holds_what_the_folders_do(
        self, root: Path, tmp_path: Path, workers: int
    ) -> None:
        for part in ("train", "val"):
            (root / "tars" / part).mkdir(parents=True)
            for name in ("cat", "dog"):
                packed(root / "tars" / part / f"{name}.tar", root / part / name, "")
        self.compare(root, root / "tars", workers)

    def test_one_of_them_for_each_part(self, root: Path) -> None:
        for part in ("train", "val"):
            packed(root / f"{part}.tar", root / part, "./")
            (root / part).rename(root / f"{part}_folder")
        assert files(root).classes == ("cat", "dog")
        self.compare(root, root, 0, train_split="train_folder", test_split="val_folder")

    def test_tar_files_in_a_tar_file(self, root: Path) -> None:
        for part in ("train", "val"):
            for name in ("cat", "dog"):
                packed(root / f"{name}.tar", root / part / name, "")
            with tarfile.open(root / f"{part}_inside.tar", "w") as tar:
                for name in ("cat", "dog"):
                    tar.add(root / f"{name}.tar", arcname=f"{name}.tar")
        data = files(root, train_split="train_inside", test_split="val_inside", workers=1)
        assert data.classes == ("cat", "dog")
        assert torch.equal(data.batch(0)[0], files(root).batch(0)[0])
        assert torch.equal(next(data.measured("test"))[0], next(files(root).measured("test"))[0])
        data.close()

    def test_no_index_beside_large_ones_is_read_or_written(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """timm keeps one of tar files above 10 GB, as a pickle: whoever gives the images could give
        that too.
        """
        from timm.data.readers import reader_image_in_tar

        (root / "tars").mkdir()
        for part in ("train", "val"):
            packed(root / "tars" / f"{part}.tar", root / part, "")
        index = f"_train{reader_image_in_tar.CACHE_FILENAME_SUFFIX}"
        (root / "tars" / index).write_bytes(b"not to be read")
        monkeypatch.setattr(os.path, "getsize", lambda path: 20 * 1024**3)
        assert (
            files(root / "tars")
            .identity()
            .startswith("12 training + 8 test image files in 2 classes")
        )
        assert {path.name for path in (root / "tars").iterdir()} == {"train.tar", "val.tar", index}

    @staticmethod
    def compare(root: Path, tars: Path, workers: int, **folders: str) -> None:
        one, two = files(root, **folders), files(tars, workers=workers)
        assert two.classes == one.classes
        for t in range(4):
            assert torch.equal(two.batch(t)[0], one.batch(t)[0])
            assert torch.equal(two.batch(t)[1], one.batch(t)[1])
        assert torch.equal(next(two.measured("test"))[0], next(one.measured("test"))[0])
        two.close()

    def test_a_damaged_member(self, root: Path) -> None:
        path = root / "val" / "cat" / "cat1.jpg"
        path.write_bytes(path.read_bytes()[:200])
        packed(root / "validation.tar", root / "val", "")
        data = files(root, test_split="validation")
        assert labels_of(data.measured("test")) == [0] * 3 + [1] * 4
        assert list(data.damaged) == ["cat/cat1.jpg"]

    def test_folders_count_where_both_are(self, root: Path) -> None:
        clean = files(root).identity()
        packed(root / "train" / "cat.tar", root / "train" / "cat", "")
        assert files(root).identity() == clean

    def test_a_broken_one(self, root: Path) -> None:
        (root / "test.tar").write_bytes(b"\1" * 700)
        with pytest.raises(
            InputError, match=r"test.tar: expected images .*found none that can be read"
        ):
            files(root, test_split="test")


class TestWhatCannotBeUsed:
    def test_no_folder(self, root: Path) -> None:
        with pytest.raises(InputError, match="expected --data-dir DIR, with DIR/train/CLASS"):
            files(None)
        with pytest.raises(InputError, match="found no folder .*nowhere"):
            files(root / "nowhere")

    @pytest.mark.parametrize(
        ("part", "names"), [("train", "train or training"), ("val", "validation or val or valid")]
    )
    def test_a_part_is_missing(self, root: Path, part: str, names: str) -> None:
        (root / part).rename(root / "elsewhere")
        with pytest.raises(
            InputError, match=f"expected a folder or tar file named {names}.*give its name by --"
        ):
            files(root)

    def test_a_folder_that_may_not_be_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(
            InputError, match=r"--data-dir .*: cannot be read \(Permission denied\)"
        ):
            files(root)

    def test_parts_that_are_the_same(self, root: Path) -> None:
        with pytest.raises(
            InputError, match="--test-split: expected another part than the one that is trained on"
        ):
            files(root, test_split="train")

    @pytest.mark.parametrize(("part", "other"), [("train", "validation"), ("val", "train")])
    def test_a_class_of_one_part_only(self, root: Path, part: str, other: str) -> None:
        fill(root, part, classes=("yak",))
        here = "train" if part == "train" else "validation"
        with pytest.raises(InputError, match=f"class yak has images in {here} and none in {other}"):
            files(root)

    def test_a_class_folder_without_images(self, root: Path) -> None:
        (root / "val" / "yak").mkdir()
        (root / "val" / "yak" / "readme.txt").write_text("none yet")
        with pytest.raises(
            InputError,
            match=r"val/yak: expected images \(.png .* in a folder for each class.*found none",
        ):
            files(root)

    def test_images_without_class_folders(self, root: Path) -> None:
        for path in (root / "val").rglob("*.jpg"):
            path.rename(root / "val" / path.name)
        for name in ("cat", "dog"):
            (root / "val" / name).rmdir()
        with pytest.raises(InputError, match="val: expected images .* in a folder for each class"):
            files(root)

    def test_no_images_at_all(self, root: Path) -> None:
        for path in (root / "train").rglob("*.jpg"):
            path.unlink()
        with pytest.raises(
            InputError, match="train: expected images .*found none that can be read"
        ):
            files(root)

    def test_a_single_class(self, tmp_path: Path) -> None:
        for part in ("train", "val"):
            fill(tmp_path, part, classes=("cat",))
        with pytest.raises(InputError, match="expected at least 2 classes, found cat alone"):
            files(tmp_path)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                {"num_classes": 1},
                "--num-classes: expected at least the 2 classes of the images, found 1",
            ),
            (
                {"batch_size": 13},
                "--batch-size: expected at most 12, the images of the train split, found 13",
            ),
            ({"holdout": 12}, "--holdout: expected fewer than the 12 training images, found 12"),
            (
                {"train_images": 13},
                "--train-images: expected at most 12, all of the train split, found 13",
            ),
            (
                {"color_jitter": 1.5},
                "--color-jitter: expected a number of at least 0 and at most 1, found 1.5",
            ),
            (
                {"auto_augment": "foo"},
                r"--auto-augment foo: not a policy of timm's \(.*\); expected one such as rand-m9",
            ),
            ({"auto_augment": "rand-m9-q5"}, "--auto-augment rand-m9-q5: not a policy"),
            ({"auto_augment": "rand-mx9"}, "--auto-augment rand-mx9: not a policy"),
            (
                {"dataset": "imagenet"},
                "--dataset: expected hfds/NAME, .*, or nothing for folders.*found 'imagenet'",
            ),
            (
                {"dataset": "torch/cifar10"},
                "--dataset torch/cifar10, part train: cannot be read .*not found",
            ),
            (
                {"dataset": "torch/cifar11"},
                "--dataset torch/cifar11, part train: cannot be read .*cifar11",
            ),
        ],
    )
    def test_options(self, root: Path, options: dict[str, Any], expected: str) -> None:
        with pytest.raises(InputError, match=expected):
            files(root, **options)

    def test_a_package_that_is_missing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for dataset, package in (("hfds/x", "datasets"), ("wds/", "webdataset")):
            with pytest.raises(
                InputError, match=f"--dataset {dataset} needs a package: pip install {package}"
            ):
                open_source(config(root, dataset=dataset), CPU)

    def test_torchvision_sets_need_a_place(self) -> None:
        with pytest.raises(InputError, match="--dataset torch/cifar10 needs --data-dir DIR"):
            files(None, dataset="torch/cifar10")


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    pytest.importorskip("torchvision")
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [f"c{i}" for i in range(10)]}
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        data = files(tmp_path, dataset="torch/cifar10", image_size=32)
    assert (data.per_epoch, data.classes[9], data.batch(0)[0].shape) == (5, "c9", (4, 3, 32, 32))
    assert labels_of(data.measured("test")) == [0, 1, 2, 9]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    pytest.importorskip("webdataset")

    def shard(name: str, numbers: range) -> dict[str, Any]:
        with tarfile.open(tmp_path / name, "w") as tar:
            for i in numbers:
                stored = io.BytesIO()
                picture(i).save(stored, "PNG")
                for suffix, content in (("png", stored.getvalue()), ("cls", str(i % 4).encode())):
                    member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return {"filenames": [name], "shard_lengths": [len(numbers)], "num_samples": len(numbers)}

    train = [shard(f"x-train-{i}.tar", range(10 * i, 10 * i + 10)) for i in range(2)]
    names = [name for part in train for name in part["filenames"]]
    both = {"filenames": names, "shard_lengths": [10, 10], "num_samples": 20}
    test = shard("x-validation-0.tar", range(7))
    splits = {"train": {"name": "train", **both}, "validation": {"name": "validation", **test}}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    return tmp_path


@pytest.mark.filterwarnings("default")
class TestStreams:
    def stream(self, root: Path, **options: Any) -> ImageStream:
        data = open_source(config(root, dataset="wds/", **{"num_classes": 4, **options}), CPU)
        assert isinstance(data, ImageStream)
        return data

    def test_batches_and_what_is_measured(self, shards: Path) -> None:
        before = torch.get_rng_state()
        data = self.stream(shards, workers=2)
        assert (data.per_epoch, data.classes, data.image_size) == (
            5,
            ("0", "1", "2", "3"),
            (16, 16),
        )
        forward = [data.batch(t) for t in range(8)]
        assert all(x.shape == (4, 3, 16, 16) and x.dtype == torch.float32 for x, _ in forward)
        assert sorted(torch.cat([labels for _, labels in forward[:5]]).unique().tolist()) == [
            0,
            1,
            2,
            3,
        ]
        assert not torch.equal(forward[0][0], forward[5][0])
        assert sorted(labels_of(data.measured("test"))) == [0, 0, 1, 1, 2, 2, 3]
        assert list(data.measured("valid")) == []
        data.close()
        again = self.stream(shards, workers=2)
        for t in (6, 7, 3):
            assert torch.equal(again.batch(t)[0], forward[t][0])
        again.close()
        assert no_children()
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_reading_that_fails_is_begun_anew(
        self, shards: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = self.stream(shards)
        first = expected.batch(0)[0]
        expected.close()
        data = self.stream(shards)
        whole = data._batches_from

        def failing(t: int) -> Iterator[tuple[Tensor, Tensor]]:
            raise InputError("the disk is gone")
            yield

        monkeypatch.setattr(data, "_batches_from", failing)
        with pytest.raises(InputError, match="the disk is gone"):
            data.batch(0)
        monkeypatch.setattr(data, "_batches_from", whole)
        assert torch.equal(data.batch(0)[0], first)
        data.close()

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (
                {"holdout": 2},
                "--train-images and --holdout: images of the stream wds/ cannot be chosen",
            ),
            ({"test_split": "foo"}, "--dataset wds/, part foo: cannot be read"),
            (
                {"batch_size": 24},
                "--batch-size: expected at most 20, the images of train, found 24",
            ),
            (
                {"num_classes": 2},
                "--num-classes: expected labels from 0 to 1 in the stream, found one of [23]",
            ),
            (
                {"num_classes": None},
                "--num-classes: the stream wds/ does not tell how many classes it has; say it",
            ),
        ],
    )
    def test_what_cannot_be_used(
        self, shards: Path, options: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(InputError, match=expected):
            self.stream(shards, **options).batch(0)
        assert no_children()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers just ignore the signals")
def test_a_worker_ends_at_its_parent_s_request_and_at_no_one_else_s() -> None:
    """A SIGTERM to a whole job is left to the main process; DataLoader's own ends the worker."""

    def work(started: Any) -> None:
        _start_worker(0)
        os.kill(os.getpid(), signal.SIGTERM)  # not from the parent
        time.sleep(0.3)
        started.set()
        time.sleep(60)
        os._exit(7)

    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=work, args=(started,))
    worker.start()
    assert started.wait(30)
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0
