"""From public packages to the atlases and names that are shipped: needed to rebuild the organism, not to use it.

========================  ==================================  ==========================
what                      where from                          licence
========================  ==================================  ==========================
drawings of the objects   npm ``openmoji``                    CC BY-SA 4.0
names in ten languages    npm ``cldr-annotations-full``       Unicode License v3
type for the words        Debian ``fonts-noto-core``, -cjk    SIL Open Font License 1.1
========================  ==================================  ==========================

The npm packages are pinned and checked against their SHA-512. Drawings are rasterised with ``resvg-py``; words
are typeset with Pillow's Raqm layout (it joins Arabic and stacks Bengali and Thai; it needs ``libfribidi0``).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import logging
import subprocess
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from ..core.errors import InputError
from .lexicon import LANGUAGES, OBJECTS, OVERRIDES
from .pictures import COLUMNS, SPRITE, WORD, tile

log = logging.getLogger(__name__)

PACKAGES = {
    "openmoji@17.0.0": "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
    "cldr-annotations-full@48.2.0": "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
}
FONTS = {
    "ar": "NotoSansArabic",
    "bn": "NotoSansBengali",
    "th": "NotoSansThai",
    "zh": "NotoSansCJK",
    "ko": "NotoSansCJK",
}
CJK_FACE = {"ko": 1, "zh": 2}  # faces inside NotoSansCJK-Regular.ttc
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")


def fetch(folder: Path) -> Path:
    """Put the pinned npm packages into ``folder`` (``npm pack``), check their hashes and return it.

    Raises InputError when a package cannot be had or is not the one that was pinned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package, digest in PACKAGES.items():
        archive = folder / (package.replace("@", "-") + ".tgz")
        if not archive.exists():
            log.info("fetching %s", package)
            _pack(package, folder)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != digest:
            raise InputError(
                f"{archive}: not the pinned {package} (SHA-512 {found[:16]}..., not {digest[:16]}...); remove it"
            )
    return folder


def _pack(package: str, folder: Path) -> None:
    command = ["npm", "pack", "--silent", package]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        raise InputError("organism build: npm is missing; install Node.js, or pass --sources") from None
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise InputError(f"organism build: {' '.join(command)} failed ({why[0]})") from None


def licences(folder: Path) -> str:
    """The notices that must go with the sprites and the names."""
    with tarfile.open(_archive(folder, "cldr")) as tar:
        member = tar.extractfile("package/LICENSE")
        assert member is not None
        unicode_licence = member.read().decode()
    return f"""# Licences of what the organism is made of

- **objects.png** is composed of drawings by OpenMoji, the open-source emoji and icon project (openmoji.org),
  version 17.0.0, scaled to {SPRITE} pixels. Licence: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/);
  the atlas is under the same licence.
- **words.png** shows words set in Noto Sans and Noto Sans CJK, (c) The Noto Project Authors, under the SIL Open Font
  License 1.1. No font is included.
- **names.json** has short names from the Unicode CLDR annotations 48.2.0, some replaced by us, under the
  Unicode License v3, which follows.

{unicode_licence}"""


def _archive(folder: Path, name: str) -> Path:
    package = next(p for p in PACKAGES if p.startswith(name))
    return folder / (package.replace("@", "-") + ".tgz")


def make_names(folder: Path) -> dict[str, dict[str, str]]:
    """Each object's name in each language: CLDR's, or the lexicon's override."""
    found: dict[str, dict[str, str]] = {obj: {} for obj in OBJECTS}
    with tarfile.open(_archive(folder, "cldr")) as tar:
        for language in LANGUAGES:
            member = tar.extractfile(f"package/annotations/{language}/annotations.json")
            assert member is not None
            annotations = json.load(member)["annotations"]["annotations"]
            for obj in OBJECTS:
                name = OVERRIDES.get(obj, {}).get(language) or annotations[obj]["tts"][0]
                found[obj][language] = name.replace("’", "'")
    return found


