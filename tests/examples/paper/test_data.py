"""Reading the files: what comes out, and what a broken file says."""

import gzip
from pathlib import Path

import datasets
import numpy as np
import pytest
from paper_files import write_all, write_idx
from PIL import Image

from examples.paper.data import READERS, DataError, load_dataset, read_idx, to_tensors
from examples.paper.rows import VOCABULARY, encode, text_rows

FILES = {
    "mnist": "train-images-idx3-ubyte.gz",
    "cifar10": "train_3.webp",
    "cifar100": "labels.npz",
    "femnist": "femnist_leaf_105writers.npz",
    "shakespeare": "bosak_plays_by_role.json.gz",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of data sets for a test to break."""
    write_all(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sizes", "columns"),
    [
        ("mnist", (400, 60), ["image", "label"]),
        ("cifar10", (50_000, 10_000), ["image", "label"]),
        ("cifar100", (10_000, 10_000), ["image", "label"]),
        ("femnist", (150, 12), ["image", "label", "writer"]),
        ("shakespeare", (3 * 39, 3 * 9), ["text", "label", "role"]),
    ],
)
def test_sizes_and_columns(
    data_dir: Path, name: str, sizes: tuple[int, int], columns: list[str]
) -> None:
    train, test = load_dataset(name, data_dir)

    assert (len(train), len(test)) == sizes
    assert train.column_names == test.column_names == columns


def test_pixels_and_labels_are_those_of_the_file(data_dir: Path) -> None:
    with Image.open(data_dir / "cifar10" / "train_2.webp") as mosaic:
        pixel = mosaic.convert("RGB").getpixel((7, 3))  # column, row
    train, _ = load_dataset("cifar10", data_dir)
    raw = gzip.decompress((data_dir / "mnist" / FILES["mnist"]).read_bytes())
    digits, _ = load_dataset("mnist", data_dir)

    row = train[10_000 + 307]

    assert tuple(np.ravel(row["image"])) == pixel
    assert row["label"] == 7
    assert np.asarray(digits[1]["image"], np.uint8).tobytes() == raw[800:1584]


def test_images_become_normalised_tensors(data_dir: Path) -> None:
    train, _ = load_dataset("cifar10", data_dir)

    images, labels = to_tensors("cifar10", train.select([5])).tensors

    assert images.shape == (1, 3, 1, 1)
    pixel = np.asarray(train[5]["image"]).ravel() / 255
    expected = (pixel - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
    np.testing.assert_allclose(images.ravel(), expected, rtol=1e-5)
    assert labels.tolist() == [5]


def test_ink_is_bright_and_paper_dark_on_femnist_as_on_mnist() -> None:
    from examples.paper.rows import image_rows

    pixels = np.full((1, 28, 28), 255, np.uint8)
    pixels[0, 0, 0] = 0
    rows = image_rows(pixels, np.array([61]), writer=["f0000_00"])

    images, _ = to_tensors("femnist", rows).tensors

    assert float(images.max()) == float(images[0, 0, 0, 0]) > 5
    np.testing.assert_allclose(float(images.min()), -0.0388 / 0.1656, rtol=1e-4)


# --- Text ---


def test_vocabulary_has_eighty_symbols_and_a_place_for_the_rest() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 80
    assert encode("\n }$é☃").tolist() == [0, 1, 79, 1, 1, 1]


def test_a_label_is_the_symbol_that_follows() -> None:
    text = "".join(np.random.default_rng(0).choice(list("abc"), 250))

    rows = text_rows([text, "short"], ["A", "B"]).with_format("numpy")[:]

    assert rows["text"].shape == rows["label"].shape == (3, 80)
    assert rows["text"].ravel().tolist() == encode(text)[:240].tolist()
    assert rows["label"].ravel().tolist() == encode(text)[1:241].tolist()
    assert set(rows["role"]) == {"A"}


def test_short_roles_go_and_the_last_fifth_is_test(data_dir: Path) -> None:
    train, test = load_dataset("shakespeare", data_dir)

    assert set(train["role"]) == {f"Play {play}: LONG" for play in range(3)}
    assert set(test["role"]) == set(train["role"])
    assert len(train) / (len(train) + len(test)) == pytest.approx(0.8, abs=0.02)


# --- Broken files ---


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_one_line_with_a_way_out(broken: Path, name: str) -> None:
    (broken / name / FILES[name]).unlink()

    with pytest.raises(DataError) as caught:
        load_dataset(name, broken)

    message = str(caught.value)
    assert FILES[name] in message
    assert "got no such file" in message
    assert "leave --data out" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_one_line(broken: Path, name: str, share: float) -> None:
    path = broken / name / FILES[name]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])

    with pytest.raises(DataError) as caught:
        load_dataset(name, broken)

    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert ", got " in message
    assert "\n" not in message


def test_idx_sizes_must_match(tmp_path: Path) -> None:
    path = tmp_path / "labels.gz"
    write_idx(path, np.arange(10))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:-3]))

    with pytest.raises(DataError, match="expected 10 bytes after its header, got 7"):
        read_idx(path, 1)
    with pytest.raises(DataError, match="starts with 00000803, got 00000801"):
        read_idx(path, 3)


def test_labels_must_be_as_many_as_images(broken: Path) -> None:
    write_idx(broken / "mnist" / "train-labels-idx1-ubyte.gz", np.arange(399) % 10)
    labels = np.zeros(49_000, np.int64)
    np.savez(broken / "cifar10" / "labels.npz", y_train=labels, y_test=labels)

    with pytest.raises(DataError, match="expected 400 labels, one an image, got 399"):
        load_dataset("mnist", broken)
    with pytest.raises(DataError, match=r"expected 50000 labels, .* got 49000"):
        load_dataset("cifar10", broken)


def test_a_mosaic_has_ten_thousand_images(broken: Path) -> None:
    path = broken / "cifar100" / "train_1.webp"
    Image.new("RGB", (90, 100)).save(path, lossless=True)

    with pytest.raises(DataError, match="100x100 square images, got 90x100 pixels"):
        load_dataset("cifar100", broken)


def test_plays_without_long_roles_say_so(broken: Path) -> None:
    path = broken / "shakespeare" / FILES["shakespeare"]
    path.write_bytes(gzip.compress(b'[{"play": "P", "role": "R", "text": "short"}]'))

    with pytest.raises(DataError, match="roles of at least 2000 characters, got none"):
        load_dataset("shakespeare", broken)

    path.write_bytes(gzip.compress(b'[{"play": "P", "role": "R"}]'))
    with pytest.raises(DataError, match="got KeyError: 'text'"):
        load_dataset("shakespeare", broken)


# --- The hub ---


def serve(monkeypatch: pytest.MonkeyPatch, **splits: dict) -> None:
    """Let the hub answer with these splits."""
    hub = {name: datasets.Dataset.from_dict(rows) for name, rows in splits.items()}
    answer = datasets.DatasetDict(hub)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: answer)


def picture(value: int, mode: str, side: int) -> Image.Image:
    return Image.new(mode, (side, side), value if mode == "L" else (value, 0, 0))


def test_hub_images_get_our_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(count: int) -> dict:
        images = [picture(i, "RGB", 32) for i in range(count)]
        return {"img": images, "fine_label": [i % 100 for i in range(count)]}

    serve(monkeypatch, train=rows(6), test=rows(2))

    train, test = load_dataset("cifar100", None)

    assert train.column_names == ["image", "label"]
    assert (len(train), len(test)) == (6, 2)
    assert train[3]["image"][31][0] == [3, 0, 0]
    assert to_tensors("cifar100", test).tensors[0].shape == (2, 3, 32, 32)


def test_hub_writers_give_a_tenth_of_their_images_to_the_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writers = ["a", "b"] * 10
    rows = {
        "image": [picture(i, "L", 28) for i in range(20)],
        "character": [i % 62 for i in range(20)],
        "writer_id": writers,
        "hsf_id": [0] * 20,
    }
    serve(monkeypatch, train=rows)

    train, test = load_dataset("femnist", None)

    assert sorted(test["writer"]) == ["a", "b"]
    assert (len(train), len(test)) == (18, 2)


def test_hub_windows_are_those_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(np.random.default_rng(0).choice(list("abcdef"), 3000))
    starts = range(len(text) - 80)
    rows = {
        "character_id": ["LONG"] * len(starts) + ["SHORT"] * 100,
        "x": [text[i : i + 80] for i in starts] + ["x" * 80] * 100,
        "y": [text[i + 80] for i in starts] + ["x"] * 100,
    }
    serve(monkeypatch, train=rows)

    train, test = load_dataset("shakespeare", None)

    assert set(train["role"]) == {"LONG"}
    whole = np.concatenate([np.ravel(train["text"][:]), np.ravel(test["text"][:])])
    assert whole.tolist() == encode(text)[: len(whole)].tolist()
    assert len(whole) == 80 * ((len(text) - 1) // 80)
