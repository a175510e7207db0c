"""Files of images: which are read, and what is said of the others."""

import os
from pathlib import Path

import pytest

from tests.pictures import GIF, JPEG, PNG
from worker.images import ImageFolder, read_image
from worker.jobs.images import MAX_IMAGE_BYTES, ImageError, image_of, reference

PNG_REFERENCE = reference(image_of(PNG).sha256)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b.png").write_bytes(PNG)
    (folder / "deep" / "cat").write_bytes(JPEG)
    (tmp_path / "outside.png").write_bytes(PNG)
    return folder


@pytest.mark.parametrize(
    "url", ["a b.png", "./a b.png", "deep/../a b.png", "FILE:a%20b.png", "file:a b.png"]
)
def test_a_relative_path_leads_on_from_the_folder(pictures: Path, url: str) -> None:
    assert ImageFolder(pictures).read(url) == PNG_REFERENCE


@pytest.mark.parametrize(
    "form", ["{}/a b.png", "file://{}/a%20b.png", "file://localhost{}/a b.png", "file:{}/a b.png"]
)
def test_an_absolute_path_may_lead_into_the_folder(pictures: Path, form: str) -> None:
    assert ImageFolder(pictures).read(form.format(pictures)) == PNG_REFERENCE


def test_links_are_followed_within_the_folder(pictures: Path, tmp_path: Path) -> None:
    (pictures / "link.png").symlink_to("deep/../a b.png")
    (tmp_path / "entry").symlink_to(pictures)
    folder = ImageFolder(tmp_path / "entry")
    assert folder.read("link.png") == PNG_REFERENCE
    assert folder.read(f"{tmp_path}/entry/a b.png") == PNG_REFERENCE


@pytest.mark.parametrize(
    "url",
    ["../outside.png", "{}/outside.png", "file://{}/outside.png", "out.png", "up/outside.png"],
)
def test_what_lies_outside_of_the_folder_is_refused(
    pictures: Path, tmp_path: Path, url: str
) -> None:
    (pictures / "out.png").symlink_to(tmp_path / "outside.png")
    (pictures / "up").symlink_to("..")
    folder = ImageFolder(pictures)
    with pytest.raises(ImageError, match=f"is outside of {pictures}"):
        folder.read(url.format(tmp_path))
    assert folder.take() == []


def test_a_folder_whose_name_only_begins_alike_is_outside(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures2").mkdir()
    (tmp_path / "pictures2" / "a.png").write_bytes(PNG)
    with pytest.raises(ImageError, match="is outside of"):
        ImageFolder(pictures).read("../pictures2/a.png")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gone.png", "does not exist in "),
        ("deep", "is not a regular file"),
        (".", "is not a regular file"),
        ("pipe.png", "is not a regular file"),
        ("a b.png/c", "cannot be read: Not a directory"),
        ("loop.png", "cannot be read: Too many levels"),
        ("x" * 300, "cannot be read: File name too long"),
        ("a\0b", "is no path"),
        ("file://[", "is no path"),
        ("file://server/a.png", "is on another machine"),
        ("empty.png", "is empty"),
        ("text.png", "is no png, jpeg, webp or gif"),
        ("huge.png", f"has {MAX_IMAGE_BYTES + 1} bytes, more than"),
    ],
)
def test_what_is_no_image_says_why(pictures: Path, url: str, words: str) -> None:
    os.mkfifo(pictures / "pipe.png")
    (pictures / "loop.png").symlink_to("loop.png")
    (pictures / "empty.png").touch()
    (pictures / "text.png").write_text("an image, by its name")
    with (pictures / "huge.png").open("wb") as handle:
        handle.write(PNG)
        handle.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(ImageError, match=words):
        ImageFolder(pictures).read(url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(pictures: Path) -> None:
    (pictures / "a b.png").chmod(0)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        ImageFolder(pictures).read("a b.png")


def test_what_is_no_folder_is_refused(pictures: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ImageFolder(pictures / "gone")
    with pytest.raises(NotADirectoryError):
        ImageFolder(pictures / "a b.png")


def test_images_are_handed_over_once_each(pictures: Path) -> None:
    (pictures / "same.png").write_bytes(PNG)
    folder = ImageFolder(pictures)
    for url in ("a b.png", "same.png", "deep/cat", "a b.png"):
        folder.read(url)
    assert folder.held_bytes == len(PNG) + len(JPEG)
    assert [(one.media_type, one.data) for one in folder.take()] == [
        ("image/png", PNG),
        ("image/jpeg", JPEG),
    ]
    assert (folder.take(), folder.held_bytes) == ([], 0)


def test_a_file_is_read_once_until_it_changes(pictures: Path) -> None:
    folder = ImageFolder(pictures)
    folder.read("a b.png")
    folder.take()
    assert folder.read("./a b.png") == PNG_REFERENCE
    assert folder.take() == []
    (pictures / "a b.png").write_bytes(GIF)
    assert folder.read("a b.png") == reference(image_of(GIF).sha256)
    assert [one.data for one in folder.take()] == [GIF]


def test_a_file_named_outright_may_be_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(JPEG)
    assert read_image(path) == image_of(JPEG)


# --- the fingerprint ------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_any_image_and_with_nothing_else(pictures: Path) -> None:
    def print_of() -> str:
        return ImageFolder(pictures).fingerprint()

    seen = [print_of()]
    (pictures / "results.jsonl").write_text("{}")
    os.mkfifo(pictures / "pipe")
    assert print_of() == seen[0]
    (pictures / "deep" / "cat").write_bytes(PNG + b"more")
    seen.append(print_of())
    os.utime(pictures / "deep" / "cat", ns=(0, 0))
    seen.append(print_of())
    (pictures / "deep" / "cat").rename(pictures / "cat")
    seen.append(print_of())
    (pictures / "link").symlink_to("cat")
    seen.append(print_of())
    (pictures / "cat").unlink()
    seen.append(print_of())
    assert len(set(seen)) == len(seen)
