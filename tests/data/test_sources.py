"""Folders as users have them: listed in order, or refused with what is wrong."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.data import Data, ImageFolder, MaskPairs, Split, TarShards
from scalablevit.config.errors import UserError
from scalablevit.data.dataset import Bad, SampleDataset
from scalablevit.data.packing import Packing, pack
from scalablevit.data.sampler import Key
from scalablevit.data.sources.base import Sample
from scalablevit.data.sources.files import describe_skipped, list_images
from scalablevit.data.sources.opening import open_class_folders, open_source


def folder(root: str = "set") -> ImageFolder:
    return ImageFolder(source="image_folder", root=root, train=Split(images="train"), val=Split(images="val"))


def pairs(root: str = "set", classes: str | list[str] = "classes.txt") -> MaskPairs:
    return MaskPairs(
        source="mask_pairs",
        root=root,
        classes=classes,
        train=Split(images="images/train", masks="masks/train"),
        val=Split(images="images/val", masks="masks/val"),
    )


def shards(root: str = "set") -> TarShards:
    return TarShards(source="tar_shards", root=root, train=Split(images="train"), val=Split(images="val"))


def write_image(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (value, value, value)).save(file)


def write_folder(base: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            for number in (10, 2):
                write_image(base / split / name / f"{number}.jpg", 20 * label + number)


def write_pairs(base: Path) -> None:
    for split in ("train", "val"):
        for name in ("b", "sub/a"):
            write_image(base / "images" / split / f"{name}.jpg")
            mask = base / "masks" / split / f"{name}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((6, 8), np.uint8)).save(mask)
    (base / "classes.txt").write_text("sky\n road \n\n")


def write_shards(base: Path) -> None:
    write_folder(base / "folders")
    for split in ("train", "val"):
        packing = Packing(shard_bytes=25_000, short_side=None, quality=90, workers=2)
        pack(open_class_folders(base / "folders" / split), base / split, packing, lambda line: None)
    assert len(list((base / "train").glob("*.tar"))) > 1


KINDS: dict[str, tuple[Data, Callable[[Path], None]]] = {
    "folder": (folder(), write_folder),
    "pairs": (pairs(), write_pairs),
    "shards": (shards(), write_shards),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_a_sequence_that_travels_to_other_processes(tmp_path: Path, kind: str) -> None:
    data, write = KINDS[kind]
    write(tmp_path / "set")
    source = open_source(data, "train", tmp_path)
    samples = list(source)
    assert len(samples) == len(source) > 1
    assert source[1:] == samples[1:]
    for outside in (-1, len(source)):
        with pytest.raises(IndexError):
            source[outside]
    travelled = pickle.loads(pickle.dumps(source))  # noqa: S301  # as the loader does
    assert list(travelled) == samples
    assert (travelled.classes, travelled.digest()) == (source.classes, source.digest())
    assert [number for part in source.parts() for number in part] == list(range(len(source)))
    assert source.total_bytes() >= sum(len(sample.image.read_bytes()) for sample in samples)
    assert source.damaged_files() == []


def test_shards_give_the_samples_of_their_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "set")
    packed = open_source(shards(), "train", tmp_path)
    plain = open_source(folder("set/folders"), "train", tmp_path)
    assert packed.classes == plain.classes
    assert [sample.label for sample in packed] == [sample.label for sample in plain]
    assert [sample.image.read_bytes() for sample in packed] == [sample.image.read_bytes() for sample in plain]
    ours, theirs = SampleDataset(packed, shards(), 3, train=True), SampleDataset(plain, folder(), 3, train=True)
    for key in (Key(0, 0, 0), Key(3, 0, 1), Key(3, 1, 1)):
        made, wanted = ours[key], theirs[key]
        assert not isinstance(made, Bad) and not isinstance(wanted, Bad)
        np.testing.assert_array_equal(made["image"], wanted["image"])
        assert made["label"] == wanted["label"]


def test_image_folder_is_listed_in_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set/train/cat/deeper/1.PNG")
    write_image(tmp_path / "set/train/cat/.hidden.jpg")
    (tmp_path / "set/train/cat/notes.txt").write_text("not an image")
    source = open_source(folder(), "train", tmp_path)
    train = tmp_path / "set/train"
    assert source.classes == ("cat", "dog")
    assert list(source) == [
        Sample(train / "cat/10.jpg", 0, None),
        Sample(train / "cat/2.jpg", 0, None),
        Sample(train / "cat/deeper/1.PNG", 0, None),
        Sample(train / "dog/10.jpg", 1, None),
        Sample(train / "dog/2.jpg", 1, None),
    ]
    assert source[1:3] == list(source)[1:3]
    assert source.ignored == ("cat/.hidden.jpg", "cat/notes.txt")
    with pytest.raises(IndexError):
        source[5]


def test_files_beside_the_class_folders_are_named_as_images_without_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    before = open_source(folder(), "train", tmp_path)
    for name in ("2.jpg", "1.PNG", ".hidden.jpg", "cat/notes.txt", "README"):
        write_image(tmp_path / "set/train" / "3.jpg", 90)
        (tmp_path / "set/train/3.jpg").rename(tmp_path / "set/train" / name)
    (tmp_path / "set/train/gone.jpg").symlink_to("nowhere")
    for source in (open_source(folder(), "train", tmp_path), open_class_folders(tmp_path / "set/train")):
        assert list(source.names) == list(before.names) and source.digest() == before.digest()
        assert source.ignored == (".hidden.jpg", "1.PNG", "2.jpg", "README", "gone.jpg", "cat/notes.txt")
        (note,) = source.notes
        assert note == "3 images beside the class folders have no class and are left out: 1.PNG, 2.jpg, gone.jpg"
    assert open_source(folder(), "val", tmp_path).notes == before.notes == ()


def test_mask_pairs_are_listed_in_order(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    source = open_source(pairs(), "val", tmp_path)
    images, masks = tmp_path / "set/images/val", tmp_path / "set/masks/val"
    assert source.classes == ("sky", "road")
    assert list(source) == [
        Sample(images / "b.jpg", None, masks / "b.png"),
        Sample(images / "sub/a.jpg", None, masks / "sub/a.png"),
    ]


def test_absolute_root_and_names_of_any_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere")
    odd = os.fsdecode(b"\xe4 \n\xc3\xa9.jpg")
    write_image(tmp_path / "elsewhere/train/cat" / "plain.jpg")
    (tmp_path / "elsewhere/train/cat/plain.jpg").rename(tmp_path / "elsewhere/train/cat" / odd)
    source = open_source(folder(str(tmp_path / "elsewhere")), "train", Path("/nowhere"))
    assert tmp_path / "elsewhere/train/cat" / odd in [sample.image for sample in source]
    assert all(sample.image.is_file() for sample in source)


def test_ade20k_class_table(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n2\t0.10\t6046\t612\tbuilding, edifice\n"
    (tmp_path / "set/classes.txt").write_text(table)
    assert open_source(pairs(), "train", tmp_path).classes == ("wall", "building, edifice")


@pytest.mark.parametrize("kind", KINDS)
def test_digest_ignores_place_and_sees_every_change(tmp_path: Path, kind: str) -> None:
    data, write = KINDS[kind]
    write(tmp_path / "a/set")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def digest(place: str) -> str:
        return open_source(data, "train", tmp_path / place).digest()

    first = digest("a")
    assert first.startswith("content:")
    assert digest("b") == first
    sample = open_source(data, "train", tmp_path / "b")[0]
    changed = sample.mask or (sample.image if isinstance(sample.image, Path) else sample.image.shard)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1  # same size
    changed.write_bytes(content)
    assert digest("b") != first


def test_digest_sees_names_labels_and_classes(tmp_path: Path) -> None:
    def digest() -> str:
        return open_source(folder(), "train", tmp_path).digest()

    write_folder(tmp_path / "set")
    digests = [digest()]
    (tmp_path / "set/train/cat/2.jpg").rename(tmp_path / "set/train/cat/3.jpg")
    digests.append(digest())
    (tmp_path / "set/train/cat/3.jpg").rename(tmp_path / "set/train/dog/3.jpg")
    digests.append(digest())
    for split in ("train", "val"):
        (tmp_path / "set" / split / "dog").rename(tmp_path / "set" / split / "fox")
    digests.append(digest())
    assert len(set(digests)) == 4


def test_images_of_every_suffix_that_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    cat = tmp_path / "set/train/cat"
    for name in ("a.jfif", "b.jpe", "c.avif", "d.jp2", "e.tga", "f.TIF", "g.v2.jpg"):
        write_image(cat / f"{name}", 200)
    for name in ("h.heic", "i.HEIC", "jpg", "more.v2/noext"):
        (cat / name).parent.mkdir(exist_ok=True)
        (cat / name).write_bytes((cat / "2.jpg").read_bytes())
    source = open_source(folder(), "train", tmp_path)
    assert [sample.image.name for sample in source if sample.label == 0] == [
        "10.jpg", "2.jpg", "a.jfif", "b.jpe", "c.avif", "d.jp2", "e.tga", "f.TIF", "g.v2.jpg"]  # fmt: skip
    assert {int(source.read(i).image.mean().round()) for i in range(2, 9)} == {200}
    assert source.ignored == ("cat/h.heic", "cat/i.HEIC", "cat/jpg", "cat/more.v2/noext")
    assert describe_skipped(source.ignored) == (
        "4 other files left out: 2 .heic (cat/h.heic, cat/i.HEIC), 2 without suffix (cat/jpg, cat/more.v2/noext)"
    )


def test_files_left_out_are_counted_by_suffix_and_the_first_named() -> None:
    assert describe_skipped(()) == "0 other files left out"
    names = [*(f"{number}.heic" for number in range(9)), "README", ".bird/", "a\n.txt"]
    assert describe_skipped(names) == (
        "12 other files left out: 9 .heic (0.heic, 1.heic, 2.heic and 6 more), 1 .txt (a\\n.txt), "
        "1 hidden or system folders (.bird/), 1 without suffix (README)"
    )
    assert describe_skipped([f"x.{number}" for number in range(10)]).endswith("1 .7 (x.7), 2 with 2 further suffixes")


def test_folders_of_unread_files_say_what_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    for split in ("train", "val"):
        for file in (tmp_path / "set" / split / "cat").iterdir():
            file.rename(file.with_suffix(".heic"))
    assert "hold no images: cat; 2 other files left out: 2 .heic (cat/10.heic, cat/2.heic)" in refused(
        folder(), tmp_path
    )
    with pytest.raises(UserError, match=r"no images here; 2 other files left out: 2 .heic \(10.heic, 2.heic\)"):
        list_images(tmp_path / "set/train/cat")


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_pixels_become_the_recipes_mean(tmp_path: Path, kind: str) -> None:
    data, write = KINDS[kind]
    write(tmp_path / "set")
    source = open_source(data.model_copy(update={"mean": (0.2, 0.4, 0.6)}), "train", tmp_path)
    assert not (source.read(0).image == (51, 102, 153)).all()
    file = source[0].image
    clear = encoded_clear()
    if isinstance(file, Path):
        file.write_bytes(clear)
    else:
        content = bytearray(file.shard.read_bytes())
        content[file.offset : file.offset + file.size] = clear + bytes(file.size - len(clear))
        file.shard.write_bytes(content)
    assert (source.read(0).image == (51, 102, 153)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_order_of_classes_and_one_split_alone(tmp_path: Path, kind: str) -> None:
    data, write = KINDS[kind]
    write(tmp_path / "set")
    if kind == "pairs":
        ramp = np.tile(np.array([0, 1, 255, 0], np.uint8), (6, 2))
        Image.fromarray(ramp).save(tmp_path / "set/masks/val/b.png")
    plain = open_source(data, "val", tmp_path)
    for folder_of in ("train", "images/train", "masks/train"):
        shutil.rmtree(tmp_path / "set" / folder_of, ignore_errors=True)
    wanted = plain.classes[::-1]
    source = open_source(data, "val", tmp_path, wanted)
    for found in (source, pickle.loads(pickle.dumps(source)), source.with_classes(wanted)):  # noqa: S301  # as the loader
        assert found.classes == wanted
        assert [sample.image for sample in found] == [sample.image for sample in plain]
        for i in range(len(plain)):
            ours, theirs = found.read(i), plain.read(i)
            assert ours.label == (None if theirs.label is None else 1 - theirs.label)
            if theirs.mask is not None:
                np.testing.assert_array_equal(ours.mask, np.array([1, 0] + [255] * 254, np.uint8)[theirs.mask])
    again = source.with_classes(plain.classes)
    np.testing.assert_array_equal(again.read(0).mask, plain.read(0).mask)
    assert [sample.label for sample in again] == [sample.label for sample in plain]
    assert again.digest() == plain.digest()
    with pytest.raises(UserError, match="only the model has emu"):
        source.with_classes((*wanted, "emu"))


def encoded_clear() -> bytes:
    """A PNG of the images' size without an opaque pixel."""
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 6)).save(buffer, "PNG")
    return buffer.getvalue()