def make_objects(folder: Path) -> Image.Image:
    """The atlas of drawings, RGBA."""
    try:
        import resvg_py  # a build-time need only
    except ModuleNotFoundError:
        raise InputError("organism build: resvg-py is missing; pip install resvg-py") from None

    atlas = Image.new("RGBA", (COLUMNS * SPRITE, -(-len(OBJECTS) // COLUMNS) * SPRITE))
    with tarfile.open(_archive(folder, "openmoji")) as tar:
        for index, obj in enumerate(OBJECTS):
            member = tar.extractfile(f"package/color/svg/{ord(obj):04X}.svg")
            assert member is not None
            png = bytes(resvg_py.svg_to_bytes(svg_string=member.read().decode(), width=4 * SPRITE, height=4 * SPRITE))
            drawing = Image.open(io.BytesIO(png)).convert("RGBA")
            drawing = _fit(drawing.crop(drawing.getbbox()), (SPRITE, SPRITE))
            atlas.paste(drawing, tile(index, SPRITE, SPRITE)[:2])
    return atlas


def _fit(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    scale = min(box[0] / image.width, box[1] / image.height)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, box)
    canvas.paste(small, ((box[0] - small.width) // 2, (box[1] - small.height) // 2))
    return canvas


@functools.cache
def _font(language: str) -> ImageFont.FreeTypeFont:
    name = FONTS.get(language, "NotoSans") + "-Regular"
    for root in FONT_FOLDERS:
        for path in sorted(Path(root).rglob(f"{name}.tt[fc]")):
            return ImageFont.truetype(path, 64, index=CJK_FACE.get(language, 0))
    raise InputError(f"no font {name}: install the Debian packages fonts-noto-core and fonts-noto-cjk")


def make_words(names: dict[str, dict[str, str]]) -> Image.Image:
    """The atlas of typeset names, L (255 is ink), in sixteen levels so that it packs well."""
    if not features.check("raqm"):
        raise InputError("Pillow has no Raqm layout here: install the Debian package libfribidi0")
    count = len(OBJECTS) * len(LANGUAGES)
    atlas = Image.new("L", (COLUMNS * WORD[0], -(-count // COLUMNS) * WORD[1]))
    for i, obj in enumerate(OBJECTS):
        for j, language in enumerate(LANGUAGES):
            word = _typeset(names[obj][language], language)
            atlas.paste(word, tile(i * len(LANGUAGES) + j, *WORD)[:2])
    return atlas.point([round(v / 17) * 17 for v in range(256)])


def _typeset(text: str, language: str) -> Image.Image:
    """The words as large as the tile allows, on the number of lines that allows the largest."""
    words = text.split()
    layouts = [text, "\n".join(words)] if 1 < len(words) < 4 else [text]
    best = max(
        (_ink(layout, language) for layout in layouts), key=lambda im: min(WORD[0] / im.width, WORD[1] / im.height)
    )
    scale = min(WORD[0] / best.width, WORD[1] / best.height, 0.5)
    small = best.resize(
        (max(1, round(best.width * scale)), max(1, round(best.height * scale))), Image.Resampling.LANCZOS
    )
    canvas = Image.new("L", WORD)
    canvas.paste(small, ((WORD[0] - small.width) // 2, (WORD[1] - small.height) // 2))
    return canvas


def _ink(text: str, language: str) -> Image.Image:
    canvas = Image.new("L", (1600, 400))
    ImageDraw.Draw(canvas).multiline_text((60, 60), text, font=_font(language), fill=255, align="center")
    return canvas.crop(canvas.getbbox())


def make_assets(folder: Path, out: Path) -> dict[str, dict[str, str]]:
    """Write ``names.json``, ``objects.png`` and ``words.png`` into ``out``; returns the names."""
    found = make_names(folder)
    (out / "names.json").write_text(
        json.dumps({"languages": list(LANGUAGES), "objects": found}, ensure_ascii=False, indent=0), encoding="utf-8"
    )
    make_objects(folder).save(out / "objects.png", optimize=True)
    make_words(found).save(out / "words.png", optimize=True, bits=4)
    return found
