"""Photos as cameras and editors leave them, with the face in many other places than the pixels."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin

from tests import photo_kinds as kinds
from tests.photo_folders import picture

MAKER, OWNER = "Secret Camera Maker", "Jo Miller"
TEXT, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7


@cache
def thumbnail() -> bytes:
    """The unblurred photo, small, as a JPEG."""
    return kinds.coded("JPEG", picture(0)[::2, ::2], quality=60)


@cache
def small_thumbnail() -> bytes:
    """One that is below the size of any EXIF value that is kept."""
    data = kinds.coded("JPEG", np.asarray(Image.fromarray(picture(0)).resize((40, 32))), quality=20)
    assert len(data) < 2000
    return data


def directory(
    entries: Mapping[int, tuple[int, bytes]], start: int, following: int = 0, order: str = "<"
) -> bytes:
    sizes = {TEXT: 1, SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}
    rows, values = b"", b""
    for tag, (kind, value) in sorted(entries.items()):
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = struct.pack(order + "I", start + 6 + 12 * len(entries) + len(values))
            values += value
        rows += struct.pack(order + "HHI", tag, kind, len(value) // sizes[kind]) + place
    count, link = struct.pack(order + "H", len(entries)), struct.pack(order + "I", following)
    return count + rows + link + values


def exif(order: str = "<", orientation: int = 6) -> bytes:
    """EXIF with all its directories, a thumbnail in the second, previews in notes and comments."""

    def number(value: int) -> tuple[int, bytes]:
        return LONG, struct.pack(order + "I", value)

    def fractions(*values: int) -> tuple[int, bytes]:
        return RATIONAL, struct.pack(f"{order}{len(values)}I", *values)

    main = {
        0x010E: (TEXT, b"\xff\xd8\xff\xe0" + small_thumbnail()[4:]),  # no description
        0x010F: (TEXT, MAKER.encode() + b"\0"),
        0x0112: (SHORT, struct.pack(order + "H", orientation)),
        0x013B: (TEXT, OWNER.encode() + b"\0"),
        0x8649: (UNDEFINED, photoshop_resources()),
        0xC4A5: (UNDEFINED, b"PrintIM" + small_thumbnail()),
    }
    details = {
        0x829A: fractions(1, 250),
        0x9003: (TEXT, b"2024:05:06 07:08:09\0"),
        0x927C: (UNDEFINED, b"Nikon\0" + thumbnail()),
        0x9286: (UNDEFINED, b"ASCII\0\0\0" + base64.b64encode(small_thumbnail())),
        0xA002: number(120),
        0xA003: number(100),
        0xA40B: (UNDEFINED, small_thumbnail()),
        0xFDE8: (TEXT, b"a private tag\0"),
    }
    places = {1: (TEXT, b"N\0"), 2: fractions(52, 1, 31, 1, 12, 1)}
    interop = {1: (TEXT, b"R98\0")}
    preview = {0x0201: number(0), 0x0202: number(len(thumbnail())), 0x0103: number(6)}

    for parent, tag in ((main, 0x8769), (main, 0x8825), (details, 0xA005)):
        parent[tag] = number(0)
    directories = [main, details, places, interop, preview]
    starts = [8]
    for entries in directories:
        starts.append(starts[-1] + len(directory(entries, 0)))
    main |= {0x8769: number(starts[1]), 0x8825: number(starts[2])}
    details[0xA005] = number(starts[3])
    preview[0x0201] = number(starts[5])
    block = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for index, entries in enumerate(directories):
        block += directory(entries, starts[index], starts[4] if index == 0 else 0, order)
    return block + thumbnail()


def xmp() -> bytes:
    """XMP with thumbnails in the ways of Adobe and Google, and with harmless properties."""
    picture64 = base64.b64encode(thumbnail()).decode()
    lines = "&#xA;".join(picture64[start : start + 76] for start in range(0, len(picture64), 76))
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/"
 xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmlns:own="http://example.com/own/"
 xmlns:GImage="http://ns.google.com/photos/1.0/image/">
<rdf:Description rdf:about="" tiff:Orientation="6" tiff:ImageWidth="120" xmp:Rating="4"
 xmpNote:HasExtendedXMP="0123456789ABCDEF" GImage:Data="{picture64}" own:Preview="{picture64}">
<dc:creator><rdf:Seq><rdf:li>{OWNER}</rdf:li></rdf:Seq></dc:creator>
<dc:description>A portrait, taken by the sea.</dc:description>
<xmp:Thumbnails><rdf:Alt><rdf:li rdf:parseType="Resource">
<xmpGImg:format>JPEG</xmpGImg:format><xmpGImg:image>{lines}</xmpGImg:image>
</rdf:li></rdf:Alt></xmp:Thumbnails>
<own:raw>{thumbnail().hex()}</own:raw><own:tail>{picture64[200:]}</own:tail>
<!-- {picture64} --></rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def photoshop_resources() -> bytes:
    """An image resource block with a thumbnail (number 1036)."""
    head = struct.pack(">IIIIIIHH", 1, 60, 50, 180, 9000, len(thumbnail()), 24, 1)
    content = head + thumbnail()
    return b"8BIM" + struct.pack(">HHI", 1036, 0, len(content)) + content


def jpeg() -> bytes:
    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    base = kinds.coded("JPEG", quality=95, subsampling=0)
    profile = kinds.p3_profile()
    segments = [
        segment(0xE0, b"JFXX\0\x10" + thumbnail()),
        segment(0xE1, b"Exif\0\0" + exif()),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp()),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + thumbnail()),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + profile),
        segment(0xED, b"Photoshop 3.0\0" + photoshop_resources()),
        segment(0xEF, thumbnail()),
        segment(0xFE, thumbnail()),
    ]
    jfif_end = 4 + struct.unpack_from(">H", base, 4)[0]
    return base[:jfif_end] + b"".join(segments) + base[jfif_end:] + thumbnail()


def phone_jpeg() -> bytes:
    """Two pictures in one file, as MPO."""
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture(seed)) for seed in (0, 0)]
    first, second = frames
    first.save(buffer, "MPO", save_all=True, append_images=[second], exif=b"Exif\0\0" + exif())
    return buffer.getvalue()


def png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp().decode())
    info.add_text("Raw profile type APP1", "\nexif\n9\n" + thumbnail().hex(), zip=True)
    info.add_text("Thumb::Image", base64.b64encode(thumbnail()).decode())
    info.add(b"prVW", thumbnail())
    profile = kinds.p3_profile()
    return kinds.coded("PNG", pnginfo=info, exif=exif(">"), icc_profile=profile) + thumbnail()


def webp() -> bytes:
    profile = kinds.p3_profile()
    return kinds.coded("WEBP", lossless=True, exif=exif(), xmp=xmp(), icc_profile=profile)


def tiff() -> bytes:
    """With a preview in a directory below the photo's, Photoshop's blocks, and EXIF."""
    tags = Image.Exif()
    tags.load(exif())
    for tag in (0x010E, 0x8649, 0xC4A5):
        del tags[tag]
    tags[700] = xmp()
    tags[34377] = photoshop_resources()
    tags[37724] = b"Adobe Photoshop Document Data Block\0" + thumbnail()
    tags[330] = 0x7A7B7C7D
    data = kinds.coded("TIFF", exif=tags, icc_profile=kinds.p3_profile())
    place = struct.pack("<I", 0x7A7B7C7D)
    assert data.count(place) == 1
    preview = {0x0201: (LONG, bytes(4)), 0x0202: (LONG, struct.pack("<I", len(thumbnail())))}
    start = len(data)
    preview[0x0201] = (LONG, struct.pack("<I", start + len(directory(preview, start))))
    data = data.replace(place, struct.pack("<I", start))
    return data + directory(preview, start) + thumbnail()


CAMERA_FILES = {
    "camera.jpg": jpeg,
    "phone.jpg": phone_jpeg,
    "editor.png": png,
    "editor.webp": webp,
    "scanner.tif": tiff,
}


def assert_no_picture_but_the_photo(data: bytes, piece: int = 40) -> None:
    """Look for pieces of the thumbnails, plain and coded, and for all that decodes as a JPEG."""
    for small in (thumbnail(), small_thumbnail()):
        scan = small[small.index(b"\xff\xda") :]  # what is before it, others have as well
        forms = (scan, small.hex().encode(), base64.b64encode(small))
        for form in forms:
            for start in range(0, len(form) - piece, piece):
                part = form[start : start + piece]
                assert len(set(part)) == 1 or part not in data, part
    start = data.find(b"\xff\xd8\xff", 1)
    while start > 0:
        try:
            Image.open(io.BytesIO(data[start:]), formats=["JPEG"]).load()
        except OSError:
            start = data.find(b"\xff\xd8\xff", start + 1)
        else:
            raise AssertionError(f"a JPEG at byte {start}")


def unpacked(data: bytes) -> bytes:
    """A file with what its text chunks, if it is a PNG, hold compressed."""
    found, position = data, 8
    while data.startswith(b"\x89PNG") and position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name in (b"zTXt", b"iTXt"):
            chunk = data[position + 8 : position + 8 + length]
            for start in [i for i in range(len(chunk)) if chunk[i] == 0x78]:
                try:
                    found += zlib.decompress(chunk[start:])
                except zlib.error:
                    continue
        position += 12 + length
    return found