def refused(data: Data, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_source(data, "train", root)
    assert caught.value.fix
    return str(caught.value)


def test_missing_folder_names_what_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "set/train").rename(tmp_path / "set/trian")
    message = refused(folder(), tmp_path)
    assert message.startswith("data.train.images:")
    assert f"{tmp_path}/set does, and holds the folders trian, val" in message
    assert "holds the folders set" in refused(folder("sets"), tmp_path)


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    for split in ("train", "val"):
        (tmp_path / "set" / split / "emu").mkdir()
    assert "1 class folders" in refused(folder(), tmp_path)
    assert "emu" in refused(folder(), tmp_path)
    (tmp_path / "flat/train").mkdir(parents=True)
    (tmp_path / "flat/val").mkdir()
    assert "holds no class folders" in refused(folder("flat"), tmp_path)
    write_pairs(tmp_path / "pairs")
    for file in (tmp_path / "pairs/images/train").rglob("*.jpg"):
        file.unlink()
    assert "no images in" in refused(pairs("pairs"), tmp_path)


def test_classes_must_agree(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set/train/emu/1.jpg")
    write_image(tmp_path / "set/val/gnu/1.jpg")
    message = refused(folder(), tmp_path)
    assert "only train has emu" in message
    assert "only val has gnu" in message


def test_lonely_images_and_masks_are_counted_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    write_image(tmp_path / "set/images/train/c.jpg")
    (tmp_path / "set/masks/train/sub/a.png").rename(tmp_path / "set/masks/train/a.png")
    message = refused(pairs(), tmp_path)
    assert message.startswith("data.train.masks: 2 images")
    assert "c.jpg, sub/a.jpg; 1 other files are there: 1 .png (a.png)" in message
    assert "1 are named {stem}.png in another folder (a.png for sub/a.jpg)" in message
    (tmp_path / "set/images/train/c.jpg").unlink()
    (tmp_path / "set/images/train/sub/a.jpg").unlink()
    assert "1 masks of" in (message := refused(pairs(), tmp_path)) and message.count(": a.png\n") == 1


def rename_masks(base: Path, pattern: str) -> None:
    for file in (base / "masks").rglob("*.png"):
        file.rename(file.with_name(pattern.replace("{stem}", file.stem)))


@pytest.mark.parametrize("ending", ["PNG", "tif", "TIFF", "bmp"])
def test_masks_with_another_suffix_without_loss_are_read(tmp_path: Path, ending: str) -> None:
    write_pairs(tmp_path / "set")
    plain = open_source(pairs(), "train", tmp_path).digest()
    rename_masks(tmp_path / "set", f"{{stem}}.{ending}")
    assert open_source(pairs(), "train", tmp_path).digest() == plain, "names of masks are no part of it"
    source = open_source(pairs(), "train", tmp_path)
    if ending != "PNG":
        for file in (tmp_path / "set/masks").rglob(f"*.{ending}"):
            Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(file)
    assert [sample.mask for sample in source] == [
        tmp_path / f"set/masks/train/{name}.{ending}" for name in ("b", "sub/a")
    ]
    travelled = pickle.loads(pickle.dumps(source))  # noqa: S301  # as the loader does
    assert travelled.read(1).mask.sum() == (0 if ending == "PNG" else 6) and source.ignored == ()


@pytest.mark.parametrize(
    ("pattern", "told", "fix"),
    [
        ("{stem}_mask.png", "2 are named {stem}_mask.png (b_mask.png for b.jpg)", "rename them: b_mask.png to b.png"),
        ("{stem}_gtFine_labelIds.png", "2 are named {stem}_gtFine_labelIds.png", "rename them"),
        ("mask_{stem}.tif", "2 are named mask_{stem}.tif (mask_b.tif for b.jpg)", "rename them: mask_b.tif to b.tif"),
        ("{stem}.jpg", "2 are named {stem}.jpg (b.jpg for b.jpg)", "JPEG changes class ids: write the masks again"),
        ("{stem}_mask.jpeg", "2 are named {stem}_mask.jpeg", "JPEG changes class ids"),
        ("{stem}.gif", "2 are named {stem}.gif", "convert them: b.gif to b.png"),
        ("{stem}s.png", "2 other files are there: 2 .png (bs.png, sub/as.png)\n", "rename the masks as their images"),
    ],
)
def test_masks_of_other_names_are_told(tmp_path: Path, pattern: str, told: str, fix: str) -> None:
    write_pairs(tmp_path / "set")
    rename_masks(tmp_path / "set", pattern)
    message = refused(pairs(), tmp_path)
    assert "2 images of" in message and "; 2 other files are there: 2 ." in message
    assert told in message and f"fix: {fix}" in message


def test_masks_that_are_missing_altogether(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    for file in (tmp_path / "set/masks/train").rglob("*.png"):
        file.unlink()
    assert "have no mask in" in (message := refused(pairs(), tmp_path)) and "no other files are there" in message


def test_of_several_masks_png_is_taken_and_others_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    masks = tmp_path / "set/masks/train"
    shutil.copy(masks / "b.png", masks / "b.tif")
    source = open_source(pairs(), "train", tmp_path)
    assert source[0].mask == masks / "b.png" and source.ignored == ("b.tif",)
    (masks / "b.png").rename(masks / "b.bmp")
    assert "1 images of" in (message := refused(pairs(), tmp_path)) and "b.bmp and b.tif" in message


def test_an_image_is_not_its_own_mask(tmp_path: Path) -> None:
    write_image(tmp_path / "set/b.png")
    split = Split(images=".", masks=".")
    data = MaskPairs(source="mask_pairs", root="set", classes=["a", "b"], train=split, val=split)
    assert "1 images of" in (message := refused(data, tmp_path)) and "no other files are there" in message


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    message = refused(pairs(classes=["object"]), tmp_path)
    assert "at least 2 classes, not 1 (object)" in message and "background" in message


def test_two_images_for_one_mask(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    write_image(tmp_path / "set/images/train/b.png")
    assert "differ only in their suffix, and so share a mask: b.jpg, b.png" in refused(pairs(), tmp_path)


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_links_out_of_the_data_set_are_refused_by_name(tmp_path: Path, target: str) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "outside/secret.jpg")
    place = {"file": "outside/secret.jpg", "folder": "outside", "nothing": "gone.jpg"}[target]
    (tmp_path / "set/train/cat/linked.jpg").symlink_to(tmp_path / place)
    message = refused(folder(), tmp_path)
    assert "1 links" in message
    assert "train/cat/linked.jpg" in message


def test_linked_class_and_split_folders_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "outside/1.jpg")
    (tmp_path / "set/train/emu").symlink_to(tmp_path / "outside")
    write_image(tmp_path / "set/val/emu/1.jpg")
    assert "set/train/emu" in refused(folder(), tmp_path)
    (tmp_path / "other").mkdir()
    for split in ("train", "val"):
        (tmp_path / "other" / split).symlink_to(tmp_path / "set" / split)
    assert "leads out of" in refused(folder("other"), tmp_path)


def test_a_folder_to_pack_holds_no_linked_class_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "outside/1.jpg")
    (tmp_path / "set/train/emu").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="set/train/emu") as caught:
        open_class_folders(tmp_path / "set/train")
    assert caught.value.where == "FOLDER"


