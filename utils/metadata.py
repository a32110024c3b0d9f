"""Metadata that a copy may keep: EXIF, XMP and ICC, cleaned of every picture.

Thumbnails and previews show the face that was hidden, and maker notes hold more of them in forms
that nobody documents. So EXIF is rebuilt from a list of tags that are known to be harmless, and
whatever in EXIF or XMP is long or looks like a coded picture is left out.
"""

from __future__ import annotations

import re
import struct
from typing import Any
from xml.dom import minidom

EXIF_HEADER = b"Exif\0\0"
ORIENTATION = 0x0112

_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_WIDTH, _HEIGHT = 0xA002, 0xA003
_LONG = 4
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 129: 1}

# What the standard (EXIF 3.0) says about camera, exposure, time, authors and place. Not there:
# what describes the file (strips, sampling, colour coding), regions in its pixels, maker notes,
# and all blobs.
_KEPT_MAIN = frozenset(
    {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C}
    | {0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0)}
)
_KEPT_EXIF = frozenset(
    {0x829A, 0x829D, 0x8822, 0x8824, 0x8827, *range(0x8830, 0x8836)}
    | {0x9000, 0x9003, 0x9004, *range(0x9010, 0x9013), *range(0x9201, 0x920B), 0x9286}
    | {*range(0x9290, 0x9293), *range(0x9400, 0x9406)}
    | {0xA000, 0xA001, _WIDTH, _HEIGHT, 0xA20B, 0xA20E, 0xA20F, 0xA210, 0xA215, 0xA217}
    | {0xA300, 0xA301, *range(0xA401, 0xA40B), 0xA40C, 0xA420, *range(0xA430, 0xA440)}
    | {0xA460, 0xA461, 0xA500}
)
_KEPT_GPS = frozenset(range(0x20))
_KEPT_INTEROP = frozenset([1, 2])

_MAX_VALUE = 4096  # bytes of one EXIF value
_MAX_BINARY = 128  # of one that is no text
_MAX_BLOCK = 60_000  # bytes of all EXIF or XMP; a JPEG segment holds 65,533

# JPEG, PNG, WebP, GIF and TIFF as they are, in hexadecimal digits and in base64.
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|GIF8[79]a|II\*\0|MM\0\*"
    rb"|(?i:ffd8ff[0-9a-f]|89504e47)|/9j/|iVBORw0K|UklGR|R0lGOD[dl]",
    re.DOTALL,
)


class MetadataError(ValueError):
    """Metadata cannot be understood; a copy goes without it."""


def orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that an EXIF block gives; 1 where it gives none."""
    try:
        order, first = _header(exif)
        kind, value = _entries(exif, first, order)[ORIENTATION]
        number = int(struct.unpack_from(order + "H", value)[0]) if kind == 3 else 1
    except (MetadataError, KeyError, struct.error):
        return 1
    return number if 1 <= number <= 8 else 1


def clean_exif(exif: bytes, width: int, height: int) -> bytes:
    """Rebuild an EXIF block for an upright copy of `width` x `height` px.

    `exif`: a TIFF structure, be it a whole TIFF file, with or without `EXIF_HEADER`. The result
    has none. It holds the listed tags of the main, EXIF, GPS and interoperability directories,
    values as they were; no second directory (the thumbnail), no maker note, no value above 4 KiB,
    or above 128 bytes and not text, or with a picture in it. Orientation is 1. Raises
    `MetadataError` where it is broken.
    """
    if exif.startswith(EXIF_HEADER):
        exif = exif[len(EXIF_HEADER) :]
    order, first = _header(exif)
    main = _entries(exif, first, order)
    details = _directory(exif, main.get(_EXIF_IFD), order)
    places = _directory(exif, main.get(_GPS_IFD), order)
    interop = _directory(exif, details.get(_INTEROP_IFD), order)

    kept = [
        {tag: entry for tag, entry in entries.items() if tag in known and _is_harmless(entry[1])}
        for entries, known in (
            (main, _KEPT_MAIN),
            (details, _KEPT_EXIF),
            (places, _KEPT_GPS),
            (interop, _KEPT_INTEROP),
        )
    ]
    kept[0][ORIENTATION] = (3, struct.pack(order + "H", 1))
    for tag, side in ((_WIDTH, width), (_HEIGHT, height)):
        if tag in kept[1]:
            kept[1][tag] = (_LONG, struct.pack(order + "I", side))
    block = _assembled(kept, order)
    if len(block) > _MAX_BLOCK:
        raise MetadataError("EXIF too large")
    return block


def _header(exif: bytes) -> tuple[str, int]:
    """Return the byte order as `struct` writes it, and the offset of the first directory."""
    exif = exif[:8]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        raise MetadataError("not EXIF")
    return order, struct.unpack_from(order + "I", exif, 4)[0]


Entry = tuple[int, bytes]  # type, value


def _entries(exif: bytes, offset: int, order: str) -> dict[int, Entry]:
    """Read one directory. Entries that reach over the end or have no known type are left out."""
    try:
        (count,) = struct.unpack_from(order + "H", exif, offset)
        rows = [
            struct.unpack_from(order + "HHI4s", exif, offset + 2 + 12 * row) for row in range(count)
        ]
    except struct.error:
        raise MetadataError("EXIF directory cut off") from None
    entries = {}
    for tag, kind, number, short in rows:
        length = _TYPE_SIZES.get(kind, 0) * number
        if not length:
            continue
        start = struct.unpack(order + "I", short)[0]
        value = short[:length] if length <= 4 else exif[start : start + length]
        if len(value) == length:
            entries[tag] = (kind, value)
    return entries


def _directory(exif: bytes, pointer: Entry | None, order: str) -> dict[int, Entry]:
    if pointer is None or pointer[0] not in (_LONG, 13):
        return {}
    try:
        return _entries(exif, struct.unpack_from(order + "I", pointer[1])[0], order)
    except MetadataError:  # programs that do not know the directory leave its old place behind
        return {}


def _is_harmless(value: bytes) -> bool:
    """Let pass what is short or text: a pointer that is broken may lead into a preview."""
    if _PICTURE.search(value) or len(value) > _MAX_VALUE:
        return False
    if len(value) <= _MAX_BINARY:
        return True
    # The first eight bytes of a comment name its character set.
    return any(
        _is_text(part, coding)
        for part in (value, value[8:])
        for coding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")
    )


def _is_text(value: bytes, coding: str) -> bool:
    try:
        text = value.decode(coding).rstrip("\0")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)


def _assembled(directories: list[dict[int, Entry]], order: str) -> bytes:
    """Write main, EXIF, GPS and interoperability directory, linked where they are not empty."""
    main, details, places, interop = directories
    links = ((details, _INTEROP_IFD, interop), (main, _EXIF_IFD, details), (main, _GPS_IFD, places))
    for parent, tag, child in links:
        if child:
            parent[tag] = (_LONG, bytes(4))  # takes its place, so that lengths are known
    starts, end = [], 8
    for entries in directories:
        starts.append(end)
        end += len(_directory_bytes(entries, end, order)) if entries else 0
    for parent, tag, child in links:
        if child:
            start = starts[[child is each for each in directories].index(True)]
            parent[tag] = (_LONG, struct.pack(order + "I", start))
    header = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return header + b"".join(
        _directory_bytes(entries, start, order)
        for entries, start in zip(directories, starts, strict=True)
        if entries
    )


def _directory_bytes(entries: dict[int, Entry], start: int, order: str) -> bytes:
    rows, values = [], b""
    for tag, (kind, value) in sorted(entries.items()):
        place = value.ljust(4, b"\0")
        if len(value) > 4:
            place = struct.pack(order + "I", start + 6 + 12 * len(entries) + len(values))
            values += value + b"\0" * (len(value) % 2)
        rows.append(struct.pack(order + "HHI", tag, kind, len(value) // _TYPE_SIZES[kind]) + place)
    return struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4) + values


# Namespaces of pictures, films and sound kept in XMP, or that point at ones behind the photo:
# Google's camera and depth formats, extended XMP, gain maps, Apple's and Adobe's previews.
_PICTURE_SPACES = re.compile(
    r"/xap/1\.0/g/img/|/xmp/note/|ns\.google\.com/photos|/hdr-gain-map/|ns\.apple\.com/"
)
_PICTURE_NAMES = frozenset(["Thumbnails", "DocumentAncestors"])
# They describe the original's pixels; the copy is upright.
_GEOMETRY = frozenset(["tiff:ImageWidth", "tiff:ImageLength", "exif:PixelXDimension"])
_GEOMETRY |= frozenset(["exif:PixelYDimension"])


def clean_xmp(xmp: bytes) -> bytes:
    """Return an XMP packet without pictures, its orientation 1. Raises `MetadataError`.

    Taken out are thumbnails, the namespaces that hold pictures, every value that looks like a
    coded picture or another blob, comments, and the width and height.
    """
    try:
        text = xmp.decode("utf-8").strip("\0 \r\n\t\ufeff")
    except UnicodeDecodeError:
        raise MetadataError("XMP is not UTF-8") from None
    # Entities can make little text large; nothing else needs a DOCTYPE here.
    if len(xmp) > _MAX_BLOCK or "<!DOCTYPE" in text:
        raise MetadataError("XMP too large, or with a DOCTYPE")
    try:
        document = minidom.parseString(text.encode("utf-8"))
        _clean_node(document)
        cleaned = "".join(node.toxml() for node in document.childNodes).encode("utf-8")
    except Exception as error:  # expat, minidom: many types, and too deep a tree
        raise MetadataError(f"XMP cannot be read ({error})") from None
    if _PICTURE.search(cleaned):  # split over several values
        raise MetadataError("a picture in the XMP")
    return cleaned


def _clean_node(node: Any) -> None:  # the stubs of minidom know no common parent
    for child in list(node.childNodes):
        if child.nodeType == child.ELEMENT_NODE:
            if _is_picture(child.namespaceURI, child.localName) or child.nodeName in _GEOMETRY:
                node.removeChild(child)
                continue
            for attribute in list(child.attributes.values()):
                name = attribute.name
                if name.startswith("xmlns"):
                    continue
                if name == "tiff:Orientation":
                    attribute.value = "1"
                elif (
                    name in _GEOMETRY
                    or _is_picture(attribute.namespaceURI, attribute.localName)
                    or _is_blob(attribute.value)
                ):
                    child.removeAttributeNode(attribute)
            if child.nodeName == "tiff:Orientation":
                for value in list(child.childNodes):
                    child.removeChild(value)
                one = minidom.Text()
                one.data = "1"
                child.appendChild(one)
            _clean_node(child)
        elif child.nodeType in (child.TEXT_NODE, child.CDATA_SECTION_NODE):
            if _is_blob(child.data):
                node.removeChild(child)
        elif child.nodeType != child.PROCESSING_INSTRUCTION_NODE or child.target != "xpacket":
            node.removeChild(child)


def _is_picture(space: str | None, name: str) -> bool:
    return name in _PICTURE_NAMES or bool(_PICTURE_SPACES.search(space or ""))


def _is_blob(text: str) -> bool:
    """Tell coded data from text: by its beginning, or by its long words without a space."""
    words = text.split()
    if _PICTURE.search("".join(words).encode("utf-8")):
        return True
    longest = max(map(len, words), default=0)
    return longest >= 256 or (len(text) > 512 and sum(map(len, words)) > 40 * len(words))


def usable_profile(profile: bytes | None, channels: str) -> bytes | None:
    """Return an ICC profile for the colour space `channels` ("RGB", "GRAY"), or None.

    A profile for other channels would be wrong on the copy, a broken one is of no use, and what
    follows the length that it states is not part of it.
    """
    if profile is None or len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    length = int.from_bytes(profile[:4], "big")
    is_whole = 132 <= length <= len(profile)
    return profile[:length] if is_whole and profile[16:20] == channels.ljust(4).encode() else None
