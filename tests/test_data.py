"""data.py: full batches in a repeatable order, from folders in any condition."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from auditdm_jax.data import HELD_OUT, ImageSource, held_out_ids, open_images
from auditdm_jax.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images whose red value is their number, and four that cannot be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (6, 5), (i, 0, 0)).save(folder / f"{i:02}.png")
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    os.truncate(folder / "cut.png", 1500)
    (folder / "text.jpg").write_text("not an image")
    (folder / "void.png").touch()
    Image.new("RGB", (40, 40)).save(folder / "vast.png")
    return folder


def opened(folder: Path, *, batch_size: int = 8, seed: int = 0, **options: object) -> ImageSource:
    return open_images([str(folder)], 4, batch_size, seed, max_pixels=1000, **options)


def drawn(source: ImageSource, batches: int) -> list[list[str]]:
    return [batch["image_id"] for batch in itertools.islice(source, batches)]


def test_batches_are_full_and_ids_belong_to_their_pixels(photos):
    source = opened(photos)
    for batch in itertools.islice(source, 12):
        assert batch["image"].shape == (8, 4, 4, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["valid"].all()
        assert [f"photos/{red:02}.png" for red in batch["image"][:, 0, 0, 0]] == batch["image_id"]


def test_bad_images_are_counted_once_by_reason(photos):
    source = opened(photos)
    drawn(source, 12)  # about five epochs
    assert source.skipped == {"unknown format": 2, "corrupt or truncated": 1, "too large": 1}
    assert source.num_images == 24


def test_one_pass_shows_every_good_image_once(photos):
    batches = list(opened(photos, num_epochs=1))
    assert [batch["valid"].sum() for batch in batches] == [8, 8, 4]
    assert all(batch["image"].shape == (8, 4, 4, 3) for batch in batches)
    shown = [i for b in batches for i, valid in zip(b["image_id"], b["valid"], strict=True) if valid]
    assert sorted(shown) == [f"photos/{i:02}.png" for i in range(20)]


def test_order_depends_on_the_seed_and_the_epoch_only(photos):
    one = drawn(opened(photos), 10)
    assert one == drawn(opened(photos, num_threads=0), 10)
    assert one != drawn(opened(photos, seed=1), 10)
    in_turn = list(itertools.chain.from_iterable(one))
    first, second = in_turn[:20], in_turn[20:40]
    assert set(first) == set(second)
    assert first != second


def test_neighbouring_seeds_do_not_share_orders(photos):
    """Epoch 1 of seed 0 must not be epoch 0 of seed 1."""
    second_epoch = list(itertools.chain.from_iterable(drawn(opened(photos, batch_size=4), 10)))[20:]
    first_epoch = list(itertools.chain.from_iterable(drawn(opened(photos, batch_size=4, seed=1), 5)))
    assert second_epoch != first_epoch


@pytest.mark.parametrize("taken", [0, 1, 2, 7])
def test_resuming_gives_exactly_the_next_batch(photos, taken):
    """Over bad images, over the end of an epoch, and through JSON as in a checkpoint."""
    source = opened(photos)
    drawn(source, taken)
    state = json.loads(json.dumps(source.get_state()))
    expected = list(itertools.islice(source, 6))
    resumed = opened(photos)
    resumed.set_state(state)
    assert sum(resumed.skipped.values()) == len(state["skipped"])
    for ours, theirs in zip(itertools.islice(resumed, 6), expected, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        np.testing.assert_array_equal(ours["image"], theirs["image"])
    drawn(resumed, 6)
    assert resumed.skipped == {"unknown format": 2, "corrupt or truncated": 1, "too large": 1}


def test_resuming_over_other_images_is_refused(photos):
    state = opened(photos).get_state()
    (photos / "19.png").unlink()
    with pytest.raises(UserError, match=r"not those of the checkpoint.*; bring them back"):
        opened(photos).set_state(state)


@pytest.mark.parametrize("num_epochs", [None, 1])
@pytest.mark.parametrize("num_threads", [0, 2])
def test_only_bad_images(tmp_path, num_epochs, num_threads):
    for i in range(5):
        (tmp_path / f"{i}.png").write_text("no")
    source = opened(tmp_path, num_epochs=num_epochs, num_threads=num_threads)
    with pytest.raises(UserError, match=r"none of the 5 images can be used \(5 unknown format\); "):
        next(source)


def test_a_single_image_fills_a_batch_again_and_again(tmp_path):
    Image.new("L", (3, 3), 9).save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    batch = next(opened(tmp_path))
    assert batch["image_id"] == [f"{tmp_path.name}/a.png"] * 8


def test_splits_are_disjoint_complete_and_stable(tmp_path):
    for i in range(60):
        Image.new("L", (2, 2)).save(tmp_path / f"{i}.png")

    def shown(**options: object) -> set[str]:
        batches = opened(tmp_path, num_epochs=1, num_threads=0, **options)
        return {i for batch in batches for i in batch["image_id"]}

    train, heldout = shown(split="train"), shown(split="heldout")
    assert not train & heldout
    assert train | heldout == shown()
    Image.new("L", (2, 2)).save(tmp_path / "new.png")
    assert heldout - shown(split="heldout") == set()


def test_share_of_the_held_out_split():
    names = [f"photos/{i}.png" for i in range(10_000)]
    assert abs(len(held_out_ids(names)) / len(names) - HELD_OUT) < 0.01
    # Of more images, the same ones stay where they were.
    assert held_out_ids(names[:5000]) == held_out_ids(names) & set(names[:5000])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_of_few_images_some_train_and_some_are_held_out(count):
    for start in range(40):
        names = [f"{i}.png" for i in range(start, start + count)]
        assert 0 < len(held_out_ids(names)) < count


def test_a_single_image_is_on_both_sides(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "one.png")
    assert [next(opened(tmp_path, split=split))["image_id"][0] for split in ("train", "heldout")] == [
        f"{tmp_path.name}/one.png"
    ] * 2


def test_empty_spec():
    with pytest.raises(UserError, match="no images are named; "):
        open_images([], 4, 8, 0)