def test_links_inside_the_data_set_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "set/train/cat/again.jpg").symlink_to(tmp_path / "set/train/cat/2.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "set")
    names = [sample.image.name for sample in open_source(folder("alias"), "train", tmp_path)]
    assert names == ["10.jpg", "2.jpg", "again.jpg", "10.jpg", "2.jpg"]


@pytest.mark.parametrize(
    "text",
    ["Pixel Value, Class\n0, sky\n1, road\n", "# label:color_rgb:parts:actions\nsky:0,0,0::\nroad:9,0,0::\n",
     "names:\n  0: sky\n  1: road\n", "names:\n- sky\n- road\n", '{\n"0": "sky",\n"1": "road"\n}', "1: sky\n0: road\n",
     "0\tsky\n2\troad\n"],
)  # fmt: skip
def test_tables_are_no_lists_of_class_names(tmp_path: Path, text: str) -> None:
    """Their headings would be class 0, and all others be shifted; such files come with exports of labelling tools."""
    write_pairs(tmp_path / "set")
    (tmp_path / "set/classes.txt").write_text(text)
    message = refused(pairs(), tmp_path)
    assert "classes.txt: it begins with" in message and "is no plain list of names" in message


def test_a_table_without_lines_names_no_classes(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    (tmp_path / "set/classes.txt").write_text("Idx\tRatio\tName\n")
    assert "class names are missing" in refused(pairs(), tmp_path)


@pytest.mark.parametrize("text", ["0: sky\n1: road\n", "1,sky\n2,road\n", "1 euro\n5 euro\n", "c#\n2: x\n3\n"])
def test_numbers_of_the_lines_and_names_with_numbers_are_read(tmp_path: Path, text: str) -> None:
    write_pairs(tmp_path / "set")
    (tmp_path / "set/classes.txt").write_text(text)
    assert open_source(pairs(), "train", tmp_path).classes == tuple(text.splitlines())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("gone.txt", "no file"),
        ("../classes.txt", "no file"),
        ([], "missing"),
        (["sky", ""], "missing"),
        (["sky", "sky"], "occur twice: sky"),
    ],
)
def test_class_names_are_checked(tmp_path: Path, classes: str | list[str], message: str) -> None:
    write_pairs(tmp_path / "set")
    (tmp_path / "classes.txt").write_text("sky\n")
    assert message in refused(pairs(classes=classes), tmp_path)


