"""image_files.py: what folders, globs and tables stand for, and what is said of those that hold nothing."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from auditdm_jax.errors import UserError
from auditdm_jax.image_files import encoded, find_images
from auditdm_jax.images import BadImage, decode_rgb

IMAGE_STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(0))


def ids(*spec: object) -> list[str]:
    return [record.image_id for record in find_images([str(item) for item in spec])]


def reds(*spec: object) -> list[int]:
    """The red value of every image."""
    return [int(decode_rgb(encoded(r), 4)[0, 0, 0]) for r in find_images([str(item) for item in spec])]


def error(*spec: object) -> str:
    with pytest.raises(UserError) as raised:
        find_images([str(item) for item in spec])
    assert "; " in str(raised.value), "every error says how to mend it"
    return str(raised.value)


def test_folder_is_searched_in_depth_in_a_fixed_order(tmp_path):
    touch(tmp_path / "photos", "b.JPG", "a.png", "deep/er/c.webp", "notes.txt", ".hidden.png")
    expected = ["photos/a.png", "photos/b.JPG", "photos/deep/er/c.webp"]
    assert ids(tmp_path / "photos") == expected
    assert ids(f"{tmp_path}/photos/deep/..") == expected  # however it is spelled


def test_ids_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    touch(tmp_path / "photos", "a.png")
    monkeypatch.chdir(tmp_path / "photos")
    assert ids(".") == ids("*.png") == ids("a.png") == ids("../photos") == ["photos/a.png"]


def test_globs_and_single_files(tmp_path):
    touch(tmp_path / "photos", "a.png", "b.jpg", "deep/c.png")
    assert ids(tmp_path / "photos" / "*.png") == ["photos/a.png"]
    assert ids(tmp_path / "photos" / "**" / "*.png") == ["photos/a.png", "photos/deep/c.png"]
    assert ids(tmp_path / "photos" / "b.jpg", tmp_path / "photos" / "d*" / "c.png") == [
        "photos/b.jpg",
        "photos/deep/c.png",
    ]


def test_a_file_named_twice_counts_once(tmp_path):
    touch(tmp_path / "photos", "a.png", "b.png")
    assert ids(tmp_path / "photos" / "a.png", tmp_path / "photos", tmp_path / "photos" / "*.png") == [
        "photos/a.png",
        "photos/b.png",
    ]


def test_folders_of_one_name_keep_their_images_apart(tmp_path):
    touch(tmp_path, "x/photos/a.png", "y/photos/a.png")
    assert ids(tmp_path / "x" / "photos", tmp_path / "y" / "photos") == ["photos/a.png", "photos/a.png~2"]


def test_odd_file_names_become_plain_text(tmp_path):
    touch(tmp_path / "photos", "<b>\n.png")
    with open(os.fsencode(tmp_path / "photos") + b"/\xff.png", "wb") as file:
        file.write(png(0))
    assert ids(tmp_path / "photos") == ["photos/<b>\n.png", "photos/\\udcff.png"]


def test_missing_empty_and_unmatched(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").touch()
    assert "gone does not exist" in error(tmp_path / "gone")
    assert "no images in" in error(tmp_path / "empty")
    assert "no images in" in error(tmp_path / "text")
    assert "no images in" in error(tmp_path / "*.png")
    touch(tmp_path / "good", "a.png")
    assert "gone \\x1bc does not exist" in error(tmp_path / "good", tmp_path / "gone\n\x1bc")


@pytest.mark.parametrize("kind", [IMAGE_STRUCT, pa.binary(), pa.large_binary()])
def test_parquet_by_struct_or_bytes(tmp_path, kind):
    images = [png(i % 256) for i in range(600)]  # more than one batch of reading
    rows = [{"bytes": data, "path": "/etc/passwd"} for data in images] if kind == IMAGE_STRUCT else images
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": range(600)}), tmp_path / "t.parquet")
    assert reds(tmp_path / "t.parquet") == [i % 256 for i in range(600)]
    assert ids(tmp_path / "t.parquet")[17] == f"{tmp_path.name}/t.parquet#17"


def test_parquet_column_of_another_name(tmp_path):
    pq.write_table(pa.table({"photo": [png(3)], "label": [1]}), tmp_path / "t.parquet")
    assert reds(tmp_path / "t.parquet") == [3]
    pq.write_table(pa.table({"mask": [png(9)], "image": [png(4)]}), tmp_path / "u.parquet")
    assert reds(tmp_path / "u.parquet") == [4]


def test_tables_without_one_image_column(tmp_path):
    pq.write_table(pa.table({"te\x1bxt": ["a"], "label": [1]}), tmp_path / "none.parquet")
    assert "none.parquet has no image column among te\\x1bxt, label; " in error(tmp_path / "none.parquet")
    pq.write_table(pa.table({"left": [png(0)], "right": [png(0)]}), tmp_path / "two.parquet")
    assert "several image columns (left, right)" in error(tmp_path / "two.parquet")


def test_tables_that_are_empty_or_damaged(tmp_path):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    assert "no images in" in error(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"image": [png(0)]}), tmp_path / "cut.parquet")
    data = (tmp_path / "cut.parquet").read_bytes()
    for name in ("cut.parquet", "cut.arrow"):
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert f"{name} cannot be read as a " in error(tmp_path / name)


def test_rows_without_bytes_are_bad_and_their_paths_not_followed(tmp_path):
    touch(tmp_path, "secret.png")
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}, None, {"bytes": b"", "path": None}]
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE_STRUCT)}), tmp_path / "t.parquet")
    for record in find_images([str(tmp_path / "t.parquet")]):
        with pytest.raises(BadImage, match="no image bytes"):
            encoded(record)


def test_folder_of_parquet_files_and_images(tmp_path):
    touch(tmp_path / "data", "a.png")
    for part in range(2):
        pq.write_table(pa.table({"image": [png(part), png(part)]}), tmp_path / "data" / f"part-{part}.parquet")
    assert ids(tmp_path / "data") == [
        "data/a.png",
        "data/part-0.parquet#0",
        "data/part-0.parquet#1",
        "data/part-1.parquet#0",
        "data/part-1.parquet#1",
    ]


def test_datasets_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (5, 6, 7)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    assert reds(tmp_path / "one") == [5, 6, 7]
    # a result kept by `map` beside the data must not count as images
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(b"not read")
    assert reds(tmp_path / "one") == [5, 6, 7]
    splits = datasets.DatasetDict({"train": data, "test": data.select([0])})
    splits.save_to_disk(tmp_path / "two")
    assert ids(tmp_path / "two")[0] == "two/test/data-00000-of-00001.arrow#0"
    assert reds(tmp_path / "two") == [5, 5, 6, 7]


def test_hub_datasets_are_fetched_without_their_scripts(tmp_path, monkeypatch):
    import huggingface_hub

    touch(tmp_path / "snapshot", "a.png")

    def fetch(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type) == ("someone/photos", "dataset")
        assert "*.parquet" in allow_patterns
        assert not any("py" in pattern for pattern in allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert ids("hf://datasets/someone/photos") == ["snapshot/a.png"]


def test_hub_datasets_without_network():
    assert "cannot fetch the dataset someone/photos" in error("hf://datasets/someone/photos")
