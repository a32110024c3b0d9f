import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "widerface"

PARADE = "0--Parade/0_Parade_marchingband_1_849.jpg"
HANDSHAKE = "1--Handshaking/1_Handshaking_Handshaking_1_35.jpg"
MEETING = "11--Meeting/11_Meeting_Meeting_11_1.jpg"
TRAIN_LABELS = f"{PARADE}\n1\n449 330 122 149 0 0 0 0 0 0 \n{HANDSHAKE}\n0\n0 0 0 0 0 0 0 0 0 0 \n"
VAL_LABELS = f"{MEETING}\n2\n10 20 30 40 1 0 0 0 0 0 \n7 8 0 5 1 0 0 1 0 0 \n"
SPLIT_MEMBERS = {
    "wider_face_split/wider_face_train_bbx_gt.txt": TRAIN_LABELS,
    "wider_face_split/wider_face_val_bbx_gt.txt": VAL_LABELS,
    "wider_face_split/readme.txt": "about",
}
TRAIN_MEMBERS = {f"WIDER_train/images/{photo}": f"<{photo}>" for photo in (PARADE, HANDSHAKE)}
VAL_MEMBERS = {f"WIDER_val/images/{MEETING}": f"<{MEETING}>"}
LAID_OUT = {
    f"train/images/{PARADE}": f"<{PARADE}>",
    f"train/images/{HANDSHAKE}": f"<{HANDSHAKE}>",
    f"val/images/{MEETING}": f"<{MEETING}>",
    **SPLIT_MEMBERS,
}