# --- names that look alike, and hidden ones ---

NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_class_folders_equal_up_to_unicode_form_are_named_as_such(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in (NFC, NFD):
            write_image(tmp_path / "set" / split / name / "1.jpg")
    with pytest.raises(UserError, match=r"equal up to Unicode form \(NFC\): café \('cafe\\u0301' and 'caf\\xe9'\)"):
        open_source(folder(), "train", tmp_path)


def test_splits_whose_classes_differ_in_unicode_form_are_told_so(tmp_path: Path) -> None:
    """One copied from a Mac, the other not."""
    for split, name in (("train", NFC), ("val", NFD)):
        write_image(tmp_path / "set" / split / name / "1.jpg")
    with pytest.raises(UserError, match=r"classes of .* differ: .*equal up to Unicode form"):
        open_source(folder(), "train", tmp_path)


def test_listed_classes_equal_up_to_unicode_form_are_named_as_such(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    with pytest.raises(UserError, match="equal up to Unicode form"):
        open_source(pairs(classes=[NFC, NFD]), "train", tmp_path)


RUBBISH = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", ".Trashes", "#recycle")


@pytest.mark.parametrize("name", RUBBISH)
def test_folders_of_storage_and_systems_are_no_classes_and_hold_no_samples(tmp_path: Path, name: str) -> None:
    """As a NAS, macOS and Windows make them, with thumbnails or deleted files."""
    write_folder(tmp_path / "set")
    before = list(open_source(folder(), "train", tmp_path).names)
    for place in ("", "cat/"):
        write_image(tmp_path / f"set/train/{place}{name}/10.jpg/SYNOPHOTO_THUMB_M.jpg")
    source = open_source(folder(), "train", tmp_path)
    assert (source.classes, list(source.names)) == (("cat", "dog"), before)
    assert source.ignored == (f"{name}/", f"cat/{name}/") and source.notes == ()
    assert list_images(tmp_path / "set/train/cat") == (["10.jpg", "2.jpg"], [f"{name}/"])


def test_folders_of_systems_are_left_out_of_pairs_and_annotated_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set")
    for kind in ("images", "masks"):
        write_image(tmp_path / f"set/{kind}/val/sub/@eaDir/a.jpg")
        write_image(tmp_path / f"set/{kind}/val/sub/._a.jpg")
    source = open_source(pairs(), "val", tmp_path)
    assert list(source.names) == ["b.jpg", "sub/a.jpg"]
    assert source.ignored == ("sub/._a.jpg", "sub/@eaDir/") * 2


def test_other_hidden_files_are_not_worth_a_word(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    for place in ("", "cat/"):
        (tmp_path / f"set/train/{place}.DS_Store").touch()
    assert open_source(folder(), "train", tmp_path).ignored == ()


def test_a_class_folder_with_a_leading_dot_is_counted_as_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set/train/.bird/1.jpg")
    source = open_source(folder(), "train", tmp_path)
    assert source.classes == ("cat", "dog") and source.ignored == (".bird/",)
    assert open_source(folder(), "val", tmp_path).ignored == ()
