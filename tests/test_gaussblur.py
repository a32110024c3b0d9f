import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import gaussblur
from utils.blur import Pixels, gaussian_blur
from utils.image_files import jpeg_coded, read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]
LABELS = {
    "e1/two faces.jpg": ["30 20 90 80", "70 50 60 110"],
    "e1/none.jpg": [],
    "e2/deep/too_small.jpg": ["5 5 1 1", "9 9 0 12"],
    "e2/cut.jpg": ["180 100 60 90"],
}


def photo(seed: int) -> Pixels:
    """A picture of 200 x 180 pixels with structure at every scale."""
    generator = np.random.default_rng(seed)
    layers = [
        generator.integers(0, 86, (180 // n, 200 // n, 3)).repeat(n, axis=0).repeat(n, axis=1)
        for n in (1, 4, 20)
    ]
    return np.sum(layers, axis=0).astype(np.uint8)


def make_tree(root: Path, split: str = "val", labels: dict[str, list[str]] = LABELS) -> Path:
    for seed, name in enumerate(labels):
        write_photo(root / split / "images" / name, photo(seed), subsampling="4:2:0")
    lines = [line for name, rows in labels.items() for line in (f"# {name}", *rows)]
    (root / split / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "gaussblur.py"), *map(str, arguments)]


def gaussblur_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def boxes_of(rows: list[str]) -> list[list[float]]:
    numbers = [[float(field) for field in row.split()] for row in rows]
    return [[x, y, x + w, y + h] for x, y, w, h in numbers]


def test_both_splits_are_written_beside_the_images(tmp_path: Path) -> None:
    make_tree(tmp_path)
    make_tree(tmp_path, "train", {"e1/a.jpg": ["10 10 100 120"]})
    before = files_below(tmp_path)
    done = gaussblur_run("--data", tmp_path, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "train: 1 photos, 1 written, 0 skipped as done, 1 faces blurred, 0 fail" in done.stdout
    assert "val: 4 photos, 4 written, 0 skipped as done, 3 faces blurred, 0 fail" in done.stdout
    assert "images/s" in done.stdout
    new = files_below(tmp_path) - before
    assert new == {
        "train/images_G2_M80/e1/a.jpg",
        *(f"val/images_G2_M80/{name}" for name in LABELS),
    }
    for name, rows in LABELS.items():
        pixels = read_photo(tmp_path / "val" / "images" / name).pixels
        copy = tmp_path / "val" / "images_G2_M80" / name
        expected = jpeg_coded(gaussian_blur(pixels, boxes_of(rows)), 80)
        np.testing.assert_array_equal(read_photo(copy).pixels, expected)
        with Image.open(copy) as image:
            assert [component[1:3] for component in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_failures_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    labels = {**LABELS, "e3/missing.jpg": [], "e3/text.jpg": ["1 1 9 9"], "e3/other.jpg": []}
    labels["e3/half.jpg"] = ["20 20 50 50"]
    labels["e3/misfit.jpg"] = ["20 20 50 50", "200 20 50 50"]  # photos are 200 pixels wide
    make_tree(tmp_path, labels=labels)
    images, output = tmp_path / "val" / "images", tmp_path / "out" / "val" / "images_G2_M80"
    (images / "e3" / "missing.jpg").unlink()
    (images / "e3" / "text.jpg").write_text("no photo")
    whole = (images / "e3" / "half.jpg").read_bytes()
    (images / "e3" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    before = files_below(tmp_path)
    arguments = ("--data", tmp_path, "--output", tmp_path / "out", "--workers", 1)

    done = gaussblur_run(*arguments, "--splits", "val")
    assert done.returncode == 1
    assert "9 photos, 5 written, 0 skipped as done, 3 faces blurred, 4 failures" in done.stdout
    for name, words in {
        "missing.jpg": "no such file",
        "text.jpg": "not a picture",
        "half.jpg": "damaged (Premature end of JPEG file)",
        "misfit.jpg": "200 20 50 50 (x y w h) lies outside this photo of 200 x 180 pixels",
    }.items():
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert line.strip().startswith(f"failed: {images / 'e3' / name}: ")
        assert words in line
    assert "Traceback" not in done.stderr
    assert files_below(output) == {*LABELS, "e3/other.jpg"}
    assert files_below(tmp_path) - before == {
        f"out/val/images_G2_M80/{name}" for name in files_below(output)
    }

    # The next run does what is left and touches nothing that is there.
    (images / "e3" / "half.jpg").write_bytes(whole)
    kept = output / "e1" / "none.jpg"
    kept.write_bytes(b"mine")
    again = gaussblur_run(*arguments)
    assert again.returncode == 1
    assert "9 photos, 1 written, 5 skipped as done, 1 faces blurred, 3 failures" in again.stdout
    assert kept.read_bytes() == b"mine"
    assert files_below(output) == {*LABELS, "e3/other.jpg", "e3/half.jpg"}

    # And --overwrite leaves no copy behind that it could not make again.
    (images / "e3" / "other.jpg").unlink()
    over = gaussblur_run(*arguments, "--overwrite")
    assert over.returncode == 1
    assert "9 photos, 5 written, 0 skipped as done, 4 faces blurred, 4 failures" in over.stdout
    assert read_photo(kept).pixels.shape == (180, 200, 3)
    assert files_below(output) == {*LABELS, "e3/half.jpg"}


@pytest.mark.skipif(os.name != "posix", reason="needs a named pipe")
def test_a_pipe_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads a named pipe waits for ever, so none is opened."""
    make_tree(tmp_path)
    (tmp_path / "val" / "images" / "e1" / "none.jpg").unlink()
    os.mkfifo(tmp_path / "val" / "images" / "e1" / "none.jpg")
    assert gaussblur.main(["--data", str(tmp_path), "--workers", "2"]) == 1
    captured = capsys.readouterr()
    assert "4 photos, 3 written, 0 skipped as done, 3 faces blurred, 1 failures" in captured.out
    assert "none.jpg: " in captured.err
    assert files_below(tmp_path / "val" / "images_G2_M80") == LABELS.keys() - {"e1/none.jpg"}


def test_options_reach_the_blur_and_the_file(tmp_path: Path) -> None:
    name, rows = "e1/two faces.jpg", LABELS["e1/two faces.jpg"]
    make_tree(tmp_path / "data", labels={name: rows})
    options = ["--exact", "--kernel-factor", 1.5, "--jpeg-quality", 95]
    data, output = tmp_path / "data", tmp_path / "out"
    done = gaussblur_run("--data", data, "--output", output, "--workers", 3, *options)
    assert done.returncode == 0, done.stderr
    pixels = read_photo(data / "val" / "images" / name).pixels
    expected = jpeg_coded(gaussian_blur(pixels, boxes_of(rows), 1.5, exact=True), 95)
    copy = read_photo(output / "val" / "images_G2_M80" / name)
    np.testing.assert_array_equal(copy.pixels, expected)


def job(root: Path, name: str, boxes: list[list[float]]) -> gaussblur.Job:
    return gaussblur.Job(
        root / "images",
        root / "copies",
        name,
        np.array(boxes).reshape(-1, 4),
        gaussblur.Settings(kernel_factor=0.5, jpeg_quality=80, exact=False, overwrite=False),
    )


def test_orientation_and_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # the photo is to be shown turned: 180 wide, 200 high
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "images").mkdir()
    Image.fromarray(photo(0)).save(tmp_path / "images" / "a.jpg", exif=exif, icc_profile=profile)
    outcome = gaussblur.blur_photo(job(tmp_path, "a.jpg", [[20, 185, 60, 199]]))
    assert outcome == gaussblur.Outcome(faces=1)
    copy = read_photo(tmp_path / "copies" / "a.jpg")
    assert copy.pixels.shape == (200, 180, 3)
    assert copy.icc_profile == profile
    with Image.open(tmp_path / "copies" / "a.jpg") as image:
        assert not image.getexif()


def test_a_copy_that_would_not_be_a_jpeg_is_refused(tmp_path: Path) -> None:
    write_photo(tmp_path / "images" / "a.png", photo(0))
    outcome = gaussblur.blur_photo(job(tmp_path, "a.png", []))
    assert outcome.error is not None
    assert "a.png: not named .jpg" in outcome.error
    assert not (tmp_path / "copies").exists()


def test_links_out_of_the_folders_are_refused(tmp_path: Path) -> None:
    write_photo(tmp_path / "elsewhere" / "a.jpg", photo(0))
    write_photo(tmp_path / "images" / "into" / "a.jpg", photo(0))
    (tmp_path / "copies").mkdir()
    try:
        (tmp_path / "images" / "from").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "copies" / "into").symlink_to(
            tmp_path / "images" / "into", target_is_directory=True
        )
    except OSError:
        pytest.skip("this system does not let us make symbolic links")
    original = (tmp_path / "images" / "into" / "a.jpg").read_bytes()
    for name in ("from/a.jpg", "into/a.jpg"):
        outcome = gaussblur.blur_photo(job(tmp_path, name, []))
        assert outcome.error is not None
        assert "leads out" in outcome.error
    assert (tmp_path / "images" / "into" / "a.jpg").read_bytes() == original


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run in this process what must end before any photo is touched; returns its one line."""
    assert gaussblur.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("gaussblur.py: error: ")
    return line


def test_missing_data_says_what_to_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "--data", tmp_path)
    assert "download WIDER FACE" in line
    assert "prepare_widerface.py" in line
    (tmp_path / "val" / "images").mkdir(parents=True)
    assert "no labels for 'val'" in refusal(capsys, "--data", tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "label.txt").write_text("# a.jpg\n")
    line = refusal(capsys, "--data", tmp_path, "--splits", "train")
    assert f"{tmp_path / 'train' / 'images'} does not exist; download" in line


def test_a_malformed_label_file_stops_the_run_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree(tmp_path, "train", {"a.jpg": ["1 2 30 40"]})
    labels = make_tree(tmp_path, "val", {"a.jpg": ["1 2 30 40", "1 2 3"]}) / "val" / "label.txt"
    assert f"{labels}:3: expected 4 or 20 numbers" in refusal(capsys, "--data", tmp_path)
    assert not list(tmp_path.rglob("images_G2_M80"))


def test_the_originals_cannot_be_the_output(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_tree(tmp_path)
    before = files_below(tmp_path)
    inside = tmp_path / "val" / "images" / "e1"
    assert "among the originals" in refusal(capsys, "--data", tmp_path, "--output", inside)
    config = {"blur": {"kernel_factor": 0.5, "jpeg_quality": 80, "folder": "images"}}
    monkeypatch.setattr(gaussblur, "load_config", lambda: config)
    assert "among the originals" in refusal(capsys, "--data", tmp_path)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workers", "0"],
        ["--workers", "two"],
        ["--jpeg-quality", "101"],
        ["--kernel-factor", "0"],
        ["--kernel-factor", "nan"],
        ["--splits", "test"],
    ],
)
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gaussblur.main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(os.name != "posix", reason="sends the signal that a terminal sends on POSIX")
def test_ctrl_c_ends_the_run_without_a_mess(tmp_path: Path) -> None:
    labels = {f"{number}.jpg": ["0 0 200 180"] for number in range(1500)}
    make_tree(tmp_path, labels={"original.jpg": []})
    images, output = tmp_path / "val" / "images", tmp_path / "val" / "images_G2_M80"
    for name in labels:
        os.link(images / "original.jpg", images / name)
    lines = [line for name, rows in labels.items() for line in (f"# {name}", *rows)]
    (tmp_path / "val" / "label.txt").write_text("\n".join(lines))
    process = subprocess.Popen(
        command("--data", tmp_path, "--workers", 2),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Ctrl-C reaches every process of the group; the moment is when the first copy is there.
    while process.poll() is None and not any(output.glob("*.jpg")):
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "gaussblur.py: interrupted; start it again to go on"
    assert "Traceback" not in stderr
    assert stdout == ""
    written = files_below(output)
    assert 0 < len(written) < len(labels)
    assert written <= labels.keys()  # and no temporary file among them
    for name in written:
        assert read_photo(output / name).pixels.shape == (180, 200, 3)