def run(data: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "data" / "prepare_widerface.py"
    command: list[str | Path] = [sys.executable, script, "--data", data, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_zip(path: Path, members: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(next(iter(members)).split("/")[0] + "/", "")  # the official ones do
        for name, content in members.items():
            archive.writestr(name, content)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


@pytest.fixture
def zips(tmp_path: Path) -> Path:
    folder = tmp_path / "zips"
    folder.mkdir()
    write_zip(folder / "wider_face_split.zip", SPLIT_MEMBERS)
    write_zip(folder / "WIDER_train.zip", TRAIN_MEMBERS)
    write_zip(folder / "WIDER_val.zip", VAL_MEMBERS)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "widerface"


def test_lays_out_the_official_zips(data: Path, zips: Path) -> None:
    before = {path: path.read_bytes() for path in zips.iterdir()}
    done = run(data, "--zips", zips)
    assert done.returncode == 0, done.stderr
    assert contents(data) == LAID_OUT
    assert "train: 2 of the 2 photos" in done.stdout
    assert "12,880" in done.stdout  # this is not all of WIDER FACE, and the user is told
    assert "val: 1 of the 1 photos" in done.stdout
    assert {path: path.read_bytes() for path in zips.iterdir()} == before


def test_zips_may_lie_in_the_data_folder_itself(zips: Path) -> None:
    assert run(zips).returncode == 0
    assert contents(zips / "train") == {
        f"images/{photo}": f"<{photo}>" for photo in (PARADE, HANDSHAKE)
    }


def test_second_run_writes_nothing_and_needs_no_zip(data: Path, zips: Path) -> None:
    run(data, "--zips", zips)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for path in zips.iterdir():
        path.unlink()
    done = run(data, "--zips", zips)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_retinaface_labels_are_laid_out_and_preferred(data: Path, zips: Path) -> None:
    members = {"train/label.txt": f"# {PARADE}\n1 2 3 4\n", "val/label.txt": f"# {MEETING}\n"}
    write_zip(zips / "retinaface_gt_v1.1.zip", members)
    done = run(data, "--zips", zips)
    assert done.returncode == 0, done.stderr
    assert f"1 of the 1 photos in {data / 'train' / 'label.txt'}" in done.stdout
    assert contents(data) == {**LAID_OUT, **members}


def test_retinaface_labels_may_stand_in_a_folder_of_the_zip(data: Path, zips: Path) -> None:
    (zips / "wider_face_split.zip").unlink()
    members = {"gt/train/label.txt": f"# {PARADE}\n", "gt/val/label.txt": f"# {MEETING}\n"}
    write_zip(zips / "retinaface_gt_v1.1.zip", members)
    assert run(data, "--zips", zips).returncode == 0
    assert (data / "train" / "label.txt").read_text() == f"# {PARADE}\n"


def test_a_split_can_be_laid_out_alone(data: Path, zips: Path) -> None:
    (zips / "WIDER_train.zip").unlink()
    done = run(data, "--zips", zips, "--splits", "val")
    assert done.returncode == 0, done.stderr
    assert "train" not in done.stdout


@pytest.mark.parametrize("archive_there", [True, False])
def test_missing_photo_is_named(data: Path, zips: Path, archive_there: bool) -> None:
    (zips / "WIDER_train.zip").unlink()
    if archive_there:
        write_zip(zips / "WIDER_train.zip", {f"WIDER_train/images/{PARADE}": "photo"})
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    message = only_line(done.stderr)
    assert HANDSHAKE in message
    assert (PARADE in message) != archive_there
    assert str(zips / "WIDER_train.zip") in message
    assert (data / "val" / "images" / MEETING).is_file()  # the other split is not held up


def test_only_what_is_missing_is_unpacked_again(data: Path, zips: Path) -> None:
    run(data, "--zips", zips)
    images = data / "train" / "images"
    (images / PARADE).write_text("the user's own copy")
    (images / HANDSHAKE).write_text("")  # an empty file is no photo
    done = run(data, "--zips", zips)
    assert done.returncode == 0, done.stderr
    assert (images / PARADE).read_text() == "the user's own copy"
    assert (images / HANDSHAKE).read_text() == f"<{HANDSHAKE}>"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "WIDER_train/images/../../../../evil.jpg",
        "/evil.jpg",
        "WIDER_train/images/..\\..\\evil.jpg",
        "WIDER_train/images/C:/evil.jpg",
    ],
)
def test_member_that_leaves_the_folder_is_refused(data: Path, zips: Path, name: str) -> None:
    write_zip(zips / "WIDER_train.zip", {**TRAIN_MEMBERS, name: "evil"})
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    assert "evil.jpg' could lead out of the folder" in only_line(done.stderr)
    assert not list(data.parent.rglob("*evil*"))
    assert not (data / "train").exists()


def test_link_in_a_zip_is_refused(data: Path, zips: Path) -> None:
    link = zipfile.ZipInfo("WIDER_train/images/0--Parade/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(zips / "WIDER_train.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    assert "link.jpg' is a link" in only_line(done.stderr)
    assert not (data / "train").exists()


@pytest.mark.parametrize("damage", ["cut short", "wrong byte"])
def test_damaged_zip_is_named_and_the_next_run_goes_on(data: Path, zips: Path, damage: str) -> None:
    archive = zips / "WIDER_train.zip"
    with zipfile.ZipFile(archive, "w") as stored:  # uncompressed: a photo's bytes can be found
        for name, content in TRAIN_MEMBERS.items():
            stored.writestr(name, content)
    whole = archive.read_bytes()
    last_photo = f"<{HANDSHAKE}>".encode()
    damaged = whole[:-30] if damage == "cut short" else whole.replace(last_photo, last_photo[::-1])
    archive.write_bytes(damaged)

    done = run(data, "--zips", zips)
    assert done.returncode == 1
    message = only_line(done.stderr)
    assert f"{archive}: damaged or incomplete zip file" in message
    assert not (data / "train" / "images").exists()

    archive.write_bytes(whole)
    done = run(data, "--zips", zips)
    assert done.returncode == 0, done.stderr
    assert contents(data) == LAID_OUT


def test_zip_of_something_else_is_named(data: Path, zips: Path) -> None:
    write_zip(zips / "WIDER_train.zip", VAL_MEMBERS)
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    assert "has no files in WIDER_train/images/" in only_line(done.stderr)


def test_without_labels_says_what_to_fetch(data: Path, zips: Path) -> None:
    (zips / "wider_face_split.zip").unlink()
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    assert "wider_face_split.zip" in only_line(done.stderr)


def test_faulty_label_file_is_one_line(data: Path, zips: Path) -> None:
    name = "wider_face_split/wider_face_train_bbx_gt.txt"
    write_zip(zips / "wider_face_split.zip", {**SPLIT_MEMBERS, name: f"{PARADE}\n1\n1 2 3\n"})
    done = run(data, "--zips", zips)
    assert done.returncode == 1
    assert "wider_face_train_bbx_gt.txt:3: " in only_line(done.stderr)


def test_zips_folder_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    done = run(data, "--zips", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "nowhere: no such folder" in only_line(done.stderr)


def test_tree_of_torchvision_is_moved_into_ours(data: Path, zips: Path) -> None:
    # torchvision takes the folders for a finished download, so nothing is fetched.
    fetched = data / "torchvision" / "widerface"
    for archive in zips.iterdir():
        with zipfile.ZipFile(archive) as official:
            official.extractall(fetched)
    (fetched / "WIDER_test").mkdir()
    # An extraction that was cut off: torchvision does not notice, the zip beside it has the photo.
    (fetched / "WIDER_train" / "images" / HANDSHAKE).unlink()
    (zips / "WIDER_train.zip").rename(fetched / "WIDER_train.zip")

    done = run(data, "--download")
    assert done.returncode == 0, done.stderr
    (data / "torchvision").rename(data.parent / "rest")
    assert contents(data) == LAID_OUT


@pytest.mark.skipif(not SHARED.is_dir(), reason="the research data is not beside the repository")
def test_research_sample_is_complete() -> None:
    done = run(SHARED)
    assert done.returncode == 0, done.stderr
    assert "train: 1,582 of the 1,582 photos" in done.stdout
    assert "val: 300 of the 300 photos" in done.stdout
