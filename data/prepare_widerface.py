"""Lay WIDER FACE out under data/widerface, from its zip files or by way of torchvision.

    python data/prepare_widerface.py --zips ~/Downloads
    python data/prepare_widerface.py --download

`--zips` is a folder that holds what has not been unpacked yet of

    WIDER_train.zip, WIDER_val.zip   the photos
    wider_face_split.zip             the official labels
    retinaface_gt_v1.1.zip           RetinaFace's labels (optional, preferred where present)

The zip files are only read. Whatever is in place already is checked against the label file and
left alone, and only missing photos are unpacked: a run that was interrupted is started again with
the same command, and a run with nothing to do needs no zip file. The exit code is 0 when every
photo that the label file of each split lists is in place. data/README.md shows the resulting tree.
"""

import argparse
import os
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

# Started as a script, Python looks for modules in data/ and not in the folder above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.widerface import LabelError, find_labels, photo_path, read_labels

OFFICIAL_COUNTS = {"train": 12_880, "val": 3_226}
SPLIT_ZIP = "wider_face_split.zip"
RETINAFACE_ZIP = "retinaface_gt_v1.1.zip"
NAMES_SHOWN = 5


class PrepareError(Exception):
    """The data cannot be laid out. One line that says what is wrong and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    args = parse_arguments(arguments)
    data: Path = args.data
    zips: Path = args.zips or data
    try:
        if args.zips is not None and not zips.is_dir():
            raise PrepareError(f"{zips}: no such folder; --zips names the folder of the zip files")
        if args.download and not is_complete(data, args.splits):
            zips = download(data)
        unpack_labels(data, zips, args.splits)
        complete = [prepare_split(data, zips, split) for split in args.splits]
    except (PrepareError, LabelError, OSError) as error:
        print(f"prepare_widerface.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare_widerface.py: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0 if all(complete) else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=details, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).resolve().parent / "widerface"
    parser.add_argument(
        "--data", type=Path, default=default, help="folder to fill (default: data/widerface)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--zips", type=Path, help="folder that holds the zip files (default: the --data folder)"
    )
    source.add_argument(
        "--download",
        action="store_true",
        help="fetch what is missing with torchvision.datasets.WIDERFace, which needs\n"
        "`pip install gdown` and fetches the test photos too (about 3.7 GB in all, kept in\n"
        "<data>/torchvision)",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=sorted(OFFICIAL_COUNTS),
        default=sorted(OFFICIAL_COUNTS),
        help="what to lay out (default: both)",
    )
    return parser.parse_args(arguments)


def prepare_split(data: Path, zips: Path, split: str) -> bool:
    """Put the missing photos of `split` in place and report; returns whether all are there."""
    try:
        labels = find_labels(data, split)
    except FileNotFoundError:
        raise PrepareError(
            f"no labels for '{split}' in {data}, nor in a {SPLIT_ZIP} or {RETINAFACE_ZIP} in "
            f"{zips}; data/README.md says where to fetch them"
        ) from None
    images = data / split / "images"
    listed = [photo.path for photo in read_labels(labels)]
    archive = zips / f"WIDER_{split}.zip"
    missing = missing_photos(images, listed)
    if missing and archive.is_file():
        unpack_folder(archive, f"WIDER_{split}/images", images)
        missing = missing_photos(images, listed)

    note = f"; all of WIDER FACE has {OFFICIAL_COUNTS[split]:,}"
    print(
        f"{split}: {len(listed) - len(missing):,} of the {len(listed):,} photos in {labels} are in "
        f"place{note if len(listed) != OFFICIAL_COUNTS[split] else ''}"
    )
    if missing:
        names = ", ".join(missing[:NAMES_SHOWN])
        more = f" and {len(missing) - NAMES_SHOWN:,} more" if len(missing) > NAMES_SHOWN else ""
        reason = "the archive does not hold them" if archive.is_file() else "there is no such file"
        print(
            f"prepare_widerface.py: {split}: {len(missing):,} photos are missing from {images}: "
            f"{names}{more}; looked for them in {archive}: {reason}",
            file=sys.stderr,
        )
    return not missing


def is_complete(data: Path, splits: list[str]) -> bool:
    """Tell whether every listed photo of `splits` is in place."""
    try:
        return not any(
            missing_photos(
                data / split / "images",
                [photo.path for photo in read_labels(find_labels(data, split))],
            )
            for split in splits
        )
    except FileNotFoundError:
        return False


def missing_photos(images: Path, listed: list[str]) -> list[str]:
    """Return those of the `listed` photos that are not files with content under `images`."""
    return [relative for relative in listed if not in_place(photo_path(images, relative))]


def in_place(path: Path) -> bool:
    """Tell whether `path` is a file with content."""
    return path.is_file() and path.stat().st_size > 0


def download(data: Path) -> Path:
    """Fetch WIDER FACE with torchvision and move its photos and labels to their places in `data`.

    Returns the folder where torchvision leaves the zip files. Its own check is content with a
    folder that exists, so what an interrupted run of it left out is unpacked from there afterwards.
    """
    try:
        # Imported here because nothing else in this script needs torch.
        from torchvision.datasets import WIDERFace

        WIDERFace(str(data / "torchvision"), download=True)
    except Exception as error:  # torchvision and gdown have no common base class for theirs
        reason = " ".join(str(error).split()).rstrip(".")
        raise PrepareError(
            f"the download with torchvision failed: {reason}; run it again, or fetch the zip files "
            "by hand (data/README.md says where) and name their folder with --zips"
        ) from error

    fetched = data / "torchvision" / str(WIDERFace.BASE_FOLDER)
    moves = {
        fetched / "wider_face_split": data / "wider_face_split",
        fetched / "WIDER_train" / "images": data / "train" / "images",
        fetched / "WIDER_val" / "images": data / "val" / "images",
    }
    for source, target in moves.items():
        if source.is_dir() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    print(f"{data / 'torchvision'} is no longer needed once everything is in place")
    return fetched


def unpack_labels(data: Path, zips: Path, splits: list[str]) -> None:
    """Unpack the label files that are not in place, from those archives that are in `zips`."""
    if (zips / SPLIT_ZIP).is_file() and not all(
        in_place(data / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt") for split in splits
    ):
        unpack_folder(zips / SPLIT_ZIP, "wider_face_split", data / "wider_face_split")
    if (zips / RETINAFACE_ZIP).is_file():
        for split in splits:
            if not in_place(data / split / "label.txt"):
                unpack_file(zips / RETINAFACE_ZIP, f"{split}/label.txt", data / split / "label.txt")


def unpack_folder(archive_path: Path, inner: str, folder: Path) -> None:
    """Unpack what the archive has below its folder `inner` into `folder`.

    A new `folder` appears under its name when it is complete; until then it is called
    `<folder>.partial`, and the next run goes on with it. In a folder that exists, only the files
    that are missing are written.
    """
    members = {
        PurePosixPath(info.filename).relative_to(inner): info
        for info in checked_members(archive_path)
        if PurePosixPath(inner) in PurePosixPath(info.filename).parents
    }
    if not members:
        raise PrepareError(f"{archive_path}: has no files in {inner}/; expected the official zip")
    target = folder if folder.is_dir() else folder.with_name(f"{folder.name}.partial")
    wanted = {target / name: info for name, info in members.items() if not in_place(target / name)}
    unpack_members(archive_path, wanted)
    if target != folder:
        target.rename(folder)


def unpack_file(archive_path: Path, inner: str, path: Path) -> None:
    """Unpack the file `inner` of the archive, which may stand in a folder there, to `path`."""
    for info in checked_members(archive_path):
        if PurePosixPath(info.filename).match(inner):
            unpack_members(archive_path, {path: info})
            return
    raise PrepareError(f"{archive_path}: has no {inner}; expected RetinaFace's labels")


def checked_members(archive_path: Path) -> list[zipfile.ZipInfo]:
    """Return the files in the archive.

    Raises PrepareError where a single member could be written outside the target folder, since
    the official archives have none: absolute names, `..`, names with what
    Windows takes for a drive or a separator, links.
    """
    try:
        with zipfile.ZipFile(archive_path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise damaged(archive_path, error) from error
    for info in members:
        path = PurePosixPath(info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            fault = "is a link"
        elif path.is_absolute() or ".." in path.parts or set(info.filename) & set("\\:"):
            fault = "could lead out of the folder"
        else:
            continue
        raise PrepareError(
            f"{archive_path}: refused, nothing of it unpacked: its member {info.filename!r} "
            f"{fault}; fetch the official file"
        )
    return [info for info in members if not info.is_dir()]


def unpack_members(archive_path: Path, wanted: dict[Path, zipfile.ZipInfo]) -> None:
    """Write members of the archive to their paths; each file appears when it is complete."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            for path, info in tqdm(
                wanted.items(), desc=archive_path.name, unit=" files", disable=None
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.partial")
                try:
                    with archive.open(info) as source, temporary.open("wb") as copy:
                        shutil.copyfileobj(source, copy)  # reading checks the member's CRC
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
    # RuntimeError: a password; NotImplementedError: a compression that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise damaged(archive_path, error) from error


def damaged(archive_path: Path, error: Exception) -> PrepareError:
    """Return the exception for an archive that cannot be read."""
    return PrepareError(
        f"{archive_path}: damaged or incomplete zip file ({error}); fetch it again and rerun"
    )


if __name__ == "__main__":
    sys.exit(main())
