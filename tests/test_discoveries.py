"""discoveries.py: `datasets` opens the files with their images; foreign files are read, or refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditdm_jax.discoveries import SCHEMA, png, read, write
from auditdm_jax.errors import UserError
from auditdm_jax.outcomes import Answers, Asked, examine

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def examined(i: int):
    answers = Answers("3", ("two", "2"), verifier="2" if i else "9")
    return examine(Asked(f"photos/{i}.png", "how many \x1b[31mdogs?"), answers, 1.0)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "audit" / "discoveries.parquet"
    write(path, [examined(i) for i in range(3)], [png(image) for image in IMAGES], seed=5)
    return path


def test_round_trip(written):
    assert pq.read_schema(written).names == SCHEMA.names
    found = read(written, size=8)
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found.skipped == {}
    assert found.rows[1] == ("how many \x1b[31mdogs?", "two", "photos/1.png")
    rows = pq.read_table(written).drop_columns(["image", "original"]).to_pylist()
    assert rows[1] == {
        "channel": "question",
        "written": "",
        "old": False,
        "outcome": "claimed",
        "original_target_answer": "",
        "original_consensus": "",
        "flipped": False,
        "image_id": "photos/1.png",
        "question": "how many \x1b[31mdogs?",
        "target_answer": "3",
        "reference_answers": ["two", "2"],
        "consensus": "two",
        "verifier_answer": "2",
        "oracle_answer": "",
        "skill": "how many",
        "condition": "number",
        "claimed": True,
        "verified": True,
        "seed": 5,
    }
    assert [row["verified"] for row in rows] == [False, True, True]


def test_what_new_images_were_made_from_is_read_too(tmp_path):
    path, pngs = tmp_path / "d.parquet", [png(image) for image in IMAGES]
    write(path, [examined(0), examined(1)], pngs[:2], 0, [None, pngs[2]])
    found = read(path, 8)
    np.testing.assert_array_equal(found.images, IMAGES[:2])
    np.testing.assert_array_equal(found.originals, IMAGES[2:])


def test_a_row_whose_original_is_damaged_is_skipped_with_its_image(tmp_path):
    path, pngs = tmp_path / "d.parquet", [png(image) for image in IMAGES]
    write(path, [examined(0), examined(1)], pngs[:2], 0, [b"\x89PNG", pngs[2]])
    found = read(path, 8)
    np.testing.assert_array_equal(found.images, IMAGES[1:2])
    assert [row.image_id for row in found.rows] == ["photos/1.png"]
    assert sum(found.skipped.values()) == 1


def test_datasets_opens_the_file_with_its_images(written, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=str(written), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    np.testing.assert_array_equal(np.asarray(loaded[2]["image"]), IMAGES[2])
    assert loaded[2]["reference_answers"] == ["two", "2"]
    assert loaded[2]["verified"] is True


def test_a_file_without_rows_is_written_and_refused_when_read(tmp_path):
    write(tmp_path / "d.parquet", [], [], seed=0)
    with pytest.raises(UserError, match=r"no discovery that can be used \(it is empty\)"):
        read(tmp_path / "d.parquet", 8)


def foreign(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    return tmp_path / "d.parquet"


def test_a_foreign_file_with_only_what_is_needed(tmp_path):
    path = foreign(
        tmp_path,
        consensus=["red", "blue"],
        question=pa.array(["what color?", "which color?"], pa.large_string()).dictionary_encode(),
        image=[png(image) for image in IMAGES[:2]],
        image_id=pa.nulls(2),
        skill=[1, 2],
        claimed=["yes", "no"],
    )
    found = read(path, size=4)
    assert found.images.shape == (2, 4, 4, 3)
    assert found.rows == [("what color?", "red", ""), ("which color?", "blue", "")]


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    good = png(IMAGES[0])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = [{"bytes": data, "path": "/etc/passwd"} for data in (good, None, b"\x89PNG", good, good)]
    path = foreign(
        tmp_path,
        image=pa.array([*structs, None], kind),
        question=["a?", "b?", "c?", None, "e?", "f?"],
        consensus=["1", "2", "3", "4", "unclear", "6"],
    )
    found = read(path, size=8)
    assert [row.question for row in found.rows] == ["a?"]
    assert found.skipped == {"no image bytes": 2, "unknown format": 1, "no question": 1, "no consensus": 1}


def test_files_that_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no discoveries file .*run audit.py first"):
        read(tmp_path / "d.parquet", 8)
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "d.parquet", 8)
    with pytest.raises(UserError, match="no column image or consensus;"):
        read(foreign(tmp_path, question=["what?"]), 8)
    text = {"question": ["what?"], "consensus": ["red"]}
    with pytest.raises(UserError, match=r"the column image of .* has the type string"):
        read(foreign(tmp_path, image=["a.png"], **text), 8)
    with pytest.raises(UserError, match=r"the column image_id of .* has the type int64"):
        read(foreign(tmp_path, image=[b""], image_id=[1], **text), 8)
    with pytest.raises(UserError, match=r"can be used \(1 rows: unknown format\)"):
        read(foreign(tmp_path, image=[b"?"], **text), 8)


def test_a_truncated_file_is_refused(written):
    whole = written.read_bytes()
    written.write_bytes(whole[: len(whole) // 2] + whole[-len(whole) // 3 :])
    with pytest.raises(UserError, match="cannot be read as Parquet") as caught:
        read(written, 8)
    assert "\n" not in str(caught.value)
